"""MODEL1 (deepseek_v4) forward pass in float64 numpy: the formulas, nothing else.

    python reference.py check GOLDEN_DIR      compare with tiny-v4-orig / tiny-v4-record goldens

`Model(config, tensors)` takes original DeepSeek names; FP8 and FP4 weights with `.scale` are
expanded exactly. `forward(ids, qat=...)` returns a dict of arrays named as in golden.safetensors.
QAT means the official cache rounding: key/value rows e4m3 in blocks of 64 on the non-rotated
dims, index queries and rows Hadamard then e2m1 in blocks of 32. `bf16_rope=True` also rounds the
rotated dims of stored rows to bf16, as the 584-byte record does.
"""

import json
import struct
import sys

import ml_dtypes
import numpy as np

E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1",
          "F8_E4M3": "u1", "F8_E8M0": "u1"}


def read_safetensors(path):
    """{name: (dtype tag, array of stored bits or numbers)}."""
    raw = open(path, "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8:8 + n])
    head.pop("__metadata__", None)
    out = {}
    for name, h in head.items():
        a, b = h["data_offsets"]
        out[name] = (h["dtype"], np.frombuffer(raw[8 + n + a:8 + n + b], DTYPES[h["dtype"]]).reshape(h["shape"]))
    return out


def expand(tensors):
    """Stored tensors to float64 (integers stay integers); `.scale` tensors are consumed."""
    out = {}
    for name, (tag, a) in tensors.items():
        if name.endswith(".scale"):
            continue
        scale = tensors.get(name.removesuffix(".weight") + ".scale", (None, None))[1]
        if tag == "BF16":
            out[name] = (a.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        elif tag == "F8_E4M3":
            s = np.ldexp(1.0, scale.astype(int) - 127)
            s = np.repeat(np.repeat(s, 128, 0), 128, 1)[:a.shape[0], :a.shape[1]]
            out[name] = E4M3[a] * s
        elif tag == "I8":  # packed e2m1, low nibble first
            u = a.view(np.uint8)
            v = E2M1[np.stack([u & 15, u >> 4], -1).reshape(u.shape[0], -1)]
            out[name] = v * np.repeat(np.ldexp(1.0, scale.astype(int) - 127), 32, 1)
        else:
            out[name] = a.astype(np.float64) if a.dtype.kind == "f" else a.astype(np.int64)
    return out


# ---- rounding -------------------------------------------------------------------------------

def pow2_scale(amax, floor, limit):
    """2^ceil(log2(max(amax, floor) * fl32(1/limit))), computed in float32."""
    p = np.maximum(amax.astype(np.float32), np.float32(floor)) * (np.float32(1.0) / np.float32(limit))
    m, e = np.frexp(p)
    return np.ldexp(1.0, np.where(m == 0.5, e - 1, e))


def round_grid(y, emin, mantissa_bits):
    """Round to nearest even on a float grid with the given lowest exponent."""
    e = np.maximum(np.frexp(y)[1] - 1, emin)
    q = np.ldexp(1.0, e - mantissa_bits)
    return np.rint(y / q) * q


def blocks(x, n):
    return x.reshape(*x.shape[:-1], -1, n)


def fake_fp8(x, block=64):
    b = blocks(x, block)
    s = pow2_scale(np.abs(b).max(-1, keepdims=True), 1e-4, 448.0)
    return (round_grid(np.clip(b / s, -448, 448), -6, 3) * s).reshape(x.shape)


def fake_fp4(x, block=32):
    b = blocks(x, block)
    s = pow2_scale(np.abs(b).max(-1, keepdims=True), 6 * 2.0**-126, 6.0)
    return (round_grid(np.clip(b / s, -6, 6), 0, 1) * s).reshape(x.shape)


def bf16(x):
    return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def hadamard(x):
    """Normalised Walsh-Hadamard transform of the last axis, Sylvester order."""
    n, h = x.shape[-1], 1
    while h < n:
        v = x.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        x = np.stack([v[..., 0, :] + v[..., 1, :], v[..., 0, :] - v[..., 1, :]], -2).reshape(x.shape)
        h *= 2
    return x / np.sqrt(n)


# ---- parts ----------------------------------------------------------------------------------

def rms(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def inv_freq(cfg, compress):
    rd = cfg["qk_rope_head_dim"]
    p = cfg["rope_parameters"]["compress" if compress else "main"]
    base = p["rope_theta"]
    f = base ** (-np.arange(0, rd, 2) / rd)
    if p["rope_type"] != "yarn":
        return f
    corr = lambda beta: rd * np.log(p["original_max_position_embeddings"] / (2 * np.pi * beta)) / (2 * np.log(base))
    lo, hi = max(np.floor(corr(p["beta_fast"])), 0), min(np.ceil(corr(p["beta_slow"])), rd - 1)
    hi += 0.001 if lo == hi else 0
    m = np.clip((np.arange(rd // 2) - lo) / (hi - lo), 0, 1)
    return f * (1 - m) + f / p["factor"] * m


def rope(x, pos, f, sign=1):
    """Rotate interleaved pairs of the last 2*len(f) dims; pos broadcasts over x.shape[:-1]."""
    ang = np.asarray(pos, np.float64)[..., None] * f
    c, s = np.cos(ang), sign * np.sin(ang)
    head, tail = x[..., :-2 * len(f)], x[..., -2 * len(f):]
    a, b = tail[..., 0::2], tail[..., 1::2]
    return np.concatenate([head, np.stack([a * c - b * s, a * s + b * c], -1).reshape(tail.shape)], -1)


class Model:
    def __init__(self, cfg, tensors):
        self.cfg, self.w = cfg, expand(tensors)

    def hyper(self, X, prefix):
        """mHC: collapsed input, post [S,n], comb [S,n,n]."""
        cfg, n = self.cfg, self.cfg["hc_mult"]
        fn, base, scale = (self.w[f"{prefix}_{k}"] for k in ("fn", "base", "scale"))
        v = X.reshape(len(X), -1)
        m = v @ fn.T / np.sqrt((v * v).mean(-1, keepdims=True) + cfg["rms_norm_eps"])
        eps = cfg["hc_eps"]
        pre = sigmoid(m[:, :n] * scale[0] + base[:n]) + eps
        y = (pre[..., None] * X).sum(1)
        if len(scale) == 1:
            return y, None, None
        post = 2 * sigmoid(m[:, n:2 * n] * scale[1] + base[n:2 * n])
        z = (m[:, 2 * n:] * scale[2] + base[2 * n:]).reshape(-1, n, n)
        c = np.exp(z - z.max(-1, keepdims=True))
        c = c / c.sum(-1, keepdims=True) + eps
        c /= c.sum(1, keepdims=True) + eps
        for _ in range(cfg["hc_sinkhorn_iters"] - 1):
            c /= c.sum(2, keepdims=True) + eps
            c /= c.sum(1, keepdims=True) + eps
        return y, post, c

    def compressor(self, x, prefix, rate, overlap, f):
        """Pooled, normalised and rotated rows [S div rate, d], before cache rounding."""
        w = self.w
        c, g = x @ w[prefix + ".wkv.weight"].T, x @ w[prefix + ".wgate.weight"].T
        ape = w[prefix + ".ape"]
        g = g + ape[np.arange(len(x)) % rate]
        rows, d = [], c.shape[1] // (2 if overlap else 1)
        for j in range(len(x) // rate):
            now = slice(j * rate, (j + 1) * rate)
            cc, gg = (c[now, d:], g[now, d:]) if overlap else (c[now], g[now])
            if overlap and j:
                prev = slice((j - 1) * rate, j * rate)
                cc, gg = np.concatenate([c[prev, :d], cc]), np.concatenate([g[prev, :d], gg])
            e = np.exp(gg - gg.max(0))
            rows.append((e * cc).sum(0) / e.sum(0))
        rows = np.array(rows).reshape(-1, d)
        rows = rms(rows, w[prefix + ".norm.weight"], self.cfg["rms_norm_eps"])
        return rope(rows, np.arange(len(rows)) * rate, f)

    def store(self, rows, qat, bf16_rope):
        if not qat:
            return rows
        rd = self.cfg["qk_rope_head_dim"]
        tail = rows[:, -rd:]
        return np.concatenate([fake_fp8(rows[:, :-rd]), bf16(tail) if bf16_rope else tail], -1)

    def indexer(self, x, qr, p, rate, f, qat, out, key):
        """Boolean [S, rows]: the selected compressed rows of each query."""
        cfg, w, S = self.cfg, self.w, len(x)
        H, d, k = cfg["index_n_heads"], cfg["index_head_dim"], cfg["index_topk"]
        rows = self.compressor(x, p + "indexer.compressor", rate, True, f)
        q = rope((qr @ w[p + "indexer.wq_b.weight"].T).reshape(S, H, d), np.arange(S)[:, None], f)
        if qat:
            rows, q = fake_fp4(hadamard(rows)), fake_fp4(hadamard(q))
            out[key + "index_rows"] = rows
        weights = x @ w[p + "indexer.weights_proj.weight"].T * H**-0.5 * d**-0.5
        score = np.einsum("shr,sh->sr", np.maximum(np.einsum("shd,rd->shr", q, rows), 0), weights)
        out[key + "index_scores"] = score
        pick = np.zeros(score.shape, bool)
        table = np.full((S, k), -1, np.int64)
        margin = np.inf
        for t in range(S):
            vis = (t + 1) // rate
            order = np.argsort(-score[t, :vis], kind="stable")
            if vis > k:
                margin = min(margin, score[t, order[k - 1]] - score[t, order[k]])
            pick[t, order[:k]] = True
            table[t, :min(k, vis)] = np.sort(order[:k])
        out[key + "index_topk"] = table
        out["margin"] = min(out.get("margin", np.inf), margin)
        return pick

    def attention(self, x, l, out, qat, bf16_rope):
        cfg, w, S = self.cfg, self.w, len(x)
        p, key, eps = f"layers.{l}.attn.", f"layer.{l}.", cfg["rms_norm_eps"]
        kind = cfg["layer_types"][l]
        f = inv_freq(cfg, kind != "sliding_attention")
        H, d, t = cfg["num_attention_heads"], cfg["head_dim"], np.arange(S)
        qr = rms(x @ w[p + "wq_a.weight"].T, w[p + "q_norm.weight"], eps)
        q = rope(rms((qr @ w[p + "wq_b.weight"].T).reshape(S, H, d), 1.0, eps), t[:, None], f)
        kv = rope(rms(x @ w[p + "wkv.weight"].T, w[p + "kv_norm.weight"], eps), t, f)
        kv = self.store(kv, qat, bf16_rope)
        out[key + "kv_rows"] = kv
        mask = (t[None, :] <= t[:, None]) & (t[None, :] > t[:, None] - cfg["sliding_window"])
        if kind != "sliding_attention":
            rate = cfg["compress_rates"][kind]
            csa = kind == "compressed_sparse_attention"
            rows = self.store(self.compressor(x, p + "compressor", rate, csa, f), qat, bf16_rope)
            out[key + "compressed_rows"] = rows
            vis = (np.arange(len(rows))[None, :] < ((t + 1) // rate)[:, None])
            if csa:
                vis &= self.indexer(x, qr, p, rate, f, qat, out, key)
            kv, mask = np.concatenate([kv, rows]), np.concatenate([mask, vis], 1)
        z = np.einsum("shd,rd->shr", q, kv) * d**-0.5
        z = np.where(mask[:, None, :], z, -np.inf)
        sink = w[p + "attn_sink"][None, :, None]
        top = np.maximum(z.max(-1, keepdims=True), sink)
        e = np.exp(z - top)
        o = np.einsum("shr,rd->shd", e / (e.sum(-1, keepdims=True) + np.exp(sink - top)), kv)
        o = rope(o, t[:, None], f, -1)
        G = cfg["o_groups"]
        wo_a = w[p + "wo_a.weight"].reshape(G, -1, H * d // G)
        u = np.einsum("sgi,goi->sgo", o.reshape(S, G, -1), wo_a).reshape(S, -1)
        return u @ w[p + "wo_b.weight"].T

    def ffn(self, x, p):
        lim, w = self.cfg["swiglu_limit"], self.w
        g = np.minimum(x @ w[p + "w1.weight"].T, lim)
        u = np.clip(x @ w[p + "w3.weight"].T, -lim, lim)
        return (g * sigmoid(g) * u) @ w[p + "w2.weight"].T

    def moe(self, x, ids, l, out):
        cfg, w, p, key = self.cfg, self.w, f"layers.{l}.ffn.", f"layer.{l}."
        z = x @ w[p + "gate.weight"].T
        s = np.sqrt(np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0))
        k = cfg["num_experts_per_tok"]
        if p + "gate.tid2eid" in w and cfg["mlp_layer_types"][l] == "hash_moe":
            idx = w[p + "gate.tid2eid"][ids]
        else:
            biased = s + w[p + "gate.bias"]
            order = np.argsort(-biased, -1, kind="stable")
            idx = order[:, :k]
            b = np.take_along_axis(biased, order, -1)
            out["margin"] = min(out.get("margin", np.inf), (b[:, k - 1] - b[:, k]).min())
        sel = np.take_along_axis(s, idx, -1)
        weight = sel / sel.sum(-1, keepdims=True) * cfg["routed_scaling_factor"]
        out.update({key + "router_idx": idx, key + "router_weights": weight, key + "router_logits": z})
        y = self.ffn(x, p + "shared_experts.")
        for e in range(cfg["n_routed_experts"]):
            t, j = np.nonzero(idx == e)
            if len(t):
                y[t] += weight[t, j, None] * self.ffn(x[t], f"{p}experts.{e}.")
        return y

    def forward(self, ids, qat=False, bf16_rope=False):
        cfg, w, out = self.cfg, self.w, {}
        ids, eps = np.asarray(ids), cfg["rms_norm_eps"]
        X = np.repeat(w["embed.weight"][ids][:, None, :], cfg["hc_mult"], 1)
        for l in range(cfg["num_hidden_layers"]):
            for part in ("attn", "ffn"):
                y, post, comb = self.hyper(X, f"layers.{l}.hc_{part}")
                h = rms(y, w[f"layers.{l}.{part}_norm.weight"], eps)
                o = self.attention(h, l, out, qat, bf16_rope) if part == "attn" else self.moe(h, ids, l, out)
                X = post[..., None] * o[:, None, :] + np.einsum("sjk,sjd->skd", comb, X)
                k = f"layer.{l}.{part}_"
                out.update({k + "out": o, k + "hc.post": post, k + "hc.comb": comb, k + "hc.collapsed": y})
            out[f"layer_out.{l}"] = X
        out["hc_head"] = self.hyper(X, "hc_head")[0]
        out["final_norm"] = rms(out["hc_head"], w["norm.weight"], eps)
        out["logits"] = out["final_norm"] @ w["head.weight"].T
        return out


KINDS = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}


def complete(cfg):
    """Adds the keys transformers writes to a config in the released form."""
    if "layer_types" not in cfg:
        layers, yarn = cfg["num_hidden_layers"], dict(cfg["rope_scaling"])
        cfg["layer_types"] = [KINDS[r] for r in cfg["compress_ratios"][:layers]]
        cfg["compress_rates"] = {KINDS[4]: 4, KINDS[128]: 128}
        hashed = cfg["num_hash_layers"]
        cfg["mlp_layer_types"] = ["hash_moe"] * hashed + ["moe"] * (layers - hashed)
        cfg["rope_parameters"] = {
            "main": {"rope_theta": cfg["rope_theta"], "rope_type": "default"},
            "compress": {**yarn, "rope_theta": cfg["compress_rope_theta"], "rope_type": yarn["type"]},
        }
    return cfg


def load_model(folder):
    return Model(complete(json.load(open(f"{folder}/config.json"))), read_safetensors(f"{folder}/model.safetensors"))


def compare(got, golden, label):
    """Worst absolute difference per kind of tensor, and the worst relative L2 of a row."""
    for name, (tag, want) in sorted(golden.items()):
        if name not in got or tag in ("I64", "I32"):
            if name in got:
                same = np.mean(np.sort(got[name], -1) == np.sort(want, -1))
                print(f"  {label} {name:32} equal {same:.4f}")
            continue
        a, b = got[name].reshape(want.shape).astype(np.float64), want.astype(np.float64)
        rows = lambda v: v.reshape(len(v), -1)
        rel = np.linalg.norm(rows(a - b), axis=1) / np.maximum(np.linalg.norm(rows(b), axis=1), 1e-30)
        print(f"  {label} {name:32} max abs {np.abs(a - b).max():.2e}  row rel L2: worst {rel.max():.2e} "
              f"median {np.median(rel):.2e} rows > 1e-2: {(rel > 1e-2).sum()} of {len(rel)}")


def check(golden_dir):
    for name in ("tiny-v4-orig", "tiny-v4-record"):
        folder = f"{golden_dir}/{name}"
        model, gold = load_model(folder), read_safetensors(f"{folder}/golden.safetensors")
        ids = gold["input_ids"][1]
        got = model.forward(ids)
        print(name, "margin", got["margin"], "argmax agreement", np.mean(got["logits"].argmax(-1) == gold["logits"][1].argmax(-1)))
        compare(got, gold, "plain")
    gold = read_safetensors(f"{folder}/golden_qat.safetensors")
    got = model.forward(ids, qat=True)
    for k in list(got):
        if k.endswith("kv_rows"):  # the golden holds the last window in order of position
            got[k.replace("kv_rows", "window_rows")] = got[k][-model.cfg["sliding_window"]:]
    print("tiny-v4-record qat: argmax agreement", np.mean(got["logits"].argmax(-1) == gold["logits"][1].argmax(-1)))
    compare(got, gold, "qat")


if __name__ == "__main__":
    assert sys.argv[1] == "check"
    check(sys.argv[2])
