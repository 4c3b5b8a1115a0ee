//! A story that is written first, to be compared on: a new text, a prompt, the model's own sampler.

use egui::{RichText, Ui};
use protocol::{CompareSpec, DocKind, ErrorInfo, FinishView, GenerateSpec, Reply, Request};

use crate::fmt;
use crate::store::{Store, Ticket};
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::controls;

/// A story on its way.
#[derive(Clone, Debug)]
pub struct Story {
    prompt: String,
    spec: CompareSpec,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// A new text was asked for.
    Text(Ticket),
    /// The prompt was sent.
    Prompt(Ticket),
    /// This message is being written.
    Message(u32),
}

/// What became of it in this frame.
#[derive(Debug)]
pub enum Told {
    /// It is still being written.
    Waiting,
    /// It is there: compare.
    Ready(CompareSpec),
    /// The user stopped it.
    Stopped,
    /// It could not be written.
    Failed(ErrorInfo),
}

impl Story {
    /// Asks for a new text; `spec` is compared once the story is there.
    pub fn begin(cx: &mut Context<'_>, prompt: &str, spec: CompareSpec) -> Self {
        let ticket = cx.call(Request::NewDoc(DocKind::Text));
        Self {
            prompt: prompt.to_string(),
            spec,
            at: At::Text(ticket),
        }
    }

    /// Goes on where the host has answered.
    pub fn follow(&mut self, cx: &mut Context<'_>) -> Told {
        match self.at {
            At::Text(ticket) => match cx.outcome(ticket) {
                None => {}
                Some(Err(e)) => return Told::Failed(e.clone()),
                Some(Ok(_)) => {
                    let spec = how(cx.store, self.spec.positions);
                    let ticket = cx.call(Request::Send {
                        text: self.prompt.clone(),
                        spec,
                    });
                    self.at = At::Prompt(ticket);
                }
            },
            At::Prompt(ticket) => match cx.outcome(ticket) {
                Some(Err(e)) => return Told::Failed(e.clone()),
                Some(Ok(Reply::Started { node })) => self.at = At::Message(*node),
                _ => {}
            },
            At::Message(id) => return self.written(cx.store, id),
        }
        Told::Waiting
    }

    fn written(&self, store: &Store, id: u32) -> Told {
        let Some(node) = store.text.as_ref().and_then(|t| t.node(id)) else {
            return Told::Waiting;
        };
        match node.finish {
            FinishView::Running => Told::Waiting,
            FinishView::Cancelled => Told::Stopped,
            FinishView::Failed => {
                let said = ErrorInfo::new(protocol::ErrorKind::Internal, "The story could not be written.");
                Told::Failed(node.error.clone().unwrap_or(said))
            }
            // The state that says so may still be on its way.
            _ if store.writing().is_some() => Told::Waiting,
            _ => Told::Ready(self.spec.clone()),
        }
    }

    /// How far it is.
    pub fn show(&self, ui: &mut Ui, store: &Store) {
        let p = Palette::of(ui);
        let node = match self.at {
            At::Message(id) => store.text.as_ref().and_then(|t| t.node(id)),
            _ => None,
        };
        let done = node.map_or(0, |n| n.tokens.len() as u64);
        let words = format!(
            "{} of at most {} tokens",
            fmt::count(done),
            fmt::count(self.spec.positions)
        );
        ui.horizontal(|ui| {
            ui.label("writing the story");
            ui.label(RichText::new(&words).font(theme::mono()).color(p.secondary));
        });
        let share = done as f32 / self.spec.positions.max(1) as f32;
        let size = egui::vec2(ui.available_width(), 6.0);
        controls::bar(ui, size, &[(share, p.second)], &format!("Writing the story: {words}"));
        ui.add_space(theme::GRID);
    }
}

/// The model's own sampler, as many tokens as are compared.
fn how(store: &Store, positions: u64) -> GenerateSpec {
    let mut sampling = store.model().map_or(
        protocol::Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
            logprobs: 0,
        },
        |m| m.default_sampling,
    );
    sampling.logprobs = store.settings.logprobs;
    GenerateSpec {
        sampling,
        max_tokens: positions,
        stop: Vec::new(),
        ignore_eos: false,
        thinking: false,
    }
}
