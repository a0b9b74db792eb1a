"""The device code of stem/triton.py."""

import triton
import triton.language as tl


@triton.jit
def _normalized(u, bias, place, inside, k, eps, W):
    """(n, rstd [BR, 1]) of rows of u; n is 0 outside."""
    x = tl.load(u + place, mask=inside, other=0.0) + tl.load(bias + k, mask=k < W, other=0.0)[None, :]
    x = tl.where(inside, x, 0.0)
    x = tl.where(inside, x - tl.sum(x, 1)[:, None] / W, 0.0)
    variance = tl.sum(x * x, 1) / W
    # Overflown, it would make n of 0: finite, and wrong. So the row becomes NaN, and shows.
    rstd = tl.where(variance < float("inf"), 1 / tl.sqrt_rn(variance + eps), float("nan"))[:, None]
    return x * rstd, rstd


@triton.jit
def _sigmoid(z):
    e = tl.exp(-tl.abs(z))
    return tl.where(z > 0, 1.0, e) / (1 + e)


@triton.jit(do_not_specialize=["B"])
def forward_kernel(
    u, bias, scale, shift, eps, B, W, a, SWISH: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr
):
    """a [B, W]; u [B, W], bias, scale, shift [W]. Programs: BR rows each."""
    row, k = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BW)
    inside = (row < B)[:, None] & (k < W)[None, :]
    place = row.to(tl.int64)[:, None] * W + k[None, :]
    n, _ = _normalized(u, bias, place, inside, k, eps, W)
    z = n * tl.load(scale + k, mask=k < W, other=0.0)[None, :]
    z += tl.load(shift + k, mask=k < W, other=0.0)[None, :]
    tl.store(a + place, z * _sigmoid(z) if SWISH else tl.where(z < 0, 0.0, z), mask=inside)


@triton.jit(do_not_specialize=["B"])
def backward_kernel(
    da, u, bias, scale, shift, eps, B, W, du, partials,
    SWISH: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """du [B, W], and with SUMS partials [3, programs, W]: sums of du, dz n and dz over a program's ROWS rows."""
    k = tl.arange(0, BW)
    by_column = tl.load(scale + k, mask=k < W, other=0.0)[None, :]
    shifted = tl.load(shift + k, mask=k < W, other=0.0)[None, :]
    to_bias = tl.zeros([BW], tl.float32)
    to_scale, to_shift = to_bias, to_bias
    for first in tl.static_range(0, ROWS, BR):
        row = tl.program_id(0) * ROWS + first + tl.arange(0, BR)
        inside = (row < B)[:, None] & (k < W)[None, :]
        place = row.to(tl.int64)[:, None] * W + k[None, :]
        n, rstd = _normalized(u, bias, place, inside, k, eps, W)
        z = n * by_column + shifted
        dz = tl.load(da + place, mask=inside, other=0.0)
        if SWISH:
            s = _sigmoid(z)
            dz = dz * (s * (1 + z * (1 - s)))
        else:
            dz = tl.where(z > 0, dz, 0.0)
        dn = dz * by_column
        d = rstd * (dn - tl.sum(dn, 1)[:, None] / W - n * (tl.sum(dn * n, 1)[:, None] / W))
        tl.store(du + place, d, mask=inside)
        if SUMS:
            to_bias += tl.sum(tl.where(inside, d, 0.0), 0)
            to_scale += tl.sum(dz * n, 0)
            to_shift += tl.sum(dz, 0)
    if SUMS:
        own, step = partials + tl.program_id(0) * W + k, tl.num_programs(0) * W
        tl.store(own, to_bias, mask=k < W)
        tl.store(own + step, to_scale, mask=k < W)
        tl.store(own + 2 * step, to_shift, mask=k < W)


@triton.jit(do_not_specialize=["P"])
def sums_kernel(partials, P, W, dbias, dscale, dshift, BP: tl.constexpr, BW: tl.constexpr):
    """Sums [W] of partials [3, P, W] over P. Programs: BW columns of one of the three each."""
    which, k = tl.program_id(1), tl.program_id(0) * BW + tl.arange(0, BW)
    part = tl.arange(0, BP)
    total = tl.zeros([BP, BW], tl.float32)
    for first in tl.range(0, P, BP):
        inside = (first + part < P)[:, None] & (k < W)[None, :]
        place = (which * P + first + part)[:, None] * W + k[None, :]
        total += tl.load(partials + place, mask=inside, other=0.0)
    found = tl.sum(total, 0)
    if which == 0:
        tl.store(dbias + k, found, mask=k < W)
    elif which == 1:
        tl.store(dscale + k, found, mask=k < W)
    else:
        tl.store(dshift + k, found, mask=k < W)
