"""Samples stories from stories15M (MIT, Llama architecture) in bulk: thousands at a time on one GPU.

A story ends where the model begins the next one (its begin-of-text token). What is not finished at the model's 256
positions is continued once from its last 128 tokens; what is not finished then is kept without an end.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
        return self._run(ids, start)[:, -1]

    @torch.no_grad()
    def all_logits(self, ids):
        """Logits [n, t, V] f32 of ids [n, t] from position 0."""
        return self._run(ids, 0, True).float()

    def _run(self, ids, start, every=False):
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
        x = x if every else x[:, -1:]
        return F.linear(self._norm(x, "norm.weight"), self.w["lm_head.weight"])


def draw(logits, temperature, noise):
    """One token per row: argmax of logits / T + Gumbel noise. noise: a buffer of the logits' shape."""
    noise.exponential_()
    return (logits.float() / temperature - noise.log_()).argmax(-1)


CANDIDATES = 24  # kept of each distribution


@torch.no_grad()
def round_of(model, batch, temperature, device):
    """One batch of stories: (ids [batch, steps], candidates [batch, steps, CANDIDATES], their probabilities). A row ends
    at its first BOS; -1 = never drawn. Candidate j of step t belongs to the distribution that ids[t] was drawn from."""
    length, half = model.positions, model.positions // 2
    steps = length + half
    ids = torch.full((batch, steps), -1, dtype=torch.int16, device=device)
    top = torch.zeros((batch, steps, CANDIDATES), dtype=torch.int16, device=device)
    top_p = torch.zeros((batch, steps, CANDIDATES), dtype=torch.float16, device=device)
    noise = torch.empty((batch, model.w["lm_head.weight"].shape[0]), device=device)

    def advance(now, at, rows, step):
        logits = model.step(now, at)
        p, candidates = (logits.float() / temperature).softmax(-1).topk(CANDIDATES)
        drawn = draw(logits, temperature, noise[: len(rows)])
        ids[rows, step], top[rows, step], top_p[rows, step] = drawn.short(), candidates.short(), p.half()
        return drawn[:, None]

    rows = torch.arange(batch, device=device)
    now = torch.full((batch, 1), BOS, dtype=torch.long, device=device)
    for t in range(length):
        now = advance(now, t, rows, t)
    rows = (~(ids[:, :length] == BOS).any(1)).nonzero()[:, 0]
    if len(rows):
        now, at = ids[rows, length - half : length].long(), 0
        for t in range(half):
            now = advance(now, at, rows, length + t)
            at = half + t
    return ids.cpu().numpy(), top.cpu().numpy(), top_p.cpu().numpy()


@dataclass
class Story:
    """A sampled story: text, whether it ended, the teacher's tokens, and its candidates per token and for what follows."""

    text: str
    complete: bool
    ids: np.ndarray
    top: np.ndarray
    top_p: np.ndarray


def sample(path, seconds, batch, temperature, device, log=print):
    """Stories for about `seconds` seconds of sampling."""
    from tokenizers import Tokenizer

    model = Llama(path, batch, device)
    tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    begin, rounds, tokens = time.time(), [], 0
    while time.time() - begin < seconds:
        rounds.append(round_of(model, batch, temperature, device))
        tokens += int((rounds[-1][0] >= 0).sum())
    log(f"teacher: {len(rounds) * batch} stories, {tokens / (time.time() - begin):,.0f} tokens/s")
    del model
    for ids, top, top_p in rounds:
        ends = [(np.append(np.nonzero((row == BOS) | (row < 0))[0], len(row)))[0] for row in ids]
        complete = [e < len(row) and row[e] == BOS for e, row in zip(ends, ids)]
        texts = tokenizer.decode_batch([row[:e].tolist() for row, e in zip(ids, ends)])
        for row, t, p, e, whole, text in zip(ids, top, top_p, ends, complete, texts):
            text = text.strip()
            if not whole:
                text = text[: max(text.rfind(x) for x in ".!?\"") + 1]
            if len(text) >= 100 and "\ufffd" not in text:
                yield Story(text, bool(whole), row[:e].astype(np.int64), t[: e + 1].astype(np.int64), p[: e + 1])


@torch.no_grad()
def score(path, texts, batch, device, log=print):
    """What the teacher thinks at every place of these texts: a Story each, without sampling. `texts`: (text, whether it
    ended). Of a text longer than the teacher's context the first part has candidates."""
    from tokenizers import Tokenizer

    model = Llama(path, batch, device)
    tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    begin, tokens = time.time(), 0
    encoded = tokenizer.encode_batch([t for t, _ in texts], add_special_tokens=False)
    ids = [np.array(e.ids, dtype=np.int64) for e in encoded]
    # Texts of similar length together, so that little is padded.
    order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
    for at in range(0, len(order), batch):
        group = order[at : at + batch]
        width = min(model.positions, max(len(ids[i]) for i in group) + 1)
        rows = torch.full((len(group), width), BOS, dtype=torch.long)
        for j, i in enumerate(group):
            part = ids[i][: width - 1]
            rows[j, 1 : 1 + len(part)] = torch.from_numpy(part)
        p, candidates = model.all_logits(rows.to(device)).softmax(-1).topk(CANDIDATES)
        p, candidates = p.half().cpu().numpy(), candidates.short().cpu().numpy()
        for j, i in enumerate(group):
            n = min(len(ids[i]), width - 1)
            whole = texts[i][1] and n == len(ids[i])
            tokens += n
            yield Story(texts[i][0], whole, ids[i][:n], candidates[j, : n + 1].astype(np.int64), p[j, : n + 1])
    log(f"teacher: {len(texts)} stories read, {tokens / (time.time() - begin):,.0f} tokens/s")
