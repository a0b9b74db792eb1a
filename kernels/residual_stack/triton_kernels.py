"""Device code of the Triton residual stack; the launches are in residual_stack_triton.py.

A program of a chain kernel owns BLOCK_B rows and walks all the layers of its stretch, in one loop over every
K-chunk of every layer's weight. The chunks of the rows' own activations stay in registers and are chosen by
`_pick`, so the only loads inside the loop's products are weights: the software pipeline streams them from one
layer into the next without draining. (A tile that is PARKED in memory for a block is read by threads of the
program that wrote it: barriers lie between, as every product exchanges its operand through shared memory.)

The second dimension of the grid is a group's E members: a program finds its member's part of every tensor, and shapes
below are one member's. "layers of depth" is a slice: from one member to the next there are `depth` layers.

Forward, for rows a [BLOCK_B, W]

    u = a @ weight + bias;  n = (u - mean(u)) * rstd;  z = gamma * n + beta;  a = act(z) (+ block input)

Backward, from the last layer to the first, with y = act(z) rebuilt from the saved n

    dz = da * act'(z);  dn = dz * gamma;  du = rstd * (dn - mean(dn) - n * mean(dn * n));  da = du @ weight.T
"""

# ruff: noqa: SIM102  (an `if` on a constant around an `if` at run time is not one `if` to Triton)

import triton
import triton.language as tl

# Arguments that differ from call to call, for which no kernel is built anew.
COUNTS = ["batch", "layers", "every", "kept", "depth", "weights_held", "rows_held", "saved_held", "programs"]


@triton.jit
def _rounded(x, FORMAT: tl.constexpr):
    """fp32 x rounded to nearest even in one of the launcher's FORMATS."""
    if FORMAT == "bf16":
        return x.to(tl.bfloat16)
    elif FORMAT == "fp16":
        return x.to(tl.float16)
    elif FORMAT == "fp32":
        return x
    else:  # tf32, or bf16 where it is emulated: fp32 whose lowest bits are 0
        DROPPED: tl.constexpr = 13 if FORMAT == "tf32" else 16
        bits = x.to(tl.int32, bitcast=True)
        bits += (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
        kept = (bits >> DROPPED << DROPPED).to(tl.float32, bitcast=True)
        return tl.where(x == x, kept, x)  # the bits of a NaN may have run over


@triton.jit
def _halves(a):
    """The left and the right half of the columns of a."""
    return tl.split(tl.permute(tl.reshape(a, [a.shape[0], 2, a.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def _chunks(a, CHUNKS: tl.constexpr):
    """The columns of a in CHUNKS equal parts, a power of two."""
    if CHUNKS == 1:
        return (a,)
    else:
        halves = _halves(a)
        return _chunks(halves[0], CHUNKS // 2) + _chunks(halves[1], CHUNKS // 2)


@triton.jit
def _pick(chunks, k, CHUNKS: tl.constexpr):
    """chunks[k] for a k known at run time: registers have no index, so select."""
    chunk = chunks[0]
    for i in tl.static_range(1, CHUNKS):
        chunk = tl.where(k == i, chunks[i], chunk)
    return chunk


@triton.jit
def _activate(z, SWISH: tl.constexpr):
    if SWISH:
        return z * tl.sigmoid(z)
    else:
        return tl.where(z < 0, 0.0, z)


@triton.jit
def _slope(z, SWISH: tl.constexpr):
    if SWISH:
        s = tl.sigmoid(z)
        return s * (1 + z * (1 - s))
    else:
        return tl.where(z > 0, 1.0, 0.0)


@triton.jit(do_not_specialize=COUNTS)
def round_kernel(
    source,  # [E, layers of depth, W, W] fp32
    out,  # [E, layers, W, W] in the operand format
    layers, depth,
    W: tl.constexpr, OPERAND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = source in the operand format, BLOCK elements of a member to a program."""
    member = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < layers.to(tl.int64) * W * W
    values = tl.load(source + member * depth * W * W + i, mask=inside)
    tl.store(out + member * layers * W * W + i, _rounded(values, OPERAND), mask=inside)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=["rstd"])
def forward_kernel(
    x,  # [B, W] of rows_held fp32, input of the stretch; may be y itself
    weight,  # [layers of weights_held, W, W] in the operand format
    bias, gamma, beta,  # [layers of depth, W] fp32
    y,  # out [B, W] fp32
    saved,  # out, of saved_held: n [layers, B, W] for SAVE="layers", block inputs [kept, B, W] for SAVE="blocks"
    rstd,  # out [layers of saved_held, B] fp32, for SAVE="layers"
    batch, layers, every, kept, eps,
    depth, weights_held, rows_held, saved_held,
    W: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, SKIP: tl.constexpr, NORM: tl.constexpr,
    SWISH: tl.constexpr, OPERAND: tl.constexpr, DOT: tl.constexpr, STORED: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """All layers of a stretch for BLOCK_B rows. SAVE: "nothing", "layers", or "blocks" (one in `every`)."""
    CHUNKS: tl.constexpr = W // BLOCK_K
    member = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK_B  # of the program's rows
    rows = tl.arange(0, BLOCK_B)
    cols = tl.arange(0, W)
    tile = rows[:, None] * W + cols[None, :]
    size = batch.to(tl.int64) * W
    live = rows < batch - start
    inside = live[:, None]
    x += (member * rows_held * batch + start) * W
    weight += member * weights_held * W * W
    bias += member * depth * W
    gamma += member * depth * W
    beta += member * depth * W
    y += (member * batch + start) * W
    saved += (member * saved_held * batch + start) * W
    rstd += member * saved_held * batch + start

    stream = tl.load(x + tile, mask=inside, other=0.0)
    PARKED: tl.constexpr = W > 256 and SKIP > 0  # the residual stream waits in y: its registers would spill
    if PARKED:
        tl.store(y + tile, stream, mask=inside)
    chunks = _chunks(_rounded(stream, OPERAND), CHUNKS)
    weights = weight + tl.arange(0, BLOCK_K)[:, None] * W + cols[None, :]
    b = tl.load(bias + cols)
    if NORM:
        scale = tl.load(gamma + cols)
        shift = tl.load(beta + cols)
    u = tl.zeros([BLOCK_B, W], tl.float32)
    for t in range(layers * CHUNKS):
        k = t % CHUNKS
        u = tl.dot(_pick(chunks, k, CHUNKS), tl.load(weights), u, input_precision=DOT)
        weights += BLOCK_K * W
        if k == CHUNKS - 1:
            l = t // CHUNKS
            n = u + b[None, :]
            if NORM:
                n -= (tl.sum(n, 1) * (1.0 / W))[:, None]
                variance = tl.sum(n * n, 1) * (1.0 / W)
                # Overflown, it would make n of 0: finite, and wrong. So the row becomes NaN, and shows.
                r = tl.where(variance < float("inf"), 1 / tl.sqrt_rn(variance + eps), float("nan"))
                n *= r[:, None]
            stored = _rounded(n, STORED)  # backward rebuilds from this, so forward goes on from it too
            if SAVE == "layers":
                tl.store(saved + l * size + tile, stored, mask=inside)
                if NORM:
                    tl.store(rstd + l.to(tl.int64) * batch + rows, r, mask=live)
            z = stored.to(tl.float32)
            if NORM:
                z = z * scale[None, :] + shift[None, :]
            a = _activate(z, SWISH)
            if SKIP > 0:
                if (l + 1) % SKIP == 0:
                    if PARKED:
                        a += tl.load(y + tile, mask=inside, other=0.0)
                        tl.store(y + tile, a, mask=inside)
                    else:
                        a += stream
                        stream = a
                    if SAVE == "blocks":
                        if ((l + 1) % every == 0) & (l < kept * every):
                            tl.store(saved + (l // every) * size + tile, a, mask=inside)
            if l == layers - 1:
                tl.store(y + tile, a, mask=inside)
            chunks = _chunks(_rounded(a, OPERAND), CHUNKS)
            u = tl.zeros([BLOCK_B, W], tl.float32)
            following = tl.minimum(l + 1, layers - 1) * W + cols  # asked for a whole layer ahead
            b = tl.load(bias + following)
            if NORM:
                scale = tl.load(gamma + following)
                shift = tl.load(beta + following)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=["rstd"])
def dgrad_kernel(
    dy,  # [B, W] fp32, gradient of the stretch's output; may be dx itself
    x,  # [B, W] fp32, input of the whole stack (NEED_WEIGHT and FIRST)
    weight,  # [layers of weights_held, W, W] in the operand format
    gamma, beta,  # [layers of depth, W] fp32
    saved, rstd,  # n [layers, B, W], [layers, B] fp32, of saved_held, as forward_kernel saved them
    dx,  # out [B, W] fp32, gradient of the stretch's input (NEED_INPUT; scratch in any case)
    stream,  # in and out [B, W] fp32: the stretch's output, then its input (NEED_WEIGHT and SKIP)
    a, du,  # out [layers, B, W] in the operand format (NEED_WEIGHT)
    sums,  # out [3, E, programs, layers, W] fp32: this tile's dbias, dgamma, dbeta (NEED_VECTORS)
    batch, layers, depth, weights_held, saved_held,
    W: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, SKIP: tl.constexpr, NORM: tl.constexpr,
    SWISH: tl.constexpr, OPERAND: tl.constexpr, DOT: tl.constexpr, FIRST: tl.constexpr,
    NEED_INPUT: tl.constexpr, NEED_WEIGHT: tl.constexpr, NEED_VECTORS: tl.constexpr,
):  # fmt: skip
    """The chain of input gradients of a stretch for BLOCK_B rows. FIRST: the stretch starts at layer 0."""
    CHUNKS: tl.constexpr = W // BLOCK_K
    # Two tiles wait while a block is walked: the gradient on its way past it, and its output. Where their
    # registers would spill, they wait in dx and stream, and addresses are computed anew in each layer.
    WIDE: tl.constexpr = W > 256
    PARKED: tl.constexpr = WIDE and SKIP > 0
    member = tl.program_id(1).to(tl.int64)
    program = member * tl.num_programs(0) + tl.program_id(0)
    start = tl.program_id(0).to(tl.int64) * BLOCK_B  # of the program's rows
    rows = tl.arange(0, BLOCK_B)
    cols = tl.arange(0, W)
    tile = rows[:, None] * W + cols[None, :]
    size = batch.to(tl.int64) * W
    live = rows < batch - start
    inside = live[:, None]
    own = (member * batch + start) * W
    dy += own
    x += own
    weight += member * weights_held * W * W
    gamma += member * depth * W
    beta += member * depth * W
    saved += (member * saved_held * batch + start) * W
    rstd += member * saved_held * batch + start
    dx += own
    stream += own
    a += (member * layers * batch + start) * W
    du += (member * layers * batch + start) * W

    da = tl.load(dy + tile, mask=inside, other=0.0)
    if not PARKED:
        carried = tl.zeros([BLOCK_B, W], tl.float32)
        if NEED_WEIGHT and SKIP > 0:
            block = tl.load(stream + tile, mask=inside, other=0.0)
    last = layers - 1
    n = tl.load(saved + last * size + tile, mask=inside, other=0.0)
    if NORM:
        r = tl.load(rstd + last.to(tl.int64) * batch + rows, mask=live, other=0.0)
        scale = tl.load(gamma + last * W + cols)
        shift = tl.load(beta + last * W + cols)
    chunks = _chunks(_rounded(da, OPERAND), CHUNKS)  # replaced by du before they are read
    # weight[l].T, chunk k: element (k, column) is weight[l, column, k]
    transposed = cols[None, :] * W + tl.arange(0, BLOCK_K)[:, None]
    steps = layers * CHUNKS
    if not NEED_INPUT:
        steps -= CHUNKS - 1  # all of the bottom layer's product but the chunk that its du comes with
    for t in tl.range(steps, disable_licm=WIDE):
        k = t % CHUNKS
        l = last - t // CHUNKS
        if k == 0:
            same = rows + tl.minimum(l, 0) if WIDE else rows  # the same rows, but the compiler cannot tell
            here = same[:, None] * W + cols[None, :]
            if SKIP > 0:
                if (l + 1) % SKIP == 0:
                    if not PARKED:
                        da += carried
                        carried = da
                    else:
                        if l < last:
                            da += tl.load(dx + here, mask=inside, other=0.0)
                        tl.store(dx + here, da, mask=inside)
            z = n.to(tl.float32)
            if NORM:
                z = z * scale[None, :] + shift[None, :]
            # Tied to da: else Triton computes the activation twice, as products lay it out and as `a` is stored.
            z = tl.where(da == da, z, da)
            dz = da * _slope(z, SWISH)
            if NEED_WEIGHT:  # the layer's output is the input of the layer above
                out = _activate(z, SWISH)
                above = out
                if SKIP > 0:
                    if (l + 1) % SKIP == 0:
                        if PARKED:
                            above = tl.load(stream + here, mask=inside, other=0.0)
                            tl.store(stream + here, above - out, mask=inside)
                        else:
                            above = block
                            block -= out
                if l < last:
                    tl.store(a + (l + 1) * size + here, _rounded(above, OPERAND), mask=inside)
            if NORM:
                normal = n.to(tl.float32)
                if NEED_VECTORS:
                    place = sums + (program * layers + l) * W + cols
                    third = tl.num_programs(1).to(tl.int64) * tl.num_programs(0) * layers * W
                    tl.store(place + third, tl.sum(dz * normal, 0))
                    tl.store(place + 2 * third, tl.sum(dz, 0))
                dz *= scale[None, :]
                mean = tl.sum(dz, 1) * (1.0 / W)
                slant = tl.sum(dz * normal, 1) * (1.0 / W)
                dz = r[:, None] * (dz - mean[:, None] - normal * slant[:, None])
            if NEED_VECTORS:
                tl.store(sums + (program * layers + l) * W + cols, tl.sum(dz, 0))
            rounded = _rounded(dz, OPERAND)
            if NEED_WEIGHT:
                tl.store(du + l * size + here, rounded, mask=inside)
            chunks = _chunks(rounded, CHUNKS)
            da = tl.zeros([BLOCK_B, W], tl.float32)
            below = tl.maximum(l - 1, 0)  # asked for a whole layer ahead
            n = tl.load(saved + below * size + here, mask=inside, other=0.0)
            if NORM:
                r = tl.load(rstd + below.to(tl.int64) * batch + rows, mask=live, other=0.0)
                scale = tl.load(gamma + below * W + cols)
                shift = tl.load(beta + below * W + cols)
        weights = weight + l.to(tl.int64) * W * W + (transposed + k * BLOCK_K)
        da = tl.dot(_pick(chunks, k, CHUNKS), tl.load(weights), da, input_precision=DOT)
    if NEED_INPUT:
        if SKIP > 0:
            da += tl.load(dx + tile, mask=inside, other=0.0) if PARKED else carried
        tl.store(dx + tile, da, mask=inside)
    if NEED_WEIGHT:
        if FIRST:
            bottom = tl.load(x + tile, mask=inside, other=0.0)
        elif SKIP > 0:
            if PARKED:
                bottom = tl.load(stream + tile, mask=inside, other=0.0)
            else:
                bottom = block
                tl.store(stream + tile, block, mask=inside)
        else:  # the layer under the stretch
            z = tl.load(saved - size + tile, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                z = z * tl.load(gamma - W + cols)[None, :] + tl.load(beta - W + cols)[None, :]
            bottom = _activate(z, SWISH)
        tl.store(a + tile, _rounded(bottom, OPERAND), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def reduce_kernel(
    sums,  # [3, E, programs, layers, W] fp32 (1 in place of 3 without norm), of dgrad_kernel
    dbias, dgamma, dbeta,  # out [E, layers of depth, W] fp32, each None if it is not asked for
    programs, layers, depth,
    W: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The sums over tiles of rows: one layer of a member, and one of the three, to a program."""
    l = tl.program_id(0).to(tl.int64)
    member = tl.program_id(1).to(tl.int64)
    kind = tl.program_id(2).to(tl.int64)
    tiles = tl.arange(0, BLOCK_P)
    cols = tl.arange(0, W)
    sums += ((kind * tl.num_programs(1) + member) * programs * layers + l) * W
    place = (member * depth + l) * W + cols
    total = tl.zeros([BLOCK_P, W], tl.float32)
    for start in range(0, programs, BLOCK_P):
        tile = (start + tiles).to(tl.int64)[:, None]
        total += tl.load(sums + tile * layers * W + cols[None, :], mask=tile < programs, other=0.0)
    found = tl.sum(total, 0)
    if dbias is not None:
        if kind == 0:
            tl.store(dbias + place, found)
    if dgamma is not None:
        if kind == 1:
            tl.store(dgamma + place, found)
    if dbeta is not None:
        if kind == 2:
            tl.store(dbeta + place, found)


@triton.jit(do_not_specialize=COUNTS)
def wgrad_kernel(
    a, du,  # [E, layers, B, W] in the operand format
    dweight,  # out [E, layers of depth, W, W] fp32
    batch, layers, depth,
    W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """dweight[l] = a[l].T @ du[l], a tile [BLOCK_M, BLOCK_N] of one layer to a program."""
    ACROSS: tl.constexpr = W // BLOCK_N
    TILES: tl.constexpr = (W // BLOCK_M) * ACROSS
    l = (tl.program_id(0) // TILES).to(tl.int64)
    member = tl.program_id(1).to(tl.int64)
    a += member * layers * batch * W
    du += member * layers * batch * W
    dweight += member * depth * W * W
    tile = tl.program_id(0) % TILES
    i = (tile // ACROSS) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = (tile % ACROSS) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_B)
    left = a + l * batch * W + rows[None, :] * W + i[:, None]
    right = du + l * batch * W + rows[:, None] * W + j[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, batch, BLOCK_B):
        live = rows < batch - start
        total = tl.dot(
            tl.load(left, mask=live[None, :], other=0.0),
            tl.load(right, mask=live[:, None], other=0.0),
            total,
            input_precision=DOT,
        )
        left += BLOCK_B * W
        right += BLOCK_B * W
    tl.store(dweight + l * W * W + i[:, None] * W + j[None, :], total)
