//! Fonts for scripts the bundled ones lack: asked of the host on the first need, loaded once.

use std::collections::BTreeSet;
use std::sync::Arc;

use egui::FontData;
use protocol::{Reply, Request};

use crate::store::{Store, Ticket};
use crate::theme;

/// State of the search.
#[derive(Default)]
pub(super) struct Fonts {
    looked_at: u64,
    seen: BTreeSet<char>,
    queue: Vec<char>,
    asked: Option<(Ticket, char)>,
    /// Characters no installed font has: their scripts are not asked for again.
    vain: Vec<char>,
    next: u64,
    loaded: Vec<(String, Arc<FontData>)>,
}

/// Tickets of this search, apart from those of views.
const TICKETS: u64 = 1 << 60;

impl Fonts {
    /// Looks through new text for characters that no loaded font has.
    pub(super) fn look(&mut self, ctx: &egui::Context, store: &mut Store, now: f64) {
        self.collect(ctx, store);
        self.typed(ctx);
        if let Some((ticket, c)) = self.asked
            && let Some(outcome) = store.outcome(ticket).cloned()
        {
            self.asked = None;
            match outcome {
                Ok(Reply::Font(font))
                    if !font.bytes.is_empty() && !self.loaded.iter().any(|(f, _)| *f == font.family) =>
                {
                    let mut data = FontData::from_owned(font.bytes);
                    data.index = font.index;
                    self.loaded.push((font.family, Arc::new(data)));
                    ctx.set_fonts(theme::fonts(&self.loaded));
                    // In force from the next frame on. It may have the others that wait, so they are looked up then.
                    ctx.request_repaint();
                    return;
                }
                Ok(Reply::Font(font)) if !font.missing.is_empty() => {
                    if !self.vain.iter().any(|v| same_remedy(*v, c)) {
                        store.toasts.warning(font.missing, now);
                    }
                    self.vain.push(c);
                }
                _ => {}
            }
        }
        if self.asked.is_some() {
            return;
        }
        while let Some(c) = self.queue.pop() {
            if has_glyph(ctx, c) || self.vain.iter().any(|v| same_script(*v, c)) {
                continue;
            }
            self.next += 1;
            let ticket = Ticket::own(TICKETS + self.next);
            store.call(Request::FindFont(c), ticket);
            self.asked = Some((ticket, c));
            return;
        }
    }

    /// Families that were loaded from the system, in the order they are tried.
    pub(super) fn families(&self) -> impl Iterator<Item = &str> {
        self.loaded.iter().map(|(family, _)| family.as_str())
    }

    /// Characters drawn as boxes because no installed font has them, one a script.
    pub(super) fn boxes(&self) -> &[char] {
        &self.vain
    }

    fn collect(&mut self, ctx: &egui::Context, store: &Store) {
        let Some(text) = &store.text else { return };
        let stamp = text.revision() ^ (text.view().info.id << 32) ^ store.docs.as_ref().map_or(0, |d| d.len() as u64);
        if self.looked_at == stamp {
            return;
        }
        self.looked_at = stamp;
        let titles = store.docs.iter().flatten().map(|d| d.title.as_str());
        // Only what was appended is new; earlier characters are known, and looking them up again is a set's work.
        let tail = text.branch().map(|n| tail_of(&n.text));
        let shown = tail.chain(titles).chain(
            text.tokens()
                .last()
                .into_iter()
                .flat_map(|t| t.info.top.iter().map(|a| a.text.as_str())),
        );
        self.want(ctx, shown.flat_map(str::chars));
    }

    /// What is being typed or pasted, anywhere.
    fn typed(&mut self, ctx: &egui::Context) {
        const MOST: usize = 4_096;
        let typed: String = ctx.input(|i| {
            let texts = i.events.iter().filter_map(|e| match e {
                egui::Event::Text(t) | egui::Event::Paste(t) => Some(t.as_str()),
                egui::Event::Ime(egui::ImeEvent::Commit(t) | egui::ImeEvent::Preedit { text: t, .. }) => {
                    Some(t.as_str())
                }
                _ => None,
            });
            texts.flat_map(|t| t.chars().take(MOST)).collect()
        });
        self.want(ctx, typed.chars());
    }

    fn want(&mut self, ctx: &egui::Context, shown: impl Iterator<Item = char>) {
        for c in shown.filter(|c| *c as u32 > 0x7e && !c.is_control() && *c != '\u{fffd}') {
            if self.seen.insert(c)
                && !has_glyph(ctx, crate::fmt::visible_char(c))
                && !self.queue.iter().any(|q| same_script(*q, c))
            {
                self.queue.push(c);
            }
        }
    }
}

/// The last characters of a long text: what was before has been looked at.
fn tail_of(text: &str) -> &str {
    const TAIL: usize = 4_096;
    let mut from = text.len().saturating_sub(TAIL);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// Whether two characters are likely in one font: same block of 256, or both ideographs.
fn same_script(a: char, b: char) -> bool {
    (a as u32) >> 8 == (b as u32) >> 8 || [ideograph, kana, hangul].iter().any(|f| f(a) && f(b))
}

/// Whether what brings a font for one brings one for the other: the sentence about it is said once.
fn same_remedy(a: char, b: char) -> bool {
    let east_asian = |c: char| ideograph(c) || kana(c) || hangul(c);
    same_script(a, b) || (east_asian(a) && east_asian(b))
}

fn ideograph(c: char) -> bool {
    matches!(c as u32, 0x3400..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff)
}

/// Kana and the punctuation and wide forms that go with ideographs.
fn kana(c: char) -> bool {
    matches!(c as u32, 0x3000..=0x30ff | 0xff00..=0xffef)
}

fn hangul(c: char) -> bool {
    matches!(c as u32, 0x1100..=0x11ff | 0xac00..=0xd7af)
}

/// Whether a character can be drawn: by a font that is loaded or, in a page, by the browser, which has fonts of its own.
fn has_glyph(ctx: &egui::Context, c: char) -> bool {
    /// A code point that means nothing yet: every way to draw it ends in the box.
    const UNASSIGNED: char = '\u{378}';
    ctx.fonts_mut(|f| {
        if f.has_glyph(&theme::body(), c) {
            return true;
        }
        let mut look = |c: char| {
            let galley = f.layout_no_wrap(c.to_string(), theme::body(), egui::Color32::WHITE);
            galley.rows.first()?.glyphs.first().map(|g| g.uv_rect)
        };
        cfg!(target_arch = "wasm32") && look(c) != look(UNASSIGNED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_per_script() {
        assert!(same_script('日', '本'));
        assert!(same_script('あ', 'カ'));
        assert!(!same_script('日', 'あ'));
        assert!(same_remedy('日', 'あ') && same_remedy('，', '한'));
        assert!(!same_remedy('日', 'ก'));
        assert!(!same_script('ا', 'ก'));
        assert_eq!(tail_of("é".repeat(5_000).as_str()).len(), 4_096);
    }
}
