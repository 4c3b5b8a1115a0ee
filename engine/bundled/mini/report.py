"""The held-out figures of the model card, as one JSON file."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from . import bpe, corpus, evaluate, ngram
from .config import BOS, EOS


def all_figures(model, tokenizer, packed, documents, log=print):
    """Everything about a model that is measured on held-out text. `packed`: folder of `train.py data`."""
    packed = Path(packed)
    texts = {n: json.loads((packed / f"{n}.held.json").read_text()) for n in ("tinystories", "stories", "books", "simple")}
    rows = lambda t, length=1024: evaluate.rows_of_documents(tokenizer, t, length)
    out = {"date": time.strftime("%Y-%m-%d"), "formats": {}}
    sets = {
        "tinystories_a": rows(texts["tinystories"][:documents]),
        "stories held out": rows(texts["stories"][:200]),
        "simple held out": rows(texts["simple"][:60]),
        "books held out": rows([t[:24_000] for t in texts["books"]]),
    }
    for name, rounding, dense in (("FP8 weights, FP8 rows, FP4 index", 1.0, False), ("FP8 weights, exact rows", 0.0, False), ("the same, dense attention", 0.0, True)):
        figures = {}
        for n, r in sets.items():
            bpb, nats = evaluate.bits_per_byte(model, r, rounding, dense)
            figures[n] = {"bits_per_byte": round(bpb, 4), "nats_per_token": round(nats, 4), "bytes": round(sum(x[2] for x in r))}
            log(f"{name}: {n}: {figures[n]}")
        out["formats"][name] = figures
    novels = [t for t in texts["books"] if len(t) > 100_000]
    long = [r for r in rows([t[30_000:30_000 + 18_000] for t in novels], 4096) if len(r[0]) >= 4000][:6]
    edges = [1, 32, 64, 128, 256, 512, 1024, 2048, 3072, 4000]
    out["loss_by_position_books"] = dict(zip([f"{a}-{b - 1}" for a, b in zip(edges, edges[1:])], [round(v, 4) for v in evaluate.by_position(model, long, 1.0, edges)]))
    short = [r for r in sets["tinystories_a"] if len(r[0]) >= 200][:200]
    edges = [1, 8, 16, 32, 64, 128, 200]
    out["loss_by_position_tinystories"] = dict(zip([f"{a}-{b - 1}" for a, b in zip(edges, edges[1:])], [round(v, 4) for v in evaluate.by_position(model, short, 1.0, edges)]))
    judged = [r for r in rows([t[40_000:48_000] for t in novels], 1024) if len(r[0]) == 1024][:12]
    out["indexer"] = {f"layer {i}": v for i, v in evaluate.indexer(model, judged, 1.0).items()}
    log(f"indexer: {out['indexer']}")
    return out


@torch.no_grad()
def against_bf16(small, large, tokenizer, packed, documents):
    """What the stored form changes. `large`: the training's weights in bf16 with exact cache rows; `small`: the released
    FP8 weights, with rows in their FP8 and FP4 records. KL(large || small) per token in nats, over held-out texts."""
    out = {}
    for name, cut, count in (("tinystories", None, documents), ("books", 4_000, 12)):
        texts = [t[:cut] for t in json.loads((Path(packed) / f"{name}.held.json").read_text())[:count]]
        kls, same, lost = [], 0, 0.0
        for ids, first, _ in evaluate.rows_of_documents(tokenizer, texts, 1024):
            x = torch.tensor(ids)[None].to(large.device)
            a, b = (m.logits(x, False, r)[0][0, :-1].float().log_softmax(-1)[first - 1 :] for m, r in ((large, 0.0), (small, 1.0)))
            target = x[0, first:, None]
            kls.append((a.exp() * (a - b)).sum(-1).cpu())
            same += (a.argmax(-1) == b.argmax(-1)).sum().item()
            lost += (a.gather(-1, target) - b.gather(-1, target)).sum().item()
        kl = torch.cat(kls)
        out[name] = {
            "tokens": kl.numel(),
            "kl_mean": round(kl.mean().item(), 5),
            "kl_p99": round(kl.quantile(0.99).item(), 4),
            "kl_max": round(kl.max().item(), 3),
            "same_top_1": round(same / kl.numel(), 4),
            "nats_per_token_lost": round(lost / kl.numel(), 5),
        }
    return out


def kneser_ney(packed, order=5):
    """Bits per byte of an n-gram model over the same tokens, trained on the training books, on the held-out books."""
    packed = Path(packed)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(packed / "tokenizer.json"))
    train, _ = bpe.load(packed, "books")
    held = json.loads((packed / "books.held.json").read_text())
    model = ngram.KneserNey(train, order)
    total = size = 0.0
    for text in held:
        ids = [BOS] * (order - 1) + tokenizer.encode(text[:24_000], add_special_tokens=False).ids + [EOS]
        total -= model.log2(np.array(ids, dtype=np.uint16)).sum()
        size += len(text[:24_000].encode())
    return {"order": order, "bits_per_byte": round(total / size, 4), "training_tokens": int(len(train))}


def teacher_figures(path, packed, documents):
    """stories15M on the same TinyStories documents: windows of its 256 positions, every token with at least 128 before it."""
    from tokenizers import Tokenizer

    from .teacher import Llama

    tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    model = Llama(path, 1, "cpu")
    texts = json.loads((Path(packed) / "tinystories.held.json").read_text())[:documents]
    total = count = size = 0.0
    for text in texts:
        ids = [BOS + 1] + tokenizer.encode(text, add_special_tokens=False).ids
        at = 1
        while at < len(ids):
            start = 0 if at == 1 else at - 128
            end = min(len(ids), start + model.positions)
            logp = model.all_logits(torch.tensor([ids[start:end]])).log_softmax(-1)[0]
            target = torch.tensor(ids[start + 1 : end])
            each = -logp[:-1].gather(-1, target[:, None])[:, 0]
            total += each[at - start - 1 :].sum().item()
            count += end - at
            at = end
        size += len(text.encode())
    return {"bits_per_byte": round(total / math.log(2) / size, 4), "nats_per_token": round(total / count, 4), "documents": len(texts)}
