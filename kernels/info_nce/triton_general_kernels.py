"""The device code of triton_general.py: statistics, then gradients, under every option of `info_nce`.

Two sides meet, as in triton_kernels.py: x, the rows a program owns, and y, which passes by. X_IS_PHI tells which of
them is phi; what belongs to a row of phi or to a goal is laid along its own side of the tile by `_along`.
"""

import triton
import triton.language as tl

from deepres.kernels.info_nce.triton_kernels import _logits, _rows, _sigmoid, _softplus

LEAST = tl.constexpr(-3.4028234e38)  # where a maximum starts: sums over no pair are 0, not NaN


@triton.jit
def _along(pointer, index, count, other, DOWN: tl.constexpr):
    """pointer[index], as a column of a tile (DOWN) or as a row."""
    values = tl.load(pointer + index, mask=index < count, other=other)
    return values[:, None] if DOWN else values[None, :]


@triton.jit
def _energies(
    x, y, x0, y0, nx, ny, D,
    ENERGY: tl.constexpr, X_IS_PHI: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(energy, near, root, place), [BX, BY] each; "mrn": the distance of the second half of the features, and where
    the largest difference phi - psi of the first is, -1 if none is above 0."""
    place = tl.full([BX, BY], -1, tl.int32)
    if ENERGY != "mrn":
        energy, near = _logits(x, y, x0, y0, nx, ny, D, ENERGY, BX, BY, BD, BK)
        return energy, near, energy, place
    row, col = x0 + tl.arange(0, BX), y0 + tl.arange(0, BY)
    most, square = tl.zeros([BX, BY], tl.float32), tl.zeros([BX, BY], tl.float32)
    unordered = tl.zeros([BX, BY], tl.int1)
    for k in range(D):
        xk = tl.load(x + row.to(tl.int64) * D + k, mask=row < nx, other=0.0)
        yk = tl.load(y + col.to(tl.int64) * D + k, mask=col < ny, other=0.0)
        difference = xk[:, None] - yk[None, :]
        if k < D // 2:
            ahead = difference if X_IS_PHI else -difference
            place = tl.where(ahead > most, k, place)
            most = tl.where(ahead > most, ahead, most)
            unordered |= difference != difference
        else:
            square += difference * difference
    root = tl.sqrt_rn(square + 1e-6)
    energy = tl.where(unordered, float("nan"), -(most + root))
    return energy, tl.full([BX, BY], 1, tl.int1), root, place


@triton.jit
def _pairs(
    row, col, nx, ny, labels, left_out,
    X_IS_PHI: tl.constexpr, LEAVES_OUT: tl.constexpr,
):  # fmt: skip
    """(own, kept) [BX, BY]: whether the goal is the row of phi's own, and whether the pair counts at all."""
    phi, goal = (row, col) if X_IS_PHI else (col, row)
    phi_count = nx if X_IS_PHI else ny
    goal_here = goal[None, :] if X_IS_PHI else goal[:, None]
    phi_here = phi[:, None] if X_IS_PHI else phi[None, :]
    own = _along(labels, phi, phi_count, -1, X_IS_PHI) == goal_here
    kept = (row < nx)[:, None] & (col < ny)[None, :]
    if LEAVES_OUT:
        kept = kept & (phi_here + left_out != goal_here)
    return own, kept


@triton.jit
def _logit(energy, scale, bias):
    return tl.fma(energy, tl.load(scale), tl.load(bias))


@triton.jit
def _target(targets, row, col, kept, goals, X_IS_PHI: tl.constexpr):
    """[BX, BY] of targets [B, goals], 0 where a pair does not count."""
    if X_IS_PHI:
        at = row.to(tl.int64)[:, None] * goals + col[None, :]
    else:
        at = col.to(tl.int64)[None, :] * goals + row[:, None]
    return tl.load(targets + at, mask=kept, other=0.0)


@triton.jit
def _side_statistics(
    x, y, out, x0, nx, ny, D, labels, left_out, scale, bias, targets, weight,
    ENERGY: tl.constexpr, X_IS_PHI: tl.constexpr, BINARY: tl.constexpr, LEAVES_OUT: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [7, nx], see info_nce_statistics_kernel."""
    row = x0 + tl.arange(0, BX)
    largest, total = tl.full([BX], LEAST, tl.float32), tl.zeros([BX], tl.float32)
    own_logit, plain = tl.zeros([BX], tl.float32), tl.zeros([BX], tl.float32)
    soft, share = tl.zeros([BX], tl.float32), tl.zeros([BX], tl.float32)
    mass = tl.zeros([BX], tl.float32)
    for y0 in tl.range(0, ny, BY, disable_licm=True):
        energy, _, _, _ = _energies(x, y, x0, y0, nx, ny, D, ENERGY, X_IS_PHI, BX, BY, BD, BK)
        s = _logit(energy, scale, bias)
        col = y0 + tl.arange(0, BY)
        own, kept = _pairs(row, col, nx, ny, labels, left_out, X_IS_PHI, LEAVES_OUT)
        own_logit += tl.sum(tl.where(own & kept, s, 0.0), 1)
        plain += tl.sum(tl.where(kept, s, 0.0), 1)
        if X_IS_PHI:
            if BINARY:
                soft += tl.sum(tl.where(kept, _softplus(s), 0.0), 1)
            if targets is not None:
                t = _target(targets, row, col, kept, ny, X_IS_PHI)
                share += tl.sum(tl.where(kept, t * s, 0.0), 1)
                mass += tl.sum(t, 1)
        else:
            share += tl.sum(tl.where(own, _along(weight, col, ny, 0.0, X_IS_PHI), 0.0), 1)
        s = tl.where(kept, s, float("-inf"))
        most = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp(largest - most) + tl.sum(tl.exp(s - most[:, None]), 1)
        largest = most
    inside = row < nx
    tl.store(out + row, largest, mask=inside)
    tl.store(out + nx + row, total, mask=inside)
    tl.store(out + 2 * nx + row, share, mask=inside)
    if X_IS_PHI:
        tl.store(out + 3 * nx + row, own_logit, mask=inside)
        tl.store(out + 4 * nx + row, plain, mask=inside)
        tl.store(out + 5 * nx + row, soft, mask=inside)
        tl.store(out + 6 * nx + row, mass, mask=inside)


@triton.jit(do_not_specialize=["B", "M", "left_out"])
def info_nce_statistics_kernel(
    phi, psi, B, M, D, labels, left_out, scale, bias, targets, weight, rows, cols,
    ENERGY: tl.constexpr, COL_LOSS: tl.constexpr, BINARY: tl.constexpr, LEAVES_OUT: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program to a tile of BX rows of phi, then, with COL_LOSS, to one of goals.

    phi [B, D], psi [M, D], labels [B] int64, scale, bias [1], targets [B, M] or None, weight [B]; left_out: the goal
    that row 0 is itself, LEAVES_OUT. rows [7, B]: largest logit, sum exp(logit - largest), sum target logit, own
    logit, sum logit, sum softplus, sum target. cols [3, M]: the first two, and the weight of the rows that own it.
    """
    program, row_tiles = tl.program_id(0), tl.cdiv(B, BX)
    if program < row_tiles:
        _side_statistics(
            phi, psi, rows, program * BX, B, M, D, labels, left_out, scale, bias, targets, weight,
            ENERGY, True, BINARY, LEAVES_OUT, BX, BY, BD, BK,
        )  # fmt: skip
    elif COL_LOSS:
        _side_statistics(
            psi, phi, cols, (program - row_tiles) * BX, M, B, D, labels, left_out, scale, bias, None, weight,
            ENERGY, False, False, LEAVES_OUT, BX, BY, BD, BK,
        )  # fmt: skip


@triton.jit
def _side_gradient(
    x, y, dx, sums, x0, nx, ny, D, labels, left_out, scale, bias, targets, by_row, by_goal,
    ENERGY: tl.constexpr, X_IS_PHI: tl.constexpr, COL_LOSS: tl.constexpr, BINARY: tl.constexpr,
    LEAVES_OUT: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row = x0 + tl.arange(0, BX)
    out, far_weights = tl.zeros([BX, BD], tl.float32), tl.zeros([BX], tl.float32)
    energy_sum, g_sum = tl.zeros([BX], tl.float32), tl.zeros([BX], tl.float32)
    B, M = (nx, ny) if X_IS_PHI else (ny, nx)
    feature = tl.arange(0, BD)[None, :]
    for y0 in tl.range(0, ny, BY, disable_licm=True):
        energy, near, root, place = _energies(x, y, x0, y0, nx, ny, D, ENERGY, X_IS_PHI, BX, BY, BD, BK)
        s = _logit(energy, scale, bias)
        col = y0 + tl.arange(0, BY)
        own, kept = _pairs(row, col, nx, ny, labels, left_out, X_IS_PHI, LEAVES_OUT)
        i, j = (row, col) if X_IS_PHI else (col, row)
        g = tl.exp(s - _along(by_row, i, B, float("inf"), X_IS_PHI)) * _along(by_row + B, i, B, 0.0, X_IS_PHI)
        if COL_LOSS:
            largest = _along(by_goal, j, M, float("inf"), not X_IS_PHI)
            g += tl.exp(s - largest) * _along(by_goal + M, j, M, 0.0, not X_IS_PHI)
        if BINARY:
            g += _sigmoid(s) * _along(by_row + 2 * B, i, B, 0.0, X_IS_PHI)
        if targets is None:
            g = tl.where(own, _along(by_row + 3 * B, i, B, 0.0, X_IS_PHI), g)
        else:
            share = _along(by_row + 3 * B, i, B, 0.0, X_IS_PHI)
            g -= share * _target(targets, row, col, kept, M, X_IS_PHI)
        g = tl.where(kept, g, 0.0)
        if sums is not None:
            energy_sum += tl.sum(tl.where(kept, g * energy, 0.0), 1)
            g_sum += tl.sum(g, 1)
        if dx is not None:
            g *= tl.load(scale)
            w = g
            if ENERGY == "norm":
                w = tl.where(energy == 0, 0.0, g / tl.where(energy == 0, 1.0, energy))
            if ENERGY == "l2":
                w = -2 * g
            if ENERGY == "mrn":
                w = -g / root
            if ENERGY == "dot":
                out = tl.dot(w, _rows(y, y0, ny, D, BY, 0, BD), out, input_precision="tf32x3")
            else:
                if ENERGY != "mrn":
                    far = tl.where(near, 0.0, w)
                    out = tl.dot(-far, _rows(y, y0, ny, D, BY, 0, BD), out, input_precision="tf32x3")
                    far_weights += tl.sum(far, 1)
                close = tl.where(near, w, 0.0)
                if tl.max(tl.max(near.to(tl.int32), 1), 0) > 0:
                    for one in tl.range(0, BY, disable_licm=BD <= 128):
                        if y0 + one < ny:
                            here = (col == y0 + one)[None, :]
                            wj = tl.sum(tl.where(here, close, 0.0), 1)
                            yj = _rows(y, y0 + one, ny, D, 1, 0, BD)
                            part = wj[:, None] * (_rows(x, x0, nx, D, BX, 0, BD) - yj)
                            if ENERGY == "mrn":
                                gj = tl.sum(tl.where(here, g, 0.0), 1)
                                at = tl.sum(tl.where(here, place, 0), 1)
                                ahead = tl.where(feature == at[:, None], -gj[:, None], 0.0)
                                part = tl.where(feature < D // 2, ahead if X_IS_PHI else -ahead, part)
                            out += part
    if sums is not None:
        tl.store(sums + row, energy_sum, mask=row < nx)
        tl.store(sums + nx + row, g_sum, mask=row < nx)
    if dx is not None:
        if ENERGY != "dot":
            out += far_weights[:, None] * _rows(x, x0, nx, D, BX, 0, BD)
        at = row.to(tl.int64)[:, None] * D + feature
        tl.store(dx + at, out, mask=(row < nx)[:, None] & (feature < D))


@triton.jit(do_not_specialize=["B", "M", "left_out"])
def info_nce_gradients_kernel(
    phi, psi, B, M, D, labels, left_out, scale, bias, targets, by_row, by_goal, sums, dphi, dpsi,
    ENERGY: tl.constexpr, COL_LOSS: tl.constexpr, BINARY: tl.constexpr, LEAVES_OUT: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program to a tile of BX rows of phi, then to one of goals; the inputs as of the statistics.

    by_row [4, B]: largest logit and scale of the softmax over goals, weight of the sigmoid, dL/dlogit of the own goal
    (with targets: what multiplies them). by_goal [2, M]: largest logit and scale of the softmax over state-actions.
    sums [2, B]: sum_j dL/dlogit energy, sum_j dL/dlogit; dphi [B, D], dpsi [M, D]; None where not asked for.
    """
    program, row_tiles = tl.program_id(0), tl.cdiv(B, BX)
    if program < row_tiles:
        if (dphi is not None) or (sums is not None):
            _side_gradient(
                phi, psi, dphi, sums, program * BX, B, M, D, labels, left_out, scale, bias, targets, by_row,
                by_goal, ENERGY, True, COL_LOSS, BINARY, LEAVES_OUT, BX, BY, BD, BK,
            )  # fmt: skip
    elif dpsi is not None:
        _side_gradient(
            psi, phi, dpsi, None, (program - row_tiles) * BX, M, B, D, labels, left_out, scale, bias, targets,
            by_row, by_goal, ENERGY, False, COL_LOSS, BINARY, LEAVES_OUT, BX, BY, BD, BK,
        )  # fmt: skip
