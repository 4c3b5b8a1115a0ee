//! MODEL1's own prompt format, and the reading of what the model writes in it.
//!
//! The release has no template; a Python file (`encoding_dsv4.py`) renders prompts. What is known and what is our
//! reading:
//! * Known (MODEL1.md 6.5 and the public file): the markers, BOS first, the raw system text, transitions after user
//!   turns, EOS after assistant turns, where reasoning is kept, the DSML forms, merging and ordering of tool
//!   results, the wording of the tool section and of the paragraph for maximum effort. The wording is fixed text
//!   that the model was trained with, so it is reproduced here to the letter.
//! * Known from the file only: consecutive user and tool turns become one turn with parts joined by a blank line;
//!   in thinking mode developer turns before the last user turn are dropped together with old reasoning; a
//!   `latest_reminder` turn has its own marker.
//! * Our reading: tools given beside the conversation belong to the first system turn, and an empty one is put in
//!   front if there is none; `add_generation_prompt = false` leaves out the transition after the last turn.
//! * Later releases of the model changed the paragraphs for effort; this is the first release's.

mod parse;
mod render;

pub use parse::{Parsed, parse};
pub(crate) use render::{ASSISTANT, USER};
pub use render::{Effort, RenderOptions, render};

pub(crate) const BOS: &str = "<｜begin▁of▁sentence｜>";
pub(crate) const EOS: &str = "<｜end▁of▁sentence｜>";
pub(crate) const THINK: &str = "<think>";
pub(crate) const END_THINK: &str = "</think>";
pub(crate) const DSML: &str = "｜DSML｜";

#[cfg(test)]
mod tests;
