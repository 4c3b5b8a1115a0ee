"""The blocks of `deepseek_v4` over whole sequences, for training. Formulas: the architecture notes in ARCHITECTURE.md's
references; names: the released tensor names. Every block is a pure function of (activations, dict of weights).

All sequences start at position 0 and have a multiple of 128 tokens. Shapes: B sequences, T tokens, D hidden, H heads of
W = 512, R compressed rows, n = 4 streams.
"""

import math

import torch
import torch.nn.functional as F

from . import quant
from .config import CSA, RATE, SLIDING
from .sinkhorn import sinkhorn

BLOCK = 128  # the window; queries are processed in blocks of as many
RECALL, MISSED = 0.93, 0.35  # what `_concentration` asks for


def rms(x, weight=None, eps=1e-6):
    """RMSNorm with f32 statistics."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(x.dtype)


def rope_table(theta, positions, dims):
    """(cos, sin) [positions, dims / 2] f32; angles in f64."""
    f = theta ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    a = positions.to(torch.float64)[:, None] * f
    return a.cos().float(), a.sin().float()


def rope(x, cos, sin, dims, inverse=False):
    """Rotates the last `dims` values as interleaved pairs. cos, sin broadcast against [..., dims / 2]."""
    keep, turn = x[..., : x.shape[-1] - dims], x[..., x.shape[-1] - dims :].float()
    a, b = turn.unflatten(-1, (-1, 2)).unbind(-1)
    s = -sin if inverse else sin
    turned = torch.stack((a * cos - b * s, a * s + b * cos), -1).flatten(-2)
    return torch.cat((keep, turned.to(x.dtype)), -1)


def hc_mix(x, fn, base, scale, s, head=False):
    """mHC coefficients of streams x [B, T, n, D]: pre [B, T, n] and, unless `head`, post [B, T, n], comb [B, T, n, n]."""
    n = s.hc_mult
    v = x.flatten(2)
    rho = torch.rsqrt(v.float().square().mean(-1, keepdim=True) + s.rms_norm_eps)
    m = F.linear(v, fn).float() * rho
    pre = torch.sigmoid(m[..., :n] * scale[0] + base[:n]) + s.hc_eps
    if head:
        return pre
    post = 2 * torch.sigmoid(m[..., n : 2 * n] * scale[1] + base[n : 2 * n])
    z = m[..., 2 * n :] * scale[2] + base[2 * n :]
    comb = sinkhorn(z.reshape(-1, n * n), s.hc_sinkhorn_iters, s.hc_eps).view(*z.shape[:2], n, n)
    return pre, post, comb


def hc_collapse(x, pre):
    """sum_i pre_i x_i, f32."""
    return (pre[..., None] * x.float()).sum(2)


def hc_expand(o, x, post, comb):
    """post_k o + sum_j comb_jk x_j, in x's dtype."""
    y = post[..., None] * o.float()[:, :, None, :]
    xf = x.float()
    for j in range(x.shape[2]):
        y = y + comb[:, :, j, :, None] * xf[:, :, j : j + 1, :]
    return y.to(x.dtype)


def pool(c, g, ape, rate, overlap):
    """Channel-wise softmax pooling of `rate` tokens (with overlap: 2 * rate slots): [B, T, C] -> [B, T / rate, d]."""
    b, t, ch = c.shape
    c = c.view(b, t // rate, rate, ch).float()
    g = g.view(b, t // rate, rate, ch).float() + ape
    if overlap:
        d = ch // 2
        none = torch.full_like(g[:, :1, :, :d], float("-inf"))
        g = torch.cat((torch.cat((none, g[:, :-1, :, :d]), 1), g[..., d:]), 2)
        c = torch.cat((torch.cat((torch.zeros_like(c[:, :1, :, :d]), c[:, :-1, :, :d]), 1), c[..., d:]), 2)
    return (g.softmax(2) * c).sum(2)


def compress(cg, w, prefix, rate, table, s, overlap):
    """Compressed rows [B, R, d] from the joined products [B, T, 2 C] (values, gates): pooled, normalised, rotated."""
    c, g = cg.chunk(2, -1)
    rows = pool(c, g, w[prefix + "ape"], rate, overlap).to(cg.dtype)
    rows = rms(rows, w[prefix + "norm.weight"], s.rms_norm_eps)
    return rope(rows, table[0], table[1], s.qk_rope_head_dim)


def indexer(x, qr, w, tables, had, knobs, s):
    """Scores [B, T, R] f32 of every compressed row (visible or not). Gradients reach indexer weights alone."""
    x, qr = x.detach(), qr.detach()
    b, t, _ = x.shape
    h, d = s.index_n_heads, s.index_head_dim
    p = "attn.indexer."
    joined = F.linear(
        x,
        torch.cat(
            (w[p + "compressor.wkv.weight"], w[p + "compressor.wgate.weight"], w[p + "weights_proj.weight"])
        ),
    )
    cg, weights = joined[..., : 4 * d], joined[..., 4 * d :].float() * (h**-0.5 * d**-0.5)
    k = compress(cg, w, p + "compressor.", RATE[CSA], tables["rows_csa"], s, True)
    cos, sin = tables["compress"]
    q = F.linear(qr, w[p + "wq_b.weight"]).view(b, t, h, d)
    q = rope(q, cos[:, None], sin[:, None], s.qk_rope_head_dim)
    q, k = q @ had, k @ had
    q = quant.straight_through(q, quant.fp4_rows(q), knobs[0])
    k = quant.straight_through(k, quant.fp4_rows(k), knobs[0])
    z = (q.reshape(b, t * h, d) @ k.transpose(1, 2)).view(b, t, h, -1)
    return (torch.relu(z.float()) * weights[..., None]).sum(2)


def attention(x, w, kind, tables, had, dense, knobs, s):
    """The attention block after its norm: x [B, T, D] -> (output [B, T, D], indexer loss, statistics).

    dense: [B] bool, sequences whose CSA layers read all visible rows. knobs: [2] f32, strength of the cache's rounding (0 or 1)
    and weight of `_concentration` (tensors, so that changing them compiles nothing anew).
    statistics [5] f32: sums over queries with at least 2 top-k visible rows of attn_recall, the recall of the most recent rows,
    of the best possible rows, top-1 hits, and their number; without gradients (measuring) two more, the sum of the kept rows'
    share among the most recent ones and the lowest attn_recall of any such query.
    """
    b, t, _ = x.shape
    h, hd, rd = s.num_attention_heads, s.head_dim, s.qk_rope_head_dim
    cos, sin = tables["main" if kind == SLIDING else "compress"]
    parts = [w["attn.wq_a.weight"], w["attn.wkv.weight"]]
    if kind != SLIDING:
        parts += [w["attn.compressor.wkv.weight"], w["attn.compressor.wgate.weight"]]
    joined = F.linear(x, torch.cat(parts))
    qa, kv, cg = joined.split([s.q_lora_rank, hd, joined.shape[-1] - s.q_lora_rank - hd], -1)

    qr = rms(qa, w["attn.q_norm.weight"], s.rms_norm_eps)
    q = rms(F.linear(qr, w["attn.wq_b.weight"]).view(b, t, h, hd), None, s.rms_norm_eps)
    q = rope(q, cos[:, None], sin[:, None], rd)
    kv = rope(rms(kv, w["attn.kv_norm.weight"], s.rms_norm_eps), cos, sin, rd)
    kv = _cache_rounding(kv, knobs[0], rd)

    # Window: blocks of 128 queries against the keys of their own block and the one before.
    nb = t // BLOCK
    keys = kv.view(b, nb, BLOCK, hd)
    keys = torch.cat((torch.cat((torch.zeros_like(keys[:, :1]), keys[:, :-1]), 1), keys), 2)
    z = (q.view(b, nb, BLOCK * h, hd) @ keys.transpose(-1, -2)).view(b, nb, BLOCK, h, 2 * BLOCK)
    i = torch.arange(BLOCK, device=x.device)[:, None]
    j = torch.arange(2 * BLOCK, device=x.device)[None, :]
    inside = (j > i) & (j <= i + s.sliding_window)
    first = torch.arange(nb, device=x.device)[:, None, None] > 0
    inside = inside & (first | (j >= BLOCK))
    e = _exp(z, hd, inside[None, :, :, None, :])
    sink = torch.exp(w["attn.attn_sink"].float())
    total = e.sum(-1) + sink

    loss = x.new_zeros((), dtype=torch.float32)
    stats = x.new_zeros(5, dtype=torch.float32)
    if kind != SLIDING:
        rate = RATE[kind]
        rows = compress(cg, w, "attn.compressor.", rate, tables["rows_csa" if kind == CSA else "rows_hca"], s, kind == CSA)
        rows = _cache_rounding(rows, knobs[0], rd)
        r = rows.shape[1]
        zr = (q.view(b, t * h, hd) @ rows.transpose(1, 2)).view(b, t, h, r)
        visible = torch.arange(r, device=x.device)[None, :] < (torch.arange(t, device=x.device)[:, None] + 1) // rate
        er = _exp(zr, hd, visible[None, :, None, :])
        total = total.view(b, t, h)
        if kind == CSA:
            score = indexer(x, qr, w, tables, had, knobs, s).masked_fill(~visible, float("-inf"))
            cut = score.detach().topk(min(s.index_topk, r), -1).values[..., -1:]
            kept = score.detach() >= cut
            mass = (er / (total + er.sum(-1))[..., None]).sum(2)
            loss, stats = _index_loss(score, mass.detach(), kept, visible, s)
            loss = loss + knobs[1] * _concentration(mass, kept, visible, s)
            er = er * (kept | dense[:, None, None])[:, :, None, :]
        total = total + er.sum(-1)
        o = ((er / total[..., None]).to(x.dtype).view(b, t * h, r) @ rows).view(b, t, h, hd)
        total = total.view(b, nb, BLOCK, h)
    p = (e / total[..., None]).to(x.dtype)
    ow = (p.view(b, nb, BLOCK * h, 2 * BLOCK) @ keys).view(b, t, h, hd)
    o = ow if kind == SLIDING else ow + o
    o = rope(o, cos[:, None], sin[:, None], rd, inverse=True)

    g, rank = s.o_groups, s.o_lora_rank
    u = torch.einsum("btgi,goi->btgo", o.reshape(b, t, g, h * hd // g), w["attn.wo_a.weight"].view(g, rank, -1))
    return F.linear(u.reshape(b, t, g * rank), w["attn.wo_b.weight"]), loss, stats


def _cache_rounding(rows, strength, rd):
    body = rows[..., :-rd]
    return torch.cat((quant.straight_through(body, quant.fp8_rows(body), strength), rows[..., -rd:]), -1)


def _exp(z, width, mask):
    # Queries are normalised and keys nearly so: without subtracting a maximum exp stays far from f32's limits;
    # the clamp only guards against a diverged run.
    return torch.where(mask, torch.exp((z.float() * width**-0.5).clamp(max=60.0)), 0.0)


def _concentration(mass, kept, visible, s):
    """Teaches the attention to need few rows and not only recent ones; its gradient does not reach the indexer.

    Per sequence, over queries with at least 2 top-k visible rows: r, the share of the attention's mass over compressed rows
    on the kept ones, and c, that on the top-k most recent ones. Asked for are r >= RECALL and 1 - r <= MISSED (1 - c); what
    is missing counts in logarithms, and nothing once both hold.
    """
    count = visible.sum(-1)
    judged = (count >= 2 * s.index_topk).float()
    n = judged.sum().clamp_min(1)
    recent = torch.arange(mass.shape[-1], device=mass.device)[None, :] >= (count - s.index_topk)[:, None]
    total = mass.sum(-1).clamp_min(1e-20)
    mean = lambda rows: ((mass * rows).sum(-1) / total * judged).sum(-1) / n
    r, c = mean(kept), mean(recent & visible)
    few = torch.relu(math.log(RECALL) - torch.log(r.clamp_min(1e-4)))
    far = torch.relu(torch.log((1 - r).clamp_min(1e-4)) - torch.log(MISSED * (1 - c).clamp_min(1e-4)))
    return (few + far).mean() * (judged.sum() > 0)


def _index_loss(score, mass, kept, visible, s):
    """Cross-entropy of the indexer's softmax against the attention mass over compressed rows, and recall statistics."""
    k = s.index_topk
    count = visible.sum(-1)
    total = mass.sum(-1, keepdim=True)
    target = mass / total.clamp_min(1e-20)
    some = ((count >= 2)[None, :] & (total[..., 0] > 1e-12)).float()
    lse = torch.logsumexp(score.masked_fill(~visible, -1e30), -1)
    ce = lse - (target * score.masked_fill(~visible, 0.0)).sum(-1)
    entropy = -(target * torch.log(target.clamp_min(1e-20))).sum(-1)
    loss = ((ce - entropy) * some).sum() / some.sum().clamp_min(1)
    judged = some * (count >= 2 * k)[None, :].float()
    recent = torch.arange(score.shape[-1], device=score.device)[None, :] >= (count - k)[:, None]
    recall = (target * kept).sum(-1)
    hit = torch.gather(kept, -1, target.argmax(-1, keepdim=True))[..., 0].float()
    measured = [recall, (target * recent).sum(-1), recall, hit]
    if torch.is_grad_enabled():
        return loss, torch.stack([(v * judged).sum() for v in measured] + [judged.sum()]).detach()
    measured[2] = target.topk(min(k, target.shape[-1]), -1).values.sum(-1)
    local = (kept & recent & visible).sum(-1) / k
    worst = torch.where(judged > 0, recall, 1.0).amin()
    return loss, torch.stack([(v * judged).sum() for v in measured] + [judged.sum(), (local * judged).sum(), worst])


def moe(x, ids, w, is_hash, s):
    """The expert block after its norm: (output [B, T, D], tokens per expert [E] f32).

    All experts are computed and the unchosen ones weighted with zero: with 8 small experts that is faster than sorting tokens.
    """
    e, k, f = s.n_routed_experts, s.num_experts_per_tok, s.moe_intermediate_size
    logits = F.linear(x.float(), w["ffn.gate.weight"].float())
    score = torch.sqrt(F.softplus(logits))
    if is_hash:
        chosen = w["ffn.gate.onehot"][ids]
    else:
        biased = (score + w["ffn.gate.bias"]).detach()
        a, b = biased[..., :, None], biased[..., None, :]
        index = torch.arange(e, device=x.device)
        before = (b > a) | ((b == a) & (index[None, :] < index[:, None]))
        chosen = (before.sum(-1) < k).float()
    picked = score * chosen
    weight = picked / picked.sum(-1, keepdim=True) * s.routed_scaling_factor
    w13 = torch.cat((w["ffn.w1"].flatten(0, 1), w["ffn.w3"].flatten(0, 1)))
    gate, up = F.linear(x, w13).view(*x.shape[:2], 2, e + 1, f).unbind(2)
    gate = gate.float().clamp(max=s.swiglu_limit)
    up = up.float().clamp(-s.swiglu_limit, s.swiglu_limit)
    every = torch.cat((weight, torch.ones_like(weight[..., :1])), -1)
    act = (F.silu(gate) * up * every[..., None]).to(x.dtype)
    w2 = w["ffn.w2"].transpose(0, 1).flatten(1)  # [D, (E + 1) F]
    return F.linear(act.flatten(2), w2), chosen.sum((0, 1)).detach()


def layer(x, ids, w, tables, had, dense, knobs, kind, is_hash, s):
    """One layer: streams in, streams out, with the indexer's loss, its statistics and the experts' loads."""
    pre, post, comb = hc_mix(x, w["hc_attn_fn"], w["hc_attn_base"], w["hc_attn_scale"], s)
    y = rms(hc_collapse(x, pre), w["attn_norm.weight"], s.rms_norm_eps).to(x.dtype)
    o, loss, stats = attention(y, w, kind, tables, had, dense, knobs, s)
    x = hc_expand(o, x, post, comb)
    pre, post, comb = hc_mix(x, w["hc_ffn_fn"], w["hc_ffn_base"], w["hc_ffn_scale"], s)
    y = rms(hc_collapse(x, pre), w["ffn_norm.weight"], s.rms_norm_eps).to(x.dtype)
    o, load = moe(y, ids, w, is_hash, s)
    return hc_expand(o, x, post, comb), loss, stats, load


def head(x, w, s):
    """Streams -> logits [B, T, V] in x's dtype."""
    pre = hc_mix(x, w["hc_head_fn"], w["hc_head_base"], w["hc_head_scale"], s, head=True)
    y = rms(hc_collapse(x, pre), w["norm.weight"], s.rms_norm_eps).to(x.dtype)
    return F.linear(y, w["head.weight"])


def head_loss(x, soft_ids, soft_p, counts, w, s):
    """(sum over counted places of the cross-entropy in nats against soft targets, the same per place [B, T])."""
    logits = head(x, w, s).float()
    each = torch.logsumexp(logits, -1) - (logits.gather(-1, soft_ids) * soft_p).sum(-1)
    each = each * counts
    return each.sum(), each.detach()
