"""Interpolated modified Kneser-Ney (Chen and Goodman 1998) over the model's own tokens: the baseline for books."""

import numpy as np

BITS = 12  # bits of a token id


class KneserNey:
    """Order-n model of a token stream of at most 4096 different ids. n <= 5 fits 60 bits."""

    def __init__(self, tokens, order=5, vocab=4096):
        assert vocab <= 1 << BITS and order * BITS <= 60
        self.order, self.vocab = order, vocab
        counts = {}
        for n in range(1, order + 1):
            counts[n] = np.unique(self._grams(tokens, n), return_counts=True)
        self.levels = []
        for n in range(1, order + 1):
            if n < order:
                # Continuation counts: how many different tokens stand before the n-gram.
                longer = counts[n + 1][0] & np.uint64((1 << (n * BITS)) - 1)
                keys, c = np.unique(longer, return_counts=True)
            else:
                keys, c = counts[n]
            self.levels.append(_Level(keys, c))

    @staticmethod
    def _grams(tokens, n):
        t = tokens.astype(np.uint64)
        g = np.zeros(len(t) - n + 1, dtype=np.uint64)
        for i in range(n):
            g = (g << np.uint64(BITS)) | t[i : len(t) - n + 1 + i]
        return g

    def log2(self, tokens):
        """log2 of the probability of tokens[order - 1:] given what stands before each."""
        n_out = len(tokens) - self.order + 1
        p = np.full(n_out, 1.0 / self.vocab)
        for n in range(1, self.order + 1):
            grams = self._grams(tokens, n)[self.order - n :]
            p = self.levels[n - 1].interpolate(grams, p)
        return np.log2(p)


class _Level:
    def __init__(self, keys, counts):
        n1, n2, n3, n4 = (int((counts == i).sum()) for i in (1, 2, 3, 4))
        self.discounts = np.full(4, 0.5)  # where the counts give no estimate (every token seen often)
        if min(n1, n2, n3) > 0:
            y = n1 / (n1 + 2 * n2)
            self.discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        self.discounts[0] = 0.0
        self.keys, self.counts = keys, counts.astype(np.float64)
        self.contexts, first = np.unique(keys >> np.uint64(BITS), return_index=True)
        self.totals = np.add.reduceat(self.counts, first)
        held = self.discounts[np.minimum(counts, 3)]
        self.backoff = np.add.reduceat(held, first) / self.totals

    @staticmethod
    def _find(sorted_keys, wanted):
        at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
        return at, sorted_keys[at] == wanted

    def interpolate(self, grams, lower):
        at, there = self._find(self.keys, grams)
        c = np.where(there, self.counts[at], 0.0)
        held = self.discounts[np.minimum(c.astype(np.int64), 3)]
        ctx, known = self._find(self.contexts, grams >> np.uint64(BITS))
        p = np.maximum(c - held, 0.0) / self.totals[ctx] + self.backoff[ctx] * lower
        return np.where(known, p, lower)
