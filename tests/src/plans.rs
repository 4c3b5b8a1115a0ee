//! Plans that together hold every op there is, for holding one backend to another.

/// Model, edits of its recipe, largest relative difference of a row.
pub const PLANS: [(&str, &[&str], f64); 35] = [
    ("tiny-llama", &[], 2e-5),
    (
        "tiny-llama",
        &[
            "layers.*.kv_cache=bf16",
            "layers.*.attention=sliding_window:window=9,sinks=2",
        ],
        2e-3,
    ),
    (
        "tiny-llama",
        &["layers.*.attention=top_k:k=5", "weights.lm_head=fp8"],
        2e-5,
    ),
    ("tiny-qwen2", &[], 2e-5),
    (
        "tiny-qwen2",
        &["layers.*.kv_cache=fp8_b64", "weights.lm_head=bf16"],
        1e-2,
    ),
    ("tiny-gpt2", &[], 2e-5),
    ("tiny-gpt2", &["layers.*.attention=sliding_window:window=16"], 2e-5),
    (
        "tiny-llama",
        &["weights.attention=fp4", "weights.ffn=fp8", "weights.embedding=fp4"],
        2e-5,
    ),
    (
        "tiny-gpt2",
        &["weights.attention=fp8", "weights.ffn=fp4", "weights.lm_head=fp4"],
        2e-5,
    ),
    ("tiny-llama", &["layers.*.kv_cache=fp4"], 2e-2),
    (
        "tiny-v4",
        &["layers.*.kv_cache=fp4", "layers.2,4.index_cache=fp4"],
        2e-2,
    ),
    (
        "tiny-v4",
        &[
            "layers.2,4.attention=index_top_k:k=3",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-v4",
        &[
            "weights.attention=fp4",
            "weights.ffn=fp4",
            "weights.embedding=bf16",
            "weights.lm_head=fp4",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-v4",
        &[
            "weights.attention=fp8",
            "weights.ffn=fp8",
            "weights.embedding=fp8",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-v4",
        &[
            "weights.attention=bf16",
            "weights.ffn=bf16",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-llama",
        &[
            "layers.0.ffn=relu2",
            "layers.1.ffn=gelu",
            "layers.2.ffn=gelu_tanh",
            "layers.3.ffn=identity",
        ],
        2e-5,
    ),
    ("tiny-gpt2", &["layers.0.ffn=silu", "layers.1-3.ffn=relu"], 2e-5),
    (
        "tiny-v4",
        &[
            "layers.0.ffn=experts:k=1",
            "layers.1.ffn=relu",
            "layers.3.ffn=experts:k=5",
            "layers.4.ffn=experts:k=8",
            "layers.5.ffn=experts:k=1",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-llama",
        &[
            "layers.0.attention=heads:zero=0,2,mean=1",
            "layers.1.attention=top_k:k=4,zero=3",
            "layers.2.attention=sliding_window:window=7,sinks=1,mean=0-3",
        ],
        2e-5,
    ),
    (
        "tiny-qwen2",
        &[
            "layers.*.kv_cache=f32",
            "layers.0.attention=block_skip:threshold=0.4",
            "layers.1.attention=block_skip:threshold=0.2,zero=1",
        ],
        2e-5,
    ),
    (
        "tiny-gpt2",
        &[
            "layers.*.attention=score:\"score - (q-k)*2^(-8*(head+1)/heads)\"",
            "layers.1.attention=score:\"if(q-k<9 || k<2, score, -inf)\",zero=1",
        ],
        2e-5,
    ),
    (
        "tiny-v4",
        &[
            "layers.*.attention=score:\"score - 0.02*(q-k)*(layer+1)\"",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-llama",
        &[
            "layers.0.ffn=top_p",
            "layers.1.ffn=relu:top_p=0.5",
            "layers.2.ffn=top_p:p=0.3",
        ],
        2e-5,
    ),
    (
        "tiny-gpt2",
        &["layers.0.ffn=silu:top_p=0.8", "layers.1-3.ffn=top_p:p=0.7"],
        2e-5,
    ),
    (
        "tiny-v4",
        &[
            "layers.0.ffn=experts:k=1,top_p=0.6",
            "layers.1.ffn=top_p:p=0.7",
            "layers.3.ffn=relu:experts=5,top_p=0.4",
            "layers.4.ffn=gelu:experts=3",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-v4",
        &[
            "layers.2-5.attention=block_skip:threshold=0.3",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-v4",
        &[
            "layers.0,3.attention=heads:zero=0,mean=1",
            "layers.2.attention=dense:mean=0,zero=1",
            "layers.4.attention=index_top_k:k=3,mean=1",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-v4",
        &["layers.*.kv_cache=f32", "layers.2,4.index_cache=f32"],
        5e-5,
    ),
    (
        "tiny-v4",
        &["layers.*.kv_cache=bf16", "layers.2,4.index_cache=bf16"],
        1e-2,
    ),
    (
        "tiny-v4",
        &[
            "layers.2-5.attention=dense",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-v4",
        &[
            "layers.2-5.attention=top_k:k=6",
            "layers.*.kv_cache=f32",
            "layers.2,4.index_cache=f32",
        ],
        5e-5,
    ),
    (
        "tiny-v4-fp8",
        &["layers.*.kv_cache=f32", "layers.1.index_cache=f32"],
        5e-5,
    ),
    (
        "tiny-v4-fp8",
        &["layers.*.kv_cache=fp8_v32", "layers.1.index_cache=fp8_v32"],
        2e-2,
    ),
    ("tiny-v4-fp8", &[], 2e-2),
    (
        "tiny-v4-fp8",
        &["layers.*.kv_cache=fp8_b64", "layers.1.index_cache=fp8_b64"],
        2e-2,
    ),
];
