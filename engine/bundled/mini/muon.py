"""The optimiser: Muon (momentum, orthogonalised by Newton-Schulz) for matrices, Adam for the rest.

Muon as in K. Jordan et al. 2024: update = UV^T of the Nesterov momentum, scaled by sqrt(max(1, rows / columns)). Matrices
of one shape are processed together. States are plain tensors, so a run resumes exactly.
"""

import torch


def orthogonalise(g, steps=5):
    """[n, r, c] -> roughly the nearest matrices with singular values near 1, computed in bf16 on GPUs."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if g.is_cuda else g
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


def is_matrix(name):
    """Parameters that Muon takes: the layers' matrices, without routers, mHC projections and positional biases."""
    return name.startswith("layers.") and (
        ".ffn.w" in name
        or any(x in name for x in ("wq_a.weight", "wq_b.weight", "wkv.weight", "wgate.weight", "wo_a.weight", "wo_b.weight"))
    )


class Optimiser:
    """Steps masters [name -> f32] from gradients of their compute copies."""

    #: Learning rates of the parameters Adam takes, relative to `adam`, first match counts.
    RELATIVE = (("embed", 2.0), ("head.weight", 0.6), ("_fn", 0.5), ("ffn.gate", 0.5), ("", 1.0))

    def __init__(self, master, groups=2, muon=0.02, adam=0.005, decay=0.01):
        self.master, self.muon, self.adam, self.decay, self.groups = master, muon, adam, decay, groups
        self.step_count = 0
        self.shapes = {}
        for name, p in master.items():
            if is_matrix(name):
                self.shapes.setdefault(self._view(name, p).shape[1:], []).append(name)
        zeros = torch.zeros_like
        self.momentum = {n: zeros(master[n]) for names in self.shapes.values() for n in names}
        rest = [n for n in master if n not in self.momentum and not n.endswith("gate.bias")]
        self.first = {n: zeros(master[n]) for n in rest}
        self.second = {n: zeros(master[n]) for n in rest}
        self.rates = {}
        for n in rest:
            self.rates.setdefault(next(r for key, r in self.RELATIVE if key in n), []).append(n)

    def _view(self, name, p):
        # wo_a is block diagonal: each group is a matrix of its own.
        if name.endswith("wo_a.weight"):
            return p.view(self.groups, -1, p.shape[-1])
        return p if p.ndim == 3 else p[None]

    @torch.no_grad()
    def step(self, grads, rate, clip=1.0):
        """One update with all learning rates times `rate`. Returns the norm of the gradient before clipping."""
        self.step_count += 1
        norm = torch.linalg.vector_norm(torch.stack([x.float() for x in torch._foreach_norm(list(grads.values()))]))
        factor = (clip / (norm + 1e-6)).clamp(max=1.0)
        for shape, names in self.shapes.items():
            momenta = [self.momentum[n] for n in names]
            g = [grads[n].float() for n in names]
            torch._foreach_mul_(g, factor)
            torch._foreach_lerp_(momenta, g, 0.05)
            nesterov = torch._foreach_lerp(g, momenta, 0.95)
            views = [self._view(n, self.master[n]) for n in names]
            o = orthogonalise(torch.cat([self._view(n, u) for n, u in zip(names, nesterov)])).float()
            scale = max(1.0, shape[0] / shape[1]) ** 0.5 * self.muon * rate
            torch._foreach_mul_(views, 1 - self.decay * self.muon * rate)
            torch._foreach_add_(views, list(o.split([len(v) for v in views])), alpha=-scale)
        self._adam(grads, factor, rate)
        return norm

    def _adam(self, grads, factor, rate, b1=0.9, b2=0.97, eps=1e-10):
        c1, c2 = 1 - b1**self.step_count, 1 - b2**self.step_count
        for relative, names in self.rates.items():
            g = [grads[n].float() for n in names]
            torch._foreach_mul_(g, factor)
            first, second = [self.first[n] for n in names], [self.second[n] for n in names]
            torch._foreach_lerp_(first, g, 1 - b1)
            torch._foreach_mul_(g, g)
            torch._foreach_lerp_(second, g, 1 - b2)
            size = torch._foreach_div(second, c2)
            torch._foreach_sqrt_(size)
            torch._foreach_add_(size, eps)
            torch._foreach_addcdiv_([self.master[n] for n in names], first, size, -self.adam * relative * rate / c1)

    def state(self):
        """Everything needed to resume."""
        return {"step": self.step_count, "momentum": self.momentum, "first": self.first, "second": self.second}

    def restore(self, state):
        """Takes up a saved state; parameters it does not know keep theirs."""
        self.step_count = state["step"]
        for mine, theirs in ((self.momentum, state["momentum"]), (self.first, state["first"]), (self.second, state["second"])):
            for n, t in mine.items():
                if n in theirs and theirs[n].shape == t.shape:
                    t.copy_(theirs[n])
