//! Numbers for people: three significant digits unless exact, thin spaces between groups, the unit apart.

use egui::text::{LayoutJob, TextFormat};
use egui::{Response, Ui};
use protocol::Label;

use crate::theme::{self, Palette};

/// U+2009, between groups of digits and before units.
pub const THIN: char = '\u{2009}';

/// A number with its unit and how it came to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Digits, ready to show.
    pub value: String,
    /// Unit; empty for none.
    pub unit: &'static str,
    /// Measured, sampled or estimated.
    pub label: Label,
    /// Number of samples, for sampled figures.
    pub samples: Option<u64>,
}

impl Figure {
    /// A measured figure.
    pub fn new(value: impl Into<String>, unit: &'static str) -> Self {
        Self {
            value: value.into(),
            unit,
            label: Label::Measured,
            samples: None,
        }
    }

    /// Marks it as sampled from `n`.
    #[must_use]
    pub fn sampled(mut self, n: u64) -> Self {
        self.label = Label::Sampled;
        self.samples = Some(n);
        self
    }

    /// Marks it as estimated.
    #[must_use]
    pub fn estimated(mut self) -> Self {
        self.label = Label::Estimated;
        self
    }

    /// As plain text, e.g. for copying.
    pub fn plain(&self) -> String {
        let mut s = String::new();
        if self.label == Label::Sampled {
            s.push('~');
        }
        s.push_str(&self.value);
        if !self.unit.is_empty() {
            if self.unit != "%" {
                s.push(THIN);
            }
            s.push_str(self.unit);
        }
        if self.label == Label::Estimated {
            s.push_str(" est.");
        }
        s
    }

    /// As coloured text: the unit is secondary, sampled carries "~", estimated is italic with "est.".
    pub fn job(&self, p: &Palette, font: egui::FontId, color: egui::Color32) -> LayoutJob {
        let estimated = self.label == Label::Estimated;
        let main = TextFormat {
            font_id: font.clone(),
            color,
            italics: estimated,
            ..Default::default()
        };
        let unit_size = if font.size > theme::TITLE {
            theme::BODY
        } else {
            font.size
        };
        let unit_font = egui::FontId::proportional(unit_size);
        let unit = TextFormat {
            font_id: unit_font,
            color: p.secondary,
            italics: estimated,
            ..Default::default()
        };
        let mut job = LayoutJob::default();
        if self.label == Label::Sampled {
            job.append("~", 0.0, unit.clone());
        }
        job.append(&self.value, 0.0, main);
        if !self.unit.is_empty() {
            if self.unit != "%" {
                job.append("\u{2009}", 0.0, unit.clone());
            }
            job.append(self.unit, 0.0, unit.clone());
        }
        if estimated {
            job.append(" est.", 0.0, unit);
        }
        job
    }

    /// Shows it in monospaced digits.
    pub fn show(&self, ui: &mut Ui) -> Response {
        let p = Palette::of(ui);
        let response = ui.label(self.job(p, theme::mono(), p.text));
        self.explain(response)
    }

    /// Shows it large.
    pub fn show_large(&self, ui: &mut Ui) -> Response {
        let p = Palette::of(ui);
        let response = ui.label(self.job(p, theme::figure(), p.text));
        self.explain(response)
    }

    fn explain(&self, response: Response) -> Response {
        match (self.label, self.samples) {
            (Label::Sampled, Some(n)) => response.on_hover_text(format!("sampled, n = {}", count(n))),
            (Label::Estimated, _) => response.on_hover_text("estimated from shapes, not measured"),
            _ => response,
        }
    }
}

/// An exact whole number with thin spaces between groups of three: `1 214`.
pub fn count(n: u64) -> String {
    group(&n.to_string())
}

/// A signed exact whole number; the minus sign is U+2212.
pub fn signed(n: i64) -> String {
    let digits = group(&n.unsigned_abs().to_string());
    match n {
        0 => digits,
        n if n < 0 => format!("\u{2212}{digits}"),
        _ => format!("+{digits}"),
    }
}

fn group(digits: &str) -> String {
    if digits.len() <= 3 {
        return digits.to_string();
    }
    let mut out = String::with_capacity(digits.len() + digits.len());
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(THIN);
        }
        out.push(c);
    }
    out
}

/// Three significant digits; scientific form outside 1e-4..1e7; `–` for NaN.
pub fn sig3(x: f64) -> String {
    if x.is_nan() {
        return "–".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "∞".into() } else { "\u{2212}∞".into() };
    }
    let sign = if x < 0.0 { "\u{2212}" } else { "" };
    let a = x.abs();
    if a == 0.0 {
        return "0".into();
    }
    if !(1e-4..1e7).contains(&a) {
        let mut exponent = a.log10().floor() as i32;
        let mut mantissa = a / 10f64.powi(exponent);
        if mantissa >= 9.995 {
            mantissa /= 10.0;
            exponent += 1;
        }
        let e = if exponent < 0 {
            format!("\u{2212}{}", -exponent)
        } else {
            exponent.to_string()
        };
        return format!("{sign}{mantissa:.2}e{e}");
    }
    let decimals = (2 - a.log10().floor() as i32).max(0) as usize;
    let text = format!("{a:.decimals$}");
    // 9.996 rounds to 10.00: one digit too many.
    let text = if a < 1000.0
        && text
            .bytes()
            .filter(u8::is_ascii_digit)
            .skip_while(|b| *b == b'0')
            .count()
            > 3
    {
        let fewer = decimals.saturating_sub(1);
        format!("{a:.fewer$}")
    } else {
        text
    };
    match text.split_once('.') {
        Some((whole, fraction)) => format!("{sign}{}.{fraction}", group(whole)),
        None => format!("{sign}{}", group(&text)),
    }
}

/// Bytes in binary units: `3.45 GiB`; exact below 1 KiB.
pub fn bytes(n: u64) -> Figure {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut x = n as f64;
    let mut unit = 0;
    while x >= 1023.5 && unit < UNITS.len() - 1 {
        x /= 1024.0;
        unit += 1;
    }
    let value = if unit == 0 { count(n) } else { sig3(x) };
    Figure::new(value, UNITS[unit])
}

/// A signed difference of bytes.
pub fn signed_bytes(n: i64) -> Figure {
    let mut f = bytes(n.unsigned_abs());
    if n != 0 {
        f.value = format!("{}{}", if n < 0 { '\u{2212}' } else { '+' }, f.value);
    }
    f
}

/// Tokens per second.
pub fn rate(x: f64) -> Figure {
    Figure::new(sig3(x), "tok/s")
}

/// Seconds in the unit that suits them: µs, ms, s, min.
pub fn seconds(s: f64) -> Figure {
    let a = s.abs();
    if a < 1e-3 {
        Figure::new(sig3(s * 1e6), "µs")
    } else if a < 0.9995 {
        Figure::new(sig3(s * 1e3), "ms")
    } else if a < 120.0 {
        Figure::new(sig3(s), "s")
    } else {
        Figure::new(sig3(s / 60.0), "min")
    }
}

/// A share as percent.
pub fn percent(share: f64) -> Figure {
    Figure::new(sig3(share * 100.0), "%")
}

/// A count in short form: `21.3 M`.
pub fn short(n: u64) -> Figure {
    match n {
        0..=9_999 => Figure::new(count(n), ""),
        10_000..=999_499 => Figure::new(sig3(n as f64 / 1e3), "k"),
        999_500..=999_499_999 => Figure::new(sig3(n as f64 / 1e6), "M"),
        _ => Figure::new(sig3(n as f64 / 1e9), "B"),
    }
}

/// A probability from its natural log.
pub fn probability(logprob: f32) -> String {
    if logprob.is_nan() {
        return "–".into();
    }
    let p = f64::from(logprob).exp();
    if p >= 0.001 { format!("{p:.3}") } else { sig3(p) }
}

/// Text with control characters and other invisible ones as symbols (U+2400 block, ␣ only alone).
pub fn visible(text: &str) -> String {
    special(text).chars().map(visible_char).collect()
}

/// Special tokens of DeepSeek's vocabularies (`<｜begin▁of▁sentence｜>`) in plain signs: their full-width bars are in no
/// Latin font. Other text is left as it is.
pub fn special(text: &str) -> std::borrow::Cow<'_, str> {
    if text.starts_with("<\u{ff5c}") && text.ends_with("\u{ff5c}>") {
        text.replace('\u{ff5c}', "|").replace('\u{2581}', "_").into()
    } else {
        text.into()
    }
}

/// One character as it can be shown.
pub fn visible_char(c: char) -> char {
    match c {
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}' => '\u{fffd}',
        c => c,
    }
}

/// A token in quotes, as lists show it: `" dragon"`.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", visible(text))
}

/// Time since `then` (seconds since 1970), for lists: `now`, `5 min`, `3 h`, `12 d`.
pub fn ago(then: u64, now: u64) -> String {
    let d = now.saturating_sub(then);
    match d {
        0..=59 => "now".into(),
        60..=3_599 => format!("{}{THIN}min", d / 60),
        3_600..=86_399 => format!("{}{THIN}h", d / 3_600),
        _ => format!("{}{THIN}d", d / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        let cases = [
            (0.0, "0"),
            (1.0, "1.00"),
            (0.0031, "0.00310"),
            (12.345, "12.3"),
            (123.45, "123"),
            (1214.4, "1\u{2009}214"),
            (9.996, "10.0"),
            (99.96, "100"),
            (999.6, "1\u{2009}000"),
            (-2.5, "\u{2212}2.50"),
            (1.5e-5, "1.50e\u{2212}5"),
            (9.999e-6, "1.00e\u{2212}5"),
            (2.5e9, "2.50e9"),
            (f64::NAN, "–"),
            (f64::INFINITY, "∞"),
            (0.09996, "0.100"),
        ];
        for (x, want) in cases {
            assert_eq!(sig3(x), want, "{x}");
        }
    }

    #[test]
    fn units() {
        assert_eq!(bytes(0).plain(), "0\u{2009}B");
        assert_eq!(bytes(1023).plain(), "1\u{2009}023\u{2009}B");
        assert_eq!(bytes(1024).plain(), "1.00\u{2009}KiB");
        assert_eq!(bytes(3_704_000_000).plain(), "3.45\u{2009}GiB");
        assert_eq!(signed_bytes(-2048).plain(), "\u{2212}2.00\u{2009}KiB");
        assert_eq!(count(1_234_567), "1\u{2009}234\u{2009}567");
        assert_eq!(signed(-1234), "\u{2212}1\u{2009}234");
        assert_eq!(seconds(0.038).plain(), "38.0\u{2009}ms");
        assert_eq!(percent(0.992).plain(), "99.2%");
        assert_eq!(short(21_300_000).plain(), "21.3\u{2009}M");
        assert_eq!(rate(412.0).sampled(9).plain(), "~412\u{2009}tok/s");
        assert_eq!(rate(412.0).estimated().plain(), "412\u{2009}tok/s est.");
    }

    #[test]
    fn special_tokens_are_written_in_plain_signs() {
        assert_eq!(
            visible("<\u{ff5c}begin\u{2581}of\u{2581}sentence\u{ff5c}>"),
            "<|begin_of_sentence|>"
        );
        assert_eq!(visible("a\u{ff5c}b"), "a\u{ff5c}b");
    }

    #[test]
    fn control_characters_become_symbols() {
        assert_eq!(
            visible("a\tb\u{1b}\u{7f}\u{202e}"),
            "a\u{2409}b\u{241b}\u{2421}\u{fffd}"
        );
    }
}
