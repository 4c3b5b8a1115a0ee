"""Reads checkpoints back into a training model."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import export
from .config import Shape, tensors
from .model import Model, stacked


def released_into(model, folder):
    """Fills a model with the values of a released (or plain) folder."""
    folder = Path(folder)
    stored = {}
    for f in sorted(folder.glob("model*.safetensors")):
        stored.update(load_file(f))
    if not stored:
        raise SystemExit(f"{folder}: no model*.safetensors there")
    values, groups = export.dequantised(stored), {}
    for name, t in tensors(model.shape).items():
        if name not in values or tuple(values[name].shape) != tuple(t.shape):
            found = tuple(values[name].shape) if name in values else "nothing"
            raise SystemExit(f"{folder}: {name}: found {found}, needed {tuple(t.shape)}")
        if t.init == "hash":
            model.set_table(name, values[name])
        else:
            groups.setdefault(stacked(name), []).append(values[name])
    for name, v in groups.items():
        model.master[name].copy_(torch.stack(v) if ".ffn.w" in name else v[0])
    model.refresh(0.0)


def released(folder, device, dtype=torch.float32):
    """A model with the values of a released folder."""
    config = json.loads((Path(folder) / "config.json").read_text())
    known = {k: tuple(config[k]) if isinstance(config[k], list) else config[k] for k in Shape.__dataclass_fields__ if k in config}
    model = Model(Shape(**known), device, dtype)
    released_into(model, folder)
    return model


def state(path, device, dtype=torch.float32):
    """A model with the weights of a run's state.pt."""
    saved = torch.load(path, map_location=device, weights_only=True)
    shape = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in saved["shape"].items()}
    model = Model(Shape(**shape), device, dtype)
    for n, p in model.master.items():
        p.copy_(saved["master"][n])
    for n, t in saved["tid2eid"].items():
        model.set_table(n, t.cpu())
    model.refresh(0.0)
    return model


def save_pieces(model, folder, limit=14 * 1024 * 1024):
    """Masters in bf16 as pieces-N.safetensors of at most `limit` bytes, with the hash tables."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    piece, size, number = {}, 0, 0
    items = [(n, p.bfloat16().cpu()) for n, p in model.master.items()] + [(n, t.to(torch.int16)) for n, t in model.tid2eid.items()]
    for name, p in items + [(None, None)]:
        n = 0 if p is None else p.numel() * p.element_size()
        if piece and (p is None or size + n > limit):
            save_file(piece, folder / f"pieces-{number}.safetensors")
            piece, size, number = {}, 0, number + 1
        if p is not None:
            piece[name] = p.contiguous()
            size += n


def pieces_into(model, folder):
    """Fills a model from `save_pieces`."""
    for f in sorted(Path(folder).glob("pieces-*.safetensors")):
        for name, p in load_file(f).items():
            if "tid2eid" in name:
                model.set_table(name, p)
            else:
                model.master[name].copy_(p)
    model.refresh(0.0)


def mean_of_pieces(model, parts):
    """Fills a model with the weighted mean of several `save_pieces`: parts are DIR or DIR=WEIGHT. Hash tables must agree."""
    parsed = [(p.partition("=")[0], float(p.partition("=")[2] or 1)) for p in parts]
    total, sums, tables = sum(w for _, w in parsed), {}, {}
    for folder, weight in parsed:
        files = sorted(Path(folder).glob("pieces-*.safetensors"))
        if not files:
            raise SystemExit(f"{folder}: no pieces-*.safetensors there")
        for f in files:
            for name, p in load_file(f).items():
                if "tid2eid" in name:
                    if name in tables and not torch.equal(tables[name], p):
                        raise SystemExit(f"{folder}: {name} differs; runs with different hash tables have no mean")
                    tables[name] = p
                else:
                    sums[name] = sums.get(name, 0) + p.float() * (weight / total)
    for name, p in tables.items():
        model.set_table(name, p)
    for name, p in sums.items():
        model.master[name].copy_(p)
    model.refresh(0.0)
