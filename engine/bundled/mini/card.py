"""MODEL_CARD.md from measurements: nothing in it is typed in but its sentences (card.md beside this file)."""

import json
import subprocess
from pathlib import Path

from . import config
from .config import Shape

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def samples(program, model, out, tokens=400):
    """Continues the ten prompts of prompts.txt at temperature 0.8, seeds 0 to 9, with the program and its own sampler."""
    found = []
    for seed, prompt in enumerate((ROOT / "prompts.txt").read_text().split("\n")[:10]):
        command = [program, "generate", "--quiet", "--model", str(model), "--prompt", prompt]
        command += ["--temperature", "0.8", "--seed", str(seed), "--max-tokens", str(tokens)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append({"prompt": prompt, "seed": seed, "tokens": tokens, "text": said.strip()})
    Path(out).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def table(head, rows):
    """A Markdown table; the first column is text, the others numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)] + rows
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def grouped(n):
    """12345678 -> 12,345,678."""
    return f"{n:,}"


def curve(checks, path):
    """Bits per byte of the held-out texts against training tokens, as an SVG."""
    names = [("bpb_books", "held-out books", "#B86E00"), ("bpb_tinystories", "tinystories_a", "#0B6BDD"), ("bpb_stories", "held-out stories", "#1E8E5A")]
    wide, high, left, bottom = 640, 300, 48, 40
    most, top = max(c["tokens"] for c in checks), max(c["bpb_books"] for c in checks) * 1.05
    x = lambda tokens: left + (wide - left - 16) * tokens / most
    y = lambda bpb: high - bottom - (high - bottom - 16) * bpb / top
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="11">']
    parts.append(f'<rect width="{wide}" height="{high}" fill="#FFFFFF"/>')
    for k in range(5):
        v = top * k / 4
        parts.append(f'<path d="M{left} {y(v):.1f}H{wide - 16}" stroke="#DDE2E8"/><text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end" fill="#56616E">{v:.2f}</text>')
        t = most * k / 4
        parts.append(f'<text x="{x(t):.1f}" y="{high - bottom + 16}" text-anchor="middle" fill="#56616E">{t / 1e6:.0f} M</text>')
    parts.append(f'<text x="{left}" y="11" fill="#56616E">bits per byte</text><text x="{wide - 16}" y="{high - 8}" text-anchor="end" fill="#56616E">training tokens</text>')
    for key, name, colour in names:
        points = " ".join(f'{x(c["tokens"]):.1f},{y(c[key]):.1f}' for c in checks)
        last = checks[-1]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{wide - 20}" y="{y(last[key]) + (-6 if key != "bpb_stories" else 14):.1f}" text-anchor="end" fill="{colour}">{name} {last[key]:.3f}</text>')
    Path(path).write_text("\n".join(parts + ["</svg>\n"]))


def quality(f):
    """Bits per byte beside the other models, with the ratios the project set itself as bars."""
    own = f["formats"]["FP8 weights, FP8 rows, FP4 index"]
    rows = [["tinystories_a", "this model", own["tinystories_a"]["bits_per_byte"], ""]]
    if teacher := f.get("stories15M on tinystories_a"):
        more = own["tinystories_a"]["bits_per_byte"] / teacher["bits_per_byte"] - 1
        rows.append(["", "stories15M (llama, 15 M, trained on TinyStories itself)", teacher["bits_per_byte"], f"this model needs {more:+.1%}"])
    if peer := f.get("peer on tinystories_a"):
        more = own["tinystories_a"]["bits_per_byte"] / peer["bits_per_byte"] - 1
        rows.append(["", peer["name"], peer["bits_per_byte"], f"this model needs {more:+.1%}"])
    if other := f.get("tinystories_b"):
        more = other["own"] / other["stories15M"] - 1
        rows.append(["tinystories_b", "this model", other["own"], ""])
        rows.append(["", "stories15M", other["stories15M"], f"this model needs {more:+.1%}"])
    rows.append(["held-out books", "this model", own["books held out"]["bits_per_byte"], ""])
    if ngram := f.get("Kneser-Ney on books"):
        more = own["books held out"]["bits_per_byte"] / ngram["bits_per_byte"] - 1
        rows.append(["", f"{ngram['order']}-gram Kneser-Ney on the same tokens", ngram["bits_per_byte"], f"this model needs {more:+.1%}"])
    rows.append(["held-out sampled stories", "this model", own["stories held out"]["bits_per_byte"], ""])
    rows.append(["held-out simple texts", "this model", own["simple held out"]["bits_per_byte"], ""])
    return table(["text", "model", "bits per byte", ""], rows)


def formats(f):
    rows = []
    for name, figures in f["formats"].items():
        rows.append([name] + [figures[n]["bits_per_byte"] for n in ("tinystories_a", "books held out")])
    text = table(["form", "tinystories_a", "held-out books"], rows)
    if against := f.get("FP8 against BF16"):
        keys = ["tokens", "kl_mean", "kl_p99", "kl_max", "same_top_1", "nats_per_token_lost"]
        text += "\n\nAll of it together, FP8 weights and rows (B) against the training's BF16 weights with exact rows (A):\n\n"
        text += table(["text", "tokens", "KL(A‖B) mean, nats", "p99", "max", "same top-1", "nats per token lost"], [[n] + [v[k] for k in keys] for n, v in against.items()])
    return text


def indexer(f):
    rows = []
    for layer, v in f["indexer"].items():
        missed = (1 - v["recall"]) / (1 - v["recent"])
        rows.append([layer, v["recall"], v["recent"], v["best"], f"{missed:.2f}", v["recall_min"], v["top1_hit"], v["local"]])
    head = ["CSA layer", "attn_recall", "of the most recent rows", "of the best rows", "missed mass / recency's"]
    return table(head + ["attn_recall_min", "top1_hit", "select_local_ratio"], rows)


def by_position(f):
    parts = []
    for key, name in (("loss_by_position_books", "novels"), ("loss_by_position_tinystories", "TinyStories")):
        parts.append(table([f"{name}: position"] + list(f[key]), [["nats per token"] + list(f[key].values())]))
    return "\n\n".join(parts)


def data(d, shares):
    share = dict(s.split("=") for s in shares.split(","))
    rows = []
    for n, v in d.items():
        rows.append([n] + [grouped(v[k]) for k in ("read", "near_duplicates", "looping", "like_evaluation", "training", "held_out", "training_tokens")] + [f"{float(share[n]):.0%}"])
    return table(["source", "read", "near duplicates", "looping", "like evaluation", "kept", "held out", "tokens", "share of batches"], rows)


def write(a):
    """MODEL_CARD.md and curve.svg from the files that `evaluate`, `train`, `data` and `samples` wrote."""
    f = json.loads(Path(a.figures).read_text())
    lines = [json.loads(line) for line in Path(a.log).read_text().splitlines()]
    checks = [r for r in lines if "bpb_books" in r]
    steps = [r for r in lines if "tokens_per_s" in r]
    total, active, stored = config.size(Shape())
    curve(checks, ROOT / "curve.svg")
    said = json.loads(Path(a.samples).read_text())
    speeds = sorted(r["tokens_per_s"] for r in steps)
    taken = sum(r["tokens_in_it"] for r in lines if "taken" in r) + sum(r["fresh_tokens"] for r in lines if "fresh_tokens" in r)
    words = {
        "parameters": grouped(total),
        "active": grouped(active),
        "stored": grouped(stored),
        "files": grouped(sum(p.stat().st_size for p in Path(a.model).iterdir())),
        "seen": f"{max(r['tokens'] for r in lines if 'tokens' in r) / 1e6:.1f}",
        "taken": f"{taken / 1e6:.1f}",
        "speed": grouped(speeds[len(speeds) // 2]),
        "hardware": a.hardware,
        "date": f["date"],
        "data": data(json.loads(Path(a.data).read_text()), a.shares),
        "quality": quality(f),
        "formats": formats(f),
        "indexer": indexer(f),
        "by_position": by_position(f),
        "checks": table(["tokens", "tinystories_a", "held-out stories", "held-out books"], [[grouped(c["tokens"]), c["bpb_tinystories"], c["bpb_stories"], c["bpb_books"]] for c in checks]),
        "samples": "\n\n".join(f"**Seed {s['seed']}** ({len((s['prompt'] + s['text']).split())} words)\n\n" + "\n".join("> " + line for line in f"*{s['prompt']}* {s['text']}".splitlines()) for s in said),
    }
    text = (HERE / "card.md").read_text()
    for key, value in words.items():
        text = text.replace("{" + key + "}", value)
    (ROOT / "MODEL_CARD.md").write_text(text)
