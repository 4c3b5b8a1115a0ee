//! Rotary frequencies: plain, llama3 scaling, YaRN.

use crate::error::EngineError;
use crate::model::Config;

/// `base^(-2i/dims)` for i in 0..dims/2.
pub fn plain(base: f64, dims: usize) -> Vec<f64> {
    (0..dims / 2)
        .map(|i| base.powf(-2.0 * i as f64 / dims as f64))
        .collect()
}

/// Llama 3's scaling (MODEL1.md 9.3).
pub fn llama3(freqs: &mut [f64], factor: f64, low: f64, high: f64, original: f64) {
    for f in freqs {
        let wavelength = 2.0 * std::f64::consts::PI / *f;
        if wavelength > original / low {
            *f /= factor;
        } else if wavelength >= original / high {
            let s = (original / wavelength - low) / (high - low);
            *f = (1.0 - s) * *f / factor + s * *f;
        }
    }
}

/// YaRN without attention factor (MODEL1.md 2.4).
pub fn yarn(freqs: &mut [f64], base: f64, factor: f64, beta_fast: f64, beta_slow: f64, original: f64) {
    let dims = 2.0 * freqs.len() as f64;
    let corr = |beta: f64| dims * (original / (2.0 * std::f64::consts::PI * beta)).ln() / (2.0 * base.ln());
    let lo = corr(beta_fast).floor().clamp(0.0, dims - 1.0);
    let mut hi = corr(beta_slow).ceil().clamp(0.0, dims - 1.0);
    if lo == hi {
        hi += 0.001;
    }
    for (i, f) in freqs.iter_mut().enumerate() {
        let m = ((i as f64 - lo) / (hi - lo)).clamp(0.0, 1.0);
        *f = *f * (1.0 - m) + *f / factor * m;
    }
}

/// Frequencies of a llama or qwen2 config, old style (`rope_theta`, `rope_scaling`) or new (`rope_parameters`).
pub fn from_config(config: &Config<'_>, dims: usize) -> Result<Vec<f64>, EngineError> {
    let new = config.section("rope_parameters");
    let base = match &new {
        Some(s) if s.has("rope_theta") => s.float_or(&["rope_theta"], 10000.0)?,
        _ => config.float_or(&["rope_theta"], 10000.0)?,
    };
    if base <= 1.0 {
        return Err(config.error("rope_theta", "a number greater than 1"));
    }
    let mut freqs = plain(base, dims);
    let Some(section) = new.or_else(|| config.section("rope_scaling")) else {
        return Ok(freqs);
    };
    let kind_field = if section.has("rope_type") { "rope_type" } else { "type" };
    match section.text(kind_field) {
        None | Some("default") => {}
        Some("linear") => {
            let factor = section.float_or(&["factor"], 1.0)?;
            freqs.iter_mut().for_each(|f| *f /= factor);
        }
        Some("llama3") => llama3(
            &mut freqs,
            section.float_or(&["factor"], 8.0)?,
            section.float_or(&["low_freq_factor"], 1.0)?,
            section.float_or(&["high_freq_factor"], 4.0)?,
            section.float_or(&["original_max_position_embeddings"], 8192.0)?,
        ),
        Some(_) => return Err(section.error(kind_field, "default, linear, llama3")),
    }
    Ok(freqs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yarn_matches_the_check_values() {
        // MODEL1.md 2.4.
        let mut f = plain(160_000.0, 64);
        yarn(&mut f, 160_000.0, 16.0, 32.0, 1.0, 65536.0);
        for (i, want) in [
            (0, 1.0),
            (14, 5.286856e-3),
            (15, 3.635539e-3),
            (16, 2.265625e-3),
            (20, 2.969778e-4),
            (24, 1.953125e-5),
            (31, 5.680529e-7),
        ] {
            assert!((f[i] / want - 1.0).abs() < 1e-6, "f[{i}] = {} want {want}", f[i]);
        }
    }
}
