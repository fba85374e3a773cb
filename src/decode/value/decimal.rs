//! Numbers by their exact text: numeric without a detour through a double, and integers from any way of writing them.

use super::wrong::{Written, out_of_range};
use crate::model::types::NumericLimit;

/// PostgreSQL's own bounds of numeric.
const DIGITS_BEFORE_POINT_MAX: i64 = 131_072;
const DIGITS_AFTER_POINT_MAX: i64 = 16_383;

/// Far beyond every bound above; keeps sums of exponents and lengths within `i64`.
const EXPONENT_MAX: i64 = 1_000_000_000;

/// A JSON number taken apart, borrowed from its text. Its value is `digits × 10^-(after)` with the sign.
#[derive(Clone, Copy, Debug)]
pub struct Decimal<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    /// Clamped to ±`EXPONENT_MAX`.
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// JSON's grammar and nothing else: no `+`, no leading zeros, no bare point.
    pub fn parse(text: &'a str) -> Option<Self> {
        let text = text.as_bytes();
        let (negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let (whole, rest) = digits(rest);
        if whole.is_empty() || (whole.len() > 1 && whole[0] == b'0') {
            return None;
        }
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => match digits(rest) {
                ([], _) => return None,
                split => split,
            },
            rest => (&[][..], rest),
        };
        let exponent = match rest {
            [] => 0,
            [b'e' | b'E', b'-', rest @ ..] => -exponent(rest)?,
            [b'e' | b'E', b'+', rest @ ..] | [b'e' | b'E', rest @ ..] => exponent(rest)?,
            _ => return None,
        };
        Some(Self { negative, whole, fraction, exponent })
    }

    fn len(&self) -> i64 {
        (self.whole.len() + self.fraction.len()) as i64
    }

    fn digit(&self, index: i64) -> u8 {
        let index = index as usize;
        let c = if index < self.whole.len() {
            self.whole[index]
        } else {
            self.fraction[index - self.whole.len()]
        };
        c - b'0'
    }

    /// The first digit that counts and the place after the last one; both the length for zero.
    fn significant(&self) -> (i64, i64) {
        let all = self.whole.iter().chain(self.fraction);
        let first = all.clone().take_while(|c| **c == b'0').count() as i64;
        if first == self.len() {
            return (first, first);
        }
        let zeros = all.rev().take_while(|c| **c == b'0').count() as i64;
        (first, self.len() - zeros)
    }

    /// Where the decimal point stands in the row of digits; may lie outside of it.
    fn point(&self) -> i64 {
        self.whole.len() as i64 + self.exponent
    }

    /// The value times `10^places`, cut to an integer, with what was cut. `None` when it has more than 30 digits.
    pub fn shifted(&self, places: i64) -> Option<Shifted> {
        let (first, last) = self.significant();
        let point = self.point() + places;
        if first == last {
            return Some(Shifted { magnitude: 0, rest: Rest::Zero, negative: self.negative });
        }
        if point - first > 30 {
            return None;
        }
        let magnitude = (first..point)
            .fold(0i128, |n, at| n * 10 + if at < last { i128::from(self.digit(at)) } else { 0 });
        let rest = if last <= point {
            Rest::Zero
        } else if point < first {
            Rest::BelowHalf
        } else {
            match (self.digit(point), last > point + 1) {
                (5, false) => Rest::Half,
                (digit, _) if digit >= 5 => Rest::AboveHalf,
                _ => Rest::BelowHalf,
            }
        };
        Some(Shifted { magnitude, rest, negative: self.negative })
    }

    /// Whether numeric can hold the number at all; jsonb numbers are numerics, too.
    pub(super) fn fits_numeric(&self) -> bool {
        let (first, last) = self.significant();
        // The server gives up on such exponents even before a mantissa of zero.
        if self.exponent.abs() > DIGITS_BEFORE_POINT_MAX + DIGITS_AFTER_POINT_MAX + self.len() {
            return false;
        }
        (first == last || self.point() - first <= DIGITS_BEFORE_POINT_MAX)
            && self.scale() <= DIGITS_AFTER_POINT_MAX
    }

    /// Digits after the point as written, which is what numeric shows.
    fn scale(&self) -> i64 {
        (self.fraction.len() as i64 - self.exponent).max(0)
    }

    /// Whether the number, once the server has rounded it to the scale (half away from zero), has too many digits
    /// before the point.
    fn overflows(&self, limit: NumericLimit) -> bool {
        let (first, last) = self.significant();
        let room = i64::from(limit.precision) - i64::from(limit.scale);
        let before_point = self.point() - first;
        if first == last || before_point < room {
            return false;
        }
        // Just as many digits as there is room for: rounding needs one more when all of them are nines.
        before_point > room || {
            let at = |index: i64| if index < last { self.digit(index) } else { 0 };
            let kept = first + i64::from(limit.precision);
            (first..kept).all(|index| at(index) == 9) && at(kept) >= 5
        }
    }
}

/// See [`Decimal::shifted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shifted {
    magnitude: i128,
    rest: Rest,
    negative: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Zero,
    BelowHalf,
    Half,
    AboveHalf,
}

impl Shifted {
    pub fn is_exact(&self) -> bool {
        self.rest == Rest::Zero
    }

    /// What stands before the cut.
    pub fn whole(&self) -> i128 {
        if self.negative { -self.magnitude } else { self.magnitude }
    }

    /// To the nearest integer, ties to the even one.
    pub fn nearest(&self) -> i128 {
        let up = match self.rest {
            Rest::Zero | Rest::BelowHalf => false,
            Rest::Half => self.magnitude % 2 == 1,
            Rest::AboveHalf => true,
        };
        let magnitude = self.magnitude + i128::from(up);
        if self.negative { -magnitude } else { magnitude }
    }
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().take_while(|c| c.is_ascii_digit()).count())
}

fn exponent(text: &[u8]) -> Option<i64> {
    match digits(text) {
        ([], _) => None,
        (all, []) => Some(all.iter().fold(0, |n, c| (n * 10 + i64::from(c - b'0')).min(EXPONENT_MAX))),
        _ => None,
    }
}

/// Appends a numeric. The digits travel as written; the server rounds to the column's scale (half away from zero), and a
/// number that has too many digits before the point after that is refused here.
pub(super) fn write(number: &Decimal<'_>, limit: Option<NumericLimit>, out: &mut Vec<u8>) -> Written {
    if !number.fits_numeric() {
        return Err(out_of_range("numeric holds 131072 digits before and 16383 after the point"));
    }
    if let Some(limit) = limit
        && number.overflows(limit)
    {
        let why = format!("numeric({},{}) has too few digits before the point", limit.precision, limit.scale);
        return Err(out_of_range(&why));
    }
    append(number, out);
    Ok(())
}

/// Digits in groups of four around the point, most significant first; zero has none.
fn append(number: &Decimal<'_>, out: &mut Vec<u8>) {
    const NEGATIVE: u16 = 0x4000;
    let (first, last) = number.significant();
    let point = number.point();
    let (top, bottom) = if first == last {
        (0, 1)
    } else {
        ((point - 1 - first).div_euclid(4), (point - last).div_euclid(4))
    };
    let groups = top - bottom + 1;
    let sign = if number.negative && groups > 0 { NEGATIVE } else { 0 };
    out.extend_from_slice(&(8 + 2 * groups as i32).to_be_bytes());
    out.extend_from_slice(&(groups as u16).to_be_bytes());
    out.extend_from_slice(&(top as i16).to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&(number.scale() as u16).to_be_bytes());
    for group in (bottom..=top).rev() {
        // The group's four places are 10^(4 group + 3) down to 10^(4 group).
        let start = point - 4 * group - 4;
        let value = (start..start + 4).fold(0u16, |n, index| {
            n * 10 + if index >= first && index < last { u16::from(number.digit(index)) } else { 0 }
        });
        out.extend_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode::reject::Reason;

    fn encode(text: &str, limit: Option<NumericLimit>) -> Result<Vec<u8>, Reason> {
        let mut out = Vec::new();
        write(&Decimal::parse(text).expect("a number"), limit, &mut out).map_err(|wrong| wrong.reason)?;
        Ok(out)
    }

    /// Reads the binary form back as the server prints it: every digit, `scale` of them after the point.
    fn decode(field: &[u8]) -> String {
        let words: Vec<i32> =
            field[4..].as_chunks::<2>().0.iter().map(|w| i32::from(i16::from_be_bytes(*w))).collect();
        assert_eq!(field.len() - 4, i32::from_be_bytes(field[..4].try_into().unwrap()) as usize);
        let (weight, sign, scale, groups) = (words[1], words[2], words[3] as usize, &words[4..]);
        assert_eq!(words[0] as usize, groups.len());
        assert!(
            groups.first() != Some(&0) && groups.last() != Some(&0),
            "a group of zeros at an end: {groups:?}"
        );
        let group =
            |at: i32| usize::try_from(weight - at).ok().and_then(|index| groups.get(index)).unwrap_or(&0);
        let whole: String = (0..=weight.max(0)).rev().map(|at| format!("{:04}", group(at))).collect();
        let fraction: String =
            (0..scale.div_ceil(4) as i32).map(|at| format!("{:04}", group(-1 - at))).collect();
        let whole = match whole.trim_start_matches('0') {
            "" => "0",
            digits => digits,
        };
        let sign = if sign == 0 { "" } else { "-" };
        if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{}", &fraction[..scale]) }
    }

    #[test]
    fn only_json_numbers_parse() {
        for text in [
            "", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "1e1.5", "1 ", " 1", "0x10", "1_000", "NaN",
            "Infinity", "--1", "1e1e1", "١",
        ] {
            assert!(Decimal::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn numerics_keep_every_digit() {
        fn check(text: &str, expected: &str) {
            assert_eq!(encode(text, None).map(|field| decode(&field)).as_deref(), Ok(expected), "{text}");
        }
        check("0", "0");
        check("-0", "0");
        check("0.00", "0.00");
        check("-0.000e-2", "0.00000");
        check("1", "1");
        check("10000", "10000");
        check("100000000", "100000000");
        check("1.50", "1.50");
        check("-12345.6789", "-12345.6789");
        check("0.0001", "0.0001");
        check("0.00001", "0.00001");
        check("1e3", "1000");
        check("1.5E+3", "1500");
        check("1.2345e2", "123.45");
        check("12e-10", "0.0000000012");
        check("9007199254740993", "9007199254740993");
        check(
            "123456789012345678901234567890.12345678901234567890",
            "123456789012345678901234567890.12345678901234567890",
        );
        let long = "7".repeat(10_000);
        check(&long, &long);
    }

    #[test]
    fn numerics_end_where_the_servers_do() {
        fn check(text: &str, fits: bool) {
            assert_eq!(encode(text, None).err(), (!fits).then_some(Reason::OutOfRange), "{text:.40}");
        }
        check("1e131072", false);
        check("1e131071", true);
        check("10e131071", false);
        check("0.1e131072", true);
        check("1e-16384", false);
        check("1e-16383", true);
        check("0e-16384", false);
        check("1e999999999999999999999", false);
        check("-1e-999999999999999999999", false);
        check("0e999999999999999999999", false);
    }

    #[test]
    fn precision_and_scale() {
        fn check(text: &str, precision: u16, scale: i16, fits: bool) {
            let found = encode(text, Some(NumericLimit { precision, scale })).err();
            assert_eq!(
                found,
                (!fits).then_some(Reason::OutOfRange),
                "{text} into numeric({precision},{scale})"
            );
        }
        check("1000", 5, 2, false);
        check("999.995", 5, 2, false);
        check("-999.995", 5, 2, false);
        check("999.9949999", 5, 2, true);
        check("999.99", 5, 2, true);
        check("0", 1, 1, true);
        check("0.95", 1, 1, false);
        check("0.94", 1, 1, true);
        check("1", 1, 1, false);
        check("0.5", 3, 0, true);
        check("999.5", 3, 0, false);
        check("999", 3, 0, true);
        check("99499", 2, -3, true);
        check("99500", 2, -3, false);
        check("600", 2, -3, true);
        check("0.00999", 3, 5, true);
        check("0.009995", 3, 5, false);
        check("0.01", 3, 5, false);
    }

    #[test]
    fn shifting_rounds_to_the_even_one() {
        fn check(text: &str, places: i64, exact: bool, nearest: i128) {
            let found = Decimal::parse(text).unwrap().shifted(places).unwrap();
            assert_eq!((found.is_exact(), found.nearest()), (exact, nearest), "{text} by {places}");
        }
        check("0.5", 0, false, 0);
        check("1.5", 0, false, 2);
        check("-2.5", 0, false, -2);
        check("2.50001", 0, false, 3);
        check("0.05", 0, false, 0);
        check("1500", -3, false, 2);
        check("1e3", 0, true, 1000);
        check("1.000", 0, true, 1);
        check("100e-2", 0, true, 1);
        check("0.000", 6, true, 0);
        check("0e999999999", 6, true, 0);
        check("1e-999999999", 6, false, 0);
        assert_eq!(Decimal::parse("1e31").unwrap().shifted(0), None);
        assert_eq!(Decimal::parse("1e999999999999").unwrap().shifted(0), None);
    }

    proptest! {
        #[test]
        fn a_numeric_read_back_is_the_same(whole in "0|[1-9][0-9]{0,40}", fraction in "(\\.[0-9]{1,40})?", minus: bool) {
            let zero = !whole.bytes().chain(fraction.bytes()).any(|c| matches!(c, b'1'..=b'9'));
            let sign = if minus && !zero { "-" } else { "" };
            let text = format!("{sign}{whole}{fraction}");
            prop_assert_eq!(decode(&encode(&text, None).unwrap()), text);
        }

        #[test]
        fn an_exponent_only_moves_the_point(digits in "[1-9][0-9]{0,20}", exponent in -50i64..50) {
            let written = encode(&format!("{digits}e{exponent}"), None).unwrap();
            let length = digits.len() as i64;
            let plain = match exponent {
                0.. => format!("{digits}{}", "0".repeat(exponent as usize)),
                _ if -exponent < length => {
                    let (whole, fraction) = digits.split_at((length + exponent) as usize);
                    format!("{whole}.{fraction}")
                }
                _ => format!("0.{}{digits}", "0".repeat((-exponent - length) as usize)),
            };
            prop_assert_eq!(decode(&written), plain);
        }
    }
}
