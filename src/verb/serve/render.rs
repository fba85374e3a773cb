//! Rows to the bytes of an answer, as they come. JSON is rendered by the server, so that each value is what PostgreSQL says it is;
//! here are brackets, commas, CSV's quotes, and the counts that an answer is judged by.

use crate::client::wire::{Column, Row};
use crate::config::{Format, Shape};

use super::chart::Drawing;
use super::endpoint::Endpoint;
use super::parameter::Value;

/// Why rows make no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// More than this.
    TooMany(u64),
    /// One was wanted, and there is none.
    None,
    /// One was wanted, and there are more.
    Several,
    /// For a chart: what is wrong with the columns.
    NoChart(String),
}

/// An answer in work.
pub struct Renderer {
    kind: Kind,
    pub rows: u64,
    rows_max: Option<u64>,
    /// What a response of the endpoint's own form has behind the rows.
    after: String,
}

enum Kind {
    /// Elements of an array.
    Array,
    /// One text as it is.
    One,
    /// One text, and in the second column how many rows it has.
    Counted,
    Lines,
    Csv,
    Svg(Box<Drawing>),
}

impl Renderer {
    /// Begins an answer.
    pub fn new(endpoint: &Endpoint, format: Format, values: &[Value], out: &mut Vec<u8>) -> Renderer {
        let mut after = String::new();
        let kind = match (format, endpoint.shape) {
            (Format::Csv, _) => Kind::Csv,
            (Format::Ndjson, _) => Kind::Lines,
            (Format::Svg, _) => Kind::Svg(Box::new(Drawing::new(endpoint.chart.as_ref(), &endpoint.summary))),
            (Format::Json, Shape::Object | Shape::Value) => Kind::One,
            (Format::Json, Shape::Columns) => Kind::Counted,
            (Format::Json, Shape::Rows | Shape::Arrays) => {
                if let Some(response) = &endpoint.response {
                    let (before, behind) = response.around(&endpoint.parameters, values);
                    out.extend_from_slice(before.as_bytes());
                    after = behind;
                }
                out.push(b'[');
                Kind::Array
            }
        };
        Renderer { kind, rows: 0, rows_max: endpoint.rows_max, after }
    }

    /// What the rows consist of, where that was asked for.
    ///
    /// # Errors
    /// Columns that a chart lacks.
    pub fn columns(&mut self, columns: &[Column], out: &mut Vec<u8>) -> Result<(), Unfit> {
        match &mut self.kind {
            Kind::Csv => line(columns.iter().map(|column| Some(column.name.as_bytes())), out),
            Kind::Svg(drawing) => drawing.columns(columns).map_err(Unfit::NoChart)?,
            _ => {}
        }
        Ok(())
    }

    /// # Errors
    /// Rows that make no answer.
    pub fn row(&mut self, row: Row<'_>, out: &mut Vec<u8>) -> Result<(), Unfit> {
        self.rows += 1;
        if self.rows_max.is_some_and(|most| self.rows > most) {
            return Err(Unfit::TooMany(self.rows - 1));
        }
        match &mut self.kind {
            Kind::Array => {
                if self.rows > 1 {
                    out.push(b',');
                }
                out.extend_from_slice(first(row));
            }
            Kind::Lines => {
                out.extend_from_slice(first(row));
                out.push(b'\n');
            }
            Kind::One if self.rows > 1 => return Err(Unfit::Several),
            Kind::One => out.extend_from_slice(first(row)),
            Kind::Counted => {
                let count = row.columns().nth(1).flatten().and_then(|text| std::str::from_utf8(text).ok());
                let count = count.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
                if let Some(most) = self.rows_max.filter(|most| count > *most) {
                    return Err(Unfit::TooMany(most));
                }
                self.rows = count;
                out.extend_from_slice(first(row));
            }
            Kind::Csv => line(row.columns(), out),
            Kind::Svg(drawing) => drawing.row(row).map_err(Unfit::NoChart)?,
        }
        Ok(())
    }

    /// The rest of a whole answer.
    ///
    /// # Errors
    /// Where one row was wanted and none came.
    pub fn end(&mut self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        match &mut self.kind {
            Kind::Array => {
                out.push(b']');
                out.extend_from_slice(self.after.as_bytes());
            }
            Kind::One if self.rows == 0 => return Err(Unfit::None),
            Kind::Svg(drawing) => out.extend_from_slice(drawing.finish().as_bytes()),
            _ => {}
        }
        Ok(())
    }
}

fn first(row: Row<'_>) -> &[u8] {
    row.columns().next().flatten().unwrap_or(b"null")
}

/// One line of CSV as RFC 4180 and PostgreSQL's COPY write it, with LF: NULL is nothing, an empty text is two quotes.
fn line<'a>(columns: impl Iterator<Item = Option<&'a [u8]>>, out: &mut Vec<u8>) {
    for (number, column) in columns.enumerate() {
        if number > 0 {
            out.push(b',');
        }
        let Some(text) = column else { continue };
        // A line that is only \. would end the data for COPY.
        let quoted = text.is_empty()
            || text == b"\\."
            || text.iter().any(|b| matches!(b, b',' | b'"' | b'\n' | b'\r'));
        if !quoted {
            out.extend_from_slice(text);
            continue;
        }
        out.push(b'"');
        for byte in text {
            if *byte == b'"' {
                out.push(b'"');
            }
            out.push(*byte);
        }
        out.push(b'"');
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::wire::{Said, next};

    fn message(columns: &[Option<&str>]) -> Vec<u8> {
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for column in columns {
            match column {
                None => body.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(text) => {
                    body.extend_from_slice(&(text.len() as i32).to_be_bytes());
                    body.extend_from_slice(text.as_bytes());
                }
            }
        }
        let mut bytes = vec![b'D'];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn endpoint(more: &str) -> Endpoint {
        let text = format!(
            "[postgres]\nurl = \"postgresql://u@127.0.0.1/d\"\n[[endpoint]]\npath = \"/a\"\nsql = \"SELECT 1\"\n{more}"
        );
        super::super::endpoint::endpoints(&crate::config::parse_window(&text).unwrap().serve)
            .unwrap()
            .remove(0)
    }

    #[track_caller]
    fn check(more: &str, format: Format, rows: &[&[Option<&str>]], expected: Result<&str, Unfit>) {
        let mut out = Vec::new();
        let mut renderer = Renderer::new(&endpoint(more), format, &[], &mut out);
        let columns = ["a", "b,c"].map(|name| Column { name: name.into(), ty: 25 });
        let result = renderer.columns(&columns, &mut out).and_then(|()| {
            for row in rows {
                let message = message(row);
                let Ok(Some((Said::Row(row), _))) = next(&message, 1 << 20) else { panic!("no row") };
                renderer.row(row, &mut out)?;
            }
            renderer.end(&mut out)
        });
        assert_eq!(result.map(|()| String::from_utf8(out).unwrap()), expected.map(str::to_owned));
    }

    #[test]
    fn rows_are_put_together() {
        let rows: [&[Option<&str>]; 2] = [&[Some("{\"a\":1}")], &[Some("{\"a\":2}")]];
        check("", Format::Json, &rows, Ok("[{\"a\":1},{\"a\":2}]"));
        check("", Format::Json, &[], Ok("[]"));
        check("", Format::Ndjson, &rows, Ok("{\"a\":1}\n{\"a\":2}\n"));
        check("rows_max = 1", Format::Json, &rows, Err(Unfit::TooMany(1)));
        check("rows_max = 2", Format::Json, &rows, Ok("[{\"a\":1},{\"a\":2}]"));
        check("shape = \"object\"", Format::Json, &rows[..1], Ok("{\"a\":1}"));
        check("shape = \"object\"", Format::Json, &[], Err(Unfit::None));
        check("shape = \"object\"", Format::Json, &rows, Err(Unfit::Several));
        check("shape = \"value\"", Format::Json, &[&[Some("7")]], Ok("7"));
        let columns: [&[Option<&str>]; 1] = [&[Some("{\"a\":[1,2]}"), Some("2")]];
        check("shape = \"columns\"", Format::Json, &columns, Ok("{\"a\":[1,2]}"));
        check("shape = \"columns\"\nrows_max = 1", Format::Json, &columns, Err(Unfit::TooMany(1)));
        check(
            "response = { n = 1, r = \"rows\" }",
            Format::Json,
            &rows[..1],
            Ok("{\"n\":1,\"r\":[{\"a\":1}]}"),
        );
    }

    #[test]
    fn csv_is_quoted_where_it_must_be() {
        let rows: [&[Option<&str>]; 4] = [
            &[Some("plain"), None],
            &[Some(""), Some("a,b")],
            &[Some("say \"x\""), Some("two\nlines")],
            &[Some("\\."), Some("ü")],
        ];
        check(
            "",
            Format::Csv,
            &rows,
            Ok("a,\"b,c\"\nplain,\n\"\",\"a,b\"\n\"say \"\"x\"\"\",\"two\nlines\"\n\"\\.\",ü\n"),
        );
    }
}
