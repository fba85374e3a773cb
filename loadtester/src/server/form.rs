//! How a column is asked for and compared, by its type in the database: whole numbers as such, floats as the nearest double,
//! times in microseconds, everything else as the server writes it.

use crate::message::draw::{Draft, Value, power, write_key};
use crate::message::model::quoted;
use crate::server::copy_out::Row;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Bytes,
    Integer,
    Float8,
    Float4,
    Numeric,
    Time,
    /// Without a time zone: taken as UTC.
    PlainTime,
    Day,
    Bool,
    Floats,
    Json,
}

const DAY_US: i64 = 86_400_000_000;

impl Form {
    /// `name` is the type's in `pg_type`.
    pub fn of_type(name: &str) -> Self {
        match name {
            "int2" | "int4" | "int8" | "oid" => Form::Integer,
            "float8" => Form::Float8,
            "float4" => Form::Float4,
            "numeric" => Form::Numeric,
            "timestamptz" => Form::Time,
            "timestamp" => Form::PlainTime,
            "date" => Form::Day,
            "bool" => Form::Bool,
            "_float8" | "_float4" | "_numeric" | "_int2" | "_int4" | "_int8" => Form::Floats,
            "json" | "jsonb" => Form::Json,
            "bytea" => Form::Bytes,
            _ => Form::Text,
        }
    }

    pub fn is_time(self) -> bool {
        matches!(self, Form::Time | Form::PlainTime | Form::Day)
    }

    /// The column as it is compared.
    pub fn sql(self, column: &str) -> String {
        let name = quoted(column);
        match self {
            Form::Text | Form::Numeric | Form::Json => format!("{name}::text"),
            Form::Bytes => name,
            Form::Integer => format!("{name}::int8"),
            Form::Float8 | Form::Float4 => format!("{name}::float8"),
            Form::Time => format!("{name}::timestamptz"),
            Form::PlainTime | Form::Day => format!("({name}::timestamp AT TIME ZONE 'UTC')"),
            Form::Bool => format!("{name}::bool"),
            Form::Floats => format!("{name}::float8[]"),
        }
    }

    /// The column as a part of an identity, as [`write_key`] writes what it must be.
    pub fn key_sql(self, column: &str) -> String {
        match self {
            Form::Time | Form::PlainTime | Form::Day => {
                format!("(extract(epoch FROM {})*1000000)::int8::text", self.sql(column))
            }
            Form::Bytes => format!("convert_from({}, 'UTF8')", quoted(column)),
            _ => format!("{}::text", quoted(column)),
        }
    }

    /// Whether the column holds what was drawn.
    pub fn same(self, draft: &Draft, value: Value, row: &Row<'_>, column: usize) -> bool {
        let Some(bytes) = row.bytes(column) else { return value == Value::Null };
        match (self, value) {
            (_, Value::Null) => false,
            (Form::Integer, Value::Integer(n)) => row.int8(column) == Some(n),
            (Form::Integer, Value::Decimal(n, places)) => {
                // Only a whole number is a whole number.
                let unit = power(places) as i64;
                n % unit == 0 && row.int8(column) == Some(n / unit)
            }
            (Form::Time | Form::PlainTime, Value::Time(us)) => row.timestamp_us(column) == Some(us),
            (Form::Day, Value::Time(us)) => row.timestamp_us(column) == Some(us - us.rem_euclid(DAY_US)),
            (Form::Bool, Value::Bool(truth)) => bytes == [u8::from(truth)],
            (Form::Float8, Value::Integer(n)) => row.float8(column) == Some(n as f64),
            // Both sides are the double nearest to the same decimal.
            (Form::Float8, Value::Decimal(n, places)) => row.float8(column) == Some(n as f64 / power(places)),
            (Form::Float4, Value::Integer(n)) => row.float8(column) == Some(f64::from(n as f32)),
            (Form::Float4, Value::Decimal(n, places)) => {
                row.float8(column) == Some(f64::from((n as f64 / power(places)) as f32))
            }
            (Form::Numeric, Value::Integer(n)) => decimal(bytes) == Some((i128::from(n), 0)),
            (Form::Numeric, Value::Decimal(n, places)) => {
                decimal(bytes) == Some(shortest(i128::from(n), places))
            }
            (Form::Floats, Value::Array(span, places)) => {
                let drawn = draft.numbers(span).iter().map(|n| *n as f64 / power(places));
                floats(bytes).is_some_and(|found| drawn.eq(found))
            }
            (Form::Json, _) => json(draft, value) == serde_json::from_slice(bytes).ok(),
            (Form::Text | Form::Bytes, Value::Text(span)) => bytes == draft.text(span),
            (Form::Text | Form::Bytes, Value::Integer(_) | Value::Decimal(..) | Value::Bool(_)) => {
                let mut drawn = Vec::new();
                write_key(draft, value, &mut drawn);
                bytes == drawn
            }
            _ => false,
        }
    }
}

/// A number without zeros at its end: digits, and how many of them stand behind the point.
fn shortest(mut n: i128, mut places: u8) -> (i128, u8) {
    while places > 0 && n % 10 == 0 {
        n /= 10;
        places -= 1;
    }
    (n, places)
}

/// As PostgreSQL writes a numeric.
fn decimal(text: &[u8]) -> Option<(i128, u8)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, behind) = text.split_once('.').unwrap_or((text, ""));
    let n = format!("{whole}{behind}").parse().ok()?;
    Some(shortest(n, u8::try_from(behind.len()).ok()?))
}

/// A one-dimensional array of doubles, as binary COPY has it; `None` for anything else, and for a null in it.
fn floats(bytes: &[u8]) -> Option<Vec<f64>> {
    let word = |at: usize| Some(i32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    match (word(0)?, word(4)?) {
        (0, _) => return Some(Vec::new()),
        (1, 0) => {}
        _ => return None,
    }
    let count = usize::try_from(word(12)?).ok()?;
    let element = |at: usize| {
        let start = 20 + at * 12;
        (word(start)? == 8).then_some(())?;
        Some(f64::from_be_bytes(bytes.get(start + 4..start + 12)?.try_into().ok()?))
    };
    (0..count).map(element).collect()
}

fn json(draft: &Draft, value: Value) -> Option<serde_json::Value> {
    let number = |n: i64, places: u8| match places {
        0 => serde_json::Value::from(n),
        places => serde_json::Value::from(n as f64 / power(places)),
    };
    Some(match value {
        Value::Null => serde_json::Value::Null,
        // A text that is JSON itself is a document.
        Value::Text(span) => serde_json::from_slice(draft.text(span))
            .unwrap_or_else(|_| String::from_utf8_lossy(draft.text(span)).into_owned().into()),
        Value::Integer(n) => number(n, 0),
        Value::Decimal(n, places) => number(n, places),
        Value::Bool(truth) => truth.into(),
        Value::Array(span, places) => draft.numbers(span).iter().map(|n| number(*n, places)).collect(),
        Value::Time(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_are_compared_as_numbers() {
        for (text, same) in
            [("1.50", (15, 1)), ("1.5", (15, 1)), ("-0.0010", (-1, 3)), ("120", (120, 0)), ("0.00", (0, 0))]
        {
            assert_eq!(decimal(text.as_bytes()), Some(same), "{text}");
        }
        assert_eq!(decimal(b"NaN"), None);
        assert_eq!(shortest(-10, 4), decimal(b"-0.001").unwrap());
    }

    #[test]
    fn arrays_are_read() {
        let array = |dimensions: i32, nulls: i32, values: &[f64]| {
            let mut bytes = Vec::new();
            for word in [dimensions, nulls, 701, values.len() as i32, 1] {
                bytes.extend(word.to_be_bytes());
            }
            for value in values {
                bytes.extend(8i32.to_be_bytes());
                bytes.extend(value.to_be_bytes());
            }
            bytes
        };
        assert_eq!(floats(&array(1, 0, &[1.5, -2.0])), Some(vec![1.5, -2.0]));
        assert_eq!(floats(&array(0, 0, &[])), Some(Vec::new()));
        assert_eq!(floats(&array(1, 1, &[1.0])), None);
        assert_eq!(floats(&array(1, 0, &[1.0])[..25]), None);
    }
}
