//! Tables as CSV (RFC 4180, UTF-8). Numbers are written so that reading them gives the same bits.

use std::fmt::Write;

use protocol::{CompareResult, KvBytes};
use serde_json::Value;

/// A number, or nothing where there is none.
fn number(v: f64) -> String {
    if v.is_nan() { String::new() } else { v.to_string() }
}

fn single(v: f32) -> String {
    if v.is_nan() { String::new() } else { v.to_string() }
}

/// A field, quoted where it must be. Texts that a spreadsheet would run as a formula are not changed: the bytes of
/// a token are data.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) || text.starts_with(' ') || text.ends_with(' ') {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_string()
}

fn row(out: &mut String, fields: &[String]) {
    let _ = writeln!(out, "{}", fields.join(","));
}

/// One line per position.
pub(super) fn tokens(r: &CompareResult) -> String {
    let mut out = String::from("position,token,text,kl_nats,logprob_a,logprob_b,top1_a,top1_b,margin_a\n");
    for (i, t) in r.tokens.iter().enumerate() {
        let fields = [
            i.to_string(),
            t.token.to_string(),
            field(&t.text),
            single(t.kl),
            single(t.logprob[0]),
            single(t.logprob[1]),
            t.top1[0].to_string(),
            t.top1[1].to_string(),
            single(t.margin_a),
        ];
        row(&mut out, &fields);
    }
    out
}

/// One line per position (in long texts: per some positions, of which it has the largest value), one column per layer:
/// relative RMS of the residual after the layer.
pub(super) fn drift(r: &CompareResult) -> String {
    let (layers, n) = (r.drift.layer_rms.len(), r.tokens.len());
    let mut out = String::from("position");
    for l in 0..layers {
        let _ = write!(out, ",layer_{l}");
    }
    out.push('\n');
    let step = r.drift.step.max(1) as usize;
    for i in (0..n).step_by(step) {
        let at = |l: usize| r.drift.at(l, i).unwrap_or(f32::NAN);
        let mut fields = vec![i.to_string()];
        fields.extend((0..layers).map(|l| single(at(l))));
        row(&mut out, &fields);
    }
    out
}

/// What a recipe's JSON says about a slot of a layer, as on the command line.
fn choice(recipe: &Value, layer: usize, slot: &str) -> String {
    match recipe
        .get("layers")
        .and_then(|l| l.get(layer))
        .and_then(|l| l.get(slot))
    {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Object(o)) => o.iter().next().map_or_else(String::new, |(name, options)| {
            let list = options.as_object().into_iter().flatten();
            let words: Vec<String> = list.map(|(k, v)| format!("{k}={v}")).collect();
            format!("{name}:{}", words.join(","))
        }),
        _ => String::new(),
    }
}

/// One line per layer.
pub(super) fn layers(r: &CompareResult) -> String {
    let recipes = r
        .sides
        .each_ref()
        .map(|s| serde_json::from_str::<Value>(&s.json).unwrap_or_default());
    let mut head = String::from("layer,relative_rms,cosine_error,max_abs,sqnr_db");
    for side in ["a", "b"] {
        let _ = write!(head, ",attention_{side},kv_cache_{side},index_cache_{side}");
        for (name, _) in KvBytes::default().parts() {
            let _ = write!(head, ",{}_bytes_{side}", name.replace(' ', "_"));
        }
    }
    let mut out = head + "\n";
    for l in 0..r.drift.layer_rms.len() {
        let d = &r.drift;
        let mut fields = vec![
            l.to_string(),
            single(d.layer_rms[l]),
            single(d.layer_cosine[l]),
            single(d.layer_max[l]),
            single(d.layer_sqnr_db[l]),
        ];
        for (side, recipe) in r.sides.iter().zip(&recipes) {
            fields.extend(["attention", "kv_cache", "index_cache"].map(|slot| field(&choice(recipe, l, slot))));
            let kv = side.kv_layers.get(l).copied().unwrap_or_default();
            fields.extend(kv.parts().map(|(_, bytes)| bytes.to_string()));
        }
        row(&mut out, &fields);
    }
    out
}

/// One line per change alone.
pub(super) fn isolate(r: &CompareResult) -> String {
    let mut out = String::from("change,from,kl_mean_nats,kl_max_nats,same_top1,kv_saved_bytes\n");
    for i in &r.isolate {
        let fields = [
            field(&i.change.edit.to_string()),
            field(&i.change.from),
            number(i.kl_mean),
            number(i.kl_max),
            number(i.same_top1),
            i.kv_saved.to_string(),
        ];
        row(&mut out, &fields);
    }
    out
}
