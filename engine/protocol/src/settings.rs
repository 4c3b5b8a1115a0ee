//! Settings kept by the host, and fonts it finds for scripts the bundled ones lack.

use serde::{Deserialize, Serialize};

/// Colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThemeChoice {
    /// As the system says.
    System,
    /// Dark.
    Dark,
    /// Light.
    Light,
}

/// Settings of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Colours.
    pub theme: ThemeChoice,
    /// Zoom, 1 = normal.
    pub zoom: f32,
    /// No animations.
    pub reduced_motion: bool,
    /// Threads of the CPU engine; 0 = all cores.
    pub threads: u32,
    /// Context length for new sessions; 0 = the checkpoint's, as far as it fits.
    pub context: u64,
    /// Alternatives kept per token.
    pub logprobs: u32,
    /// Telemetry steps kept.
    pub telemetry_steps: u32,
    /// Whether the tour was seen.
    pub tour_seen: bool,
    /// Layout of the interface (opaque to the host).
    pub layout: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            theme: ThemeChoice::System,
            zoom: 1.0,
            reduced_motion: false,
            threads: 0,
            context: 0,
            logprobs: 8,
            telemetry_steps: 16_384,
            tour_seen: false,
            layout: String::new(),
        }
    }
}

/// A font file that has a wanted character.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FontFile {
    /// Family name.
    pub family: String,
    /// Index within a collection.
    pub index: u32,
    /// The file.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Where none was found: the sentence that names a package that brings one; then `bytes` is empty.
    pub missing: String,
}
