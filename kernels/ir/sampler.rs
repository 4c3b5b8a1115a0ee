//! What the sample op is told and what it answers.

use serde::{Deserialize, Serialize};

/// Most alternatives a [`SamplerParams::logprobs`] request may ask for.
pub const MAX_LOGPROBS: u32 = 1024;

/// Settings of the sample op. The default is greedy with nothing else switched on.
///
/// The order in which they act is fixed and documented at `kernels::cpu::sample`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplerParams {
    /// Divides the logits. 0 (or less than 1e-5) is greedy: the largest logit, the lowest id on ties.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the shortest prefix of the likeliest tokens whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest one; 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens already seen are divided by this where positive, multiplied where negative; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from a logit once per earlier occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from a logit once if the token occurred; 0 is off.
    pub presence_penalty: f32,
    /// How many of the latest tokens the penalties look at; 0 looks at the whole history.
    pub penalty_window: u32,
    /// Key of the random number generator.
    pub seed: u64,
    /// How many of the likeliest tokens to report with their log probabilities.
    pub logprobs: u32,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 0,
            seed: 0,
            logprobs: 0,
        }
    }
}

impl SamplerParams {
    /// Says which field is out of range, what was found and what is accepted.
    pub fn validate(&self) -> Result<(), String> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0),
        ];
        for (name, found, low, high) in ranges {
            if !(low..=high).contains(&found) {
                return Err(format!(
                    "sampler field {name} is {found}; accepted is a number from {low} to {high}"
                ));
            }
        }
        if self.logprobs > MAX_LOGPROBS {
            return Err(format!(
                "sampler field logprobs is {}; accepted is 0 to {MAX_LOGPROBS}",
                self.logprobs
            ));
        }
        Ok(())
    }

    /// True when the draw needs no random number.
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-5 || self.top_k == 1
    }

    /// True when the history changes the logits.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// The token drawn. Log probabilities are those of the model itself: temperature 1, before penalties and cuts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// Id of the token.
    pub token: u32,
    /// Natural log of the model's probability of `token`.
    pub logprob: f32,
    /// The likeliest tokens with their log probabilities, likeliest first, the lower id first on ties.
    pub top: Vec<(u32, f32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_valid_and_greedy() {
        let params = SamplerParams::default();
        assert_eq!(params.validate(), Ok(()));
        assert!(params.is_greedy() && !params.has_penalties());
    }

    #[test]
    fn validate_names_field_found_and_accepted() {
        let bad = [
            (
                SamplerParams {
                    temperature: -1.0,
                    ..Default::default()
                },
                "temperature is -1; accepted",
            ),
            (
                SamplerParams {
                    temperature: f32::NAN,
                    ..Default::default()
                },
                "temperature is NaN; accepted",
            ),
            (
                SamplerParams {
                    top_p: 1.5,
                    ..Default::default()
                },
                "top_p is 1.5; accepted is a number from 0 to 1",
            ),
            (
                SamplerParams {
                    min_p: f32::INFINITY,
                    ..Default::default()
                },
                "min_p is inf; accepted",
            ),
            (
                SamplerParams {
                    repetition_penalty: 0.0,
                    ..Default::default()
                },
                "repetition_penalty is 0; accepted",
            ),
            (
                SamplerParams {
                    logprobs: 5000,
                    ..Default::default()
                },
                "logprobs is 5000; accepted is 0 to 1024",
            ),
        ];
        for (params, part) in bad {
            let message = params.validate().unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
