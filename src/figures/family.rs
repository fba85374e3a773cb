//! Figures as families of samples, and their text for Prometheus: the 0.0.4 format, or OpenMetrics for those who ask.

use std::fmt::Write as _;

use crate::figures::instruments::Buckets;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives. Its name ends in `_total`.
    Counter,
    Gauge,
    Histogram,
}

/// All samples of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub samples: Vec<Sample>,
}

/// The label of whose figures these are.
pub const PIPELINE: &str = "pipeline";

pub type Labels = Vec<(&'static str, String)>;

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Labels,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Number(f64),
    Histogram(Buckets),
}

impl Family {
    pub fn counter(name: &'static str, help: &'static str) -> Family {
        Family { name, help, kind: Kind::Counter, samples: Vec::new() }
    }

    pub fn gauge(name: &'static str, help: &'static str) -> Family {
        Family { name, help, kind: Kind::Gauge, samples: Vec::new() }
    }

    pub fn histogram(name: &'static str, help: &'static str) -> Family {
        Family { name, help, kind: Kind::Histogram, samples: Vec::new() }
    }

    pub fn add(&mut self, labels: &[(&'static str, &str)], value: f64) {
        self.push(labels, Value::Number(value));
    }

    pub fn add_buckets(&mut self, labels: &[(&'static str, &str)], buckets: Buckets) {
        self.push(labels, Value::Histogram(buckets));
    }

    fn push(&mut self, labels: &[(&'static str, &str)], value: Value) {
        let labels = labels.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        self.samples.push(Sample { labels, value });
    }

    /// Every sample with one more label.
    pub fn labeled(mut self, name: &'static str, text: &str) -> Family {
        self.samples.iter_mut().for_each(|sample| sample.labels.push((name, text.to_owned())));
        self
    }

    /// With its only sample.
    pub fn with(mut self, value: f64) -> Family {
        self.add(&[], value);
        self
    }
}

/// The dialect of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What a client's `Accept` header asks for.
    pub fn accepted(header: &str) -> Format {
        if header.contains("application/openmetrics-text") { Format::OpenMetrics } else { Format::Prometheus }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// One page for a scraper.
pub fn page(families: &[Family], format: Format) -> String {
    let mut out = String::new();
    for family in families.iter().filter(|f| !f.samples.is_empty()) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // OpenMetrics names a counter without its ending.
        let name = match format {
            Format::OpenMetrics => family.name.strip_suffix("_total").unwrap_or(family.name),
            Format::Prometheus => family.name,
        };
        out.push_str(&format!("# HELP {name} {}\n# TYPE {name} {kind}\n", family.help));
        for sample in &family.samples {
            match &sample.value {
                Value::Number(value) => line(&mut out, family.name, "", &sample.labels, None, *value),
                Value::Histogram(buckets) => histogram(&mut out, family.name, &sample.labels, buckets),
            }
        }
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn histogram(out: &mut String, name: &str, labels: &Labels, buckets: &Buckets) {
    let mut below = 0;
    for (bound, count) in buckets.bounds.iter().zip(&buckets.counts) {
        below += count;
        line(out, name, "_bucket", labels, Some(&format!("{bound:?}")), below as f64);
    }
    let all: u64 = buckets.counts.iter().sum();
    line(out, name, "_bucket", labels, Some("+Inf"), all as f64);
    line(out, name, "_sum", labels, None, buckets.sum);
    line(out, name, "_count", labels, None, all as f64);
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &Labels, bound: Option<&str>, value: f64) {
    out.push_str(name);
    out.push_str(suffix);
    let all = labels.iter().map(|(name, text)| (*name, text.as_str())).chain(bound.map(|b| ("le", b)));
    for (number, (name, text)) in all.enumerate() {
        out.push(if number == 0 { '{' } else { ',' });
        // Topics and tables may be named with any character.
        let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        write!(out, "{name}=\"{text}\"").expect("a string takes all");
    }
    if !labels.is_empty() || bound.is_some() {
        out.push('}');
    }
    writeln!(out, " {value}").expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Vec<Family> {
        let mut rows = Family::counter("rowmill_rows_total", "Rows.");
        rows.add(&[("table", "a\"b\\c\nd")], 3.0);
        let mut seconds = Family::histogram("rowmill_s_seconds", "Time.");
        let buckets = Buckets { bounds: &[0.5, 1.0], counts: vec![1, 2, 4], sum: 9.5 };
        seconds.add_buckets(&[("table", "t")], buckets);
        vec![rows, Family::gauge("rowmill_empty", "Nothing."), seconds]
    }

    #[test]
    fn a_page_is_what_scrapers_read() {
        let expected = "# HELP rowmill_rows_total Rows.\n# TYPE rowmill_rows_total counter\n\
                        rowmill_rows_total{table=\"a\\\"b\\\\c\\nd\"} 3\n\
                        # HELP rowmill_s_seconds Time.\n# TYPE rowmill_s_seconds histogram\n\
                        rowmill_s_seconds_bucket{table=\"t\",le=\"0.5\"} 1\n\
                        rowmill_s_seconds_bucket{table=\"t\",le=\"1.0\"} 3\n\
                        rowmill_s_seconds_bucket{table=\"t\",le=\"+Inf\"} 7\n\
                        rowmill_s_seconds_sum{table=\"t\"} 9.5\nrowmill_s_seconds_count{table=\"t\"} 7\n";
        assert_eq!(page(&families(), Format::Prometheus), expected);
    }

    #[test]
    fn openmetrics_names_counters_without_their_ending_and_says_where_it_ends() {
        let text = page(&families(), Format::OpenMetrics);
        assert!(text.contains("# TYPE rowmill_rows counter\nrowmill_rows_total{"), "{text}");
        assert!(text.ends_with("\n# EOF\n"));
        assert_eq!(
            Format::accepted("application/openmetrics-text;version=1.0.0,text/plain"),
            Format::OpenMetrics
        );
        assert_eq!(Format::accepted("*/*"), Format::Prometheus);
    }
}
