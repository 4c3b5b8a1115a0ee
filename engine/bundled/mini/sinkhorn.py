"""Sinkhorn-Knopp of mHC: [tokens, 16] logits of 4x4 matrices to (nearly) doubly stochastic matrices, with gradients.

Row softmax + eps, columns, then (iterations - 1) times rows and columns, each division by (sum + eps). Exact backward:
a division step y = x / (sum x + eps) has dx = (dy - sum(dy * y)) / (sum x + eps), and x is y * (sum x + eps), so only
the sums of the forward pass are kept. One kernel each way on a GPU; the matrix stays in registers.
"""

import torch

N = 4


def reference(z, iterations, eps):
    """The formula as it stands; differentiable by autograd. z: [tokens, 16] f32."""
    c = z.view(-1, N, N).softmax(-1) + eps
    c = c / (c.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        c = c / (c.sum(-1, keepdim=True) + eps)
        c = c / (c.sum(-2, keepdim=True) + eps)
    return c.view(-1, N * N)


try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU-only installation
    triton = None

if triton is not None:

    @triton.jit
    def _divide(x, eps, rows: tl.constexpr):
        # x: tuple of 16 vectors; rows: sums over k of x[j, k], else over j.
        s = ()
        for i in tl.static_range(4):
            if rows:
                s = s + (x[4 * i] + x[4 * i + 1] + x[4 * i + 2] + x[4 * i + 3] + eps,)
            else:
                s = s + (x[i] + x[4 + i] + x[8 + i] + x[12 + i] + eps,)
        y = ()
        for j in tl.static_range(4):
            for k in tl.static_range(4):
                if rows:
                    y = y + (x[4 * j + k] / s[j],)
                else:
                    y = y + (x[4 * j + k] / s[k],)
        return y, s

    @triton.jit
    def _undivide(y, dy, s, rows: tl.constexpr):
        # From y, its gradient and the sums: x and its gradient.
        d = ()
        for i in tl.static_range(4):
            if rows:
                d = d + (
                    dy[4 * i] * y[4 * i]
                    + dy[4 * i + 1] * y[4 * i + 1]
                    + dy[4 * i + 2] * y[4 * i + 2]
                    + dy[4 * i + 3] * y[4 * i + 3],
                )
            else:
                d = d + (dy[i] * y[i] + dy[4 + i] * y[4 + i] + dy[8 + i] * y[8 + i] + dy[12 + i] * y[12 + i],)
        x = ()
        dx = ()
        for j in tl.static_range(4):
            for k in tl.static_range(4):
                if rows:
                    x = x + (y[4 * j + k] * s[j],)
                    dx = dx + ((dy[4 * j + k] - d[j]) / s[j],)
                else:
                    x = x + (y[4 * j + k] * s[k],)
                    dx = dx + ((dy[4 * j + k] - d[k]) / s[k],)
        return x, dx

    @triton.jit
    def _softmax_rows(z):
        p = ()
        for j in tl.static_range(4):
            m = tl.maximum(tl.maximum(z[4 * j], z[4 * j + 1]), tl.maximum(z[4 * j + 2], z[4 * j + 3]))
            a = tl.exp(z[4 * j] - m)
            b = tl.exp(z[4 * j + 1] - m)
            c = tl.exp(z[4 * j + 2] - m)
            d = tl.exp(z[4 * j + 3] - m)
            s = a + b + c + d
            p = p + (a / s, b / s, c / s, d / s)
        return p

    @triton.jit
    def _load(ptr, at, mask):
        x = ()
        for i in tl.static_range(16):
            x = x + (tl.load(ptr + at * 16 + i, mask=mask, other=0.0),)
        return x

    @triton.jit
    def _plus(p, eps):
        x = ()
        for i in tl.static_range(16):
            x = x + (p[i] + eps,)
        return x

    @triton.jit
    def _keep(ptr, at, step, tokens, s, mask):
        for i in tl.static_range(4):
            tl.store(ptr + (step * 4 + i) * tokens + at, s[i], mask=mask)

    @triton.jit
    def _kept(ptr, at, step, tokens, mask):
        s = ()
        for i in tl.static_range(4):
            s = s + (tl.load(ptr + (step * 4 + i) * tokens + at, mask=mask, other=1.0),)
        return s

    @triton.jit
    def _forward_kernel(z_ptr, c_ptr, tokens, eps, iterations: tl.constexpr, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = at < tokens
        x = _plus(_softmax_rows(_load(z_ptr, at, mask)), eps)
        x, _ = _divide(x, eps, False)
        for _i in range(iterations - 1):
            x, _ = _divide(x, eps, True)
            x, _ = _divide(x, eps, False)
        for i in tl.static_range(16):
            tl.store(c_ptr + at * 16 + i, x[i], mask=mask)

    @triton.jit
    def _backward_kernel(z_ptr, dc_ptr, dz_ptr, sums_ptr, tokens, eps, iterations: tl.constexpr, BLOCK: tl.constexpr):
        # sums_ptr: [2 * iterations, 4, tokens], scratch for the sums of every step.
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = at < tokens
        p = _softmax_rows(_load(z_ptr, at, mask))
        x = _plus(p, eps)
        x, first = _divide(x, eps, False)
        for i in range(iterations - 1):
            x, s = _divide(x, eps, True)
            _keep(sums_ptr, at, 2 * i, tokens, s, mask)
            x, t = _divide(x, eps, False)
            _keep(sums_ptr, at, 2 * i + 1, tokens, t, mask)
        dx = _load(dc_ptr, at, mask)
        for i in range(iterations - 1):
            last = 2 * (iterations - 2 - i)
            x, dx = _undivide(x, dx, _kept(sums_ptr, at, last + 1, tokens, mask), False)
            x, dx = _undivide(x, dx, _kept(sums_ptr, at, last, tokens, mask), True)
        x, dx = _undivide(x, dx, first, False)
        for j in tl.static_range(4):
            d = dx[4 * j] * p[4 * j] + dx[4 * j + 1] * p[4 * j + 1] + dx[4 * j + 2] * p[4 * j + 2] + dx[4 * j + 3] * p[4 * j + 3]
            for k in tl.static_range(4):
                tl.store(dz_ptr + at * 16 + 4 * j + k, p[4 * j + k] * (dx[4 * j + k] - d), mask=mask)


BLOCK = 128


def _use_kernel(z):
    return triton is not None and (z.is_cuda or reference.interpret)


reference.interpret = False  # tests set it to run the kernels in Triton's interpreter


@torch.library.custom_op("mini::sinkhorn", mutates_args=())
def _forward(z: torch.Tensor, iterations: int, eps: float) -> torch.Tensor:
    c = torch.empty_like(z)
    _forward_kernel[(triton.cdiv(z.shape[0], BLOCK),)](z, c, z.shape[0], eps, iterations, BLOCK, num_warps=4)
    return c


@_forward.register_fake
def _(z, iterations, eps):
    return torch.empty_like(z)


@torch.library.custom_op("mini::sinkhorn_backward", mutates_args=())
def _backward(z: torch.Tensor, dc: torch.Tensor, iterations: int, eps: float) -> torch.Tensor:
    dz = torch.empty_like(z)
    sums = torch.empty((2 * iterations, 4, z.shape[0]), dtype=z.dtype, device=z.device)
    grid = (triton.cdiv(z.shape[0], BLOCK),)
    _backward_kernel[grid](z, dc.contiguous(), dz, sums, z.shape[0], eps, iterations, BLOCK, num_warps=4)
    return dz


@_backward.register_fake
def _(z, dc, iterations, eps):
    return torch.empty_like(z)


def _setup(ctx, inputs, output):
    z, ctx.iterations, ctx.eps = inputs
    ctx.save_for_backward(z)


def _grad(ctx, dc):
    (z,) = ctx.saved_tensors
    return torch.ops.mini.sinkhorn_backward(z, dc, ctx.iterations, ctx.eps), None, None


_forward.register_autograd(_grad, setup_context=_setup)


def sinkhorn(z, iterations, eps):
    """[tokens, 16] f32 logits -> [tokens, 16] f32. The kernels on CUDA, the formula elsewhere."""
    if _use_kernel(z):
        return torch.ops.mini.sinkhorn(z.contiguous(), iterations, eps)
    return reference(z, iterations, eps)
