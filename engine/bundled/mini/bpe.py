"""The model's own byte-level BPE (Hugging Face tokenizer.json) and packed token files."""

import lzma
import random
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .config import BOS, BOS_TEXT, EOS, EOS_TEXT

#: Words with the space before them, digits one by one, punctuation with following line ends, runs of line ends.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(texts, vocab):
    """A tokenizer of `vocab` tokens, begin and end of text included; ids 0 and 1 are theirs."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    t.decoder = decoders.ByteLevel()
    specials = [AddedToken(BOS_TEXT, special=True, normalized=False), AddedToken(EOS_TEXT, special=True, normalized=False)]
    t.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    t.post_processor = processors.TemplateProcessing(single=f"{BOS_TEXT} $A", special_tokens=[(BOS_TEXT, BOS)])
    return t


def sample(documents, size, seed=0):
    """Random documents of together about `size` characters; long ones give pieces of 20,000."""
    rng = random.Random(seed)
    texts = [d[0] for d in documents]
    rng.shuffle(texts)
    pieces = [t[i : i + 20_000] for t in texts for i in range(0, len(t), 20_000)]
    rng.shuffle(pieces)
    total = 0
    for p in pieces:
        if total >= size:
            return
        total += len(p)
        yield p


def encode(tokenizer, documents, seed=None, chunk=4000):
    """Packs documents as `BOS text [EOS]` one after the other: (tokens u16, starts i64).

    starts: where a training sequence may begin; at a document's BOS, and in long documents at paragraph ends (the
    token there is then replaced by BOS).
    """
    docs = list(documents)
    if seed is not None:
        random.Random(seed).shuffle(docs)
    pieces, owner = [], []
    for i, (text, _) in enumerate(docs):
        for piece in paragraphs(text, chunk):
            pieces.append(piece)
            owner.append(i)
    tokens, starts, position, last = [], [], 0, -1
    for at in range(0, len(pieces), 20_000):
        for j, e in enumerate(tokenizer.encode_batch(pieces[at : at + 20_000], add_special_tokens=False)):
            i = owner[at + j]
            ids = list(e.ids)
            starts.append(position - (i == last))
            if i != last:
                ids.insert(0, BOS)
                last = i
            if docs[i][1] and (at + j + 1 == len(pieces) or owner[at + j + 1] != i):
                ids.append(EOS)
            tokens.append(np.array(ids, dtype=np.uint16))
            position += len(ids)
    return np.concatenate(tokens), np.array(starts, dtype=np.int64)


def paragraphs(text, chunk):
    """Cuts a text after blank lines into pieces of at least `chunk` characters; joined they are the text."""
    at = 0
    while len(text) - at > chunk:
        end = text.find("\n\n", at + chunk)
        if end < 0 or end + 2 >= len(text):
            break
        yield text[at : end + 2]
        at = end + 2
    yield text[at:]


def save(folder, name, tokens, starts):
    """Writes NAME.u16.xz and NAME.starts.npy."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lzma.open(folder / f"{name}.u16.xz", "wb", preset=6) as f:
        f.write(tokens.tobytes())
    np.savez_compressed(folder / f"{name}.starts.npz", starts=starts.astype(np.uint32))


def load(folder, name):
    """What `save` wrote."""
    raw = lzma.open(Path(folder) / f"{name}.u16.xz", "rb").read()
    return np.frombuffer(raw, dtype=np.uint16), np.load(Path(folder) / f"{name}.starts.npz")["starts"].astype(np.int64)
