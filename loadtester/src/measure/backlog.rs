//! The backlog: messages that Kafka has acknowledged and that are not in the tables yet.

/// Readings of the steady phase, and the peak of the whole run.
#[derive(Default)]
pub struct Backlog {
    /// (seconds, messages)
    points: Vec<(f64, f64)>,
    peak: f64,
}

impl Backlog {
    /// A reading of the steady phase, one a second.
    pub fn note(&mut self, at_ns: i64, messages: f64) {
        self.points.push((at_ns as f64 / 1e9, messages));
    }

    /// A reading between the seconds, for the peak only.
    pub fn glance(&mut self, messages: f64) {
        self.peak = self.peak.max(messages);
    }

    pub fn peak(&self) -> f64 {
        self.peak
    }

    /// By how much it grows a second, with the standard error of that; `None` below three readings.
    pub fn slope(&self) -> Option<(f64, f64)> {
        slope(&self.points)
    }
}

/// The slope of points by least squares, with its standard error; `None` below three points.
fn slope(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    if points.len() < 3 {
        return None;
    }
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(a, b), p| (a + p.0 / n, b + p.1 / n));
    let xx: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let xy: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let slope = xy / xx;
    let rest: f64 = points.iter().map(|p| (p.1 - y - slope * (p.0 - x)).powi(2)).sum();
    Some((slope, (rest / (n - 2.0) / xx).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0)]), None);
        let (rising, error) = slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0)]).unwrap();
        assert!((rising - 2.0).abs() < 1e-9 && error < 1e-9);
        let (flat, error) = slope(&[(0.0, 1.0), (1.0, -1.0), (2.0, 1.0), (3.0, -1.0), (4.0, 1.0)]).unwrap();
        assert!(flat.abs() < 1e-9 && error > 0.1);
    }
}
