"""Writes the two name maps of tiny-v4 and checks them against the full checkpoints.

    python name_maps.py GOLDEN_DIR OUT_DIR

GOLDEN_DIR holds tiny-v4 and tiny-v4-orig with their model.safetensors. OUT_DIR/tiny-v4-orig gets
`names.json`: {"original": {name: source}, "in_memory": {name: [sources]}}, where a source is a
tensor name in tiny-v4/model.safetensors. A list of several sources is stacked: for
`mlp.experts.gate_up_proj` the pairs (w1, w3) of each expert are concatenated along rows and the
experts stacked along a new first axis; for `mlp.experts.down_proj` the w2 are stacked.
"""

import json
import re
import sys

import numpy as np
from safetensors.numpy import load_file


def original_from_saved(name):
    """Name of a tensor in the original DeepSeek space, from the default save_pretrained space."""
    n = re.sub(r"^model\.", "", name)
    n = n.replace("embed_tokens.weight", "embed.weight").replace(".attn.norm.weight", ".attn.kv_norm.weight")
    return n.replace("hc_head.hc_", "hc_head_")


RENAMES = [
    ("embed.weight", "model.embed_tokens.weight"),
    ("head.weight", "lm_head.weight"),
    ("norm.weight", "model.norm.weight"),
]
PARTS = [
    (r"hc_attn_(fn|base|scale)$", r"attn_hc.\1"),
    (r"hc_ffn_(fn|base|scale)$", r"ffn_hc.\1"),
    (r"^attn_norm\.", "input_layernorm."),
    (r"^ffn_norm\.", "post_attention_layernorm."),
    (r"^attn\.wq_a\.", "self_attn.q_a_proj."),
    (r"^attn\.q_norm\.", "self_attn.q_a_norm."),
    (r"^attn\.wq_b\.", "self_attn.q_b_proj."),
    (r"^attn\.wkv\.", "self_attn.kv_proj."),
    (r"^attn\.kv_norm\.", "self_attn.kv_norm."),
    (r"^attn\.wo_a\.", "self_attn.o_a_proj."),
    (r"^attn\.wo_b\.", "self_attn.o_b_proj."),
    (r"^attn\.attn_sink$", "self_attn.sinks"),
    (r"^attn\.indexer\.wq_b\.", "self_attn.compressor.indexer.q_b_proj."),
    (r"^attn\.indexer\.weights_proj\.", "self_attn.compressor.indexer.scorer.weights_proj."),
    (r"^attn\.indexer\.compressor\.", "self_attn.compressor.indexer."),
    (r"^attn\.compressor\.", "self_attn.compressor."),
    (r"^ffn\.gate\.bias$", "mlp.gate.e_score_correction_bias"),
    (r"^ffn\.gate\.", "mlp.gate."),
    (r"^ffn\.shared_experts\.w1\.", "mlp.shared_experts.gate_proj."),
    (r"^ffn\.shared_experts\.w3\.", "mlp.shared_experts.up_proj."),
    (r"^ffn\.shared_experts\.w2\.", "mlp.shared_experts.down_proj."),
]


def in_memory_from_original(name):
    """Name in transformers' in-memory space (experts are handled by the caller)."""
    for a, b in RENAMES:
        if name == a:
            return b
    if name.startswith("hc_head_"):
        return "model.hc_head.hc_" + name[len("hc_head_"):]
    layer, rest = re.match(r"layers\.(\d+)\.(.*)", name).groups()
    for pattern, new in PARTS:
        if re.search(pattern, rest):
            rest = re.sub(pattern, new, rest)
            break
    if ".compressor." in rest and ".q_b_proj." not in rest and ".weights_proj." not in rest:
        for a, b in [(".wkv.", ".kv_proj."), (".wgate.", ".gate_proj."), (".norm.", ".kv_norm.")]:
            rest = rest.replace(a, b)
        rest = re.sub(r"\.ape$", ".position_bias", rest)
    return f"model.layers.{layer}.{rest}"


def main(golden, out):
    saved = load_file(f"{golden}/tiny-v4/model.safetensors")
    orig = load_file(f"{golden}/tiny-v4-orig/model.safetensors")
    original = {original_from_saved(n): n for n in saved}
    assert sorted(original) == sorted(orig), set(original) ^ set(orig)
    for name, source in original.items():
        assert np.array_equal(orig[name], saved[source]) and orig[name].dtype == saved[source].dtype, name
    in_memory = {}
    for name in sorted(original, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)]):
        m = re.match(r"layers\.(\d+)\.ffn\.experts\.(\d+)\.(w\d)\.weight", name)
        if m is None:
            in_memory[in_memory_from_original(name)] = [original[name]]
        elif m[3] == "w1":
            stack = in_memory.setdefault(f"model.layers.{m[1]}.mlp.experts.gate_up_proj", [])
            stack += [original[name], original[name.replace(".w1.", ".w3.")]]
        elif m[3] == "w2":
            in_memory.setdefault(f"model.layers.{m[1]}.mlp.experts.down_proj", []).append(original[name])
    with open(f"{out}/tiny-v4-orig/names.json", "w") as f:
        json.dump({"original": original, "in_memory": in_memory}, f, indent=0, sort_keys=True)
        f.write("\n")
    print(len(original), "original names,", len(in_memory), "in-memory names")


if __name__ == "__main__":
    main(*sys.argv[1:])
