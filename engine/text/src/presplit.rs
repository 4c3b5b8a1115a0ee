//! How byte-level BPE vocabularies in GGUF files split text before merging.
//!
//! GGUF names the rule instead of storing it (`tokenizer.ggml.pre`). The names and what each one switches on are
//! llama.cpp's; where llama.cpp rewrote a model's expression for its own engine, the model's is used here.

/// Words, numbers and the rest, each with one leading space: GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];
const DEEPSEEK_LLM: [&str; 6] = [
    "[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-\u{D7FF}]+",
    r"\p{N}+",
];
const DEEPSEEK_CODER: [&str; 5] = [
    "[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[一-龥ࠀ-一가-\u{D7FF}]+",
    r"\p{N}",
];

/// What a `pre` name stands for.
#[derive(Debug, Default)]
pub(crate) struct PreSplit {
    /// Applied in order, each to the pieces the one before left.
    pub(crate) patterns: Vec<&'static str>,
    /// Whole pieces that are tokens stay whole even if merges would not build them.
    pub(crate) ignore_merges: bool,
    /// bos before a text unless the file says otherwise.
    pub(crate) add_bos: bool,
    /// Unicode NFC first, as these models' own tokenizers do.
    pub(crate) nfc: bool,
}

/// The rule of a `tokenizer.ggml.pre` name, or `None` for an unknown name.
pub(crate) fn named(pre: &str) -> Option<PreSplit> {
    let only = |pattern| PreSplit {
        patterns: vec![pattern],
        ..PreSplit::default()
    };
    let several = |patterns: &[&'static str]| PreSplit {
        patterns: patterns.to_vec(),
        ..PreSplit::default()
    };
    Some(match pre {
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "exaone4" | "gigachat"
        | "a.x-4.0" | "mellum" | "modern-bert" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de" => gpt2(),
        "default" => several(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            several(&[r"\p{N}", GPT2])
        }
        "falcon" => several(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => PreSplit {
            ignore_merges: true,
            add_bos: true,
            ..only(LLAMA3)
        },
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => only(LLAMA3),
        "qwen2" | "megrez" => PreSplit {
            nfc: true,
            ..only(QWEN2)
        },
        "deepseek-r1-qwen" | "kormo" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => only(QWEN2),
        "qwen35" => PreSplit {
            nfc: true,
            ..only(QWEN35)
        },
        "tekken" => PreSplit {
            ignore_merges: true,
            add_bos: true,
            ..only(TEKKEN)
        },
        "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => only(GPT4O),
        "deepseek-v3" | "joyai-llm" | "hunyuan-dense" | "hy_v4" => several(&DEEPSEEK_V3),
        "deepseek-llm" => several(&DEEPSEEK_LLM),
        "deepseek-coder" => several(&DEEPSEEK_CODER),
        _ => return None,
    })
}

/// The rule for files that name none we know.
pub(crate) fn gpt2() -> PreSplit {
    PreSplit {
        patterns: vec![GPT2],
        ..PreSplit::default()
    }
}
