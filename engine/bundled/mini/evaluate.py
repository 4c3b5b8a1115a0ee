"""Held-out measurements: bits per byte, loss by position, and how well the indexer chooses."""

import json
import math
from pathlib import Path

import torch

from . import blocks
from .config import BOS, CSA


def rows_of_documents(tokenizer, texts, length):
    """Documents as rows: [(ids with BOS first, bytes)], each at most `length` tokens; longer ones are cut in windows
    of `length` that overlap by half, the overlap not counted twice: [(ids, first counted target, bytes)]."""
    out = []
    for text in texts:
        ids = [BOS] + tokenizer.encode(text, add_special_tokens=False).ids
        size = len(text.encode())
        at, share = 1, []
        while at < len(ids):
            start = 0 if at == 1 else at - length // 2
            end = min(len(ids), start + length)
            share.append((ids[start:end], at - start, end - at))
            at = end
        total = sum(n for *_, n in share)
        out += [(i, f, size * n / total) for i, f, n in share]
    return out


@torch.no_grad()
def losses(model, rows, rounding, dense=False, batch_tokens=16_384):
    """Per row the losses in nats of its targets (f32, CPU), in order. Rows of similar length run together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    result = [None] * len(rows)
    at = 0
    while at < len(order):
        longest = min(len(order), at + max(1, batch_tokens // len(rows[order[at]][0])))
        while longest > at + 1 and (longest - at) * len(rows[order[longest - 1]][0]) > batch_tokens:
            longest -= 1
        group = order[at:longest]
        width = max(len(rows[i][0]) for i in group)
        ids = torch.full((len(group), width), BOS)
        for j, i in enumerate(group):
            ids[j, : len(rows[i][0])] = torch.tensor(rows[i][0])
        logits, _ = model.logits(ids.to(model.device), dense, rounding)
        each = torch.logsumexp(logits[:, :-1], -1) - logits[:, :-1].gather(-1, ids[:, 1:, None].to(model.device))[..., 0]
        each = each.float().cpu()
        for j, i in enumerate(group):
            result[i] = each[j, : len(rows[i][0]) - 1]
        at = longest
    return result


def bits_per_byte(model, rows, rounding, dense=False):
    """(bits per byte, nats per token) over rows of `rows_of_documents`."""
    total = count = 0.0
    for (ids, first, _), each in zip(rows, losses(model, rows, rounding, dense)):
        total += each[first - 1 :].sum().item()
        count += len(ids) - first
    size = sum(r[2] for r in rows)
    return total / math.log(2) / size, total / count


@torch.no_grad()
def indexer(model, rows, rounding, dense=False):
    """Per CSA layer: attn_recall (mean, and the lowest of any query), recall of the most recent and of the best rows, top1_hit,
    select_local_ratio (share of the kept rows among the most recent ones)."""
    out = {}
    for ids, *_ in rows:
        x = torch.tensor(ids)[None, : len(ids) // 128 * 128].to(model.device)
        if x.shape[1] < 128:
            continue
        _, extra = model.logits(x, dense, rounding)
        for i, (kind, e) in enumerate(zip(model.shape.layer_types, extra)):
            if kind == CSA:
                stats = e[1].double().cpu()
                sums, worst = out.get(i, (0, 1.0))
                out[i] = sums + stats[:6], min(worst, stats[6].item())
    names = ("recall", "recent", "best", "top1_hit", "local", "recall_min")
    figures = lambda s, worst: [*(s[:4] / s[4].clamp_min(1)).tolist(), (s[5] / s[4].clamp_min(1)).item(), worst]
    return {i: dict(zip(names, [round(v, 4) for v in figures(*x)])) for i, x in out.items()}


def quick(model, validation, rounding):
    """A short validation while training: {name: bits per byte} and the indexer's recall on `long` rows."""
    record = {f"bpb_{n}": round(bits_per_byte(model, rows, rounding)[0], 4) for n, rows in validation.items() if n != "long"}
    if "long" in validation:
        record["indexer"] = indexer(model, validation["long"], rounding)
    return record


def by_position(model, rows, rounding, edges):
    """Mean loss in nats of targets at positions edges[i]..edges[i + 1] - 1, for rows that reach the last edge."""
    sums, counts = [0.0] * (len(edges) - 1), [0] * (len(edges) - 1)
    for each in losses(model, rows, rounding):
        for i, (a, b) in enumerate(zip(edges, edges[1:])):
            part = each[a:b]
            sums[i] += part.sum().item()
            counts[i] += len(part)
    return [s / max(1, c) for s, c in zip(sums, counts)]


def write_json(path, value):
    """Writes a report."""
    Path(path).write_text(json.dumps(value, indent=1) + "\n")
