//! What a number counts, and how axes and readouts write it.

use crate::fmt::{self, Figure};

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Bytes: B, KiB, MiB, GiB.
    Bytes,
    /// A share of 1, shown in percent.
    Share,
    /// A plain number: a relative error, an entropy, a norm.
    Plain,
    /// A multiple of something: `1.48×`.
    Times,
    /// Tokens per second.
    TokensPerSecond,
    /// Milliseconds.
    Milliseconds,
    /// Nats.
    Nats,
    /// Bits.
    Bits,
    /// A whole number: a token, a layer, a count.
    Whole,
}

/// How an axis writes its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Values are divided by this.
    pub divisor: f64,
    /// Unit after division; may be empty.
    pub unit: &'static str,
}

impl Quantity {
    /// A value as a figure.
    pub fn figure(self, value: f64) -> Figure {
        if !value.is_finite() {
            return Figure::new(fmt::sig3(value), "");
        }
        match self {
            Quantity::Bytes => bytes(value),
            Quantity::Share => fmt::percent(value),
            Quantity::Times => Figure::new(format!("{value:.2}×"), ""),
            Quantity::Plain => Figure::new(fmt::sig3(value), ""),
            Quantity::TokensPerSecond => fmt::rate(value),
            Quantity::Milliseconds => fmt::seconds(value / 1e3),
            Quantity::Nats => Figure::new(fmt::sig3(value), "nats"),
            Quantity::Bits => Figure::new(fmt::sig3(value), "bits"),
            Quantity::Whole => Figure::new(whole(value), ""),
        }
    }

    /// The unit of an axis whose largest value is `largest`.
    pub fn scale(self, largest: f64) -> Scale {
        let scale = |divisor, unit| Scale { divisor, unit };
        match self {
            Quantity::Bytes => {
                const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
                let mut step = 0;
                let mut divisor = 1.0;
                while largest.abs() >= 1024.0 * divisor && step + 1 < UNITS.len() {
                    divisor *= 1024.0;
                    step += 1;
                }
                scale(divisor, UNITS[step])
            }
            Quantity::Share => scale(0.01, "%"),
            Quantity::TokensPerSecond => scale(1.0, "tok/s"),
            Quantity::Milliseconds if largest.abs() < 1.0 => scale(1e-3, "µs"),
            Quantity::Milliseconds if largest.abs() >= 2000.0 => scale(1e3, "s"),
            Quantity::Milliseconds => scale(1.0, "ms"),
            Quantity::Nats => scale(1.0, "nats"),
            Quantity::Bits => scale(1.0, "bits"),
            Quantity::Plain | Quantity::Times | Quantity::Whole => scale(1.0, ""),
        }
    }

    /// Whether only whole numbers make sense as ticks.
    pub fn is_whole(self) -> bool {
        self == Quantity::Whole
    }
}

/// Places of grid lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Ticks {
    /// Values, rising.
    pub values: Vec<f64>,
    /// Distance between them.
    pub step: f64,
}

impl Ticks {
    /// At most `most` round values (1, 2 or 5 times a power of ten, after division by the scale) within `[min, max]`.
    pub fn new(min: f64, max: f64, most: usize, scale: Scale, whole: bool) -> Self {
        let none = Self {
            values: Vec::new(),
            step: 1.0,
        };
        let (lo, hi) = (min / scale.divisor, max / scale.divisor);
        if !(lo.is_finite() && hi.is_finite() && hi > lo) || most == 0 {
            return none;
        }
        let rough = (hi - lo) / most as f64;
        let power = 10f64.powf(rough.log10().floor());
        let mut step = power * 10.0;
        for round in [1.0, 2.0, 5.0, 10.0] {
            let candidate = round * power;
            if count(lo, hi, candidate) <= most {
                step = candidate;
                break;
            }
        }
        if whole {
            step = step.max(1.0);
        }
        let first = (lo / step - 1e-9).ceil();
        let values = (0..count(lo, hi, step))
            .map(|i| (first + i as f64) * step * scale.divisor)
            .collect();
        Self {
            values,
            step: step * scale.divisor,
        }
    }

    /// A value as the axis writes it.
    pub fn text(&self, value: f64, scale: Scale) -> String {
        let (value, step) = (value / scale.divisor, self.step / scale.divisor);
        if value.abs() < step * 1e-6 {
            return "0".into();
        }
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        if decimals > 4 || value.abs() >= 1e7 {
            return fmt::sig3(value);
        }
        let digits = format!("{:.decimals$}", value.abs());
        let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
        let whole = whole.parse().map_or_else(|_| whole.to_string(), fmt::count);
        let sign = if value < 0.0 { "\u{2212}" } else { "" };
        if fraction.is_empty() {
            format!("{sign}{whole}")
        } else {
            format!("{sign}{whole}.{fraction}")
        }
    }
}

fn bytes(value: f64) -> Figure {
    let mut figure = fmt::bytes(value.abs().round() as u64);
    if value < 0.0 {
        figure.value.insert(0, '\u{2212}');
    }
    figure
}

fn whole(value: f64) -> String {
    let digits = fmt::count(value.abs().round() as u64);
    if value <= -0.5 {
        format!("\u{2212}{digits}")
    } else {
        digits
    }
}

/// Multiples of `step` within `[lo, hi]`.
fn count(lo: f64, hi: f64, step: f64) -> usize {
    let n = (hi / step + 1e-9).floor() - (lo / step - 1e-9).ceil() + 1.0;
    n.clamp(0.0, 1e6) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Scale = Scale { divisor: 1.0, unit: "" };

    fn texts(min: f64, max: f64, most: usize, scale: Scale, whole: bool) -> Vec<String> {
        let ticks = Ticks::new(min, max, most, scale, whole);
        ticks.values.iter().map(|v| ticks.text(*v, scale)).collect()
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(texts(0.0, 412.0, 5, ONE, false), ["0", "100", "200", "300", "400"]);
        assert_eq!(texts(0.0, 1.0, 5, ONE, false), ["0", "0.5", "1.0"]);
        assert_eq!(
            texts(-1.0, 1.0, 5, ONE, false),
            ["\u{2212}1.0", "\u{2212}0.5", "0", "0.5", "1.0"]
        );
        assert_eq!(texts(0.0, 0.031, 4, ONE, false), ["0", "0.01", "0.02", "0.03"]);
        assert_eq!(
            texts(0.0, 4096.0, 5, ONE, true),
            ["0", "1\u{2009}000", "2\u{2009}000", "3\u{2009}000", "4\u{2009}000"]
        );
        assert_eq!(texts(0.0, 2.0, 5, ONE, true), ["0", "1", "2"]);
        for (min, max) in [(0.1, 7.3), (-3e-7, 2e-7), (1e9, 3e9), (5.0, 5.001)] {
            let n = Ticks::new(min, max, 5, ONE, false).values.len();
            assert!((1..=5).contains(&n), "{min}..{max}: {n}");
        }
    }

    #[test]
    fn bytes_tick_in_binary_units() {
        let scale = Quantity::Bytes.scale(3.0 * 1024.0 * 1024.0);
        assert_eq!(scale.unit, "MiB");
        assert_eq!(texts(0.0, 3.2 * 1048576.0, 5, scale, false), ["0", "1", "2", "3"]);
        assert_eq!(Quantity::Bytes.scale(0.0).unit, "B");
        assert_eq!(Quantity::Share.scale(1.0).unit, "%");
    }

    #[test]
    fn broken_ranges_have_no_ticks() {
        assert!(Ticks::new(0.0, f64::NAN, 5, ONE, false).values.is_empty());
        assert!(Ticks::new(1.0, 1.0, 5, ONE, false).values.is_empty());
        assert!(Ticks::new(2.0, 1.0, 5, ONE, false).values.is_empty());
    }

    #[test]
    fn figures_carry_their_units() {
        assert_eq!(Quantity::Bytes.figure(2048.0).plain(), "2.00\u{2009}KiB");
        assert_eq!(Quantity::Bytes.figure(-2048.0).plain(), "\u{2212}2.00\u{2009}KiB");
        assert_eq!(Quantity::Share.figure(0.81).plain(), "81.0%");
        assert_eq!(Quantity::Milliseconds.figure(2.43).plain(), "2.43\u{2009}ms");
        assert_eq!(Quantity::Whole.figure(1214.0).plain(), "1\u{2009}214");
        assert_eq!(Quantity::Nats.figure(f64::NAN).plain(), "–");
    }
}
