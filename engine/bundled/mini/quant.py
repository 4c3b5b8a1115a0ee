"""The number formats of the released checkpoints and caches (MODEL1's rules), exact, and their training stand-ins."""

import torch

E4M3_MAX, E2M1_MAX = 448.0, 6.0


def power_of_two_scale(amax, top):
    """2^ceil(log2(amax / top)), on the bits of the float32 quotient: exact powers stay."""
    x = amax.float() * (torch.tensor(1.0) / top).item()
    bits = x.contiguous().view(torch.int32)
    exponent = (bits >> 23) + (bits & 0x7FFFFF).ne(0).int()
    return (exponent << 23).view(torch.float32), exponent.to(torch.uint8)


def fp8_weight(w):
    """[out, in] -> (e4m3 values, ue8m0 exponents [ceil(out/128), ceil(in/128)]); both sizes multiples of 128."""
    r, c = w.shape
    blocks = w.float().view(r // 128, 128, c // 128, 128)
    scale, exponent = power_of_two_scale(blocks.abs().amax((1, 3)).clamp_min(1e-4), E4M3_MAX)
    q = (blocks / scale[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return q.view(r, c), exponent


def fp8_weight_rounded(w):
    """`w` as it reads back from its stored form, f32. Leading dimensions (experts) allowed."""
    *lead, r, c = w.shape
    blocks = w.float().view(*lead, r // 128, 128, c // 128, 128)
    scale, _ = power_of_two_scale(blocks.abs().amax((-3, -1), keepdim=True).clamp_min(1e-4), E4M3_MAX)
    q = (blocks / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * scale
    return q.view(*lead, r, c)


def _soft_scale(amax, top):
    # Inside compiled training code; off by one step only where amax / top is within rounding of a power of two.
    return torch.exp2(torch.ceil(torch.log2(amax * (1.0 / top))))


def fp8_rows(x, block=64):
    """Values rounded as in the cache record: e4m3 with one power of two per `block` values. Same dtype and shape."""
    v = x.float().unflatten(-1, (-1, block))
    s = _soft_scale(v.abs().amax(-1, keepdim=True).clamp_min(1e-4), E4M3_MAX)
    q = (v / s).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * s
    return q.flatten(-2).to(x.dtype)


def fp4_rows(x, block=32):
    """Values rounded as in indexer rows: e2m1, ties to the even code, one power of two per `block` values."""
    v = x.float().unflatten(-1, (-1, block))
    s = _soft_scale(v.abs().amax(-1, keepdim=True).clamp_min(E2M1_MAX * 2.0**-126), E2M1_MAX)
    u = (v / s).clamp(-E2M1_MAX, E2M1_MAX)
    a = u.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return ((u / step).round() * step * s).flatten(-2).to(x.dtype)


def straight_through(x, rounded, strength):
    """x + strength * (rounded - x) with the gradient of x. strength: 0-dim tensor, 0 = off, 1 = rounded."""
    return x + (strength * (rounded.float() - x.float())).to(x.dtype).detach()


def hadamard(width, device=None, dtype=torch.float32):
    """Normalised Walsh-Hadamard matrix in Sylvester order."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < width:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return (h * width**-0.5).to(dtype).to(device)
