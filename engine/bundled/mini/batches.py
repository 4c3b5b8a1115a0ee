"""Training batches from packed token streams that lie on the device."""

import numpy as np
import torch

from . import bpe
from .config import BOS


class Stream:
    """One source: tokens u16 on the device, and where sequences may begin."""

    def __init__(self, tokens, starts, device):
        self.tokens = torch.from_numpy(tokens.astype(np.int16)).to(device)
        self.starts = torch.from_numpy(starts[starts >= 0]).to(device)
        self.device = device

    def sequences(self, at, length):
        """[n, length + 1] i64 beginning at these starts (indices into `starts`), a BOS first."""
        begin = self.starts[at]
        index = (begin[:, None] + torch.arange(length + 1, device=self.device)) % len(self.tokens)
        ids = self.tokens[index].long() & 0xFFFF
        ids[:, 0] = BOS
        return ids


class Mixture:
    """Draws batches from several streams with fixed shares. Deterministic in (seed, step)."""

    def __init__(self, streams, shares, seed=0):
        self.streams, self.seed = streams, seed
        total = sum(shares.values())
        self.shares = {n: s / total for n, s in shares.items() if s > 0}

    def replace(self, name, stream):
        """Exchanges a stream, e.g. when more text has arrived."""
        self.streams[name] = stream

    def batch(self, step, size, length):
        """(ids [B, T], targets [B, T], counts [B, T] f32). Begin-of-text is never a target."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        names = list(self.shares)
        shares = torch.tensor([self.shares[n] for n in names])
        drawn = torch.multinomial(shares, size, replacement=True, generator=rng)
        parts = []
        for i, n in enumerate(names):
            stream = self.streams[n]
            at = torch.randint(len(stream.starts), (int((drawn == i).sum()),), generator=rng)
            parts.append(stream.sequences(at.to(stream.device), length))
        ids = torch.cat(parts)
        targets = ids[:, 1:].contiguous()
        return ids[:, :-1].contiguous(), targets, (targets != BOS).float()


def load(folder, names, device):
    """{name: Stream} of packed files."""
    return {n: Stream(*bpe.load(folder, n), device) for n in names}
