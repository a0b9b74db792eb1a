"""The device code of policy/triton.py."""

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    """(tanh x, 1 - tanh^2 x, e = exp(-2 |x|)): x + x^3 P(x^2) below 1/2, P fitted to it, and 1 - 2 e / (1 + e)."""
    e = tl.exp(-2 * tl.abs(x))
    z = x * x
    series = 0.13332971 + z * (-0.05389996 + z * (0.02130146 - z * 0.00665297))
    near = x + x * (z * (-0.33333327 + z * series))
    far = 1 - 2 * e / (1 + e)
    return (
        tl.where(tl.abs(x) < 0.5, near, tl.where(x < 0, -far, far)),
        4 * e / ((1 + e) * (1 + e)),
        e,
    )


@triton.jit
def _tile(B, A, BR: tl.constexpr, BA: tl.constexpr):
    """Of this program: its rows [BR], places [BR, BA] in a matrix of A columns, and which of them there are."""
    row, k = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BA)
    inside = (row < B)[:, None] & (k < A)[None, :]
    return row, row.to(tl.int64)[:, None] * A + k[None, :], inside


@triton.jit
def _spread(log_std, place, inside, low, half, BOUNDED: tl.constexpr):
    """(log_std, what its gradient is multiplied by) of what is stored."""
    raw = tl.load(log_std + place, mask=inside, other=0.0)
    slope = raw * 0 + 1
    if BOUNDED:
        _, slope, e = _tanh(raw)
        raw = low + 2 * half * (tl.where(raw > 0, 1.0, e) / (1 + e))  # sigmoid(2 raw) = (tanh(raw) + 1) / 2
        slope = half * slope
    return raw, slope


@triton.jit(do_not_specialize=["B"])
def gaussian_kernel(
    mean, log_std, noise, B, A, low, half, action, log_prob,
    BOUNDED: tl.constexpr, EXACT: tl.constexpr, BR: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    """action [B, A] and log_prob [B]; mean, log_std, noise [B, A]. Programs: BR rows each."""
    row, place, inside = _tile(B, A, BR, BA)
    spread, _ = _spread(log_std, place, inside, low, half, BOUNDED)
    drawn = tl.load(noise + place, mask=inside, other=0.0)
    x = tl.load(mean + place, mask=inside, other=0.0) + tl.exp(spread) * drawn
    squashed, slope, e = _tanh(x)
    if EXACT:
        log_slope = 2 * (0.6931471805599453 - tl.abs(x) - tl.log(1 + e))
    else:
        log_slope = tl.log(slope + 1e-6)
    terms = -0.5 * drawn * drawn - spread - 0.9189385332046727 - log_slope
    tl.store(action + place, squashed, mask=inside)
    tl.store(log_prob + row, tl.sum(tl.where(inside, terms, 0.0), 1), mask=row < B)


@triton.jit(do_not_specialize=["B", "stride"])
def gaussian_backward_kernel(
    daction, dlog_prob, mean, log_std, noise, B, A, stride, low, half, dmean, dlog_std,
    BOUNDED: tl.constexpr, EXACT: tl.constexpr, BR: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    """dmean and dlog_std [B, A]; daction [B, A], its rows `stride` apart, dlog_prob [B]. Programs: BR rows each."""
    row, place, inside = _tile(B, A, BR, BA)
    spread, spread_slope = _spread(log_std, place, inside, low, half, BOUNDED)
    drawn = tl.load(noise + place, mask=inside, other=0.0)
    wide = tl.exp(spread) * drawn
    squashed, slope, _ = _tanh(tl.load(mean + place, mask=inside, other=0.0) + wide)
    there = row.to(tl.int64)[:, None] * stride + tl.arange(0, BA)[None, :]
    share = tl.load(dlog_prob + row, mask=row < B, other=0.0)[:, None]
    kept = 2 * squashed
    if not EXACT:
        kept = kept * (slope / (slope + 1e-6))
    g = tl.load(daction + there, mask=inside, other=0.0) * slope + share * kept
    tl.store(dmean + place, g, mask=inside)
    tl.store(dlog_std + place, (g * wide - share) * spread_slope, mask=inside)


@triton.jit
def _pair(phi, psi, place, inside):
    return tl.load(phi + place, mask=inside, other=0.0), tl.load(psi + place, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["B"])
def pair_kernel(phi, psi, B, D, energy, ENERGY: tl.constexpr, BR: tl.constexpr, BA: tl.constexpr):
    """energy [B] of phi and psi [B, D], row by row. Programs: BR rows each."""
    row, place, inside = _tile(B, D, BR, BA)
    x, y = _pair(phi, psi, place, inside)
    if ENERGY == "dot":
        found = tl.sum(x * y, 1)
    else:
        squared = tl.sum((x - y) * (x - y), 1)
        found = -squared if ENERGY == "l2" else -tl.where(squared > 0, tl.sqrt_rn(squared), 0.0)
    tl.store(energy + row, found, mask=row < B)


@triton.jit(do_not_specialize=["B"])
def pair_backward_kernel(
    denergy, phi, psi, B, D, dphi, dpsi,
    ENERGY: tl.constexpr, NEED_PHI: tl.constexpr, NEED_PSI: tl.constexpr, BR: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    """dphi and dpsi [B, D] of what pair_kernel gives; denergy [B]. Programs: BR rows each."""
    row, place, inside = _tile(B, D, BR, BA)
    x, y = _pair(phi, psi, place, inside)
    g = tl.load(denergy + row, mask=row < B, other=0.0)
    if ENERGY == "dot":
        to_phi, to_psi = g[:, None] * y, g[:, None] * x
    else:
        apart = y - x
        if ENERGY == "l2":
            share = 2 * g
        else:
            squared = tl.sum(apart * apart, 1)
            share = tl.where(squared > 0, g / tl.sqrt_rn(tl.where(squared > 0, squared, 1.0)), 0.0)
        to_phi = share[:, None] * apart
        to_psi = -to_phi
    if NEED_PHI:
        tl.store(dphi + place, to_phi, mask=inside)
    if NEED_PSI:
        tl.store(dpsi + place, to_psi, mask=inside)


@triton.jit(do_not_specialize=["B"])
def losses_kernel(
    log_prob, value, log_alpha, target, B, actor, temperature, alpha, entropy, BR: tl.constexpr
):
    """The four numbers of policy_losses; log_prob, value [B]. One program."""
    scale = tl.exp(tl.load(log_alpha))
    k = tl.arange(0, BR)
    losses, densities = tl.zeros([BR], tl.float32), tl.zeros([BR], tl.float32)
    for first in tl.range(0, B, BR):
        inside = first + k < B
        density = tl.load(log_prob + first + k, mask=inside, other=0.0)
        losses += scale * density - tl.load(value + first + k, mask=inside, other=0.0)
        densities += density
    mean = tl.sum(densities, 0) / B
    tl.store(actor, tl.sum(losses, 0) / B)
    tl.store(temperature, scale * (-mean - target))
    tl.store(alpha, scale)
    tl.store(entropy, -mean)


@triton.jit(do_not_specialize=["B"])
def losses_backward_kernel(
    dactor, dtemperature, alpha, temperature, B, dlog_prob, dvalue, dlog_alpha, BR: tl.constexpr
):
    """dlog_prob and dvalue [B], dlog_alpha []. Programs: BR rows each."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    share = tl.load(dactor) / B
    tl.store(dvalue + row, tl.zeros([BR], tl.float32) - share, mask=row < B)
    tl.store(dlog_prob + row, tl.zeros([BR], tl.float32) + share * tl.load(alpha), mask=row < B)
    if tl.program_id(0) == 0:
        tl.store(dlog_alpha, tl.load(dtemperature) * tl.load(temperature))
