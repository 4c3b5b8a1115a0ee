"""Writes tests/goldens/gguf-vectors/vectors.safetensors: GGUF blocks and what they decode to.

    python gguf_vectors.py OUT_FILE          (needs numpy, safetensors, gguf 0.19)

For every format: `<name>.raw` [rows, row bytes] U8 and `<name>.f32` [rows, 512] F32. Bytes come from
gguf.quants.quantize, for Q4_K and Q6_K (which it cannot write) from random bits with sane f16 scales;
the last row of every block format is random bits too, so that all codes occur. Values are those of
gguf.quants.dequantize: float32 products and sums, each rounded on its own.
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType, quants
from safetensors.numpy import save_file

COLS = 512
# Offsets of the f16 numbers in a block and the block's size in bytes.
SCALES = {"Q8_0": ([0], 34), "Q4_0": ([0], 18), "Q4_1": ([0, 2], 20), "Q5_0": ([0], 22),
          "Q4_K": ([0, 2], 144), "Q6_K": ([208], 210)}


def random_blocks(rng, name, rows):
    """Random bits, with f16 scales of either sign between 2^-14 (some subnormal) and 1."""
    offsets, size = SCALES[name]
    block = 256 if name.endswith("_K") else 32
    raw = rng.integers(0, 256, (rows * COLS // block, size), dtype=np.uint8)
    for at in offsets:
        f = rng.standard_normal(len(raw)) * 2.0 ** rng.integers(-18, 0, len(raw))
        raw[:, at:at + 2] = f.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, -1)


def main(path):
    rng = np.random.default_rng(7)
    out = {}
    for name in ["F16", "BF16", *SCALES]:
        kind = GGMLQuantizationType[name]
        x = (rng.standard_normal((3, COLS)) * 2.0 ** rng.integers(-6, 3, (3, 1))).astype(np.float32)
        x[0, :32] = 0
        if name.endswith("_K"):
            raw = random_blocks(rng, name, 4)
        else:
            raw = np.ascontiguousarray(quants.quantize(x, kind)).view(np.uint8)
        if name in SCALES:
            raw = np.concatenate([raw, random_blocks(rng, name, 1)])
        typed = raw.view(np.float16) if name == "F16" else raw
        values = typed.astype(np.float32) if name == "F16" else quants.dequantize(typed, kind)
        out[name.lower() + ".raw"] = raw
        out[name.lower() + ".f32"] = np.ascontiguousarray(values, np.float32).reshape(len(raw), COLS)
    save_file(out, path)
    print({k: v.shape for k, v in out.items()})


if __name__ == "__main__":
    main(sys.argv[1])
