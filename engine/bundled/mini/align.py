"""Soft targets across tokenizers: what the teacher thought comes next, in the student's tokens.

The teacher's distribution is known where its tokens begin. Where a token of the student begins at the same byte, a candidate of
the teacher can be counted for a token of the student if in real text (nearly) always that token comes where the candidate
does: then it is *reliable* (whole words: yes; the beginning of a name that the student has as one token: no). Where the
token that really came is reliable, the target is the teacher's distribution over reliable candidates, normalised; elsewhere
it is the token that came. Since what came was drawn from the teacher's distribution, both together are unbiased.
"""

import numpy as np

K = 16  # candidates kept per token of the student
SURE = 0.97  # share from which on a candidate is reliable
SEEN = 5  # times it must have been seen


def byte_lengths(tokenizer, vocabulary, spaces):
    """Bytes of each token's text. `spaces`: the tokenizer writes spaces as U+2581 (SentencePiece)."""
    out = np.zeros(vocabulary, dtype=np.int64)
    for i in range(vocabulary):
        p = tokenizer.id_to_token(i)
        if p is None:
            continue
        if spaces:
            out[i] = 1 if p.startswith("<0x") and len(p) == 6 else len(p.replace("\u2581", " ").encode())
        else:
            out[i] = len(p)  # byte-level pieces: one character per byte
    return out


class Aligner:
    """Turns teacher samples into student tokens with soft targets."""

    def __init__(self, teacher, student, end):
        """end: (teacher's token that ends a text, student's)."""
        self.teacher_bytes = byte_lengths(teacher, teacher.get_vocab_size(), True)
        self.student_bytes = byte_lengths(student, student.get_vocab_size(), False)
        self.end = end
        self.pairs = {}
        self.map = None

    def _aligned(self, student_ids, teacher_ids, skip):
        """(student index, teacher index) of tokens that begin at the same byte; the ends of both texts included."""
        starts_t = np.concatenate(([0], np.cumsum(self.teacher_bytes[teacher_ids]))) - skip
        starts_s = np.concatenate(([0], np.cumsum(self.student_bytes[student_ids])))
        at = np.minimum(np.searchsorted(starts_t, starts_s), len(starts_t) - 1)
        rows = np.nonzero(starts_t[at] == starts_s)[0]
        return rows, at[rows]

    def learn(self, student_ids, teacher_ids, skip):
        """Counts which student token comes where which teacher token does."""
        rows, at = self._aligned(student_ids, teacher_ids, skip)
        inside = (rows < len(student_ids)) & (at < len(teacher_ids))
        keys, counts = np.unique(teacher_ids[at[inside]] * 65536 + student_ids[rows[inside]], return_counts=True)
        for k, c in zip(keys.tolist(), counts.tolist()):
            self.pairs[k] = self.pairs.get(k, 0) + c

    def settle(self):
        """Fixes the map from what was learnt: teacher token -> student token, -1 where it is not reliable."""
        size = len(self.teacher_bytes)
        total, best = np.zeros(size), np.zeros(size)
        self.map = np.full(size, -1, dtype=np.int64)
        for k, c in self.pairs.items():
            t, s = divmod(k, 65536)
            total[t] += c
            if c > best[t]:
                best[t], self.map[t] = c, s
        self.map[(best < SURE * total) | (total < SEEN)] = -1
        self.map[self.end[0]] = self.end[1]

    def targets(self, student_ids, teacher_ids, top_ids, top_p, skip):
        """Soft targets of student_ids (BOS and EOS not among them): (ids [n + 1, K] i16, p [n + 1, K] f16).

        teacher_ids [m]; top_ids, top_p [m + 1, k]: candidates for each of them and for what follows the last.
        skip: bytes of the teacher's text before the student's (leading spaces stripped). Entry i is about token i, entry n
        about what follows. p is 0 throughout where there is no soft target.
        """
        n = len(student_ids)
        ids = np.zeros((n + 1, K), dtype=np.int16)
        p = np.zeros((n + 1, K), dtype=np.float16)
        rows, at = self._aligned(student_ids, teacher_ids, skip)
        real = np.concatenate((student_ids, [self.end[1]]))
        came = np.concatenate((teacher_ids, [self.end[0]]))
        ok = (self.map[came[at]] == real[rows]) & ((rows < n) == (at < len(teacher_ids)))
        ok &= at < len(top_ids)  # what follows a text that was cut off is not known
        rows, at = rows[ok], at[ok]
        if not len(rows):
            return ids, p
        mapped = self.map[top_ids[at]]
        weight = np.where(mapped >= 0, top_p[at].astype(np.float32), 0.0)
        self._merge(mapped, weight)
        order = np.argsort(-weight, axis=1, kind="stable")[:, :K]
        best = np.take_along_axis(weight, order, 1)
        total = best.sum(1, keepdims=True)
        ids[rows] = np.where(best > 0, np.take_along_axis(mapped, order, 1), 0).astype(np.int16)
        # The token that came must be among the candidates, or their mass says little.
        known = (np.take_along_axis(mapped, order, 1) == real[rows][:, None]) & (best > 0)
        good = known.any(1, keepdims=True)
        p[rows] = np.where(good, best / np.maximum(total, 1e-9), 0.0).astype(np.float16)
        return ids, p

    @staticmethod
    def _merge(mapped, weight):
        # Candidates with the same first student token are added up at the first of them.
        order = np.argsort(mapped, axis=1, kind="stable")
        m = np.take_along_axis(mapped, order, 1)
        w = np.take_along_axis(weight, order, 1)
        same = np.concatenate((np.zeros((len(m), 1), bool), m[:, 1:] == m[:, :-1]), 1)
        group = np.cumsum(~same, 1) - 1
        sums = np.zeros_like(w)
        np.add.at(sums, (np.arange(len(m))[:, None], group), w)
        w = np.where(same, 0.0, np.take_along_axis(sums, group, 1))
        np.put_along_axis(weight, order, w, 1)
