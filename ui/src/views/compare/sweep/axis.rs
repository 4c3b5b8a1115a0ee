//! One axis as it is typed: `layers.*.kv_cache=bf16,fp8_b64`, the grammar of `model1 sweep --sweep`. What is wrong is
//! said while it is typed, and what could follow is offered.

use protocol::{OptionKind, OptionView, SlotView, VariantView, split_list};

use crate::views::blocks::pick::{layers_text, parse_selector, typed};

/// What an axis makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Slot.
    pub slot: String,
    /// Layers it names that have the slot; empty for slots of the whole model.
    pub layers: Vec<u32>,
    /// Choices, as written.
    pub choices: Vec<String>,
}

/// The slots that can be swept: more than one variant, not fixed.
pub fn open(slots: &[SlotView]) -> impl Iterator<Item = &SlotView> {
    slots.iter().filter(|s| s.fixed.is_empty() && s.variants.len() > 1)
}

/// Reads an axis.
///
/// # Errors
/// What is wrong, and what would be accepted.
pub fn parse(text: &str, slots: &[SlotView], layers: u32) -> Result<Parsed, String> {
    let Some((selector, list)) = text.split_once('=') else {
        return Err("SLOT=CHOICE,CHOICE,… is expected".into());
    };
    let (slot, named) = slot_of(selector.trim(), slots, layers)?;
    let choices = split(list);
    if choices.is_empty() {
        return Err(format!("choices are missing: {}", names(slot)));
    }
    for choice in &choices {
        let (variant, options) = choice.split_once(':').unwrap_or((choice, ""));
        let found = slot.variants.iter().find(|v| v.name == variant);
        let Some(found) = found.filter(|_| !variant.is_empty()) else {
            return Err(format!(
                "{} has no variant {variant}; it has {}",
                slot.name,
                names(slot)
            ));
        };
        check_options(found, options)?;
        // With `*` the layers that take it are swept; a layer that is named must take it.
        let refused = found.refused.iter().find(|r| named.contains(&r.layer));
        let all = !named.is_empty() && named.iter().all(|l| found.refused.iter().any(|r| r.layer == *l));
        if let Some(r) = refused.filter(|_| all) {
            return Err(format!("{variant}: {}", r.reason));
        }
    }
    Ok(Parsed {
        slot: slot.name.clone(),
        layers: named,
        choices,
    })
}

fn slot_of<'a>(selector: &str, slots: &'a [SlotView], layers: u32) -> Result<(&'a SlotView, Vec<u32>), String> {
    let accepted = || {
        let all: Vec<String> = open(slots).map(selector_of).collect();
        format!("accepted are {}", all.join(", "))
    };
    if let Some((range, name)) = parse_selector(selector, layers) {
        let slot = open(slots)
            .find(|s| s.per_layer && s.name == name)
            .ok_or_else(|| format!("no slot {name}; {}", accepted()))?;
        let wide = selector.starts_with("layers.*.");
        let named: Vec<u32> = range.clone().filter(|l| slot.layers.contains(l)).collect();
        let upper = selector
            .strip_prefix("layers.")
            .and_then(|s| s.split('.').next())
            .unwrap_or("");
        let last = upper.rsplit('-').next().and_then(|n| n.parse::<u32>().ok());
        if named.is_empty() || (!wide && (named.len() != range.len() || last.is_some_and(|n| n >= layers))) {
            let have = layers_text(slot.layers.iter().copied());
            return Err(format!("{name} exists in layers {have}"));
        }
        return Ok((slot, named));
    }
    let slot = open(slots).find(|s| !s.per_layer && s.name == selector);
    let slot = slot.ok_or_else(|| format!("{selector} names no slot; {}", accepted()))?;
    Ok((slot, Vec::new()))
}

/// Choices at commas; `sinks=4` in `sliding_window:window=64,sinks=4` and `5-7` in `heads:zero=0,5-7` belong to the choice
/// before them.
fn split(list: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let goes_on = |part: &str| part.contains('=') || part.starts_with(|c: char| c.is_ascii_digit());
    for part in split_list(list) {
        match out.last_mut() {
            Some(last) if goes_on(part) && !part.contains(':') && last.contains(':') => {
                last.push(',');
                last.push_str(part);
            }
            _ => out.push(part.to_string()),
        }
    }
    out
}

/// The options as they are given, name and value; a quoted text without a name is the first that takes text.
fn given(variant: &VariantView, options: &str) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for part in split_list(options) {
        let quoted = part.starts_with('"');
        match (part.split_once('=').filter(|_| !quoted), out.last_mut()) {
            (Some((name, value)), _) => out.push((name.trim().into(), value.trim().into())),
            (None, Some((_, last))) if !quoted => {
                last.push(',');
                last.push_str(part);
            }
            _ => {
                let text = |o: &&OptionView| quoted && matches!(o.kind, OptionKind::Text { .. });
                let name = variant.options.iter().find(text).map_or(part, |o| o.name.as_str());
                out.push((name.into(), if quoted { part.into() } else { String::new() }));
            }
        }
    }
    out
}

fn check_options(variant: &VariantView, options: &str) -> Result<(), String> {
    for (name, value) in given(variant, options) {
        let known = variant.options.iter().find(|o| o.name == name);
        let Some(known) = known else {
            let all: Vec<&str> = variant.options.iter().map(|o| o.name.as_str()).collect();
            let has = if all.is_empty() {
                "no options".into()
            } else {
                all.join(", ")
            };
            return Err(format!("{} has no option {name}; it has {has}", variant.name));
        };
        typed(&known.kind, value.trim_matches('"')).map_err(|accepted| format!("{name}: {accepted} is accepted"))?;
    }
    Ok(())
}

fn names(slot: &SlotView) -> String {
    let all: Vec<&str> = slot.variants.iter().map(|v| v.name.as_str()).collect();
    all.join(", ")
}

/// How a slot is named with all of its layers.
pub fn selector_of(slot: &SlotView) -> String {
    if slot.per_layer {
        format!("layers.*.{}", slot.name)
    } else {
        slot.name.clone()
    }
}

/// What could follow: (shown, the whole text with it).
pub fn completions(text: &str, slots: &[SlotView], layers: u32) -> Vec<(String, String)> {
    let Some((selector, list)) = text.split_once('=') else {
        let begun = text.trim();
        let all = open(slots).map(selector_of);
        let fits = all.filter(|s| begun.is_empty() || s.contains(begun));
        return fits.map(|s| (s.clone(), format!("{s}="))).collect();
    };
    let Ok((slot, named)) = slot_of(selector.trim(), slots, layers) else {
        return Vec::new();
    };
    let have = split(list);
    // The last word may still be being typed.
    let known = |name: &str| slot.variants.iter().any(|v| v.name == name);
    let begun = have
        .last()
        .filter(|w| !w.contains(':') && !known(w) && !list.trim_end().ends_with(','));
    let kept: &[String] = if begun.is_some() {
        &have[..have.len() - 1]
    } else {
        &have
    };
    let begun = begun.map_or("", String::as_str);
    let taken = |v: &VariantView| kept.contains(&v.name);
    let possible = |v: &VariantView| {
        let everywhere = !named.is_empty() && named.iter().all(|l| v.refused.iter().any(|r| r.layer == *l));
        let whole = !slot.per_layer && !v.refused.is_empty();
        !everywhere && !whole
    };
    let fits = slot
        .variants
        .iter()
        .filter(|v| !taken(v) && possible(v) && v.name.starts_with(begun));
    fits.map(|v| {
        let mut all = kept.to_vec();
        all.push(v.name.clone());
        (v.name.clone(), format!("{}={}", selector.trim(), all.join(",")))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> Vec<SlotView> {
        crate::testing::loaded().slots
    }

    #[test]
    fn axes_are_read_as_the_command_reads_them() {
        let s = slots();
        let p = parse("layers.*.kv_cache = bf16, fp8_b64", &s, 7).unwrap();
        assert_eq!((p.slot.as_str(), p.layers.len(), p.choices.len()), ("kv_cache", 7, 2));
        assert_eq!(parse("layers.2-4.kv_cache=bf16", &s, 7).unwrap().layers, [2, 3, 4]);
        assert_eq!(
            split("dense,sliding_window:window=64,sinks=4,top_k:k=8"),
            ["dense", "sliding_window:window=64,sinks=4", "top_k:k=8"]
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_accepted() {
        let s = slots();
        for (text, words) in [
            ("layers.*.kv_cache", "SLOT=CHOICE"),
            ("layers.*.kv_cache=", "choices are missing: "),
            ("layers.*.kv_cache=int3", "no variant int3; it has "),
            ("layers.9.kv_cache=bf16", "exists in layers 0–6"),
            ("layers.5-9.kv_cache=bf16", "exists in layers 0–6"),
            ("layers.*.nonsense=bf16", "no slot nonsense; accepted are layers.*."),
            ("weights=bf16", "names no slot"),
            ("layers.*.kv_cache=bf16:k=3", "bf16 has no option k; it has no options"),
        ] {
            let e = parse(text, &s, 7).unwrap_err();
            assert!(e.contains(words), "{text}: {e}");
        }
    }

    #[test]
    fn what_could_follow_is_offered() {
        let s = slots();
        let all = completions("", &s, 7);
        assert!(
            all.iter()
                .any(|(shown, text)| shown == "layers.*.kv_cache" && text == "layers.*.kv_cache=")
        );
        assert!(completions("lm", &s, 7).iter().all(|(shown, _)| shown.contains("lm")));
        let next = completions("layers.*.kv_cache=bf16,f", &s, 7);
        assert!(!next.is_empty());
        for (shown, text) in next {
            assert!(
                shown.starts_with('f') && text == format!("layers.*.kv_cache=bf16,{shown}"),
                "{text}"
            );
            assert!(parse(&text, &s, 7).is_ok(), "{text}");
        }
        assert!(completions("layers.99.kv_cache=", &s, 7).is_empty());
    }
}
