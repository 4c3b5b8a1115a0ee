//! Ending a text at a stop string.

/// What [`StopStrings::push`] lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// True once a stop string was found; nothing comes after it.
    pub stopped: bool,
}

/// Looks for stop strings in a text that arrives in pieces. The earliest match ends the text (where several begin
/// at the same place, it makes no difference which). Text that may be the beginning of a stop string is held back.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Empty strings are ignored.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops
            .iter()
            .map(|s| s.as_ref().to_owned())
            .filter(|s| !s.is_empty())
            .collect();
        Self {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.stopped {
            return StopOutput {
                text: String::new(),
                stopped: true,
            };
        }
        if self.stops.is_empty() {
            return StopOutput {
                text: text.to_owned(),
                stopped: false,
            };
        }
        self.held.push_str(text);
        let hold = self.hold_from();
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        // A match may only be taken once nothing that begins before it can still become one.
        if let Some(at) = found
            && hold >= at
        {
            self.stopped = true;
            self.held.truncate(at);
            return StopOutput {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let rest = self.held.split_off(hold);
        StopOutput {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// The end of the text: what was held back, cut at a stop string if one is complete in it.
    pub fn flush(&mut self) -> String {
        if std::mem::replace(&mut self.stopped, true) {
            return String::new();
        }
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
        }
        std::mem::take(&mut self.held)
    }

    /// True once a stop string was found, or after the end.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Where the earliest unfinished candidate begins: the longest tail that is a proper prefix of a stop string.
    fn hold_from(&self) -> usize {
        let held = self.held.as_bytes();
        let mut from = held.len();
        for stop in &self.stops {
            let longest = (stop.len() - 1).min(held.len());
            let tail = (1..=longest).rev().find(|&n| held.ends_with(&stop.as_bytes()[..n]));
            from = from.min(held.len() - tail.unwrap_or(0));
        }
        // A tail of bytes may begin inside a character only if the stop string did: it never does.
        while !self.held.is_char_boundary(from) {
            from -= 1;
        }
        from
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut s = StopStrings::new(stops);
        let mut text = String::new();
        for piece in pieces {
            text.push_str(&s.push(piece).text);
        }
        let stopped = s.stopped();
        text.push_str(&s.flush());
        (text, stopped)
    }

    #[test]
    fn across_pieces_and_overlaps() {
        assert_eq!(run(&["STOP"], &["ab S", "TO", "P cd"]), ("ab ".into(), true));
        assert_eq!(run(&["STOP"], &["ab S", "TO", "X"]), ("ab STOX".into(), false));
        assert_eq!(run(&["\n\n", "\nUser:"], &["x\n", "User", ":"]), ("x".into(), true));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&["é"], &["caf", "é!"]), ("caf".into(), true));
        assert_eq!(run(&[""], &["x"]), ("x".into(), false));
    }

    #[test]
    fn a_longer_stop_that_begins_earlier_wins() {
        // "bc" is complete while "abcd" may still come and begins earlier.
        assert_eq!(run(&["abcd", "bc"], &["xabc", "d"]), ("x".into(), true));
        // It does not come: the shorter one counts.
        assert_eq!(run(&["abcd", "bc"], &["xabc", "e"]), ("xa".into(), true));
        // The text ends: the shorter one counts as well.
        assert_eq!(run(&["abcd", "bc"], &["xabc"]).0, "xa");
    }

    #[test]
    fn nothing_after_the_stop() {
        let mut s = StopStrings::new(&["."]);
        assert_eq!(
            s.push("a.b"),
            StopOutput {
                text: "a".into(),
                stopped: true
            }
        );
        assert_eq!(
            s.push("c"),
            StopOutput {
                text: String::new(),
                stopped: true
            }
        );
        assert_eq!(s.flush(), "");
    }

    proptest! {
        #[test]
        fn equals_a_search_in_the_whole(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
        ) {
            let whole = pieces.concat();
            let at = stops.iter().filter(|s| !s.is_empty()).filter_map(|s| whole.find(s.as_str())).min();
            let mut s = StopStrings::new(&stops);
            let mut text = String::new();
            for piece in &pieces {
                text.push_str(&s.push(piece).text);
            }
            text.push_str(&s.flush());
            prop_assert_eq!(text, &whole[..at.unwrap_or(whole.len())]);
        }
    }
}
