"""The device code of hazard/triton.py: tiles of logits, what rows say of them, and their gradients."""

import triton
import triton.language as tl


@triton.jit
def _rows(pointer, first, count, D, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """[BLOCK, WIDTH] of a [count, D] matrix from row `first` on, 0 outside it."""
    row, k = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (k < D)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * D + k[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(pointer, first, count, D, x, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    row, k = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (k < D)[None, :]
    tl.store(pointer + row.to(tl.int64)[:, None] * D + k[None, :], x, mask=inside)


@triton.jit
def _logits(x, y, bias, k0, K, BK: tl.constexpr):
    """[BR, BK]: x [BR, BD] @ y [BK, BD].T + bias of bins k0 .. k0 + BK - 1."""
    k = k0 + tl.arange(0, BK)
    return (
        tl.dot(x, tl.trans(y), input_precision="tf32x3") + tl.load(bias + k, mask=k < K, other=0.0)[None, :]
    )


@triton.jit
def _logistic(x):
    """(sigmoid, softplus) of x: e = exp(-|x|), softplus = max(x, 0) + 2 atanh(e / (2 + e)), to about 1e-7."""
    e = tl.exp(-tl.abs(x))
    t = e / (e + 2)
    z = t * t
    series = 1 / 7 + z * (1 / 9 + z * (1 / 11 + z * (1 / 13 + z * (1 / 15))))
    softplus = tl.maximum(x, 0.0) + 2 * t * (1 + z * (1 / 3 + z * (1 / 5 + z * series)))
    return tl.where(x > 0, 1.0, e) / (1 + e), softplus


@triton.jit
def _add(high, excess, x):
    """high + x, and what of it was put in too much (Kahan); nothing where the sum is infinite."""
    y = x - excess
    total = high + y
    return total, tl.where(total - total == 0, (total - high) - y, 0.0)


@triton.jit
def _labels(lag, event, scale, r0, B, K, BR: tl.constexpr):
    """Of rows r0 .. r0 + BR - 1: the bins that were survived, the bin of the event or -1, scale, whether there is an
    event at lag 0."""
    row = r0 + tl.arange(0, BR)
    inside = row < B
    lags = tl.load(lag + row, mask=inside, other=0)
    events = tl.load(event + row, mask=inside, other=0) != 0
    survived = tl.minimum(tl.maximum(lags, 0), K).to(tl.int32)
    hit = tl.where(events & (lags > 0) & (lags < K), survived, -1)
    return survived, hit, tl.load(scale + row, mask=inside, other=0.0), events & (lags == 0)


@triton.jit
def _nll_tile(logits, survived, hit, scale, k0, BK: tl.constexpr):
    """(what the tile's bins add to the rows' nll, and scale * its gradient), [BR, BK] each."""
    k = (k0 + tl.arange(0, BK))[None, :]
    here = k == hit[:, None]
    counts = (k < survived[:, None]) | here
    sigmoid, softplus = _logistic(tl.where(here, -logits, logits))
    return tl.where(counts, softplus, 0.0), tl.where(
        counts, tl.where(here, -sigmoid, sigmoid) * scale[:, None], 0.0
    )


@triton.jit(do_not_specialize=["B", "K"])
def nll_kernel(
    features, basis, bias, l0, lag, event, scale, B, K, D,
    nll, dfeatures, dbasis, dbias, dl0,
    NEED_ROWS: tl.constexpr, NEED_BINS: tl.constexpr,
    BR: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """nll [B] and the gradients of sum(scale * nll).

    features [B, D], basis [K, D], bias [K], l0 [B]; lag [B] int64, event [B] uint8, scale [B]. Programs: a tile of BR
    rows each, then, with NEED_BINS, one of BK bins each, which walks past all rows.
    """
    program, tiles = tl.program_id(0), tl.cdiv(B, BR)
    if program < tiles:
        r0 = program * BR
        survived, hit, share, there = _labels(lag, event, scale, r0, B, K, BR)
        x = _rows(features, r0, B, D, BR, BD)
        high, excess = tl.zeros([BR], tl.float32), tl.zeros([BR], tl.float32)
        out = tl.zeros([BR, BD], tl.float32)
        last = tl.max(tl.maximum(survived, hit + 1), 0)  # bins that no row needs are left out
        for k0 in tl.range(0, last, BK):
            y = _rows(basis, k0, K, D, BK, BD)
            terms, g = _nll_tile(_logits(x, y, bias, k0, K, BK), survived, hit, share, k0, BK)
            high, excess = _add(high, excess, tl.sum(terms, 1))
            if NEED_ROWS:
                out = tl.dot(g, y, out, input_precision="tf32x3")
        row = r0 + tl.arange(0, BR)
        start = tl.load(l0 + row, mask=row < B, other=0.0)
        sigmoid, softplus = _logistic(tl.where(there, -start, start))
        tl.store(nll + row, (softplus + high) - excess, mask=row < B)
        if NEED_ROWS:
            tl.store(dl0 + row, tl.where(there, -sigmoid, sigmoid) * share, mask=row < B)
            _store_rows(dfeatures, r0, B, D, out, BR, BD)
    elif NEED_BINS:
        k0 = (program - tiles) * BK
        k = k0 + tl.arange(0, BK)
        y = _rows(basis, k0, K, D, BK, BD)
        sums, column = tl.zeros([BK, BD], tl.float32), tl.zeros([BK], tl.float32)
        for r0 in tl.range(0, B, BR):
            survived, hit, share, _ = _labels(lag, event, scale, r0, B, K, BR)
            x = _rows(features, r0, B, D, BR, BD)
            _, g = _nll_tile(_logits(x, y, bias, k0, K, BK), survived, hit, share, k0, BK)
            sums = tl.dot(tl.trans(g), x, sums, input_precision="tf32x3")
            column += tl.sum(g, 0)
        tl.store(dbias + k, column, mask=k < K)
        _store_rows(dbasis, k0, K, D, sums, BK, BD)


@triton.jit
def _survival_tile(logits, log_survival, discount, k0, K, BK: tl.constexpr):
    """(discount_{k+1} S_{k+1}, hazard_k, log(1 - hazard_k)) of a tile's bins k, [BR, BK] each. log_survival [BR]: log S
    of the tile's first bin. That of the next bin is a sum without a difference, which would lose the last digits."""
    k = k0 + tl.arange(0, BK)
    inside = (k < K)[None, :]
    hazard, softplus = _logistic(logits)
    survived = tl.where(inside, -softplus, 0.0)
    weight = tl.load(discount + k + 1, mask=k + 1 < K, other=0.0)[None, :]
    behind = weight * tl.exp(log_survival[:, None] + tl.cumsum(survived, 1))
    return tl.where((k + 1 < K)[None, :], behind, 0.0), tl.where(inside, hazard, 0.0), survived


@triton.jit(do_not_specialize=["B", "K"])
def value_kernel(
    features, basis, bias, l0, discount, weight, B, K, D,
    carried, value, dfeatures, dl0,
    NEED_TAILS: tl.constexpr, NEED_ROWS: tl.constexpr,
    BR: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """value [B] and the gradients of sum(weight * value) for the rows. Programs: a tile of BR rows each.

    discount [K], weight [B]. carried [2, K / BK, B]: of each tile of bins, log S of its first one, and with NEED_TAILS
    the sum of discount_k S_k of the bins that come after the next tile's first; bins_kernel reads both.
    """
    r0 = tl.program_id(0) * BR
    row = r0 + tl.arange(0, BR)
    inside = row < B
    x = _rows(features, r0, B, D, BR, BD)
    start = tl.load(l0 + row, mask=inside, other=0.0)
    there, softplus = _logistic(start)
    log_high, log_excess = -softplus, tl.zeros([BR], tl.float32)
    high, excess = tl.load(discount) * tl.exp(log_high), tl.zeros([BR], tl.float32)
    for k0 in tl.range(0, K, BK):
        y = _rows(basis, k0, K, D, BK, BD)
        log_survival = log_high - log_excess
        tl.store(carried + (k0 // BK) * B + row, log_survival, mask=inside)
        terms, _, survived = _survival_tile(_logits(x, y, bias, k0, K, BK), log_survival, discount, k0, K, BK)
        high, excess = _add(high, excess, tl.sum(terms, 1))
        log_high, log_excess = _add(log_high, log_excess, tl.sum(survived, 1))
    total = high - excess
    tl.store(value + row, -total, mask=inside)
    if NEED_TAILS:
        share = tl.load(weight + row, mask=inside, other=0.0)
        if NEED_ROWS:
            tl.store(dl0 + row, there * total * share, mask=inside)
        tiles = tl.cdiv(K, BK)
        tail_high, tail_excess = tl.zeros([BR], tl.float32), tl.zeros([BR], tl.float32)
        out = tl.zeros([BR, BD], tl.float32)
        for back in tl.range(0, tiles):
            tile = tiles - 1 - back
            k0 = tile * BK
            y = _rows(basis, k0, K, D, BK, BD)
            log_survival = tl.load(carried + tile * B + row, mask=inside, other=0.0)
            terms, hazard, _ = _survival_tile(
                _logits(x, y, bias, k0, K, BK), log_survival, discount, k0, K, BK
            )
            tail = tail_high - tail_excess
            tl.store(carried + (tiles + tile) * B + row, tail, mask=inside)
            if NEED_ROWS:
                g = hazard * (tail[:, None] + tl.cumsum(terms, 1, reverse=True)) * share[:, None]
                out = tl.dot(g, y, out, input_precision="tf32x3")
            tail_high, tail_excess = _add(tail_high, tail_excess, tl.sum(terms, 1))
        if NEED_ROWS:
            _store_rows(dfeatures, r0, B, D, out, BR, BD)


@triton.jit(do_not_specialize=["B", "K"])
def bins_kernel(
    features, basis, bias, discount, weight, carried, B, K, D, dbasis, dbias,
    BR: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dbasis [K, D] and dbias [K] of sum(weight * value), after value_kernel. Programs: a tile of BK bins each."""
    tile, tiles = tl.program_id(0), tl.cdiv(K, BK)
    k0 = tile * BK
    k = k0 + tl.arange(0, BK)
    y = _rows(basis, k0, K, D, BK, BD)
    out, column = tl.zeros([BK, BD], tl.float32), tl.zeros([BK], tl.float32)
    for r0 in tl.range(0, B, BR):
        row = r0 + tl.arange(0, BR)
        inside = row < B
        x = _rows(features, r0, B, D, BR, BD)
        log_survival = tl.load(carried + tile * B + row, mask=inside, other=0.0)
        tail = tl.load(carried + (tiles + tile) * B + row, mask=inside, other=0.0)
        share = tl.load(weight + row, mask=inside, other=0.0)
        terms, hazard, _ = _survival_tile(_logits(x, y, bias, k0, K, BK), log_survival, discount, k0, K, BK)
        g = hazard * (tail[:, None] + tl.cumsum(terms, 1, reverse=True)) * share[:, None]
        out = tl.dot(tl.trans(g), x, out, input_precision="tf32x3")
        column += tl.sum(g, 0)
    tl.store(dbias + k, column, mask=k < K)
    _store_rows(dbasis, k0, K, D, out, BK, BD)
