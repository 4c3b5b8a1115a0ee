"""The shape of the model, the special tokens, and the arithmetic of its size. Numbers, no PyTorch."""

from dataclasses import asdict, dataclass, field

BOS, EOS = 0, 1
BOS_TEXT, EOS_TEXT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

SLIDING, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
RATE = {SLIDING: 0, CSA: 4, HCA: 128}


@dataclass(frozen=True)
class Shape:
    """`deepseek_v4` hyper-parameters under the names of the released config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    layer_types: tuple = (SLIDING, SLIDING, CSA, HCA, CSA, HCA, CSA)
    num_attention_heads: int = 4
    head_dim: int = 512
    qk_rope_head_dim: int = 64
    q_lora_rank: int = 128
    o_groups: int = 2
    o_lora_rank: int = 128
    sliding_window: int = 128
    index_n_heads: int = 8
    index_head_dim: int = 128
    index_topk: int = 32
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    n_routed_experts: int = 8
    num_experts_per_tok: int = 3
    n_shared_experts: int = 1
    moe_intermediate_size: int = 128
    num_hash_layers: int = 1
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096

    @property
    def layers(self):
        return len(self.layer_types)

    def is_hash(self, layer):
        return layer < self.num_hash_layers

    def released_config(self):
        """config.json with the keys of the released checkpoints."""
        return {
            "architectures": ["DeepseekV4ForCausalLM"],
            "model_type": "deepseek_v4",
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 1,
            "head_dim": self.head_dim,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "q_lora_rank": self.q_lora_rank,
            "o_groups": self.o_groups,
            "o_lora_rank": self.o_lora_rank,
            "sliding_window": self.sliding_window,
            "compress_ratios": [RATE[t] for t in self.layer_types],
            "layer_types": list(self.layer_types),
            "compress_rates": {CSA: RATE[CSA], HCA: RATE[HCA]},
            "rope_theta": self.rope_theta,
            "compress_rope_theta": self.compress_rope_theta,
            "index_n_heads": self.index_n_heads,
            "index_head_dim": self.index_head_dim,
            "index_topk": self.index_topk,
            "hc_mult": self.hc_mult,
            "hc_sinkhorn_iters": self.hc_sinkhorn_iters,
            "hc_eps": self.hc_eps,
            "num_hash_layers": self.num_hash_layers,
            "mlp_layer_types": ["hash_moe" if self.is_hash(i) else "moe" for i in range(self.layers)],
            "n_routed_experts": self.n_routed_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "n_shared_experts": self.n_shared_experts,
            "moe_intermediate_size": self.moe_intermediate_size,
            "scoring_func": "sqrtsoftplus",
            "norm_topk_prob": True,
            "topk_method": "noaux_tc",
            "routed_scaling_factor": self.routed_scaling_factor,
            "swiglu_limit": self.swiglu_limit,
            "num_nextn_predict_layers": 0,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "attention_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "quantization_config": {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "scale_fmt": "ue8m0",
                "weight_block_size": [128, 128],
                "activation_scheme": "dynamic",
            },
        }


@dataclass(frozen=True)
class Tensor:
    """One tensor of the released form. `kind`: fp8 (matrix with scales), bf16, f32 or i64; `init` says how it starts."""

    shape: tuple
    kind: str
    init: str = "matrix"


def tensors(s: Shape):
    """Every tensor by its original DeepSeek name. Experts are listed one by one."""
    d, h, w, n = s.hidden_size, s.num_attention_heads, s.head_dim, s.hc_mult
    out = {"embed.weight": Tensor((s.vocab_size, d), "bf16", "embed")}
    for i, kind in enumerate(s.layer_types):
        p = f"layers.{i}."
        a = p + "attn."
        out[p + "attn_norm.weight"] = Tensor((d,), "bf16", "one")
        out[p + "ffn_norm.weight"] = Tensor((d,), "bf16", "one")
        for site in ("attn", "ffn"):
            out[f"{p}hc_{site}_fn"] = Tensor(((2 + n) * n, n * d), "f32", "hc_fn")
            out[f"{p}hc_{site}_base"] = Tensor(((2 + n) * n,), "f32", "hc_base")
            out[f"{p}hc_{site}_scale"] = Tensor((3,), "f32", "hc_scale")
        out[a + "wq_a.weight"] = Tensor((s.q_lora_rank, d), "fp8")
        out[a + "q_norm.weight"] = Tensor((s.q_lora_rank,), "bf16", "one")
        out[a + "wq_b.weight"] = Tensor((h * w, s.q_lora_rank), "fp8")
        out[a + "wkv.weight"] = Tensor((w, d), "fp8")
        out[a + "kv_norm.weight"] = Tensor((w,), "bf16", "one")
        out[a + "attn_sink"] = Tensor((h,), "f32", "zero")
        out[a + "wo_a.weight"] = Tensor((s.o_groups * s.o_lora_rank, h * w // s.o_groups), "fp8")
        out[a + "wo_b.weight"] = Tensor((d, s.o_groups * s.o_lora_rank), "fp8", "zero_matrix")
        if kind != SLIDING:
            _compressor(out, a + "compressor.", w, RATE[kind], d)
        if kind == CSA:
            x = a + "indexer."
            out[x + "wq_b.weight"] = Tensor((s.index_n_heads * s.index_head_dim, s.q_lora_rank), "fp8")
            out[x + "weights_proj.weight"] = Tensor((s.index_n_heads, d), "bf16")
            _compressor(out, x + "compressor.", s.index_head_dim, RATE[kind], d)
        f = p + "ffn."
        out[f + "gate.weight"] = Tensor((s.n_routed_experts, d), "bf16", "gate")
        if s.is_hash(i):
            out[f + "gate.tid2eid"] = Tensor((s.vocab_size, s.num_experts_per_tok), "i64", "hash")
        else:
            out[f + "gate.bias"] = Tensor((s.n_routed_experts,), "f32", "zero")
        experts = [f"experts.{e}" for e in range(s.n_routed_experts)] + ["shared_experts"]
        for e in experts:
            out[f"{f}{e}.w1.weight"] = Tensor((s.moe_intermediate_size, d), "fp8")
            out[f"{f}{e}.w3.weight"] = Tensor((s.moe_intermediate_size, d), "fp8")
            out[f"{f}{e}.w2.weight"] = Tensor((d, s.moe_intermediate_size), "fp8", "zero_matrix")
    out["hc_head_fn"] = Tensor((n, n * d), "f32", "hc_fn")
    out["hc_head_base"] = Tensor((n,), "f32", "hc_head_base")
    out["hc_head_scale"] = Tensor((1,), "f32", "hc_scale")
    out["norm.weight"] = Tensor((d,), "bf16", "one")
    out["head.weight"] = Tensor((s.vocab_size, d), "bf16", "head")
    return out


def _compressor(out, prefix, width, rate, d):
    channels = width * (2 if rate == RATE[CSA] else 1)
    out[prefix + "wkv.weight"] = Tensor((channels, d), "bf16")
    out[prefix + "wgate.weight"] = Tensor((channels, d), "bf16", "gate")
    out[prefix + "ape"] = Tensor((rate, channels), "f32", "zero")
    out[prefix + "norm.weight"] = Tensor((width,), "bf16", "one")


def size(s: Shape):
    """(parameters, of which read per token, bytes as stored). tid2eid counts as bytes, not as parameters."""
    width = {"fp8": 1, "bf16": 2, "f32": 4, "i64": 8}
    total = active = stored = 0
    for name, t in tensors(s).items():
        count = 1
        for x in t.shape:
            count *= x
        stored += count * width[t.kind]
        if t.kind == "fp8":
            stored += -(-t.shape[0] // 128) * -(-t.shape[1] // 128)
        if t.kind == "i64":
            continue
        total += count
        if ".experts." in name:
            active += count * s.num_experts_per_tok / s.n_routed_experts
        elif name == "embed.weight":
            active += s.hidden_size
        else:
            active += count
    return total, round(active), stored


if __name__ == "__main__":
    shape = Shape()
    total, active, stored = size(shape)
    print(f"{total:,} parameters, {active:,} read per token, {stored:,} bytes as stored")
