//! Writing SVG: shapes, text, axes and colours.

use std::fmt::Write;

/// Ink of axes and text.
pub(super) const INK: &str = "#333a45";
/// Faint lines.
pub(super) const FAINT: &str = "#d9dee5";
/// Side A and side B.
pub(super) const SIDES: [&str; 2] = ["#3b6fb6", "#d1663a"];

/// A drawing.
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

/// Where text stands relative to its point.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// An empty drawing on white, in pixels.
    pub fn new(width: f64, height: f64) -> Self {
        let mut svg = Self {
            body: String::new(),
            width,
            height,
        };
        svg.rect([0.0, 0.0, width, height], "#ffffff", "");
        svg
    }

    /// A filled rectangle `[x, y, width, height]`; a text to show under the pointer, or none.
    pub fn rect(&mut self, [x, y, w, h]: [f64; 4], fill: &str, title: &str) {
        let title = match title {
            "" => String::new(),
            t => format!("<title>{}</title>", escape(t)),
        };
        let _ = write!(
            self.body,
            r#"<rect x="{}" y="{}" width="{}" height="{}" fill="{fill}">{title}</rect>"#,
            short(x),
            short(y),
            short(w),
            short(h)
        );
    }

    /// A line.
    pub fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], stroke: &str, width: f64) {
        let _ = write!(
            self.body,
            r#"<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{stroke}" stroke-width="{width}"/>"#,
            short(x1),
            short(y1),
            short(x2),
            short(y2)
        );
    }

    /// Text with its base line at y.
    pub fn text(&mut self, x: f64, y: f64, anchor: Anchor, size: f64, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = write!(
            self.body,
            r#"<text x="{}" y="{}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">{}</text>"#,
            short(x),
            short(y),
            escape(text)
        );
    }

    /// The finished drawing.
    pub fn finish(self) -> String {
        let (w, h) = (short(self.width), short(self.height));
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" font-family="Inter, system-ui, sans-serif">{}</svg>"#,
            self.body
        )
    }
}

/// A number with at most two digits after the point.
fn short(v: f64) -> String {
    let text = format!("{v:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// Text as it may stand in SVG and HTML. Control characters, which XML forbids, become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Viridis at 0, 1/8 .. 1.
const VIRIDIS: [[f64; 3]; 9] = [
    [68.0, 1.0, 84.0],
    [71.0, 44.0, 122.0],
    [59.0, 81.0, 139.0],
    [44.0, 113.0, 142.0],
    [33.0, 144.0, 141.0],
    [39.0, 173.0, 129.0],
    [92.0, 200.0, 99.0],
    [170.0, 220.0, 50.0],
    [253.0, 231.0, 37.0],
];

/// White to dark red, for text backgrounds.
const HEAT: [[f64; 3]; 5] = [
    [255.0, 255.0, 255.0],
    [255.0, 243.0, 196.0],
    [253.0, 204.0, 120.0],
    [242.0, 133.0, 84.0],
    [200.0, 62.0, 62.0],
];

fn between(stops: &[[f64; 3]], t: f64) -> String {
    let last = stops.len() - 1;
    let at = if t.is_finite() { t.clamp(0.0, 1.0) } else { 0.0 } * last as f64;
    let i = (at.floor() as usize).min(last - 1);
    let f = at - i as f64;
    let c = |k: usize| (stops[i][k] + f * (stops[i + 1][k] - stops[i][k])).round() as u8;
    format!("#{:02x}{:02x}{:02x}", c(0), c(1), c(2))
}

/// Colour of 0..1 on a dark-to-light scale.
pub(super) fn viridis(t: f64) -> String {
    between(&VIRIDIS, t)
}

/// Colour of 0..1 from white on.
pub(super) fn heat(t: f64) -> String {
    between(&HEAT, t)
}

/// A logarithmic scale of positive values onto 0..1; zero and less lie at 0.
#[derive(Clone, Copy)]
pub(super) struct LogScale {
    /// Powers of ten at both ends.
    pub low: i32,
    pub high: i32,
}

impl LogScale {
    /// Whole decades that hold the largest of the values and at most `decades` below.
    pub fn of(values: impl Iterator<Item = f64>, decades: i32) -> Self {
        let max = values.filter(|v| v.is_finite()).fold(0.0, f64::max);
        let high = if max > 0.0 { max.log10().ceil() as i32 } else { 0 };
        Self {
            low: high - decades,
            high,
        }
    }

    /// Place of a value.
    pub fn at(&self, v: f64) -> f64 {
        if v <= 0.0 || v.is_nan() {
            return 0.0;
        }
        ((v.log10() - f64::from(self.low)) / f64::from(self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// About `count` round numbers over 0..=max.
pub(super) fn ticks(max: f64, count: usize) -> Vec<f64> {
    if max <= 0.0 || !max.is_finite() {
        return vec![0.0];
    }
    let rough = max / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|s| *s >= rough)
        .unwrap_or(rough);
    (0..)
        .map(|i| f64::from(i) * step)
        .take_while(|t| *t <= max * 1.0001)
        .collect()
}
