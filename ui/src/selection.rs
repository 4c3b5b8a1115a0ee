//! What is pointed at: one selection that every view reads. Hovering highlights everywhere within a frame, a click
//! locks, Esc unlocks.

/// A token, layer, head and expert; any of them may be open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// Position in the context, 0-based.
    pub token: Option<u64>,
    /// Layer.
    pub layer: Option<u32>,
    /// Head.
    pub head: Option<u32>,
    /// Expert.
    pub expert: Option<u32>,
}

impl Spot {
    /// A token.
    pub fn token(token: u64) -> Self {
        Self {
            token: Some(token),
            ..Self::default()
        }
    }

    /// A layer.
    pub fn layer(layer: u32) -> Self {
        Self {
            layer: Some(layer),
            ..Self::default()
        }
    }

    /// A cell of a layers x tokens map.
    pub fn cell(layer: u32, token: u64) -> Self {
        Self {
            token: Some(token),
            layer: Some(layer),
            ..Self::default()
        }
    }

    /// The same with a head.
    #[must_use]
    pub fn with_head(mut self, head: u32) -> Self {
        self.head = Some(head);
        self
    }

    /// The same with an expert.
    #[must_use]
    pub fn with_expert(mut self, expert: u32) -> Self {
        self.expert = Some(expert);
        self
    }

    /// Fields of `self`, those that are open from `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            token: self.token.or(other.token),
            layer: self.layer.or(other.layer),
            head: self.head.or(other.head),
            expert: self.expert.or(other.expert),
        }
    }

    /// Nothing is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The shared selection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    locked: Spot,
    hover: Spot,
    next_hover: Spot,
    /// Follows the newest token while nothing is locked or hovered.
    pub follow: bool,
    latest: Option<u64>,
}

impl Selection {
    /// Nothing selected, following the text.
    pub fn new() -> Self {
        Self {
            follow: true,
            ..Self::default()
        }
    }

    /// What views highlight: hovered before locked before the newest token.
    pub fn shown(&self) -> Spot {
        let rest = if self.follow {
            Spot {
                token: self.latest,
                ..Spot::default()
            }
        } else {
            Spot::default()
        };
        self.hover.or(self.locked).or(rest)
    }

    /// What the pointer is on.
    pub fn hovered(&self) -> Spot {
        self.hover
    }

    /// What a click locked.
    pub fn locked(&self) -> Spot {
        self.locked
    }

    /// The pointer is on this: views call it in every frame in which it is.
    pub fn hover(&mut self, spot: Spot) {
        self.next_hover = spot.or(self.next_hover);
    }

    /// A click: locks the given fields (others keep what was locked). Clicking what is locked unlocks it.
    pub fn click(&mut self, spot: Spot) {
        if spot.or(self.locked) == self.locked && !spot.is_empty() {
            self.release(spot);
        } else {
            self.lock(spot);
        }
    }

    /// Locks the given fields.
    pub fn lock(&mut self, spot: Spot) {
        self.locked = spot.or(self.locked);
        if spot.token.is_some() {
            self.follow = false;
        }
    }

    /// Unlocks everything and follows the text again.
    pub fn unlock(&mut self) {
        self.locked = Spot::default();
        self.follow = true;
    }

    /// Unlocks the token alone and follows the text again.
    pub fn follow_again(&mut self) {
        self.locked.token = None;
        self.follow = true;
    }

    /// Puts a remembered lock back (undo).
    pub fn restore(&mut self, locked: Spot) {
        self.locked = locked;
        self.follow = locked.token.is_none();
    }

    fn release(&mut self, spot: Spot) {
        if spot.token.is_some() {
            self.locked.token = None;
            self.follow = true;
        }
        if spot.layer.is_some() {
            self.locked.layer = None;
        }
        if spot.head.is_some() {
            self.locked.head = None;
        }
        if spot.expert.is_some() {
            self.locked.expert = None;
        }
    }

    /// End of a frame: what was hovered in it becomes current. Returns whether a new frame must be drawn for it.
    pub fn end_frame(&mut self, latest: Option<u64>) -> bool {
        let changed = self.hover != self.next_hover;
        self.hover = std::mem::take(&mut self.next_hover);
        self.latest = latest;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hover_wins_over_lock_and_follow() {
        let mut s = Selection::new();
        s.end_frame(Some(9));
        assert_eq!(s.shown().token, Some(9));
        s.click(Spot::cell(2, 5));
        assert_eq!(s.shown(), Spot::cell(2, 5));
        s.hover(Spot::token(7));
        assert!(s.end_frame(Some(9)));
        assert_eq!(s.shown(), Spot::cell(2, 7));
        assert!(s.end_frame(Some(9)));
        assert_eq!(s.shown(), Spot::cell(2, 5));
        s.click(Spot::token(5));
        assert_eq!(s.shown(), Spot::cell(2, 9), "a second click unlocks the token alone");
        s.unlock();
        assert_eq!(s.shown(), Spot::token(9));
    }
}
