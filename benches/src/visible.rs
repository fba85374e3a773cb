//! Rows per second from the first sight of rows to the last. Whatever rows were there at first sight do not count, so
//! neither start-up nor the size of the first batch flatters or harms anybody.

use std::time::Instant;

#[derive(Clone, Copy, Default)]
pub struct Visible {
    first: Option<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Visible {
    /// At this moment, `rows` rows in all could be seen by other sessions.
    pub fn see(&mut self, at: Instant, rows: u64) {
        if rows > 0 && self.first.is_none() {
            self.first = Some((at, rows));
        }
        if self.last.is_none_or(|(_, before)| rows > before) {
            self.last = Some((at, rows));
        }
    }

    pub fn rows(&self) -> u64 {
        self.last.map_or(0, |(_, rows)| rows)
    }

    /// (rows, seconds) between first and last sight.
    pub fn span(&self) -> (u64, f64) {
        match (self.first, self.last) {
            (Some((from, before)), Some((to, after))) => (after - before, (to - from).as_secs_f64()),
            _ => (0, 0.0),
        }
    }

    pub fn rows_per_second(&self) -> f64 {
        let (rows, seconds) = self.span();
        if seconds > 0.0 { rows as f64 / seconds } else { 0.0 }
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_rows_do_not_count() {
        let start = Instant::now();
        let mut visible = Visible::default();
        for (second, rows) in [(0, 0), (5, 100), (6, 300), (7, 500), (9, 500)] {
            visible.see(start + Duration::from_secs(second), rows);
        }
        assert_eq!(visible.rows(), 500);
        assert_eq!(visible.span(), (400, 2.0));
        assert_eq!(visible.rows_per_second(), 200.0);
    }

    #[test]
    fn medians() {
        for (values, expected) in [(&[3.0, 1.0, 2.0][..], 2.0), (&[4.0, 1.0][..], 2.5), (&[7.0][..], 7.0)] {
            assert_eq!(median(values), expected);
        }
    }
}
