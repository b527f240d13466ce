//! Pictures as SVG, in colours that the page sets.

use std::fmt::Write;

/// Points that belong together.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// What a point is, shown where the pointer rests.
    pub(super) labels: Vec<String>,
    /// Whether neighbouring points are joined.
    pub(super) joined: bool,
}

/// An axis.
pub(super) struct Axis {
    pub(super) title: String,
    /// Powers of ten, for values above zero.
    pub(super) logarithmic: bool,
}

/// Colours that the page has.
const COLOURS: usize = 12;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

fn log10(value: f64) -> f64 {
    quant_core::elementary::ln(value) / std::f64::consts::LN_10
}

struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, logarithmic: bool) -> Option<Self> {
        let place = |v: f64| if logarithmic { log10(v) } else { v };
        let values: Vec<f64> = values.map(place).filter(|v| v.is_finite()).collect();
        let low = values.iter().copied().reduce(f64::min)?;
        let high = values.iter().copied().reduce(f64::max)?;
        let room = ((high - low) * 0.06).max(if logarithmic { 0.2 } else { 0.5 });
        Some(Self { low: low - room, high: high + room, logarithmic })
    }

    /// From 0 to 1; none where there is no place.
    fn place(&self, value: f64) -> Option<f64> {
        let v = if self.logarithmic { log10(value) } else { value };
        v.is_finite().then(|| (v - self.low) / (self.high - self.low))
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        let span = self.high - self.low;
        let step = if self.logarithmic {
            (span / 6.0).ceil().max(1.0)
        } else {
            let raw = span / 6.0;
            let power = 10_f64.powi(log10(raw).floor() as i32);
            [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(power)
        };
        let mut ticks = Vec::new();
        let mut at = (self.low / step).ceil() * step;
        while at <= self.high && ticks.len() < 20 {
            // A zero that rounding has moved below zero is one.
            let at_zero = if at.abs() < step * 1e-6 { 0.0 } else { at };
            let text = if self.logarithmic {
                format!("1e{at_zero:.0}")
            } else if step < 1.0 {
                format!("{at_zero:.1}")
            } else {
                format!("{at_zero:.0}")
            };
            ticks.push(((at - self.low) / span, text));
            at += step;
        }
        ticks
    }
}

/// A text inside markup.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A chart of points; empty where there is none.
pub(super) fn chart(series: &[Series], x: &Axis, y: &Axis) -> String {
    let all = || series.iter().flat_map(|s| s.points.iter());
    let scales =
        Scale::new(all().map(|p| p.0), x.logarithmic).zip(Scale::new(all().map(|p| p.1), y.logarithmic));
    let Some((across, up)) = scales else { return String::new() };
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let at = |point: &(f64, f64)| {
        Some((LEFT + across.place(point.0)? * width, TOP + (1.0 - up.place(point.1)?) * height))
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} by {}\">",
        escaped(&y.title),
        escaped(&x.title)
    );
    for (place, text) in across.ticks() {
        let left = LEFT + place * width;
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{left:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/><text class=\"tick\" x=\"{left:.1}\" \
             y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            TOP + height,
            TOP + height + 16.0
        );
    }
    for (place, text) in up.ticks() {
        let top = TOP + (1.0 - place) * height;
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{top:.1}\" y2=\"{top:.1}\"/><text class=\"tick\" x=\"{:.1}\" \
             y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT + width,
            LEFT - 6.0,
            top + 4.0
        );
    }
    let _ = write!(
        svg,
        "<text class=\"title\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text class=\"title\" \
         transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        LEFT + width / 2.0,
        HEIGHT - 8.0,
        escaped(&x.title),
        TOP + height / 2.0,
        escaped(&y.title)
    );
    for (index, one) in series.iter().enumerate() {
        let colour = index % COLOURS;
        if one.joined {
            let line: Vec<String> =
                one.points.iter().filter_map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = write!(svg, "<polyline class=\"s{colour}\" points=\"{}\"/>", line.join(" "));
        }
        for (point, label) in one.points.iter().zip(&one.labels) {
            if let Some((x, y)) = at(point) {
                let radius = if one.joined { 2.5 } else { 5.0 };
                let _ = write!(
                    svg,
                    "<circle class=\"s{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}</title></circle>",
                    escaped(label)
                );
            }
        }
    }
    svg.push_str("</svg>");
    let keys: Vec<String> = series
        .iter()
        .enumerate()
        .map(|(index, s)| {
            format!("<span class=\"key\"><i class=\"k{}\"></i>{}</span>", index % COLOURS, escaped(&s.name))
        })
        .collect();
    format!("<figure>{svg}<figcaption>{}</figcaption></figure>", keys.join(" "))
}
