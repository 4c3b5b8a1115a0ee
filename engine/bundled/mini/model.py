"""The whole model for training: parameters by released name, their compute copies, and the forward pass."""

import math

import numpy as np
import torch

from . import blocks, quant
from .config import BOS, CSA, HCA, RATE, Shape, tensors

#: Stored as bf16 or f32 vectors; used in f32 as they are.
#: The embedding is looked up in f32, so that the gradients of frequent tokens add up exactly.
SMALL = ("norm", "_base", "_scale", "ape", "attn_sink", "ffn.gate.", "embed.")


def stacked(name):
    """Experts are trained as stacks [E + 1, ...], the shared one last: layers.L.ffn.w1. Others keep their name."""
    if ".experts." in name or ".shared_experts." in name:
        layer, matrix = name.split(".ffn.")[0], name.split(".")[-2]
        return f"{layer}.ffn.{matrix}"
    return name


def hash_table(shape, counts, seed=0):
    """tid2eid [V, k]: experts of each token, no expert twice, loads even when tokens come with these counts."""
    rng = np.random.default_rng(seed)
    e, k = shape.n_routed_experts, shape.num_experts_per_tok
    load = np.zeros(e)
    table = np.zeros((shape.vocab_size, k), dtype=np.int64)
    for token in np.argsort(-np.asarray(counts), kind="stable"):
        noise = rng.random(e) * max(counts[token], 1) * 0.5
        table[token] = np.argsort(load + noise, kind="stable")[:k]
        load[table[token]] += counts[token]
    return table


def _initial(t, shape, layer_site, rng):
    """Starting values. Residual writers start at zero, so that the first step sees a plain embedding model."""
    n = shape.hc_mult
    z = lambda std: torch.randn(t.shape, generator=rng) * std
    match t.init:
        case "matrix":
            return z(t.shape[-1] ** -0.5)
        case "zero_matrix":
            return z(0.02 * t.shape[-1] ** -0.5)
        case "zero":
            return torch.zeros(t.shape)
        case "one":
            return torch.ones(t.shape)
        case "embed":
            return z(0.7)
        case "head":
            return z(0.5 * t.shape[-1] ** -0.5)
        case "gate":
            return z(0.5 * t.shape[-1] ** -0.5)
        case "hc_fn":
            return z(t.shape[-1] ** -0.5)
        case "hc_scale":
            return torch.full(t.shape, 0.1)
        case "hc_head_base":
            return torch.full(t.shape, math.log(1 / 3))  # sigmoid = 1/4: the mean of the streams
        case "hc_base":
            # Reads mostly one stream (another one at each site), writes to all, mixes little.
            pre = torch.full((n,), -2.2)
            pre[layer_site % n] = 0.85
            comb = torch.full((n, n), -1.0)
            comb.fill_diagonal_(2.5)
            return torch.cat((pre, torch.zeros(n), comb.flatten()))
    raise ValueError(t.init)


class Model:
    """Master parameters (f32, by stacked name), compute copies, tables. `dtype`: of matrices and activations."""

    def __init__(self, shape: Shape, device, dtype=torch.bfloat16, token_counts=None, seed=0):
        self.shape, self.device, self.dtype = shape, device, dtype
        rng = torch.Generator().manual_seed(seed)
        groups = {}
        self.kind, self.tables, self.onehot, self.tid2eid = {}, {}, {}, {}
        for name, t in tensors(shape).items():
            if t.init == "hash":
                counts = token_counts if token_counts is not None else np.ones(shape.vocab_size)
                self.set_table(name, torch.from_numpy(hash_table(shape, counts)))
                continue
            site = 0
            if "hc_" in name and name.startswith("layers."):
                site = 2 * int(name.split(".")[1]) + ("hc_ffn" in name)
            groups.setdefault(stacked(name), []).append(_initial(t, shape, site, rng))
            self.kind[stacked(name)] = t.kind
        self.master = {
            k: (torch.stack(v) if ".ffn.w" in k else v[0]).to(device).float() for k, v in groups.items()
        }
        self.compute = {}
        self.refresh(0.0)
        self.had = quant.hadamard(shape.index_head_dim, device, dtype)

    def set_table(self, name, table):
        """Sets a hash layer's tid2eid [V, k]."""
        self.tid2eid[name] = table.long()
        hot = torch.zeros(self.shape.vocab_size, self.shape.n_routed_experts)
        hot.scatter_(1, table.long(), 1.0)
        self.onehot[name.replace("tid2eid", "onehot")] = hot.to(self.device)

    def refresh(self, rounding):
        """Brings the compute copies up to date; with rounding, matrices stored as FP8 are rounded as stored."""
        with torch.no_grad():
            if not self.compute:
                for name, p in self.master.items():
                    dtype = torch.float32 if any(x in name for x in SMALL) else self.dtype
                    self.compute[name] = p.to(dtype, copy=True).requires_grad_(not name.endswith("gate.bias"))
            values = dict(self.master)
            if rounding:
                values.update(self._rounded())
            torch._foreach_copy_(list(self.compute.values()), list(values.values()))

    def _rounded(self):
        """Masters as they will be stored: FP8 matrices (those of one shape together), bf16 vectors and mHC projections."""
        out, shapes = {}, {}
        for name, p in self.master.items():
            if self.kind[name] == "fp8":
                shapes.setdefault(p.shape[-2:], []).append(name)
            elif self.kind[name] == "bf16" or name.endswith("_fn"):
                out[name] = p.bfloat16()
        for shape, names in shapes.items():
            flat = [self.master[n].view(-1, *shape) for n in names]
            rounded = quant.fp8_weight_rounded(torch.cat(flat)).split([len(f) for f in flat])
            out.update({n: r.view(self.master[n].shape) for n, r in zip(names, rounded)})
        return out

    def layer_weights(self, i):
        """Compute copies of one layer without the `layers.L.` prefix."""
        p = f"layers.{i}."
        w = {k[len(p) :]: v for k, v in self.compute.items() if k.startswith(p)}
        w.update({k[len(p) :]: v for k, v in self.onehot.items() if k.startswith(p)})
        return w

    def rope_tables(self, t):
        """Rotary tables for sequences of t tokens."""
        if t not in self.tables:
            s = self.shape
            table = lambda theta, pos: tuple(x.to(self.device) for x in blocks.rope_table(theta, pos, s.qk_rope_head_dim))
            positions = torch.arange(t)
            self.tables[t] = {
                "main": table(s.rope_theta, positions),
                "compress": table(s.compress_rope_theta, positions),
                "rows_csa": table(s.compress_rope_theta, positions[:: RATE[CSA]]),
                "rows_hca": table(s.compress_rope_theta, positions[:: RATE[HCA]]),
            }
        return self.tables[t]

    def streams(self, ids, dense, knobs, run=blocks.layer):
        """Residual streams after the last layer [B, T, n, D], and per layer (indexer loss, statistics, loads)."""
        s, tables = self.shape, self.rope_tables(ids.shape[1])
        x = torch.nn.functional.embedding(ids, self.compute["embed.weight"]).to(self.dtype)[:, :, None, :].expand(-1, -1, s.hc_mult, -1).contiguous()
        extra = []
        for i, kind in enumerate(s.layer_types):
            x, loss, stats, load = run(
                x, ids, self.layer_weights(i), tables, self.had, dense, knobs, kind, s.is_hash(i), s
            )
            extra.append((loss, stats, load))
        return x, extra

    def top_weights(self):
        """Compute copies outside the layers."""
        return {k: v for k, v in self.compute.items() if not k.startswith("layers.")}

    def logits(self, ids, dense=False, rounding=0.0):
        """[B, T, V] f32 of sequences of any length (padded on the right to 128 inside)."""
        b, t = ids.shape
        padded = torch.nn.functional.pad(ids, (0, -t % blocks.BLOCK), value=BOS)
        flag = torch.full((b,), dense, device=ids.device)
        x, extra = self.streams(padded, flag, torch.tensor([float(rounding), 0.0], device=ids.device))
        return blocks.head(x, self.top_weights(), self.shape).float()[:, :t], extra
