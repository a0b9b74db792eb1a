"""The device code of info_nce_triton.py: tiles of logits, their statistics, their gradients.

Two sides meet: x, the rows a program owns (of phi, or of psi), and y, the other side, which passes by tile by
tile. The same code serves both: `shift` turns an x index into the y index of its own partner.
"""

import triton
import triton.language as tl

NEAR = tl.constexpr(
    0.25
)  # a pair is near if |x - y|^2 < NEAR (|x|^2 + |y|^2): products would lose its digits


@triton.jit
def _rows(pointer, first, count, D, BLOCK: tl.constexpr, start, WIDTH: tl.constexpr):
    """[BLOCK, WIDTH] of a [count, D] matrix from (first, start) on, 0 outside it."""
    row, k = first + tl.arange(0, BLOCK), start + tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (k < D)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * D + k[None, :], mask=inside, other=0.0)


@triton.jit
def _logits(
    x, y, x0, y0, nx, ny, D,
    ENERGY: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(logits [BX, BY], near [BX, BY]); tiles with near pairs are computed again from differences.

    Loops are told not to keep addresses (disable_licm): all those of a tile are more than registers hold.
    """
    product = tl.zeros([BX, BY], tl.float32)
    xx, yy = tl.zeros([BX], tl.float32), tl.zeros([BY], tl.float32)
    for k in tl.range(0, BD, BK, disable_licm=True):
        xs, ys = _rows(x, x0, nx, D, BX, k, BK), _rows(y, y0, ny, D, BY, k, BK)
        product = tl.dot(xs, tl.trans(ys), product, input_precision="tf32x3")
        xx += tl.sum(xs * xs, 1)
        yy += tl.sum(ys * ys, 1)
    near = tl.zeros([BX, BY], tl.int1)
    logits = product
    if ENERGY != "dot":
        lengths = xx[:, None] + yy[None, :]
        square = lengths - 2 * product
        near = square < NEAR * lengths
        if tl.max(tl.max(near.to(tl.int32), 1), 0) > 0:
            row, col = x0 + tl.arange(0, BX), y0 + tl.arange(0, BY)
            square = tl.zeros([BX, BY], tl.float32)
            for k in range(D):
                xk = tl.load(x + row.to(tl.int64) * D + k, mask=row < nx, other=0.0)
                yk = tl.load(y + col.to(tl.int64) * D + k, mask=col < ny, other=0.0)
                difference = xk[:, None] - yk[None, :]
                square += difference * difference
        logits = -square
        if ENERGY == "norm":
            logits = -tl.sqrt_rn(square)
    return logits, near


@triton.jit
def _softplus(s):
    """log(1 + exp(s)) = max(s, 0) + 2 atanh(e / (2 + e)) with e = exp(-|s|), relative error about 1e-7."""
    e = tl.exp(-tl.abs(s))
    t = e / (e + 2)
    z = t * t
    series = 1 / 7 + z * (1 / 9 + z * (1 / 11 + z * (1 / 13 + z * (1 / 15))))
    return tl.maximum(s, 0.0) + 2 * t * (1 + z * (1 / 3 + z * (1 / 5 + z * series)))


@triton.jit
def _sigmoid(s):
    e = tl.exp(-tl.abs(s))
    return tl.where(s > 0, 1.0, e) / (1 + e)


@triton.jit
def _statistics(
    x, y, x0, nx, ny, D, shift,
    ENERGY: tl.constexpr, BINARY: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Per x: the largest logit, sum exp(logit - largest), the partner's logit, sum logit, sum softplus."""
    row = x0 + tl.arange(0, BX)
    largest = tl.full([BX], float("-inf"), tl.float32)
    total, own = tl.zeros([BX], tl.float32), tl.zeros([BX], tl.float32)
    plain, soft = tl.zeros([BX], tl.float32), tl.zeros([BX], tl.float32)
    for y0 in tl.range(0, ny, BY, disable_licm=True):
        s, _ = _logits(x, y, x0, y0, nx, ny, D, ENERGY, BX, BY, BD, BK)
        col = y0 + tl.arange(0, BY)
        inside = (col < ny)[None, :]
        own += tl.sum(tl.where(col[None, :] == row[:, None] + shift, s, 0.0), 1)
        plain += tl.sum(tl.where(inside, s, 0.0), 1)
        if BINARY:
            soft += tl.sum(tl.where(inside, _softplus(s), 0.0), 1)
        s = tl.where(inside, s, float("-inf"))
        most = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp(largest - most) + tl.sum(tl.exp(s - most[:, None]), 1)
        largest = most
    return largest, total, own, plain, soft


@triton.jit
def _gradient(
    x, y, x_softmax, y_softmax, dx, x0, nx, ny, D, shift, binary_share,
    ENERGY: tl.constexpr, USE_X: tl.constexpr, USE_Y: tl.constexpr, BINARY: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx of BX rows: sum_y w (x - y) with w = dL/dlogit * slope, or sum_y w y for "dot".

    x_softmax, y_softmax: [3, n], per x and per y (USE_X, USE_Y): the largest logit and scale of a softmax's
    part of dL/dlogit, and that part for the pair's own logit, where rounding before the -1 would show.
    Far pairs go through products; w (x - y) of near ones is summed pair by pair.
    """
    row = x0 + tl.arange(0, BX)
    out, weights = tl.zeros([BX, BD], tl.float32), tl.zeros([BX], tl.float32)
    if USE_X:
        x_largest = tl.load(x_softmax + row, mask=row < nx, other=float("inf"))
        x_scale = tl.load(x_softmax + nx + row, mask=row < nx, other=0.0)
        x_own = tl.load(x_softmax + 2 * nx + row, mask=row < nx, other=0.0)
    for y0 in tl.range(0, ny, BY, disable_licm=True):
        s, near = _logits(x, y, x0, y0, nx, ny, D, ENERGY, BX, BY, BD, BK)
        col = y0 + tl.arange(0, BY)
        w, own = tl.zeros([BX, BY], tl.float32), tl.zeros([BX, BY], tl.float32)
        if USE_X:
            w += tl.exp(s - x_largest[:, None]) * x_scale[:, None]
            own += x_own[:, None]
        if USE_Y:
            y_largest = tl.load(y_softmax + col, mask=col < ny, other=float("inf"))
            y_scale = tl.load(y_softmax + ny + col, mask=col < ny, other=0.0)
            w += tl.exp(s - y_largest[None, :]) * y_scale[None, :]
            own += tl.load(y_softmax + 2 * ny + col, mask=col < ny, other=0.0)[None, :]
        partner = col[None, :] == row[:, None] + shift
        if BINARY:
            part = _sigmoid(tl.where(partner, -s, s)) * binary_share
            w += part
            own -= part
        w = tl.where(partner, own, w)
        w = tl.where((row < nx)[:, None] & (col < ny)[None, :], w, 0.0)
        if ENERGY == "norm":
            w = tl.where(s == 0, 0.0, w / tl.where(s == 0, 1.0, s))
        if ENERGY == "l2":
            w = -2 * w
        ys = _rows(y, y0, ny, D, BY, 0, BD)
        if ENERGY == "dot":
            out = tl.dot(w, ys, out, input_precision="tf32x3")
        else:
            far = tl.where(near, 0.0, w)
            out = tl.dot(-far, ys, out, input_precision="tf32x3")
            weights += tl.sum(far, 1)
            if tl.max(tl.max(near.to(tl.int32), 1), 0) > 0:
                close = tl.where(near, w, 0.0)
                for j in tl.range(0, BY, disable_licm=BD <= 128):  # by what spills least
                    if y0 + j < ny:
                        wj = tl.sum(tl.where((col == y0 + j)[None, :], close, 0.0), 1)
                        yj = _rows(y, y0 + j, ny, D, 1, 0, BD)
                        out += wj[:, None] * (_rows(x, x0, nx, D, BX, 0, BD) - yj)
    if ENERGY != "dot":
        out += weights[:, None] * _rows(x, x0, nx, D, BX, 0, BD)
    k = tl.arange(0, BD)
    tl.store(
        dx + row.to(tl.int64)[:, None] * D + k[None, :], out, mask=(row < nx)[:, None] & (k < D)[None, :]
    )


@triton.jit
def _summarise(
    rows, cols, summary, B, M, offset, penalty,
    ROW_LOSS: tl.constexpr, COL_LOSS: tl.constexpr, BINARY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """summary [4] = loss, accuracy, mean positive, mean negative, from the statistics of all rows."""
    loss, penalties = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    first, own, plain = (
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
    )
    pairs = B.to(tl.float32) * M
    for i0 in range(0, B, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        inside = i < B
        largest = tl.load(rows + i, mask=inside, other=1.0)
        positive = tl.load(rows + 5 * B + i, mask=inside, other=0.0)
        inner = tl.where(inside, tl.load(rows + 3 * B + i, mask=inside, other=0.0) + 1e-6, 0.0)
        penalties += inner * inner
        if ROW_LOSS:
            loss += tl.load(rows + 4 * B + i, mask=inside, other=0.0)
        if COL_LOSS:
            loss += tl.load(cols + 3 * M + offset + i, mask=inside, other=0.0)
        if BINARY:
            loss += (tl.load(rows + 7 * B + i, mask=inside, other=0.0) - positive) / M
        first += tl.where(positive >= largest, 1.0, 0.0)
        own += positive
        plain += tl.load(rows + 6 * B + i, mask=inside, other=0.0)
    mean_own = tl.sum(own, 0)
    tl.store(summary, (tl.sum(loss, 0) + penalty * tl.sum(penalties, 0)) / B)
    tl.store(summary + 1, tl.sum(first, 0) / B)
    tl.store(summary + 2, mean_own / B)
    tl.store(summary + 3, (tl.sum(plain, 0) - mean_own) / (pairs - B))


@triton.jit(do_not_specialize=["B", "M", "offset"])
def info_nce_kernel(
    phi, psi, B, M, D, offset, penalty,
    rows, cols, counter, summary, dphi, dpsi,
    ENERGY: tl.constexpr, ROW_LOSS: tl.constexpr, COL_LOSS: tl.constexpr, BINARY: tl.constexpr,
    USE_ROW: tl.constexpr, NEED_PHI: tl.constexpr, NEED_PSI: tl.constexpr, PHASE: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """PHASE "statistics", then "gradients"; or "both" in one launch, across a barrier of the whole grid.

    phi [B, D], psi [M, D]. Programs: a tile of BX rows of phi each, then of psi each, one for the summary.
    rows [8, B]: largest logit, scale and own gradient of the softmax over goals (see _gradient), lse,
    lse - positive, positive, sum logit, sum softplus. cols [4, M]: largest logit, scale, own gradient, lse -
    positive of the softmax over state-actions (COL_LOSS); a scale of 0 where no row owns the goal.
    counter [1]: 0 (PHASE "both").
    summary [4]: loss, accuracy, mean positive, mean negative. dphi [B, D], dpsi [M, D], of a loss of 1.
    """
    program = tl.program_id(0)
    row_tiles, col_tiles = tl.cdiv(B, BX), tl.cdiv(M, BX)
    count = B.to(tl.float32)

    if PHASE != "gradients":
        if program < row_tiles:
            largest, total, own, plain, soft = _statistics(
                phi, psi, program * BX, B, M, D, offset, ENERGY, BINARY, BX, BY, BD, BK
            )
            i = program * BX + tl.arange(0, BX)
            inside = i < B
            lse = largest + tl.log(total)
            share = 2 * penalty * (lse + 1e-6)
            p = tl.exp(own - largest) / total
            own_gradient = p * share
            if ROW_LOSS:
                share += 1
                own_gradient += p - 1
            tl.store(rows + i, largest, mask=inside)
            tl.store(rows + B + i, share / count / total, mask=inside)
            tl.store(rows + 2 * B + i, own_gradient / count, mask=inside)
            tl.store(rows + 3 * B + i, lse, mask=inside)
            tl.store(rows + 4 * B + i, (largest - own) + tl.log(total), mask=inside)
            tl.store(rows + 5 * B + i, own, mask=inside)
            tl.store(rows + 6 * B + i, plain, mask=inside)
            tl.store(rows + 7 * B + i, soft, mask=inside)
        elif COL_LOSS and program < row_tiles + col_tiles:
            first = (program - row_tiles) * BX
            largest, total, own, _, _ = _statistics(
                psi, phi, first, M, B, D, -offset, ENERGY, False, BX, BY, BD, BK
            )
            j = first + tl.arange(0, BX)
            partner = (j >= offset) & (j < offset + B)
            tl.store(cols + j, tl.where(partner, largest, float("inf")), mask=j < M)
            tl.store(cols + M + j, tl.where(partner, 1 / (count * total), 0.0), mask=j < M)
            tl.store(cols + 2 * M + j, (tl.exp(own - largest) / total - 1) / count, mask=j < M)
            tl.store(cols + 3 * M + j, (largest - own) + tl.log(total), mask=j < M)

    if PHASE == "both":
        tl.debug_barrier()  # every thread's stores come before the arrival
        arrived = tl.atomic_add(counter, 1, sem="acq_rel") + 1
        while arrived < tl.num_programs(0):
            arrived = tl.atomic_add(counter, 0, sem="acquire")
        tl.debug_barrier()

    if PHASE != "statistics":
        pairs = count * M
        if program < row_tiles:
            if NEED_PHI:
                _gradient(
                    phi, psi, rows, cols, dphi, program * BX, B, M, D, offset, 1 / pairs,
                    ENERGY, USE_ROW, COL_LOSS, BINARY, BX, BY, BD, BK,
                )  # fmt: skip
        elif program < row_tiles + col_tiles:
            if NEED_PSI:
                _gradient(
                    psi, phi, cols, rows, dpsi, (program - row_tiles) * BX, M, B, D, -offset, 1 / pairs,
                    ENERGY, COL_LOSS, USE_ROW, BINARY, BX, BY, BD, BK,
                )  # fmt: skip
        else:
            _summarise(rows, cols, summary, B, M, offset, penalty, ROW_LOSS, COL_LOSS, BINARY, 1024)
