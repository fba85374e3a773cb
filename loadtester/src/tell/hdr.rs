//! HdrHistogram's own formats: `latency.hlog` (a histogram per second and measure) and `visible.hgrm` (the percentile
//! spectrum), for the many programs that read them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use hdrhistogram::{Counter, Histogram};

use crate::measure::latency::{LATENCIES, Set};

pub struct Log {
    path: PathBuf,
    writer: BufWriter<File>,
    serializer: V2DeflateSerializer,
}

impl Log {
    /// Times in the file count from `start_us`, which stands there twice: with only one of the two, the Java reader guesses.
    pub fn create(directory: &Path, start_us: i64) -> Result<Self> {
        let path = directory.join("latency.hlog");
        let writer =
            BufWriter::new(File::create(&path).with_context(|| format!("create {}", path.display()))?);
        let mut log = Self { path, writer, serializer: V2DeflateSerializer::new() };
        let start = start_us as f64 / 1e6;
        log.text(&format!(
            "#[Histogram log format version 1.3]\n#[StartTime: {start:.3} (seconds since epoch)]\n#[BaseTime: {start:.3} (seconds since epoch)]\n\
             #[MaxValueDivisor: 1000.0]\n\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n"
        ))?;
        Ok(log)
    }

    /// One line for each measure that saw something. The column Interval_Max is in milliseconds, the histograms hold
    /// microseconds.
    pub fn write(&mut self, begin_s: f64, length_s: f64, set: &Set) -> Result<()> {
        for latency in LATENCIES {
            let recorder = set.all(latency);
            if recorder.is_empty() {
                continue;
            }
            self.write_one(latency.name(), begin_s, length_s, &recorder.histogram)?;
        }
        self.flush()
    }

    pub fn write_one<C: Counter>(
        &mut self,
        name: &str,
        begin_s: f64,
        length_s: f64,
        histogram: &Histogram<C>,
    ) -> Result<()> {
        let max_ms = histogram.max() as f64 / 1000.0;
        let histogram = encode(&mut self.serializer, histogram)?;
        self.text(&format!("Tag={name},{begin_s:.3},{length_s:.3},{max_ms:.3},{histogram}\n"))
    }

    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush().with_context(|| format!("write {}", self.path.display()))
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.writer.write_all(text.as_bytes()).with_context(|| format!("write {}", self.path.display()))
    }
}

/// Compressed, in base64: the form in which logs and run.json carry histograms.
pub fn encode<C: Counter>(serializer: &mut V2DeflateSerializer, histogram: &Histogram<C>) -> Result<String> {
    let mut bytes = Vec::new();
    serializer.serialize(histogram, &mut bytes).context("encode a histogram")?;
    Ok(openssl::base64::encode_block(&bytes))
}

pub fn decode<C: Counter>(text: &str) -> Result<Histogram<C>> {
    let bytes = openssl::base64::decode_block(text).context("decode a histogram")?;
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| anyhow::anyhow!("decode a histogram: {error}"))
}

/// The intervals of one measure: (seconds since the start, histogram).
pub fn read(path: &Path, tag: &str) -> Result<Vec<(f64, Histogram<u64>)>> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let mut intervals = Vec::new();
    for entry in IntervalLogIterator::new(&bytes) {
        // A run that was cut off may end in half a line.
        let Ok(entry) = entry else { break };
        if let LogEntry::Interval(interval) = entry
            && interval.tag().is_some_and(|t| t.as_str() == tag)
        {
            intervals.push((interval.start_timestamp().as_secs_f64(), decode(interval.encoded_histogram())?));
        }
    }
    Ok(intervals)
}

/// The percentile spectrum in milliseconds, as `plotFiles` and its relatives read it.
pub fn write_spectrum(path: &Path, histogram: &Histogram<u64>) -> Result<()> {
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    for (quantile, value) in spectrum(histogram) {
        let inverse = if quantile < 1.0 {
            format!("{:14.2}", 1.0 / (1.0 - quantile))
        } else {
            "           inf".to_owned()
        };
        let count = histogram.count_between(0, value);
        out.push_str(&format!("{:12.3} {quantile:14.12} {count:10} {inverse}\n", value as f64 / 1000.0));
    }
    out.push_str(&format!(
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]\n#[Buckets = {:12}, SubBuckets     = {:12}]\n",
        histogram.mean() / 1000.0,
        histogram.stdev() / 1000.0,
        histogram.max() as f64 / 1000.0,
        histogram.len(),
        histogram.buckets(),
        2048
    ));
    std::fs::write(path, out).with_context(|| format!("write {}", path.display()))
}

/// (quantile, value) at ever smaller distances from 1: five steps for each halving.
pub fn spectrum(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    let mut points: Vec<(f64, u64)> = Vec::new();
    if histogram.is_empty() {
        return points;
    }
    for value in histogram.iter_quantiles(5) {
        let point = (value.quantile_iterated_to(), value.value_iterated_to().min(histogram.max()));
        if points.last() != Some(&point) {
            points.push(point);
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use hdrhistogram::iterators::IterationValue;

    use super::*;
    use crate::measure::latency::Latency;

    #[test]
    fn the_log_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::create(directory.path(), 1_700_000_000_000_000).unwrap();
        let mut set = Set::new(2);
        for us in 1..=1000 {
            set.of(us as usize % 2, Latency::Visible).record(us * 100);
        }
        log.write(0.0, 1.0, &set).unwrap();
        log.write(1.0, 1.0, &set).unwrap();
        let read = read(&directory.path().join("latency.hlog"), "visible").unwrap();
        assert_eq!(read.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0.0, 1.0]);
        let counts = |value: IterationValue<u64>| (value.value_iterated_to(), value.count_at_value());
        let written = set.all(Latency::Visible).histogram;
        let written = written.iter_recorded().map(|v| (v.value_iterated_to(), u64::from(v.count_at_value())));
        assert_eq!(read[1].1.iter_recorded().map(counts).collect::<Vec<_>>(), written.collect::<Vec<_>>());
        assert!(super::read(&directory.path().join("latency.hlog"), "ack").unwrap().is_empty());
    }

    #[test]
    fn the_spectrum_ends_at_the_largest_value() {
        let mut histogram = Histogram::new(3).unwrap();
        (1..=10_000u64).for_each(|us| histogram.record(us).unwrap());
        let points = spectrum(&histogram);
        assert_eq!(points.last().map(|p| p.0), Some(1.0));
        assert_eq!(points.last().map(|p| p.1), Some(histogram.max()));
        assert!(points.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1));
    }
}
