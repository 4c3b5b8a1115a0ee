"""From raw text files to clean documents: normalisation, filters, deduplication, held-out split.

A document is (text, complete): `complete` is False where the text was cut off, so that no end-of-text is learned there.
"""

import hashlib
import lzma
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEPARATOR = "<|endoftext|>"
SHINGLE = 8  # words


@dataclass(frozen=True)
class Source:
    """One kind of text. `files`: stems of .txt or .txt.xz files in the corpus folder."""

    name: str
    files: tuple
    #: Texts of at least this many characters may have been cut off by the sampler's context (256 positions).
    cut_at: int = 0
    #: Drop texts that repeat themselves (small samplers loop).
    loops: bool = False


SOURCES = (
    Source("stories", ("stories_0", "stories_1"), cut_at=840),
    Source("simple", ("simple_0",), cut_at=1150, loops=True),
    Source("books", ("books",)),
)
EVALUATION = ("tinystories_a", "tinystories_b")

_TABLE = str.maketrans({"\u00a0": " ", "\u2011": "-", "\u2026": "...", "\u2028": "\n", "\ufeff": "", "\r": "\n", "\t": " "})
_SPACES = re.compile(r"[ ]{2,}")
_LINE_END = re.compile(r" +\n| +$")
_BLANK = re.compile(r"\n{3,}")


def normalise(text):
    """No-break spaces and hyphens, ellipses and line ends to their plain forms; runs of spaces and blank lines shortened."""
    text = text.translate(_TABLE)
    text = _SPACES.sub(" ", text)
    text = _LINE_END.sub(lambda m: "\n" if m.group().endswith("\n") else "", text)
    return _BLANK.sub("\n\n", text).strip()


def read(folder, stem):
    """The text of a corpus file, .txt or .txt.xz."""
    plain, packed = Path(folder) / f"{stem}.txt", Path(folder) / f"{stem}.txt.xz"
    if plain.exists():
        return plain.read_text(encoding="utf-8")
    if packed.exists():
        return lzma.open(packed, "rt", encoding="utf-8").read()
    raise SystemExit(f"corpus: neither {plain} nor {packed} exists")


def documents(folder, source):
    """Normalised documents of a source, empty ones left out."""
    for stem in source.files:
        for raw in read(folder, stem).split(SEPARATOR):
            text = normalise(raw)
            if len(text) >= 20:
                yield text, not (source.cut_at and len(text) >= source.cut_at)


def loops(text):
    """Whether a text repeats itself: it packs to under 35 % of its length, or one line in three is a repeat."""
    if len(text) < 200:
        return False
    if len(zlib.compress(text.encode())) < 0.35 * len(text.encode()):
        return True
    lines = [x for x in text.split("\n") if x.strip()]
    return len(lines) >= 6 and len(set(lines)) < 0.67 * len(lines)


class Shingles:
    """Hashes of runs of words, to find texts that have (nearly) been there before."""

    def __init__(self, words=SHINGLE):
        self.words = words
        self.known = {}
        self.seen = np.zeros(0, dtype=np.uint64)
        self.fresh = []
        self.pending = set()

    def of(self, text):
        """Sorted unique hashes of the text's runs of words."""
        ids = np.fromiter(
            (self.known.setdefault(w, zlib.crc32(w.encode()) | 1) for w in re.findall(r"[a-z']+", text.lower())),
            dtype=np.uint64,
        )
        n = len(ids) - self.words + 1
        if n <= 0:
            return np.zeros(0, dtype=np.uint64)
        h = np.zeros(n, dtype=np.uint64)
        for i in range(self.words):
            h = (h * np.uint64(0x9E3779B97F4A7C15)) ^ ids[i : i + n]
        return np.unique(h)

    def share_seen(self, hashes):
        """Share of these hashes added before."""
        if not len(hashes):
            return 0.0
        hit = np.zeros(len(hashes), dtype=bool)
        if len(self.seen):
            at = np.minimum(np.searchsorted(self.seen, hashes), len(self.seen) - 1)
            hit = self.seen[at] == hashes
        late = sum(1 for h in hashes[~hit].tolist() if h in self.pending)
        return (int(hit.sum()) + late) / len(hashes)

    def add(self, hashes):
        """Remembers hashes."""
        self.fresh.append(hashes)
        self.pending.update(hashes.tolist())
        if len(self.pending) > 2_000_000:
            self.seen = np.union1d(self.seen, np.concatenate(self.fresh))
            self.fresh, self.pending = [], set()


def held_out(text, per_mille):
    """Whether a document belongs to the held-out set: decided by the hash of its text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") % 1000 < per_mille


def split_books(docs, short_per_mille=20, novels_bytes=1_500_000):
    """Held-out books: 2 % of the short texts, and whole novels in order of their hash until there are 1.5 MB."""
    novels = [d for d in docs if len(d[0]) >= 100_000]
    keep_out = set()
    total = 0
    for text, _ in sorted(novels, key=lambda d: hashlib.sha256(d[0].encode()).hexdigest()):
        if len(text) <= 800_000 and total < novels_bytes:
            keep_out.add(text)
            total += len(text)
    out = [d[0] in keep_out if len(d[0]) >= 100_000 else held_out(d[0], short_per_mille) for d in docs]
    return [d for d, o in zip(docs, out) if not o], [d for d, o in zip(docs, out) if o]


def build(folder, log=print):
    """{source: (training documents, held-out documents)} and a report {source: counts}."""
    evaluation = Shingles(13)
    for stem in EVALUATION:
        for raw in read(folder, stem).split(SEPARATOR):
            evaluation.add(evaluation.of(normalise(raw)))
    result, report = {}, {}
    for source in SOURCES:
        counts = dict(read=0, near_duplicates=0, looping=0, like_evaluation=0)
        kept, shingles = [], Shingles()
        for text, complete in documents(folder, source):
            counts["read"] += 1
            if source.loops and loops(text):
                counts["looping"] += 1
                continue
            hashes = shingles.of(text)
            if shingles.share_seen(hashes) > 0.5:
                counts["near_duplicates"] += 1
                continue
            if evaluation.share_seen(evaluation.of(text)) > 0.2:
                counts["like_evaluation"] += 1
                continue
            shingles.add(hashes)
            kept.append((text, complete))
        if source.name == "books":
            train, out = split_books(kept)
        else:
            train = [d for d in kept if not held_out(d[0], 10)]
            out = [d for d in kept if held_out(d[0], 10)]
        counts.update(
            training=len(train),
            held_out=len(out),
            training_bytes=sum(len(t.encode()) for t, _ in train),
            held_out_bytes=sum(len(t.encode()) for t, _ in out),
            without_end=sum(not c for _, c in train),
        )
        log(f"{source.name}: {counts}")
        result[source.name], report[source.name] = (train, out), counts
    return result, report
