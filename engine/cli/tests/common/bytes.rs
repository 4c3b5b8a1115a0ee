//! A tokenizer of single bytes with three marks, for toy models. The host's tests include this file, too.

use serde_json::{Value, json};

/// Special tokens; their ids follow those of the bytes.
pub const MARKS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// A spelling for each byte, as GPT-2 has them.
pub fn alphabet() -> Vec<String> {
    let printable = |b: u32| (0x21..=0x7E).contains(&b) || (0xA1..=0xAC).contains(&b) || (0xAE..=0xFF).contains(&b);
    let mut extra = 0x100;
    let spell = |b: u32| {
        let code = if printable(b) { b } else { extra };
        extra += u32::from(!printable(b));
        char::from_u32(code).unwrap().to_string()
    };
    (0..256).map(spell).collect()
}

/// Token id = byte; the marks follow.
pub fn tokenizer_json() -> Value {
    let vocab: serde_json::Map<String, Value> = alphabet().into_iter().zip(0..).map(|(t, i)| (t, json!(i))).collect();
    let mark = |(i, name): (usize, &&str)| {
        json!({ "id": 256 + i, "content": name, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
    };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": MARKS.iter().enumerate().map(mark).collect::<Vec<_>>(),
        "pre_tokenizer": bytes, "decoder": bytes,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    })
}
