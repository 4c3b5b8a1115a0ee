"""What the subcommands of train.py do."""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from . import batches, bpe, corpus, evaluate, export, load
from .config import Shape
from .loop import Plan, Trainer, train as run_training
from .model import Model

HERE = Path(__file__).resolve().parent.parent


def data(a):
    """Cleans and packs; writes tokenizer.json, report.json, held-out texts."""
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    parts, report = corpus.build(a.corpora)
    if a.tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(a.tokenizer)
    else:
        share = {"stories": 40_000_000, "simple": 8_000_000, "books": 24_000_000}
        tokenizer = bpe.train((t for n, size in share.items() for t in bpe.sample(parts[n][0], size)), a.vocab)
    tokenizer.save(str(out / "tokenizer.json"))
    for name, (training, held) in parts.items():
        tokens, starts = bpe.encode(tokenizer, training, seed=1)
        report[name]["training_tokens"] = len(tokens)
        bpe.save(out, name, tokens, starts)
        (out / f"{name}.held.json").write_text(json.dumps([t for t, _ in held]))
    texts = [corpus.read(a.corpora, s).split(corpus.SEPARATOR) for s in corpus.EVALUATION]
    (out / "tinystories.held.json").write_text(json.dumps([t.strip() for t in texts[0] if t.strip()][:600]))
    evaluate.write_json(out / "report.json", report)


def teacher(a):
    """Samples, then packs the stories with the teacher's candidates as soft targets: NAME-00.npz, NAME-01.npz, ..."""
    from . import soft
    from . import teacher as t

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(a.seed)
    begin = time.time()
    if a.score:
        found = t.score(a.model, _packed_texts(a.packed, "stories"), min(a.batch, 64), device)
    else:
        found = t.sample(a.model, a.seconds, a.batch, a.temperature, device)
    stories = {x.text: x for x in found}
    print(f"teacher: {len(stories)} different stories after {time.time() - begin:.0f} s", flush=True)
    report = soft.pack(list(stories.values()), Path(a.model) / "tokenizer.json", Path(a.packed), a.name)
    print(f"teacher: {report}, ready after {time.time() - begin:.0f} s", flush=True)


def _packed_texts(packed, name):
    """(text, whether it ended) of every document of a packed source."""
    from tokenizers import Tokenizer

    from .config import BOS, EOS

    tokenizer = Tokenizer.from_file(str(Path(packed) / "tokenizer.json"))
    tokens, _ = bpe.load(packed, name)
    starts = np.nonzero(tokens == BOS)[0]
    ends = np.append(starts[1:], len(tokens))
    documents = [tokens[s + 1 : e] for s, e in zip(starts, ends)]  # without BOS
    whole = [len(d) > 0 and d[-1] == EOS for d in documents]
    texts = tokenizer.decode_batch([(d[:-1] if w else d).tolist() for d, w in zip(documents, whole)], skip_special_tokens=False)
    return list(zip(texts, whole))


def _validation(packed, tokenizer):
    """Short held-out sets for the loop."""
    read = lambda n: json.loads((Path(packed) / f"{n}.held.json").read_text())
    novels = [t for t in read("books") if len(t) > 100_000]
    pieces = [t[20_000 + i * 30_000 :][:6_000] for i in range(3) for t in novels]
    return {
        "tinystories": evaluate.rows_of_documents(tokenizer, read("tinystories")[:160], 1024),
        "stories": evaluate.rows_of_documents(tokenizer, read("stories")[:120], 1024),
        "books": evaluate.rows_of_documents(tokenizer, pieces[:30], 1024),
        "long": [r for r in evaluate.rows_of_documents(tokenizer, pieces[:8], 1024) if len(r[0]) == 1024][:8],
    }


def _plan(a, tokens, **more):
    for item in a.plan or []:
        key, _, value = item.partition("=")
        if key not in Plan.__dataclass_fields__ or not value:
            raise SystemExit(f"--plan {item}: accepted: KEY=NUMBER with KEY one of {', '.join(Plan.__dataclass_fields__)}")
        more[key] = float(value)
    base = dict(
        tokens=int(tokens),
        batch_tokens=a.batch_tokens,
        length=a.length,
        long_length=a.long_length,
        muon=a.muon,
        adam=a.adam,
        seed=a.seed,
    )
    return Plan(**{**base, **more})


def _join(a):
    """Joins the other processes when started by torchrun; picks this one's GPU."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None:
        if a.device == "cuda":
            torch.cuda.set_device(int(rank))
        torch.distributed.init_process_group("nccl" if a.device == "cuda" else "gloo")


def train(a):
    """The main run."""
    from tokenizers import Tokenizer

    torch.set_float32_matmul_precision("high")
    _join(a)
    run = Path(a.work)
    run.mkdir(parents=True, exist_ok=True)
    tokenizer_file = Path(a.packed) / "tokenizer.json"
    shares = {k: float(v) for k, v in (x.split("=") for x in a.shares.split(","))}
    streams = batches.load(a.packed, shares, a.device)
    counts = sum(torch.bincount(s.tokens.long() & 0xFFFF, minlength=Shape().vocab_size).cpu().numpy() * shares[n] / len(s.tokens) for n, s in streams.items())
    mixture = batches.Mixture(streams, shares, a.seed)
    trainer = Trainer(Shape(), _plan(a, a.tokens), mixture, a.device, not a.eager and a.device != "cpu", counts)
    state = run / "state.pt"
    if state.exists():
        trainer.restore(state)
        print(f"going on at step {trainer.step}, {trainer.tokens:,} tokens", flush=True)
    elif a.start_from:
        pieces = any(Path(a.start_from).glob("pieces-*.safetensors"))
        (load.pieces_into if pieces else load.released_into)(trainer.model, a.start_from)
        trainer.tokens = int(a.start_tokens)

    def take_fresh(trainer, note):
        """Fresh stories (with soft targets) take the place of most other stories as soon as any have arrived."""
        files = [f for f in sorted(Path(a.packed).glob("fresh*.npz")) if f.stem not in streams] if a.fresh else []
        if not files:
            return
        for file in files:
            f = np.load(file)
            streams[file.stem] = batches.Stream(f["tokens"], f["starts"], a.device, f["soft_ids"], f["soft_p"])
        fresh = {n: len(x.tokens) for n, x in streams.items() if n.startswith("fresh")}
        total = sum(fresh.values())
        # With `teacher --score` the old stories are among them.
        old = 0.0 if any(n.startswith("freshold") for n in fresh) else 0.15
        part = {n: (1 - old) * shares["stories"] * v / total for n, v in fresh.items()}
        trainer.mixture = batches.Mixture(streams, {**shares, "stories": old * shares["stories"], **part}, a.seed)
        note({"fresh_tokens": total, "step": trainer.step})

    take_fresh(trainer, print)
    first = trainer.rank == 0
    validation = _validation(a.packed, Tokenizer.from_file(str(tokenizer_file))) if first else {"-": []}
    keep = (lambda t: load.save_pieces(t.model, a.pieces)) if a.pieces else None
    done = run_training(trainer, a.seconds, run / "log.jsonl", state, validation, on_tick=take_fresh, fit=a.fit, on_save=keep)
    if not first:
        return
    export.released(trainer.model, run / "model", tokenizer_file)
    if a.pieces:
        load.save_pieces(trainer.model, a.pieces)
    print("done" if done else f"stopped at {trainer.tokens:,} of {trainer.plan.tokens:,} tokens; start again to go on", flush=True)


def finetune(a):
    """Short training on one file, from released weights."""
    from tokenizers import Tokenizer

    run = Path(a.work)
    run.mkdir(parents=True, exist_ok=True)
    tokenizer_file = Path(a.model) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    raw = Path(a.text).read_text(encoding="utf-8")
    documents = [(t, True) for t in map(corpus.normalise, raw.split(corpus.SEPARATOR)) if t]
    if not documents:
        raise SystemExit(f"{a.text}: no text in it")
    tokens, starts = bpe.encode(tokenizer, documents, seed=a.seed, chunk=1000)
    stream = batches.Stream(tokens, starts, a.device)
    # About sixteen steps per epoch, but not less than four sequences in one.
    batch = min(a.batch_tokens, max(4 * a.length, len(tokens) // 16 // a.length * a.length))
    plan = _plan(
        argparse_like(a, batch_tokens=batch, long_length=a.length),
        max(a.epochs * len(tokens), batch),
        warmup=0.05,
        decay_from=0.3,
        sparse_from=0.0,
        rounding_from=0.0,
    )
    plan.muon, plan.adam = plan.muon * 0.1, plan.adam * 0.1
    mixture = batches.Mixture({"text": stream}, {"text": 1.0}, a.seed)
    trainer = Trainer(Shape(), plan, mixture, a.device, not a.eager and a.device != "cpu")
    if (run / "state.pt").exists():
        trainer.restore(run / "state.pt")
    else:
        load.released_into(trainer.model, a.model)
    rows = evaluate.rows_of_documents(tokenizer, [t for t, _ in documents][:50], 1024)
    before = evaluate.bits_per_byte(trainer.model, rows, 1.0)[0]
    run_training(trainer, a.seconds, run / "log.jsonl", run / "state.pt", log_every=5)
    after = evaluate.bits_per_byte(trainer.model, rows, 1.0)[0]
    export.released(trainer.model, run / "model", tokenizer_file)
    print(f"bits per byte of the text (seen in training): {before:.3f} before, {after:.3f} after; the model is in {run / 'model'}")


def argparse_like(a, **changes):
    """A copy of parsed arguments with some values changed."""
    import argparse

    return argparse.Namespace(**{**vars(a), **changes})


def write_released(model, folder, tokenizer_file, golden_folder=None):
    """The released form, with logits of what was stored for the engine's test."""
    from tokenizers import Tokenizer

    from . import golden

    export.released(model, folder, tokenizer_file)
    stored = load.released(folder, "cpu")
    if golden_folder:
        Path(golden_folder).mkdir(parents=True, exist_ok=True)
        print(golden.write(stored, Tokenizer.from_file(str(tokenizer_file)), golden_folder))


def export_command(a):
    """Writes the released form of a run's state."""
    if a.pieces:
        model = Model(Shape(), "cpu", torch.float32)
        load.mean_of_pieces(model, a.pieces)
    else:
        model = load.state(Path(a.work) / "state.pt", "cpu")
    tokenizer_file = a.tokenizer or Path(a.work) / "model" / "tokenizer.json"
    write_released(model, a.out, tokenizer_file, a.golden)
    if a.plain:
        export.plain(model, a.plain, tokenizer_file)


def measure(a):
    """Tokens per second, memory and the costliest kernels of training steps; compiled against plain arithmetic."""
    torch.set_float32_matmul_precision("high")
    names = a.sources.split(",")
    mixture = batches.Mixture(batches.load(a.packed, names, a.device), dict.fromkeys(names, 1.0), a.seed)
    trainer = Trainer(Shape(), _plan(a, 1e9), mixture, a.device, not a.eager and a.device != "cpu")
    size = a.batch_tokens // a.length
    batch = mixture.batch(0, size, a.length)
    begin = time.time()
    main, index, *_ = trainer.losses(*batch, 1.0, 1.0, 1.0)
    print(f"first step (compiles): {time.time() - begin:.1f} s, loss {main.item():.4f}, indexer {index.item():.4f}", flush=True)
    mine = trainer.gradients()
    if a.check:
        _check_gradients(trainer, mine, batch)
    del mine
    begin, steps = time.time(), 0
    while time.time() - begin < a.seconds:
        out = trainer.one_step()
        steps += 1
        if steps == 3:
            torch.cuda.synchronize() if a.device == "cuda" else None
            begin, start = time.time(), steps
        if steps % 20 == 0:
            out["loss"].item()
    loss = out["loss"].item()
    rate = (steps - start) * size * a.length / (time.time() - begin)
    memory = torch.cuda.max_memory_allocated() / 2**30 if a.device == "cuda" else 0
    print(f"{rate:,.0f} tokens/s over {steps - start} steps, loss {loss:.4f}, peak memory {memory:.1f} GiB", flush=True)
    if a.profile:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as p:
            for _ in range(3):
                trainer.one_step()
            torch.cuda.synchronize()
        Path(a.profile).write_text(p.key_averages().table(sort_by="cuda_time_total", row_limit=90, max_name_column_width=110))


def _check_gradients(trainer, mine, batch, rows=4):
    """Prints how far gradients are from those of plain f32 arithmetic on the same batch, taken a few rows at a time."""
    torch.set_float32_matmul_precision("highest")
    plain = Trainer(trainer.model.shape, trainer.plan, trainer.mixture, trainer.device, False)
    plain.model.dtype, plain.model.compute = torch.float32, {}
    plain.model.refresh(0.0)
    plain.model.had = plain.model.had.float()
    total, n = batch[3].sum(), -(-len(batch[0]) // rows)
    sums = {}
    for i in range(n):
        part = [x[i * rows : (i + 1) * rows] for x in batch]
        plain.losses(*part, 1.0, 1.0, 1.0 / n, (part[3].sum() / total).item())
        for k, g in plain.gradients().items():
            sums[k] = sums[k] + g if k in sums else g
    off = sorted((((mine[k].float() - g).norm() / (g.norm() + 1e-12)).item(), k) for k, g in sums.items())
    print(f"gradients, compiled bf16 against plain f32: median off by {off[len(off) // 2][0]:.4f}; worst {off[-3:]}", flush=True)
    torch.set_float32_matmul_precision("high")


def evaluate_command(a):
    """Writes the figures of the model card."""
    from tokenizers import Tokenizer

    from . import report

    if a.only_peers:
        figures = json.loads(Path(a.out).read_text())
    else:
        if a.work:
            model, folder = load.state(Path(a.work) / "state.pt", a.device), Path(a.packed)
        else:
            model, folder = load.released(a.model, a.device), Path(a.model)
        figures = report.all_figures(model, Tokenizer.from_file(str(folder / "tokenizer.json")), a.packed, a.documents)
    if a.teacher:
        figures["stories15M on tinystories_a"] = report.teacher_figures(a.teacher, a.packed, a.documents)
    if a.ngram:
        figures["Kneser-Ney on books"] = report.kneser_ney(a.packed)
    if a.masters:
        small, large = load.released(a.model, a.device), load.released(a.model, a.device)
        load.mean_of_pieces(large, a.masters)
        tokenizer = Tokenizer.from_file(str(Path(a.model) / "tokenizer.json"))
        figures["FP8 against BF16"] = report.against_bf16(small, large, tokenizer, a.packed, min(a.documents, 60))
        evaluate.write_json(a.out, figures)
    if a.peer:
        from . import peer

        texts = json.loads((Path(a.packed) / "tinystories.held.json").read_text())[: a.documents]
        figures["peer on tinystories_a"] = {"name": Path(a.peer).name, **peer.bits_per_byte(a.peer, texts, a.peer_prefix)}
    evaluate.write_json(a.out, figures)
    print(json.dumps(figures, indent=1))


def samples(a):
    """Continues the ten prompts with the program itself and writes what it said."""
    from . import card

    card.samples(a.program, a.model, a.out)


def card(a):
    """Writes MODEL_CARD.md and curve.svg beside train.py."""
    from . import card as page

    page.write(a)
