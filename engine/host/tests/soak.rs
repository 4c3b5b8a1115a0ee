//! Random swaps while a text is written, through the host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::toy::Toy;
use common::{Room, endless, send};
use protocol::*;

const SWAPS: usize = 150;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides.max(1) as u64) as usize
    }
}

fn random_edit(model: &LoadedModel, dice: &mut Dice) -> Edit {
    let open: Vec<&SlotView> = model.slots.iter().filter(|s| s.fixed.is_empty()).collect();
    let slot = open[dice.roll(open.len())];
    let variant = &slot.variants[dice.roll(slot.variants.len())];
    let options = variant.options.iter().map(|o| OptionChoice {
        name: o.name.clone(),
        value: match &o.kind {
            OptionKind::Whole { min, max, .. } => {
                OptionValue::Whole(min + dice.roll((max.min(&(min + 40)) - min + 1) as usize) as u64)
            }
            OptionKind::Heads => OptionValue::Heads(vec![dice.roll(4) as u32]),
            other => other.default(),
        },
    });
    let choice = ChoiceView {
        variant: variant.name.clone(),
        options: options.collect(),
    };
    let selector = match (slot.per_layer, dice.roll(3)) {
        (false, _) => slot.name.clone(),
        (true, 0) => format!("layers.*.{}", slot.name),
        (true, _) => format!("layers.{}.{}", dice.roll(model.facts.layers.len()), slot.name),
    };
    Edit { selector, choice }
}

#[test]
fn tokens_that_were_shown_stay_whatever_is_swapped_meanwhile() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy {
        chat: false,
        ..Toy::default()
    });
    let model = c.state().loaded().unwrap().clone();
    let mut dice = Dice(77);
    let (mut swapped, mut refused) = (0, 0);
    let mut texts = 0;
    while swapped < SWAPS {
        texts += 1;
        c.ask(Request::NewDoc(DocKind::Text)).unwrap();
        let node = c.started(send("a story", endless()));
        let over = |c: &common::Client| {
            c.told
                .events
                .iter()
                .any(|e| matches!(e, Event::Finished { node: n, .. } if *n == node))
        };
        let mut shown: Vec<TokenInfo> = Vec::new();
        while swapped < SWAPS && !over(&c) {
            match c.ask(Request::EditRecipe(vec![random_edit(&model, &mut dice)])) {
                Ok(Reply::Recipe(_)) => swapped += 1,
                Err(e) => {
                    refused += 1;
                    assert_eq!(e.kind, ErrorKind::Input, "{e}");
                }
                other => panic!("{other:?}"),
            }
            let told: Vec<TokenInfo> = c
                .told
                .tokens
                .iter()
                .filter(|t| t.node == node)
                .map(|t| t.info.clone())
                .collect();
            assert_eq!(told[..shown.len()], shown[..], "what was shown never changes");
            shown = told;
        }
        c.done(Request::Stop);
        let written = c.ended(node);
        assert!(written.error.is_none(), "{:?}", written.error);
        let told: Vec<TokenInfo> = c
            .told
            .tokens
            .iter()
            .filter(|t| t.node == node)
            .map(|t| t.info.clone())
            .collect();
        let ids = |list: &[TokenInfo]| list.iter().map(|t| (t.token, t.position)).collect::<Vec<_>>();
        assert_eq!(
            ids(&written.tokens)[..told.len()],
            ids(&told)[..],
            "the text is what was told"
        );
        c.told.tokens.clear();
    }
    assert!(texts >= 1 && refused < 20 * SWAPS, "{texts} {refused}");
    // Read anew under the recipe in force, and written on: nothing is left of the swaps.
    assert_eq!(c.job(Request::ReplayText), JobState::Done);
    let recipe = c.state().recipe.unwrap();
    assert!(recipe.converted_at.is_empty(), "{:?}", recipe.converted_at);
}
