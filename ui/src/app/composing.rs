//! Input methods. While one composes in a text field, keys are its own: Enter takes a candidate and Esc gives it up, and
//! neither may start or stop a text. Browsers and most systems keep such keys to themselves; this is for those that hand
//! them on.

use egui::{Event, ImeEvent, Key};

/// Takes keys out of the input that belong to an input method, before anything sees them.
#[derive(Default)]
pub(super) struct Keys {
    composing: bool,
}

impl egui::Plugin for Keys {
    fn debug_name(&self) -> &'static str {
        "keys of input methods"
    }

    fn input_hook(&mut self, ctx: &egui::Context, input: &mut egui::RawInput) {
        // A field that lost the focus ends a composition, and some systems say nothing of that.
        self.composing &= ctx.text_edit_focused();
        input.events.retain(|event| self.keep(event));
    }
}

impl Keys {
    /// Follows what the input method says. False for a key of its own.
    fn keep(&mut self, event: &Event) -> bool {
        match event {
            Event::Ime(ImeEvent::Preedit { text, .. }) => self.composing = !text.is_empty(),
            // Text that is not composed, a click, another window: whatever was composed is over.
            Event::Ime(ImeEvent::Commit(_))
            | Event::Text(_)
            | Event::PointerButton { pressed: true, .. }
            | Event::WindowFocused(false) => self.composing = false,
            Event::Key {
                key,
                pressed: true,
                modifiers,
                ..
            } if self.composing => {
                return !(matches!(key, Key::Enter | Key::Escape | Key::Tab) || modifiers.command || modifiers.ctrl);
            }
            _ => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use egui::Modifiers;

    use super::*;

    fn key(key: Key, modifiers: Modifiers) -> Event {
        Event::Key {
            key,
            physical_key: None,
            pressed: true,
            repeat: false,
            modifiers,
        }
    }

    fn preedit(text: &str) -> Event {
        Event::Ime(ImeEvent::Preedit {
            text: text.into(),
            active_range_chars: None,
        })
    }

    #[test]
    fn keys_are_the_input_methods_from_its_first_letter_to_its_last() {
        let enter = || key(Key::Enter, Modifiers::NONE);
        let escape = || key(Key::Escape, Modifiers::NONE);
        let generate = || key(Key::Enter, Modifiers::COMMAND);
        let mut keys = Keys::default();
        for (event, kept) in [
            (generate(), true),
            (preedit("n"), true),
            (generate(), false),
            (enter(), false),
            (escape(), false),
            (key(Key::K, Modifiers::COMMAND), false),
            // Letters and arrows that it hands on are the field's.
            (key(Key::ArrowLeft, Modifiers::NONE), true),
            (Event::Ime(ImeEvent::Commit("你".into())), true),
            (generate(), true),
            // Given up.
            (preedit("h"), true),
            (enter(), false),
            (preedit(""), true),
            (enter(), true),
        ] {
            assert_eq!(keys.keep(&event), kept, "{event:?}");
        }
        // What ends one without a word.
        for end in [
            Event::Text("x".into()),
            Event::WindowFocused(false),
            Event::PointerButton {
                pos: egui::Pos2::ZERO,
                button: egui::PointerButton::Primary,
                pressed: true,
                modifiers: Modifiers::NONE,
            },
        ] {
            assert!(keys.keep(&preedit("n")) && !keys.keep(&escape()));
            assert!(keys.keep(&end) && keys.keep(&escape()), "{end:?}");
        }
    }
}
