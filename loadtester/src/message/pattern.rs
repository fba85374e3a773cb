//! Text with places in it: `${name}` is filled in for each message. The same notation serves a whole JSON message, a text
//! value, a key, a path and a header; they differ only in how a value is written there.

use anyhow::{Result, bail};

/// How the values of a pattern are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As a JSON value: texts in quotes.
    Json,
    /// As they are.
    Plain,
    /// As they are, but for what would end or divide an address.
    Address,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    Literal(Vec<u8>),
    Value { slot: usize, width: Width },
}

/// `${n:04}` and `${n:08x}`: digits, filled up with zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Width {
    Free,
    Decimal(u8),
    Hex(u8),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    pub parts: Vec<Part>,
    pub style: Style,
}

impl Pattern {
    /// `slot` says where the value of a name will stand.
    pub fn parse(text: &str, style: Style, mut slot: impl FnMut(&str) -> Result<usize>) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            if !before.is_empty() {
                parts.push(Part::Literal(before.as_bytes().to_vec()));
            }
            let Some((place, behind)) = after.split_once('}') else {
                bail!("\"{text}\" opens a place with ${{ and does not close it with }}");
            };
            let (name, width) = place.split_once(':').unwrap_or((place, ""));
            parts.push(Part::Value { slot: slot(name.trim())?, width: parse_width(width.trim())? });
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.as_bytes().to_vec()));
        }
        Ok(Self { parts, style })
    }

    /// The names that a pattern mentions, in order.
    pub fn names(text: &str) -> Vec<String> {
        let mut names = Vec::new();
        // A pattern that cannot be read is refused where it is compiled.
        Self::parse(text, Style::Plain, |name| {
            names.push(name.to_owned());
            Ok(0)
        })
        .ok();
        names
    }

    pub fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Part::Value { slot, .. } => Some(*slot),
            Part::Literal(_) => None,
        })
    }

    /// The text, where nothing in it is drawn.
    pub fn literal(&self) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        for part in &self.parts {
            let Part::Literal(bytes) = part else { return None };
            text.extend_from_slice(bytes);
        }
        Some(text)
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

fn parse_width(text: &str) -> Result<Width> {
    if text.is_empty() {
        return Ok(Width::Free);
    }
    let (digits, hex) = text.strip_suffix('x').map_or((text, false), |digits| (digits, true));
    match digits.parse::<u8>() {
        Ok(width @ 1..=16) if hex => Ok(Width::Hex(width)),
        Ok(width @ 1..=20) if !hex => Ok(Width::Decimal(width)),
        _ => bail!(
            "\"{text}\" is no width; write ${{n:04}} for four digits, or ${{n:08x}} for eight hexadecimal ones"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let slot = |name: &str| match name {
            "a" => Ok(0),
            "b.c" => Ok(1),
            _ => bail!("unknown"),
        };
        for text in ["${a", "${x}", "${a:0y}", "${a:99}"] {
            assert!(Pattern::parse(text, Style::Plain, slot).is_err(), "{text}");
        }
        let pattern = Pattern::parse("{\"x\":${a:04},$y}${b.c}", Style::Json, slot).unwrap();
        let expected = [
            Part::Literal(b"{\"x\":".to_vec()),
            Part::Value { slot: 0, width: Width::Decimal(4) },
            Part::Literal(b",$y}".to_vec()),
            Part::Value { slot: 1, width: Width::Free },
        ];
        assert_eq!(pattern.parts, expected);
        assert_eq!(Pattern::names("${a}-${b.c:08x}"), ["a", "b.c"]);
    }
}
