"""Packs sampled stories as streams with soft targets, on all cores."""

import multiprocessing as mp
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from . import corpus
from .align import Aligner, K
from .config import BOS, EOS
from .teacher import BOS as TEACHER_END

_shared = {}


def _learn(stories, aligner, student, most=20_000):
    """Learns which student token comes where which teacher token does, from some of the stories."""
    some = stories[:most]
    encoded = student.encode_batch([x.text for x in some], add_special_tokens=False)
    for x, e in zip(some, encoded):
        if x.complete:
            aligner.learn(np.array(e.ids), x.ids, _skip(aligner, x))
    aligner.settle()


def _skip(aligner, story):
    # Bytes of the teacher's text before the story: what `strip` took away in front (nearly always one space).
    return int(aligner.teacher_bytes[story.ids].sum()) - len(story.text.encode()) if story.complete else 1


def _part(number):
    """Tokens, starts and soft targets of one part of the stories; writes its file."""
    stories, aligner, student = _shared["stories"][number :: _shared["parts"]], _shared["aligner"], _shared["student"]
    tokens, starts, ids, p, covered, position = [], [], [], [], 0, 0
    for x in stories:
        text = corpus.normalise(x.text)
        own = np.array(student.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        soft_ids = np.zeros((len(own) + 1, K), dtype=np.int16)
        soft_p = np.zeros((len(own) + 1, K), dtype=np.float16)
        if text == x.text and 0 <= _skip(aligner, x) <= 1:
            soft_ids, soft_p = aligner.targets(own, x.ids, x.top, x.top_p, _skip(aligner, x))
        last = len(own) + 1 if x.complete else len(own)
        starts.append(position)
        tokens.append(np.concatenate(([BOS], own, [EOS])).astype(np.uint16)[: last + 1])
        none = np.zeros((1, K))
        ids.append(np.concatenate((none.astype(np.int16), soft_ids[:last])))
        p.append(np.concatenate((none.astype(np.float16), soft_p[:last])))
        covered += int((soft_p[:last].sum(1) > 0).sum())
        position += last + 1
    file = _shared["folder"] / f"{_shared['name']}-{number:02}"
    np.savez(
        file.with_name("part." + file.name + ".npz"),
        tokens=np.concatenate(tokens),
        starts=np.array(starts, dtype=np.int64),
        soft_ids=np.concatenate(ids),
        soft_p=np.concatenate(p),
    )
    file.with_name("part." + file.name + ".npz").rename(file.with_name(file.name + ".npz"))
    return position, covered, sum(len(x.text.encode()) for x in stories)


def pack(stories, teacher_tokenizer, folder, name, parts=8):
    """Writes NAME-NN.npz; returns a sentence with the counts."""
    folder = Path(folder)
    student = Tokenizer.from_file(str(folder / "tokenizer.json"))
    aligner = Aligner(Tokenizer.from_file(str(teacher_tokenizer)), student, (TEACHER_END, EOS))
    _learn(stories, aligner, student)
    parts = max(1, min(parts, len(stories) // 100))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _shared.update(stories=stories, aligner=aligner, student=student, folder=folder, name=name, parts=parts)
    # Forked workers see the stories without copying them.
    with mp.get_context("fork").Pool(parts) as pool:
        done = pool.map(_part, range(parts))
    tokens, covered, size = (sum(x) for x in zip(*done))
    return f"{tokens:,} tokens, {covered / tokens:.1%} with soft targets, {size:,} bytes"
