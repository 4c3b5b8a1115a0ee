"""Samples stories from stories15M (MIT, Llama architecture) in bulk: thousands at a time on one GPU.

A story ends where the model begins the next one (its begin-of-text token). What is not finished at the model's 256
positions is continued once from its last 128 tokens; what is not finished then is kept without an end.
"""

import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

BOS = 1


class Llama:
    """A Llama of Hugging Face folder `path` with a static cache for `batch` sequences."""

    def __init__(self, path, batch, device):
        c = json.loads((Path(path) / "config.json").read_text())
        self.layers, self.heads, self.width = c["num_hidden_layers"], c["num_attention_heads"], c["hidden_size"]
        self.positions, self.eps = c["max_position_embeddings"], c["rms_norm_eps"]
        self.dim = self.width // self.heads
        dtype = torch.bfloat16 if device != "cpu" else torch.float32
        w = load_file(Path(path) / "model.safetensors")
        self.w = {k.removeprefix("model."): v.to(device, dtype) for k, v in w.items()}
        self.w.setdefault("lm_head.weight", self.w["embed_tokens.weight"])
        theta = c.get("rope_theta") or c.get("rope_parameters", {}).get("rope_theta", 10000.0)
        f = theta ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        a = torch.arange(self.positions, dtype=torch.float64)[:, None] * f
        self.cos, self.sin = (torch.cat((x, x), -1).to(device, dtype) for x in (a.cos(), a.sin()))
        # cuDNN's attention plans anew for every length: 50 ms a step.
        self.attention = SDPBackend.FLASH_ATTENTION if device != "cpu" else SDPBackend.MATH
        shape = (self.layers, 2, batch, self.heads, self.positions, self.dim)
        self.cache = torch.zeros(shape, device=device, dtype=dtype)

    def _norm(self, x, name):
        return F.rms_norm(x, (self.width,), self.w[name], self.eps)

    def _rope(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def step(self, ids, start):
        """Logits [n, V] after ids [n, t] placed at positions start..start + t."""
        n, t = ids.shape
        x = self.w["embed_tokens.weight"][ids]
        cos, sin = self.cos[start : start + t], self.sin[start : start + t]
        for i in range(self.layers):
            p = f"layers.{i}."
            y = self._norm(x, p + "input_layernorm.weight")
            q, k, v = (
                F.linear(y, self.w[f"{p}self_attn.{m}_proj.weight"]).view(n, t, self.heads, self.dim).transpose(1, 2)
                for m in "qkv"
            )
            q, k = self._rope(q, cos, sin), self._rope(k, cos, sin)
            self.cache[i, 0, :n, :, start : start + t] = k
            self.cache[i, 1, :n, :, start : start + t] = v
            k, v = self.cache[i, :, :n, :, : start + t]
            with sdpa_kernel(self.attention):
                o = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
            x = x + F.linear(o.transpose(1, 2).reshape(n, t, -1), self.w[p + "self_attn.o_proj.weight"])
            y = self._norm(x, p + "post_attention_layernorm.weight")
            g = F.silu(F.linear(y, self.w[p + "mlp.gate_proj.weight"]))
            x = x + F.linear(g * F.linear(y, self.w[p + "mlp.up_proj.weight"]), self.w[p + "mlp.down_proj.weight"])
        return F.linear(self._norm(x[:, -1], "norm.weight"), self.w["lm_head.weight"])


def draw(logits, temperature, noise):
    """One token per row: argmax of logits / T + Gumbel noise. noise: a buffer of the logits' shape."""
    noise.exponential_()
    return (logits.float() / temperature - noise.log_()).argmax(-1)


@torch.no_grad()
def round_of(model, batch, temperature, device):
    """[(token list without BOS, complete)] of one batch of stories."""
    length, half = model.positions, model.positions // 2
    ids = torch.full((batch, length + half), -1, dtype=torch.long, device=device)
    noise = torch.empty((batch, model.w["lm_head.weight"].shape[0]), device=device)
    now = torch.full((batch, 1), BOS, dtype=torch.long, device=device)
    for t in range(length):
        now = draw(model.step(now, t), temperature, noise)[:, None]
        ids[:, t] = now[:, 0]
    alive = ~(ids[:, :length] == BOS).any(1)
    rest = alive.nonzero()[:, 0]
    if len(rest):
        now = ids[rest, length - half : length]
        at = 0
        for t in range(half):
            now = draw(model.step(now, at), temperature, noise[: len(rest)])[:, None]
            at = half + t
            ids[rest, length + t] = now[:, 0]
    out = []
    for row in ids.cpu().numpy():
        end = (row == BOS).nonzero()[0]
        last = end[0] if len(end) else len(row)
        tokens = row[:last]
        out.append((tokens[tokens >= 0].tolist(), bool(len(end))))
    return out


def sample(path, seconds, batch, temperature, device, log=print):
    """Stories as (text, complete) for about `seconds` seconds of sampling."""
    from tokenizers import Tokenizer

    model = Llama(path, batch, device)
    tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    begin, stories, tokens = time.time(), [], 0
    while time.time() - begin < seconds:
        drawn = round_of(model, batch, temperature, device)
        tokens += sum(len(t) for t, _ in drawn)
        stories += drawn
    log(f"teacher: {len(stories)} stories, {tokens / (time.time() - begin):,.0f} tokens/s")
    del model
    for at in range(0, len(stories), 50_000):
        part = stories[at : at + 50_000]
        for text, (_, complete) in zip(tokenizer.decode_batch([t for t, _ in part]), part):
            text = text.strip()
            if not complete:
                text = text[: max(text.rfind(x) for x in ".!?\"") + 1]
            if len(text) >= 100 and "\ufffd" not in text:
                yield text, complete
