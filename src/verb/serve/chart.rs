//! Rows as a picture: SVG with its own style sheet, dark or light as the reader's screen is, no script, nothing loaded. Points that
//! fall into one column of pixels become its first, lowest, highest and last: a picture of 100,000 points looks the same and is a
//! few kilobytes. What is no number, and on a logarithmic scale what is not positive, is a gap.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::base::printable::markup;
use crate::client::wire::{Column, Row};
use crate::config::{ChartKind, Columns, RawChart, Scale};

/// A chart as configured.
#[derive(Clone, Debug)]
pub struct Chart {
    raw: RawChart,
    /// The columns that are drawn.
    y: Vec<String>,
}

/// A chart in work.
pub struct Drawing {
    chart: Option<Chart>,
    title: String,
    x: usize,
    y: Vec<usize>,
    /// Points across are times, in seconds since 1970.
    is_time: bool,
    xs: Vec<f64>,
    ys: Vec<Vec<f64>>,
}

/// Points of one picture; a row has one for each line, and as many bytes as two numbers.
const POINTS_MAX: usize = 1_000_000;

/// Colors that are told apart, with and without color vision, and on both grounds.
const LINES_MAX: usize = 6;

/// In units of the picture.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 52.0;

const STYLE: &str = "svg{background:#fff;font:13px system-ui,sans-serif}text{fill:#333}.t{font-size:15px;font-weight:600}\
.g{stroke:#ddd;stroke-width:1}.a{stroke:#888;stroke-width:1}.l{fill:none;stroke-width:1.5;stroke-linejoin:round}.p{stroke:none}\
.l0{stroke:#0072b2}.l1{stroke:#d55e00}.l2{stroke:#009e73}.l3{stroke:#cc79a7}.l4{stroke:#8a6d00}.l5{stroke:#56b4e9}\
.p0{fill:#0072b2}.p1{fill:#d55e00}.p2{fill:#009e73}.p3{fill:#cc79a7}.p4{fill:#8a6d00}.p5{fill:#56b4e9}\
@media(prefers-color-scheme:dark){svg{background:#16181c}text{fill:#ddd}.g{stroke:#333}.a{stroke:#777}\
.l0{stroke:#5ab4f0}.l1{stroke:#ff9040}.l2{stroke:#30d0a0}.l4{stroke:#e0c040}.p0{fill:#5ab4f0}.p1{fill:#ff9040}.p2{fill:#30d0a0}.p4{fill:#e0c040}}";

/// PostgreSQL's date, timestamp and timestamptz.
const TIMES: [u32; 3] = [1082, 1114, 1184];

impl Chart {
    /// # Errors
    /// More lines than can be told apart.
    pub fn new(raw: &RawChart) -> Result<Chart> {
        let y = match &raw.y {
            Columns::One(name) => vec![name.clone()],
            Columns::Many(names) => names.clone(),
        };
        ensure!(
            (1..=LINES_MAX).contains(&y.len()),
            "chart.y has {} columns: from 1 to {LINES_MAX} can be told apart",
            y.len()
        );
        Ok(Chart { raw: raw.clone(), y })
    }

    /// Which columns there must be.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.raw.x.as_str()).chain(self.y.iter().map(String::as_str))
    }
}

impl Drawing {
    pub fn new(chart: Option<&Chart>, summary: &str) -> Drawing {
        let title = chart.and_then(|chart| chart.raw.title.clone()).unwrap_or_else(|| summary.to_owned());
        let lines = chart.map_or(0, |chart| chart.y.len());
        Drawing {
            chart: chart.cloned(),
            title,
            x: 0,
            y: Vec::new(),
            is_time: false,
            xs: Vec::new(),
            ys: vec![Vec::new(); lines],
        }
    }

    /// # Errors
    /// The column that is not there.
    pub fn columns(&mut self, columns: &[Column]) -> Result<(), String> {
        let Some(chart) = &self.chart else { return Err("the endpoint has no chart".to_owned()) };
        let place = |name: &str| {
            columns
                .iter()
                .position(|column| column.name == name)
                .ok_or_else(|| format!("the statement has no column {name:?} for its chart"))
        };
        self.x = place(&chart.raw.x)?;
        self.y = chart.y.iter().map(|name| place(name)).collect::<Result<_, _>>()?;
        self.is_time = TIMES.contains(&columns[self.x].ty);
        Ok(())
    }

    /// # Errors
    /// More points than a picture has.
    pub fn row(&mut self, row: Row<'_>) -> Result<(), String> {
        if self.xs.len() == POINTS_MAX {
            return Err(format!("more than {POINTS_MAX} points"));
        }
        let texts: Vec<Option<&str>> =
            row.columns().map(|column| std::str::from_utf8(column?).ok()).collect();
        let at = |place: usize| texts.get(place).copied().flatten();
        let x = at(self.x).and_then(|text| if self.is_time { seconds(text) } else { text.parse().ok() });
        self.xs.push(x.unwrap_or(f64::NAN));
        for (line, place) in self.ys.iter_mut().zip(&self.y) {
            line.push(at(*place).and_then(|text| text.parse().ok()).unwrap_or(f64::NAN));
        }
        Ok(())
    }

    pub fn finish(&self) -> String {
        let (x_scale, y_scale, kind) = self
            .chart
            .as_ref()
            .map_or_else(Default::default, |chart| (chart.raw.x_scale, chart.raw.y_scale, chart.raw.kind));
        let x_scale = if self.is_time { Scale::Linear } else { x_scale };
        let x = Axis::of(self.xs.iter().copied(), x_scale, LEFT, WIDTH - RIGHT);
        let y = Axis::of(self.ys.iter().flatten().copied(), y_scale, HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><title>{0}</title>\
             <style>{STYLE}</style><text class=\"t\" x=\"{LEFT}\" y=\"24\">{0}</text>",
            markup(&self.title)
        );
        self.grid(&mut svg, &x, &y);
        for (number, line) in self.ys.iter().enumerate() {
            match kind {
                ChartKind::Line => draw_line(&mut svg, number, &self.xs, line, &x, &y),
                ChartKind::Points => draw_points(&mut svg, number, &self.xs, line, &x, &y),
            }
        }
        self.legend(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for (value, label) in y.ticks(6) {
            let at = y.place(value);
            write!(
                svg,
                "<path class=\"g\" d=\"M{LEFT} {at:.1}H{right}\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                at + 4.0
            ).ok();
        }
        let ticks = if self.is_time { x.times() } else { x.ticks(8) };
        for (value, label) in ticks {
            let at = x.place(value);
            write!(
                svg,
                "<path class=\"g\" d=\"M{at:.1} {TOP}V{bottom}\"/><text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{label}</text>",
                bottom + 18.0
            ).ok();
        }
        write!(svg, "<path class=\"a\" fill=\"none\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>").ok();
        let Some(chart) = &self.chart else { return };
        let x_label = chart.raw.x_label.as_ref().unwrap_or(&chart.raw.x);
        let y_label = chart.raw.y_label.clone().unwrap_or_else(|| chart.y.join(", "));
        write!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text><text transform=\"translate(16 {:.0}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 10.0,
            markup(x_label),
            (TOP + bottom) / 2.0,
            markup(&y_label)
        ).ok();
    }

    /// Which line is which, where there are several.
    fn legend(&self, svg: &mut String) {
        let Some(chart) = self.chart.as_ref().filter(|chart| chart.y.len() > 1) else { return };
        for (number, name) in chart.y.iter().enumerate() {
            let x = WIDTH - RIGHT - 140.0 * (chart.y.len() - number) as f64;
            write!(
                svg,
                "<path class=\"p{number} p\" d=\"M{x} 14h10v10h-10z\"/><text x=\"{}\" y=\"24\">{}</text>",
                x + 16.0,
                markup(name)
            )
            .ok();
        }
    }
}

/// From values to places.
struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
    from: f64,
    to: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, scale: Scale, from: f64, to: f64) -> Axis {
        let usable = values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0));
        let bounds = usable.fold(None, |bounds: Option<(f64, f64)>, value| {
            Some(bounds.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        });
        let (low, high) = match (bounds, scale) {
            (None, Scale::Linear) => (0.0, 1.0),
            (None, Scale::Log) => (1.0, 10.0),
            (Some((low, high)), Scale::Linear) if low == high => {
                let room = if low == 0.0 { 1.0 } else { low.abs() / 2.0 };
                (low - room, high + room)
            }
            (Some((low, high)), Scale::Log) if low == high => (low / 2.0, high * 2.0),
            (Some(bounds), _) => bounds,
        };
        Axis { low, high, scale, from, to }
    }

    /// NaN for what has no place.
    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            // Halves, because the whole span of two large numbers may be no number.
            Scale::Linear => (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0),
            Scale::Log if value > 0.0 => (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln()),
            Scale::Log => f64::NAN,
        };
        self.from + share * (self.to - self.from)
    }

    /// Round numbers, about so many, with their texts.
    fn ticks(&self, about: usize) -> Vec<(f64, String)> {
        if self.scale == Scale::Log {
            let (low, high) = (self.low.log10().ceil() as i32, self.high.log10().floor() as i32);
            let step = ((high - low) / about as i32 + 1).max(1);
            let decades: Vec<f64> =
                (low..=high).step_by(step as usize).map(|power| 10f64.powi(power)).collect();
            if decades.len() >= 2 {
                return decades.into_iter().map(|value| (value, number(value))).collect();
            }
        }
        let rough = (self.high / about as f64 - self.low / about as f64).abs();
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        steps(self.low, self.high, step).into_iter().map(|value| (value, number(value))).collect()
    }

    /// The same for seconds since 1970, in UTC.
    fn times(&self) -> Vec<(f64, String)> {
        const STEPS: [f64; 20] = [
            0.001,
            0.01,
            0.1,
            1.0,
            5.0,
            15.0,
            60.0,
            300.0,
            900.0,
            3600.0,
            10_800.0,
            21_600.0,
            86_400.0,
            172_800.0,
            604_800.0,
            2_592_000.0,
            7_776_000.0,
            31_536_000.0,
            157_680_000.0,
            1_576_800_000.0,
        ];
        let span = self.high - self.low;
        let step = STEPS.into_iter().find(|step| span / step <= 8.0).unwrap_or(span / 4.0);
        let form = match step {
            step if step < 1.0 => "%H:%M:%S%.3f",
            step if step < 60.0 => "%H:%M:%S",
            step if step < 86_400.0 && span < 86_400.0 => "%H:%M",
            step if step < 86_400.0 => "%m-%d %H:%M",
            _ => "%Y-%m-%d",
        };
        let text = |value: f64| {
            jiff::Timestamp::from_nanosecond((value * 1e9) as i128)
                .map(|time| time.strftime(form).to_string())
                .unwrap_or_default()
        };
        steps(self.low, self.high, step).into_iter().map(|value| (value, text(value))).collect()
    }
}

fn steps(low: f64, high: f64, step: f64) -> Vec<f64> {
    let first = (low / step).ceil();
    // Numbers so close that they have no steps between them get none.
    (0..12).map(|n| (first + f64::from(n)) * step).take_while(|value| *value <= high).collect()
}

/// Short, and as exact as its digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e6).contains(&size) {
        return format!("{value:e}").replace("e-", "e−");
    }
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn draw_line(svg: &mut String, number: usize, xs: &[f64], ys: &[f64], x: &Axis, y: &Axis) {
    let mut path = String::new();
    let mut pen_down = false;
    let mut column = Pixels::default();
    for (a, b) in xs.iter().zip(ys) {
        let (px, py) = (x.place(*a), y.place(*b));
        if !px.is_finite() || !py.is_finite() {
            column.flush(&mut path, &mut pen_down);
            pen_down = false;
            continue;
        }
        if !column.takes(px) {
            column.flush(&mut path, &mut pen_down);
        }
        column.add(px, py);
    }
    column.flush(&mut path, &mut pen_down);
    if !path.is_empty() {
        write!(svg, "<path class=\"l l{number}\" d=\"{path}\"/>").ok();
    }
    // A line of one point has no length.
    let alone = alone(xs, ys, x, y);
    if !alone.is_empty() {
        write!(svg, "<path class=\"p p{number}\" d=\"{alone}\"/>").ok();
    }
}

/// Points without a neighbor on either side, and all of them where there are few.
fn alone(xs: &[f64], ys: &[f64], x: &Axis, y: &Axis) -> String {
    const FEW: usize = 30;
    let is_there = |at: Option<usize>| {
        at.and_then(|at| Some(x.place(*xs.get(at)?).is_finite() && y.place(*ys.get(at)?).is_finite()))
            == Some(true)
    };
    let mut path = String::new();
    for at in 0..xs.len() {
        let lonely = !is_there(at.checked_sub(1)) && !is_there(Some(at + 1));
        if is_there(Some(at)) && (lonely || xs.len() <= FEW) {
            write!(
                path,
                "M{:.1} {:.1}m-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0",
                x.place(xs[at]),
                y.place(ys[at])
            )
            .ok();
        }
    }
    path
}

/// Points in one column of pixels.
#[derive(Default)]
struct Pixels {
    points: Vec<(f64, f64)>,
}

impl Pixels {
    fn takes(&self, x: f64) -> bool {
        self.points.first().is_none_or(|(first, _)| first.floor() == x.floor())
    }

    /// The first, the lowest, the highest and the last are enough.
    fn add(&mut self, x: f64, y: f64) {
        self.points.push((x, y));
        if self.points.len() == 64 {
            self.thin();
        }
    }

    fn thin(&mut self) {
        if self.points.len() <= 4 {
            return;
        }
        let by_height = |a: &&(usize, &(f64, f64)), b: &&(usize, &(f64, f64))| a.1.1.total_cmp(&b.1.1);
        let numbered: Vec<(usize, &(f64, f64))> = self.points.iter().enumerate().collect();
        let low = numbered.iter().min_by(by_height).map_or(0, |found| found.0);
        let high = numbered.iter().max_by(by_height).map_or(0, |found| found.0);
        let mut keep = [0, low, high, self.points.len() - 1];
        keep.sort_unstable();
        let mut kept: Vec<(f64, f64)> = Vec::with_capacity(4);
        let mut last = None;
        for at in keep {
            if last != Some(at) {
                kept.push(self.points[at]);
            }
            last = Some(at);
        }
        self.points = kept;
    }

    fn flush(&mut self, path: &mut String, pen_down: &mut bool) {
        self.thin();
        for (x, y) in self.points.drain(..) {
            let command = if *pen_down { 'L' } else { 'M' };
            write!(path, "{command}{x:.1} {y:.1}").ok();
            *pen_down = true;
        }
    }
}

fn draw_points(svg: &mut String, number: usize, xs: &[f64], ys: &[f64], x: &Axis, y: &Axis) {
    // Two on one place are one.
    let mut seen = std::collections::HashSet::new();
    let mut path = String::new();
    for (a, b) in xs.iter().zip(ys) {
        let (px, py) = (x.place(*a), y.place(*b));
        if px.is_finite() && py.is_finite() && seen.insert((px.round() as i32, py.round() as i32)) {
            write!(path, "M{px:.0} {py:.0}h2v2h-2z").ok();
        }
    }
    if !path.is_empty() {
        write!(svg, "<path class=\"p p{number}\" d=\"{path}\"/>").ok();
    }
}

/// PostgreSQL's text of a time, in UTC, as seconds since 1970.
fn seconds(text: &str) -> Option<f64> {
    let text = text.strip_suffix("+00").unwrap_or(text);
    let time = match text.parse::<jiff::civil::DateTime>() {
        Ok(time) => time,
        Err(_) => text.parse::<jiff::civil::Date>().ok()?.at(0, 0, 0, 0),
    };
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    Some(time.as_nanosecond() as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(more: &str) -> Chart {
        Chart::new(&toml::from_str(&format!("x = \"x\"\ny = \"y\"\n{more}")).unwrap()).unwrap()
    }

    fn drawn(more: &str, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut drawing = Drawing::new(Some(&chart(more)), "a <b> & \"c\"");
        for (x, y) in points {
            drawing.xs.push(x);
            drawing.ys[0].push(y);
        }
        drawing.finish()
    }

    fn path<'s>(svg: &'s str, class: &str) -> &'s str {
        let start = svg.find(&format!("class=\"{class}\" d=\"")).expect("a path") + class.len() + 12;
        svg[start..].split('"').next().unwrap_or_default()
    }

    #[test]
    fn three_points_are_a_line_with_its_points() {
        let svg = drawn("", [(0.0, 1.0), (1.0, 3.0), (2.0, 2.0)].into_iter());
        assert_eq!(path(&svg, "l l0"), "M76.0 428.0L510.0 40.0L944.0 234.0");
        assert_eq!(path(&svg, "p p0").matches('M').count(), 3);
        assert!(svg.contains("<title>a &lt;b&gt; &amp; &quot;c&quot;</title>") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("prefers-color-scheme:dark") && !svg.contains("<script"));
    }

    #[test]
    fn a_hundred_thousand_points_keep_their_peaks() {
        let points =
            (0..100_000).map(|n| (f64::from(n), if n == 54_321 { 1000.0 } else { f64::from(n % 7) }));
        let svg = drawn("", points);
        assert!(svg.len() < 80_000, "{} bytes", svg.len());
        assert!(path(&svg, "l l0").contains(" 40.0L"), "the peak is at the top");
    }

    #[test]
    fn what_is_no_number_is_a_gap() {
        let nan = f64::NAN;
        let svg =
            drawn("", [(0.0, 1.0), (1.0, nan), (2.0, 2.0), (3.0, 3.0), (4.0, f64::INFINITY)].into_iter());
        let line = path(&svg, "l l0");
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let svg = drawn("y_scale = \"log\"", [(0.0, 0.0), (1.0, 10.0), (2.0, 1000.0)].into_iter());
        assert_eq!(path(&svg, "l l0").matches('M').count(), 1);
        assert!(svg.contains(">1000</text>") && !svg.contains("NaN"));
    }

    #[test]
    fn nothing_and_one_point_are_pictures_too() {
        for points in
            [vec![], vec![(5.0, 0.0)], vec![(5.0, 7.0); 3], vec![(f64::MAX, f64::MIN), (f64::MIN, f64::MAX)]]
        {
            let svg = drawn("", points.into_iter());
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn times_and_numbers_have_round_ticks() {
        let axis = Axis { low: 0.3, high: 9.7, scale: Scale::Linear, from: 0.0, to: 1.0 };
        let labels = |ticks: Vec<(f64, String)>| ticks.into_iter().map(|tick| tick.1).collect::<Vec<_>>();
        assert_eq!(labels(axis.ticks(6)), ["2", "4", "6", "8"]);
        let day =
            Axis { low: 1_700_000_000.0, high: 1_700_086_400.0, scale: Scale::Linear, from: 0.0, to: 1.0 };
        assert_eq!(labels(day.times())[0], "11-15 00:00");
        assert_eq!(seconds("2023-11-14 22:13:20.5+00"), Some(1_700_000_000.5));
        assert_eq!((seconds("2023-11-15"), seconds("infinity")), (Some(1_700_006_400.0), None));
        assert_eq!([number(0.5), number(1e7), number(0.0), number(-2.5e-9)], ["0.5", "1e7", "0", "-2.5e−9"]);
    }
}
