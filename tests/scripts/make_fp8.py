"""Makes tests/goldens/tiny-v4-fp8: a small MODEL1 checkpoint in the released number formats.

    python make_fp8.py OUT_DIR

Random weights (numpy seed 11) rounded to what a release stores: FP8 128x128 with ue8m0 `.scale`, FP4
experts, BF16, F32. Goldens are float64 results of reference.py on the rounded weights, without and
with the cache rounding (QAT; the rotated part of stored rows is bf16 as in the 584-byte record).
"""

import json
import os
import struct
import sys

import ml_dtypes
import numpy as np

from reference import Model, complete, pow2_scale, read_safetensors

CFG = {
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "torch_dtype": "bfloat16",
    "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 512, "qk_rope_head_dim": 64, "q_lora_rank": 24, "o_groups": 2, "o_lora_rank": 16,
    "sliding_window": 128, "compress_ratios": [0, 4, 128, 0], "rope_theta": 10000.0, "compress_rope_theta": 160000.0,
    "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1},
    "index_n_heads": 16, "index_head_dim": 128, "index_topk": 16, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6,
    "num_hash_layers": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "scoring_func": "sqrtsoftplus", "norm_topk_prob": True, "topk_method": "noaux_tc",
    "routed_scaling_factor": 1.5, "swiglu_limit": 1.5, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1048576, "tie_word_embeddings": False, "attention_bias": False, "hidden_act": "silu",
    "bos_token_id": 0, "eos_token_id": 1, "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128],
                            "activation_scheme": "dynamic"},
}
S = 272
POSITIONS = [0, 3, 4, 7, 15, 63, 64, 66, 67, 127, 128, 131, 200, 255, 256, 271]
ROWS = [0, 1, 15, 16, 31, 32, 50, 63, 66, 67]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def bf16(x):
    return "BF16", np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def fp8(x):
    """e4m3 codes and one ue8m0 per 128x128 tile."""
    rows, cols = x.shape
    codes, scales = np.zeros(x.shape, np.uint8), np.zeros((-(-rows // 128), -(-cols // 128)), np.uint8)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            tile = np.s_[128 * i:128 * (i + 1), 128 * j:128 * (j + 1)]
            s = pow2_scale(np.abs(x[tile]).max(), 1e-4, 448.0)
            codes[tile] = (x[tile] / s).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
            scales[i, j] = np.log2(s) + 127
    return ("F8_E4M3", codes), ("F8_E8M0", scales)


def fp4(x):
    """e2m1 pairs, low nibble first, and one ue8m0 per 32 columns."""
    b = x.reshape(x.shape[0], -1, 32)
    s = pow2_scale(np.abs(b).max(-1, keepdims=True), 6 * 2.0**-126, 6.0)
    y = np.abs(b / s)[..., None]
    # Nearest value; of two equally near ones the even code, listed first.
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    code = np.array(order)[np.abs(y - E2M1[order]).argmin(-1)] | np.where(b < 0, 8, 0)
    code = code.reshape(x.shape).astype(np.uint8)
    return ("I8", (code[:, 0::2] | code[:, 1::2] << 4).view(np.int8)), ("F8_E8M0", (np.log2(s[..., 0]) + 127).astype(np.uint8))


def weights():
    rng, c, t = np.random.default_rng(11), CFG, {}
    D, V, F, d, n = c["hidden_size"], c["vocab_size"], c["moe_intermediate_size"], c["head_dim"], c["hc_mult"]
    ql, H, G, ol = c["q_lora_rank"], c["num_attention_heads"], c["o_groups"], c["o_lora_rank"]
    normal = lambda *shape: rng.standard_normal(shape)
    matrix = lambda o, i: normal(o, i) / np.sqrt(i)
    f32 = lambda x: ("F32", np.asarray(x, np.float32))
    norm = lambda k: bf16(1 + 0.2 * normal(k))

    def quant(name, pair):
        t[name + ".weight"], t[name + ".scale"] = pair

    def hyper(name, outs, scales):
        t[name + "_fn"] = f32(normal(outs, n * D) / np.sqrt(n * D))
        t[name + "_base"], t[name + "_scale"] = f32(0.5 * normal(outs)), f32(0.5 + rng.random(scales))

    def compressor(p, rate, width, out):
        t[p + ".wkv.weight"], t[p + ".wgate.weight"] = bf16(matrix(out, D)), bf16(matrix(out, D))
        t[p + ".ape"], t[p + ".norm.weight"] = f32(0.5 * normal(rate, out)), norm(width)

    t["embed.weight"], t["head.weight"], t["norm.weight"] = bf16(normal(V, D)), bf16(2 * matrix(V, D)), norm(D)
    hyper("hc_head", n, 1)
    for l, ratio in enumerate(c["compress_ratios"][:c["num_hidden_layers"]]):
        a, f = f"layers.{l}.attn.", f"layers.{l}.ffn."
        hyper(f"layers.{l}.hc_attn", (2 + n) * n, 3)
        hyper(f"layers.{l}.hc_ffn", (2 + n) * n, 3)
        t[f"layers.{l}.attn_norm.weight"], t[f"layers.{l}.ffn_norm.weight"] = norm(D), norm(D)
        for name, o, i in [("wq_a", ql, D), ("wq_b", H * d, ql), ("wkv", d, D), ("wo_a", G * ol, H * d // G), ("wo_b", D, G * ol)]:
            quant(a + name, fp8(matrix(o, i)))
        t[a + "q_norm.weight"], t[a + "kv_norm.weight"], t[a + "attn_sink"] = norm(ql), norm(d), f32(0.5 * normal(H))
        if ratio:
            compressor(a + "compressor", ratio, d, 2 * d if ratio == 4 else d)
        if ratio == 4:
            ih, iw = c["index_n_heads"], c["index_head_dim"]
            quant(a + "indexer.wq_b", fp8(matrix(ih * iw, ql)))
            t[a + "indexer.weights_proj.weight"] = bf16(matrix(ih, D))
            compressor(a + "indexer.compressor", 4, iw, 2 * iw)
        E, k = c["n_routed_experts"], c["num_experts_per_tok"]
        t[f + "gate.weight"] = bf16(matrix(E, D))
        if l < c["num_hash_layers"]:
            t[f + "gate.tid2eid"] = ("I64", np.array([rng.permutation(E)[:k] for _ in range(V)], np.int64))
        else:
            t[f + "gate.bias"] = f32(0.3 * normal(E))
        for name, o, i in [("w1", F, D), ("w2", D, F), ("w3", F, D)]:
            quant(f"{f}shared_experts.{name}", fp8(matrix(o, i)))
            for e in range(E):
                quant(f"{f}experts.{e}.{name}", fp4(matrix(o, i)))
    return t


def write(path, tensors):
    """safetensors with 8-byte aligned data, larger elements first."""
    names = sorted(tensors, key=lambda k: (-tensors[k][1].itemsize, k))
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for k in names:
        tag, a = tensors[k]
        head[k] = {"dtype": tag, "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    raw = json.dumps(head, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        for k in names:
            f.write(np.ascontiguousarray(tensors[k][1]).tobytes())


def trim(out, qat):
    """What a test compares: POSITIONS of token tensors, ROWS of CSA rows, both HCA rows."""
    f32, i32 = lambda x: ("F32", x.astype(np.float32)), lambda x: ("I32", np.asarray(x, np.int32))
    t = {"positions": i32(POSITIONS), "row_ids": i32(ROWS), "logits": f32(out["logits"][POSITIONS])}
    for l in range(CFG["num_hidden_layers"]):
        t[f"layer_out.{l}"] = f32(out[f"layer_out.{l}"][POSITIONS])
        if qat:
            t[f"layer.{l}.kv_rows"] = f32(out[f"layer.{l}.kv_rows"][POSITIONS[-4:]])
    t["layer.1.compressed_rows"] = f32(out["layer.1.compressed_rows"][ROWS])
    t["layer.2.compressed_rows"] = f32(out["layer.2.compressed_rows"])
    t["layer.1.index_topk"] = i32(out["layer.1.index_topk"][POSITIONS])
    if qat:
        t["layer.1.index_rows"] = f32(out["layer.1.index_rows"][ROWS])
    return t


def greedy(model, ids, count, **mode):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model.forward(ids, **mode)["logits"][-1].argmax()))
    return ids[-count:]


def main(out_dir):
    os.makedirs(out_dir, exist_ok=True)
    write(f"{out_dir}/model.safetensors", weights())
    with open(f"{out_dir}/config.json", "w") as f:
        json.dump(CFG, f, indent=1)
        f.write("\n")
    model = Model(complete(dict(CFG)), read_safetensors(f"{out_dir}/model.safetensors"))
    mode = {"qat": True, "bf16_rope": True}
    for seed in range(200):
        ids = np.random.default_rng(seed).integers(2, CFG["vocab_size"], S)
        plain, qat = model.forward(ids), model.forward(ids, **mode)
        if min(plain["margin"], qat["margin"]) > 1e-4:
            break
    write(f"{out_dir}/golden.safetensors", trim(plain, False))
    write(f"{out_dir}/golden_qat.safetensors", trim(qat, True))
    rel = np.linalg.norm(plain["logits"] - qat["logits"], axis=1) / np.linalg.norm(plain["logits"], axis=1)
    info = {
        "name": "tiny-v4-fp8", "note": "float64 reference; row k of a token tensor is position positions[k], row k of "
        "layer.1.compressed_rows and index_rows is row row_ids[k]; kv_rows holds the last four positions",
        "seed": seed, "input_ids": ids.tolist(), "argmax": plain["logits"].argmax(-1).tolist(),
        "argmax_qat": qat["logits"].argmax(-1).tolist(), "min_topk_margin": float(plain["margin"]),
        "min_topk_margin_qat": float(qat["margin"]), "logits_std": float(plain["logits"].std()),
        "qat_vs_plain_median_rel_l2": float(np.median(rel)), "greedy_continuation_24": greedy(model, ids, 24),
        "greedy_continuation_24_qat": greedy(model, ids, 24, **mode),
    }
    with open(f"{out_dir}/golden.json", "w") as f:
        json.dump(info, f)
        f.write("\n")
    print({k: v for k, v in info.items() if k not in ("input_ids", "argmax", "argmax_qat")})


if __name__ == "__main__":
    main(sys.argv[1])
