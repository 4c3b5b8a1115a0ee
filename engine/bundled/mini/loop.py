"""The training loop: phases, checkpoints that resume, logs as JSON lines."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from . import batches, blocks, evaluate
from .config import CSA, Shape
from .model import Model
from .muon import Optimiser


@dataclass
class Plan:
    """What a run does. Fractions are of `tokens`, the length of the whole run over all calls."""

    tokens: int = 400_000_000
    batch_tokens: int = 65_536
    length: int = 1024
    #: From this fraction on sequences have `long_length` tokens.
    long_from: float = 0.88
    long_length: int = 4096
    warmup: float = 0.01
    #: The learning rate falls linearly to `final_rate` from here on.
    decay_from: float = 0.55
    final_rate: float = 0.02
    #: Until here all sequences read every compressed row (the indexer learns beside them), then this share of them.
    sparse_from: float = 0.15
    dense_share: float = 0.25
    #: From here on weights and cache rows are rounded as stored.
    rounding_from: float = 0.7
    index_weight: float = 1.0
    #: Weight of `blocks._concentration`.
    concentration: float = 0.1
    #: Steps over which the learning rate rises after the optimiser began anew.
    ramp: float = 100
    balance: float = 0.001
    muon: float = 0.02
    adam: float = 0.005
    decay: float = 0.01
    seed: int = 0

    def rate(self, u):
        """Learning-rate factor at fraction u."""
        if u < self.warmup:
            return max(u, 1e-4) / self.warmup
        if u < self.decay_from:
            return 1.0
        return self.final_rate + (1 - self.final_rate) * max(0.0, (1 - u) / (1 - self.decay_from))

    def at(self, u):
        """(sequence length, share of dense sequences, strength of rounding) at fraction u."""
        length = self.length if u < self.long_from else self.long_length
        return length, 1.0 if u < self.sparse_from else self.dense_share, float(u >= self.rounding_from)


class Trainer:
    """Model, optimiser and data of one run. `compiled` is for GPUs; without it the same code runs eagerly.

    Under torch.distributed every rank takes its own part of each batch and all do the same update.
    """

    def __init__(self, shape: Shape, plan: Plan, mixture, device, compiled, token_counts=None):
        self.plan, self.mixture, self.device = plan, mixture, device
        dtype = torch.bfloat16 if device != "cpu" else torch.float32
        self.model = Model(shape, device, dtype, token_counts, plan.seed)
        self.optimiser = Optimiser(self.model.master, shape.o_groups, plan.muon, plan.adam, plan.decay)
        self.tokens = self.step = self.begun = 0
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._layers, self._compiled = {}, compiled
        self._loss = torch.compile(blocks.head_loss, dynamic=False) if compiled else blocks.head_loss

    def _layer(self, x, ids, w, tables, had, dense, knobs, kind, is_hash, s):
        key = (kind, is_hash)
        if key not in self._layers:

            def run(x, ids, w, tables, had, dense, knobs):
                return blocks.layer(x, ids, w, tables, had, dense, knobs, kind, is_hash, s)

            self._layers[key] = torch.compile(run, dynamic=False, fullgraph=True) if self._compiled else run
        return self._layers[key](x, ids, w, tables, had, dense, knobs)

    def losses(self, ids, soft_ids, soft_p, counts, dense_share, rounding, index_weight, main_weight=1.0):
        """Forward and backward. Returns 0-dim tensors and the experts' loads per layer."""
        model = self.model
        rng = torch.Generator().manual_seed(self.plan.seed * 7_919 + self.step * self.world + self.rank)
        dense = (torch.rand(ids.shape[0], generator=rng) < dense_share).to(self.device)
        knobs = torch.tensor([rounding, self.plan.concentration], device=self.device)
        x, extra = model.streams(ids, dense, knobs, self._layer)
        total, _ = self._loss(x, soft_ids, soft_p, counts, model.top_weights(), model.shape)
        main = total / counts.sum()
        csa = [e for e, k in zip(extra, model.shape.layer_types) if k == CSA]
        index = torch.stack([e[0] for e in csa]).sum()
        (main_weight * main + index_weight * index).backward()
        return main.detach(), index.detach(), torch.stack([e[1] for e in csa]), [e[2] for e in extra]

    def gradients(self):
        """Gradients of the compute copies, taken away from them."""
        out = {}
        for name, p in self.model.compute.items():
            if p.grad is not None:
                out[name], p.grad = p.grad, None
        if self.world > 1:
            for dtype in {g.dtype for g in out.values()}:
                group = [g for g in out.values() if g.dtype == dtype]
                flat = _flatten_dense_tensors(group)
                dist.all_reduce(flat)
                flat.div_(self.world)
                torch._foreach_copy_(group, list(_unflatten_dense_tensors(flat, group)))
        return out

    def balance(self, loads):
        """Moves the routers' correction biases against uneven loads; they only select."""
        with torch.no_grad():
            if self.world > 1:
                joined = torch.stack(loads)
                dist.all_reduce(joined)
                loads = joined.unbind(0)
            for i, load in enumerate(loads):
                bias = self.model.master.get(f"layers.{i}.ffn.gate.bias")
                if bias is not None:
                    bias.add_(self.plan.balance * torch.sign(load.mean() - load))
                    bias.sub_(bias.mean())

    def compile_all(self):
        """Compiles for every sequence length of the plan before the clock of the run starts."""
        for length in sorted({self.plan.length, self.plan.long_length}) if self._compiled else []:
            size = max(1, self.plan.batch_tokens // length // self.world)
            self.losses(*self.mixture.batch(self.rank, size, length), 1.0, 0.0, 0.0)
            self.gradients()

    def one_step(self):
        """One optimiser step. Returns what is logged, as tensors (no synchronisation)."""
        u = self.tokens / self.plan.tokens
        length, dense_share, rounding = self.plan.at(u)
        size = max(1, self.plan.batch_tokens // length // self.world)
        batch = self.mixture.batch(self.step * self.world + self.rank, size, length)
        main, index, stats, loads = self.losses(*batch, dense_share, rounding, self.plan.index_weight)
        rate = self.plan.rate(u) * min(1.0, (self.step - self.begun + 1) / max(1.0, self.plan.ramp))
        norm = self.optimiser.step(self.gradients(), rate)
        self.balance(loads)
        self.model.refresh(rounding)
        self.tokens += size * length * self.world
        self.step += 1
        return {"loss": main, "index": index, "norm": norm, "stats": stats, "rate": rate, "length": length,
                "dense": dense_share, "rounding": rounding, "loads": loads}  # fmt: skip

    def save(self, path):
        """Everything needed to go on exactly."""
        state = {
            "master": self.model.master,
            "tid2eid": self.model.tid2eid,
            "optimiser": self.optimiser.state(),
            "tokens": self.tokens,
            "step": self.step,
            "plan": asdict(self.plan),
            "shape": asdict(self.model.shape),
        }
        part = Path(f"{path}.part")
        torch.save(state, part)
        part.replace(path)

    def restore(self, path, weights_only=False):
        """Goes on from a saved state, or (weights_only) starts a new run from its weights."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        for n, p in self.model.master.items():
            p.copy_(state["master"][n])
        for n, t in state["tid2eid"].items():
            self.model.set_table(n, t.cpu())
        if not weights_only:
            self.optimiser.restore(state["optimiser"])
            self.tokens, self.step = state["tokens"], state["step"]
            self.begun = -int(self.plan.ramp)
        self.model.refresh(self.plan.at(self.tokens / self.plan.tokens)[2])


def line_of(trainer, out, tokens_per_s):
    """One log record; this is where the device is waited for."""
    stats = out["stats"].float().cpu()
    n = stats[:, 4].clamp_min(1)
    loads = torch.stack([x / x.sum() for x in out["loads"]]).cpu()
    return {
        "step": trainer.step,
        "tokens": trainer.tokens,
        "loss": round(out["loss"].item(), 4),
        "index_kl": round(out["index"].item() / max(1, len(stats)), 4),
        "recall": [round(v, 3) for v in (stats[:, 0] / n).tolist()],
        "recent": [round(v, 3) for v in (stats[:, 1] / n).tolist()],
        "norm": round(out["norm"].item(), 3),
        "rate": round(out["rate"], 4),
        "length": out["length"],
        "rounding": out["rounding"],
        "load_max": round(loads.max().item() * trainer.model.shape.n_routed_experts, 2),
        "tokens_per_s": round(tokens_per_s),
    }


def train(trainer, seconds, log_file, save_to, validation=None, log_every=50, validate_every=1000, on_tick=None, fit=False, on_save=None):
    """Runs until the plan's tokens are done or `seconds` are over; saves at the end. Returns True when done.

    With `fit` the plan's tokens follow the measured speed, so that its end and that of `seconds` meet.
    Only rank 0 logs, validates and saves. The clock that ends a call is rank 0's, so that all ranks end at one step.
    """
    begin = mark = saved = time.time()
    trainer.compile_all()
    marked = trainer.tokens
    first = trainer.rank == 0
    with open(log_file if first else "/dev/null", "a") as log:

        def note(record):
            if first:
                record["time"] = round(time.time() - begin, 1)
                log.write(json.dumps(record) + "\n")
                log.flush()
                print(json.dumps(record), flush=True)

        def check():
            rounding = trainer.plan.at(trainer.tokens / trainer.plan.tokens)[2]
            note({"step": trainer.step, "tokens": trainer.tokens, **evaluate.quick(trainer.model, validation, rounding)})

        over = False
        while trainer.tokens < trainer.plan.tokens and not over:
            out = trainer.one_step()
            if trainer.step % 10 == 0:
                over = _agree(trainer, time.time() - begin >= seconds)
            if trainer.step % log_every == 0:
                record = line_of(trainer, out, 0)
                now = time.time()
                record["tokens_per_s"] = round((trainer.tokens - marked) / (now - mark))
                if fit:
                    _fit(trainer, record["tokens_per_s"], seconds - (now - begin))
                    record["plan_tokens"] = trainer.plan.tokens
                note(record)
                mark, marked = now, trainer.tokens
                if not math.isfinite(record["loss"]):
                    raise SystemExit("the loss is not finite any more; the last saved state is kept")
                if on_tick:
                    on_tick(trainer, note)
                if first and now - saved > 90:
                    trainer.save(save_to)
                    if on_save:
                        on_save(trainer)
                    saved = now
            if validation and trainer.step % validate_every == 0:
                if first:
                    check()
                mark, marked = time.time(), trainer.tokens
        if first:
            trainer.save(save_to)
            if validation:
                check()
    return trainer.tokens >= trainer.plan.tokens


def _fit(trainer, tokens_per_s, left):
    """Sets the plan's tokens to what can be done in `left` seconds at this speed: rank 0's answer, everywhere.

    Slowly: a validation or a stream that is being read makes one measurement low."""
    possible = trainer.tokens + int(tokens_per_s * max(left, 0.0))
    tokens = int(0.7 * trainer.plan.tokens + 0.3 * possible) if left > 60 else possible
    if trainer.world > 1:
        flag = torch.tensor(tokens, device=trainer.device)
        dist.broadcast(flag, 0)
        tokens = int(flag.item())
    # Never so far back that the run leaves its last phase again.
    u = trainer.tokens / trainer.plan.tokens
    trainer.plan.tokens = min(tokens, int(trainer.tokens / u * 1.02)) if u > 0.8 else tokens


def _agree(trainer, over):
    """Rank 0's answer, everywhere."""
    if trainer.world == 1:
        return over
    flag = torch.tensor(float(over), device=trainer.device)
    dist.broadcast(flag, 0)
    return bool(flag.item())
