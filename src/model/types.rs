//! What a table looks like: its columns, and the types that rowmill writes. Nothing here asks a server.

use std::fmt;

/// A target table as the catalog described it at the time of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `"schema"."table"`, safe to paste into SQL.
    pub sql_name: String,
    /// Live columns by attribute number.
    pub columns: Vec<Column>,
    /// The names of the primary key's columns, in its order; none where there is no primary key.
    pub primary_key: Vec<String>,
    /// What the catalog said of its definition in short, in the same statement snapshot as the columns or a later one.
    pub fingerprint: String,
    pub kind: Kind,
    /// By which column it is partitioned in ranges, if by one alone.
    pub ranged_by: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ordinary,
    Partitioned,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub attnum: i16,
    pub ty: Type,
    /// The column's own NOT NULL or its domain's.
    pub not_null: bool,
    pub has_default: bool,
    /// The server refuses (generated) or should not be given (identity always) a value.
    pub generated_or_identity_always: bool,
    /// Identity, generated or serial: left out of the COPY unless a model names the column.
    pub fills_itself: bool,
}

impl Table {
    /// What is different in a later reading, for people.
    pub fn changes_to(&self, new: &Table) -> Vec<String> {
        let find = |table: &'_ Table, name: &str| table.columns.iter().find(|c| c.name == name).cloned();
        let mut changes = Vec::new();
        if self.oid != new.oid {
            changes.push("the name belongs to another table now; rows go there".to_owned());
        }
        for column in self.columns.iter().filter(|c| find(new, &c.name).is_none()) {
            changes.push(format!("{} is no longer a column: a field of that name is ignored", column.name));
        }
        for column in &new.columns {
            match find(self, &column.name) {
                None => changes.push(format!("{} is a new column, {column}", column.name)),
                Some(old) if old.to_string() != column.to_string() => {
                    changes.push(format!("{} is {column} now, and was {old}", column.name));
                }
                Some(_) => {}
            }
        }
        changes
    }
}

impl fmt::Display for Column {
    /// `integer NOT NULL with a default`, without its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ty)?;
        f.write_str(if self.not_null { " NOT NULL" } else { "" })?;
        f.write_str(if self.has_default { " with a default" } else { "" })
    }
}

/// The types rowmill writes. Domains appear as what they are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// `None` where the column is a plain `numeric`.
    Numeric(Option<NumericLimit>),
    Text,
    /// Length in characters.
    Varchar(Option<u32>),
    Char(Option<u32>),
    Timestamptz,
    Timestamp,
    Date,
    Time,
    Uuid,
    Json,
    Jsonb,
    Bytea,
    Inet,
    Enum {
        name: String,
        labels: Vec<String>,
    },
    Array {
        element: Box<Type>,
        /// The server compares it with the array's own (for a domain or enum: the domain's or enum's).
        element_oid: u32,
    },
    /// The type's name as the server prints it.
    Unsupported(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumericLimit {
    pub precision: u16,
    /// May be negative, and larger than the precision, since PostgreSQL 15.
    pub scale: i16,
}

impl Type {
    /// Text of any kind, where a JSON string is stored as it is.
    pub fn is_text(&self) -> bool {
        matches!(self, Type::Text | Type::Varchar(_) | Type::Char(_))
    }

    /// The innermost element's type of an array, or the type itself.
    pub fn scalar(&self) -> &Type {
        match self {
            Type::Array { element, .. } => element.scalar(),
            other => other,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Type::Bool => "boolean",
            Type::Int2 => "smallint",
            Type::Int4 => "integer",
            Type::Int8 => "bigint",
            Type::Float4 => "real",
            Type::Float8 => "double precision",
            Type::Numeric(None) => "numeric",
            Type::Numeric(Some(limit)) => return write!(f, "numeric({},{})", limit.precision, limit.scale),
            Type::Text => "text",
            Type::Varchar(None) => "varchar",
            Type::Varchar(Some(n)) => return write!(f, "varchar({n})"),
            Type::Char(None) => "bpchar",
            Type::Char(Some(n)) => return write!(f, "char({n})"),
            Type::Timestamptz => "timestamptz",
            Type::Timestamp => "timestamp",
            Type::Date => "date",
            Type::Time => "time",
            Type::Uuid => "uuid",
            Type::Json => "json",
            Type::Jsonb => "jsonb",
            Type::Bytea => "bytea",
            Type::Inet => "inet",
            Type::Enum { name, .. } | Type::Unsupported(name) => name,
            Type::Array { element, .. } => return write!(f, "{element}[]"),
        };
        f.write_str(name)
    }
}

/// An identifier as SQL wants it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// How a JSON string stands for the bytes of a bytea.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// PostgreSQL's own `\x0aff`. The prefix is required: `"cafe"` alone could be meant as text.
    #[default]
    #[serde(skip)]
    Postgres,
    /// Pairs of hexadecimal digits, with or without the `\x`.
    Hex,
    /// RFC 4648, standard alphabet, with or without padding.
    Base64,
    /// The string's own UTF-8 bytes.
    Utf8,
}

/// What a number in a time field counts since 1970, or since midnight for a time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub enum Unit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Millis,
    #[serde(rename = "us")]
    Micros,
    #[serde(rename = "ns")]
    Nanos,
    /// For dates only.
    #[serde(rename = "d")]
    Days,
}

impl Unit {
    /// Powers of ten from the unit to microseconds; `None` for days, of which there are not ten to the power of anything.
    pub fn places(self) -> Option<i64> {
        match self {
            Unit::Seconds => Some(6),
            Unit::Millis => Some(3),
            Unit::Micros => Some(0),
            Unit::Nanos => Some(-3),
            Unit::Days => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Millis => "milliseconds",
            Unit::Micros => "microseconds",
            Unit::Nanos => "nanoseconds",
            Unit::Days => "days",
        }
    }
}
