#!/usr/bin/env python3
"""Trains `model1-mini`, the model bundled with MODEL1 Explorer. README.md beside this has the whole recipe.

    train.py data     --corpora DIR --out PACKED          clean, deduplicate, split, train the tokenizer, pack
    train.py teacher  --model stories15M --packed PACKED  sample more stories from stories15M (a GPU)
    train.py measure  --packed PACKED --work DIR           tokens/s of training steps
    train.py train    --packed PACKED --work DIR           train, or go on where DIR stopped
    train.py finetune --text FILE --work DIR               go on from the bundled weights with your own text
    train.py export   --work DIR --out DIR                 write the released form (and --plain, f32)
    train.py evaluate --work DIR --packed PACKED           the figures of the model card
    train.py samples  --out FILE                           ten samples, prompts and seeds fixed beforehand
    train.py card     --figures FILE --log FILE ...        write MODEL_CARD.md

Several GPUs: torchrun --nproc-per-node N train.py train ... Needs torch, numpy, tokenizers, safetensors. `train` on a GPU compiles its kernels first (about two minutes).
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def arguments():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = sub.add_parser("data", help="from corpora to packed token files and a tokenizer")
    p.add_argument("--corpora", required=True, help="folder with stories_0.txt(.xz), books.txt(.xz), ...")
    p.add_argument("--out", required=True, help="folder for the packed files")
    p.add_argument("--tokenizer", help="use this tokenizer.json instead of training one")
    p.add_argument("--vocab", type=int, default=4096, help="tokens of the tokenizer (default 4096)")

    p = sub.add_parser("teacher", help="sample more stories from stories15M")
    p.add_argument("--model", required=True, help="folder of stories15M (Hugging Face layout)")
    p.add_argument("--packed", required=True, help="folder of `data`; the stories go there")
    p.add_argument("--score", action="store_true", help="sample nothing: give the stories of `data` soft targets (with --name freshold)")
    p.add_argument("--name", default="fresh", help="beginning of the file names; must begin with fresh (default fresh)")
    p.add_argument("--seconds", type=float, default=60, help="how long to sample (default 60)")
    p.add_argument("--batch", type=int, default=8192, help="stories at a time (default 8192)")
    p.add_argument("--temperature", type=float, default=1.0, help="sampling temperature (default 1)")
    p.add_argument("--seed", type=int, default=0, help="a different one for every --name")

    p = sub.add_parser("train", help="train, resuming from --work where there is a state")
    _training(p)
    p.add_argument("--packed", required=True, help="folder of `data`")
    p.add_argument("--shares", default="stories=0.5,books=0.38,simple=0.12", help="share of sequences per source")
    p.add_argument("--tokens", type=float, default=4e8, help="tokens of the whole run (default 4e8); sets the schedule")
    p.add_argument("--fresh", action="store_true", help="take in stories of `teacher` (fresh*.npz in --packed) as they arrive")
    p.add_argument("--pieces", help="also write the weights here, in bf16 files of under 15 MiB that are easy to carry")
    p.add_argument("--fit", action="store_true", help="let --tokens follow the measured speed, so that the schedule ends with --seconds")
    p.add_argument("--start-from", help="start a new optimiser from weights written by --pieces, or from a released folder")
    p.add_argument("--start-tokens", type=float, default=0, help="with --start-from: tokens already seen (place in the schedule)")

    p = sub.add_parser("measure", help="tokens/s of training steps, before a budget is set")
    _training(p)
    p.add_argument("--packed", required=True, help="folder of `data`")
    p.add_argument("--sources", default="stories", help="sources to draw from, comma-separated (default stories)")
    p.add_argument("--check", action="store_true", help="compare gradients with plain f32 arithmetic")
    p.add_argument("--profile", help="write a table of kernel times here")

    p = sub.add_parser("finetune", help="go on from the bundled weights with your own text")
    _training(p)
    p.add_argument("--text", required=True, help="a UTF-8 file; documents separated by <|endoftext|> or kept whole")
    p.add_argument("--model", default=str(HERE / "model1-mini"), help="folder of the weights to start from (default: the bundled ones)")
    p.add_argument("--epochs", type=float, default=3, help="times the text is seen (default 3)")

    p = sub.add_parser("export", help="write checkpoints")
    p.add_argument("--work", help="a run's folder")
    p.add_argument("--pieces", nargs="+", metavar="DIR[=WEIGHT]", help="weights written by train --pieces, instead of --work; of several their weighted mean")
    p.add_argument("--tokenizer", help="tokenizer.json (default: the run's)")
    p.add_argument("--out", required=True, help="folder for the released form (FP8 weights, ue8m0 scales)")
    p.add_argument("--golden", help="folder for logits of a fixed prompt , for the test in tests/tests/bundled.rs")
    p.add_argument("--plain", help="folder for the same values in f32 (for transformers)")

    p = sub.add_parser("evaluate", help="the held-out figures of the model card")
    p.add_argument("--model", default=str(HERE / "model1-mini"), help="folder of a released checkpoint (default: the bundled one)")
    p.add_argument("--work", help="a run's state instead of --model")
    p.add_argument("--packed", required=True, help="folder of `data`, with the held-out texts")
    p.add_argument("--out", required=True, help="JSON file")
    p.add_argument("--documents", type=int, default=600, help="TinyStories documents (default 600)")
    p.add_argument("--teacher", help="folder of stories15M, to measure it on the same documents")
    p.add_argument("--masters", nargs="+", metavar="DIR[=WEIGHT]", help="weights of train --pieces (bf16): also say what FP8 weights and rows change")
    p.add_argument("--ngram", action="store_true", help="also measure a 5-gram model on the held-out books")
    p.add_argument("--peer", help="also measure this model (a folder, or a GGUF file) on the same documents")
    p.add_argument("--peer-prefix", default="<|endoftext|>", help="the token before its documents (default <|endoftext|>)")
    p.add_argument("--only-peers", action="store_true", help="keep the other figures of --out as they are")
    p.add_argument("--device", default="auto")

    p = sub.add_parser("card", help="write MODEL_CARD.md from what was measured")
    p.add_argument("--figures", required=True, help="JSON file of `evaluate`")
    p.add_argument("--log", required=True, help="log.jsonl of the run")
    p.add_argument("--data", required=True, help="report.json of `data`")
    p.add_argument("--samples", required=True, help="the ten samples: JSON list of {prompt, seed, text}, of `samples`")
    p.add_argument("--shares", required=True, help="the run's --shares")
    p.add_argument("--hardware", required=True, help="what it was trained on, in words")
    p.add_argument("--model", default=str(HERE / "model1-mini"), help="folder of the checkpoint (default: the bundled one)")

    p = sub.add_parser("samples", help="the card's ten samples, by the program itself")
    p.add_argument("--program", default="model1", help="the command (default model1)")
    p.add_argument("--model", default=str(HERE / "model1-mini"), help="folder of the checkpoint (default: the bundled one)")
    p.add_argument("--out", required=True, help="JSON file")
    return top.parse_args()


def _training(p):
    p.add_argument("--work", required=True, help="folder for state.pt, log.jsonl and the exported model")
    p.add_argument("--seconds", type=float, default=1e9, help="stop and save after this long (default: when done)")
    p.add_argument("--batch-tokens", type=int, default=65_536, help="tokens per step (default 65536)")
    p.add_argument("--length", type=int, default=1024, help="tokens per sequence, a multiple of 128 (default 1024)")
    p.add_argument("--long-length", type=int, default=4096, help="tokens per sequence in the last part (default 4096)")
    p.add_argument("--muon", type=float, default=0.02, help="learning rate of matrices (default 0.02)")
    p.add_argument("--adam", type=float, default=0.005, help="learning rate of all else (default 0.005)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--plan", nargs="*", metavar="KEY=NUMBER", help="other fields of mini/loop.py's Plan")
    p.add_argument("--device", default="auto", help="auto, cuda or cpu")
    p.add_argument("--eager", action="store_true", help="do not compile (slower; no compiler needed)")


def main():
    a = arguments()
    from mini import commands

    if getattr(a, "device", None) == "auto":
        import torch

        a.device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    getattr(commands, {"export": "export_command", "evaluate": "evaluate_command"}.get(a.command, a.command))(a)


if __name__ == "__main__":
    main()
