"""Training batches from packed token streams that lie on the device."""

import numpy as np
import torch

from . import bpe
from .align import K
from .config import BOS


class Stream:
    """One source: tokens u16 on the device, where sequences may begin, and soft targets if there are any:
    soft_ids [tokens, K] i16 and soft_p [tokens, K] f16 about each token (p all 0 = none there)."""

    def __init__(self, tokens, starts, device, soft_ids=None, soft_p=None):
        self.soft_ids = None if soft_ids is None else torch.from_numpy(soft_ids).to(device)
        self.soft_p = None if soft_p is None else torch.from_numpy(soft_p).to(device)
        self.tokens = torch.from_numpy(tokens.astype(np.int16)).to(device)
        self.starts = torch.from_numpy(starts[starts >= 0]).to(device)
        self.device = device

    def sequences(self, at, length):
        """Beginning at these starts (indices into `starts`), a BOS first: ids [n, length + 1] i64, and soft targets of
        ids[:, 1:]: (ids [n, length, K] i64, p f32); the token itself where there is none."""
        begin = self.starts[at]
        index = (begin[:, None] + torch.arange(length + 1, device=self.device)) % len(self.tokens)
        ids = self.tokens[index].long() & 0xFFFF
        ids[:, 0] = BOS
        soft_ids = torch.zeros((*ids[:, 1:].shape, K), dtype=torch.long, device=self.device)
        soft_p = torch.zeros(soft_ids.shape, device=self.device)
        hard = torch.ones(ids[:, 1:].shape, dtype=torch.bool, device=self.device)
        if self.soft_ids is not None:
            soft_ids, soft_p = self.soft_ids[index[:, 1:]].long(), self.soft_p[index[:, 1:]].float()
            hard = soft_p[..., 0] == 0
        soft_ids[..., 0] = torch.where(hard, ids[:, 1:], soft_ids[..., 0])
        soft_p[..., 0] = torch.where(hard, 1.0, soft_p[..., 0])
        return ids, soft_ids, soft_p


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
        """(ids [B, T], soft target ids [B, T, K], their weights, counts [B, T] f32). Begin-of-text is never a target."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        names = list(self.shares)
        shares = torch.tensor([self.shares[n] for n in names])
        drawn = torch.multinomial(shares, size, replacement=True, generator=rng)
        parts = []
        for i, n in enumerate(names):
            stream = self.streams[n]
            at = torch.randint(len(stream.starts), (int((drawn == i).sum()),), generator=rng)
            parts.append(stream.sequences(at.to(stream.device), length))
        ids, soft_ids, soft_p = (torch.cat(x) for x in zip(*parts))
        return ids[:, :-1].contiguous(), soft_ids, soft_p, (ids[:, 1:] != BOS).float()


def load(folder, names, device):
    """{name: Stream} of packed files."""
    return {n: Stream(*bpe.load(folder, n), device) for n in names}
