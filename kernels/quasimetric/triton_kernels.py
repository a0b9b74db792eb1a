"""The device code of quasimetric/triton.py.

Nothing is sorted: each interval is held against the seven others of its part, as a block [parts, 8, 8].
"""

import triton
import triton.language as tl

NAN = tl.constexpr(float("nan"))


@triton.jit
def _intervals(x, y, place, inside):
    """(begin, end, whether their part has no length: NaN, or an end and a beginning at the same infinity)."""
    begin = tl.load(x + place, mask=inside, other=0.0)
    to = tl.load(y + place, mask=inside, other=0.0)
    end = tl.where(to > begin, to, begin)
    size = end - begin
    return begin, end, (to != to) | (size != size)


@triton.jit
def _begins_later(begin, end, i, other_begin, other_end, j):
    """Whether the piece of the union that interval i lies in begins with interval j, or before."""
    reached = (other_begin < begin) & (begin <= other_end)
    longer = (other_end > end) | ((other_end == end) & (j < i))
    return reached | ((other_begin == begin) & longer)


@triton.jit
def _ends_earlier(begin, end, i, other_begin, other_end, j):
    """Whether that piece ends with interval j, or after."""
    reaches = (other_begin <= end) & (end < other_end)
    longer = (other_begin < begin) | ((other_begin == begin) & (j < i))
    return reaches | ((other_end == end) & longer)


@triton.jit
def _places(parts, BP: tl.constexpr):
    """Of this program: its parts [BP], and twice their intervals: place, number and which there are, down the middle
    axis of a block and along its last."""
    part, i = tl.program_id(0) * BP + tl.arange(0, BP), tl.arange(0, 8)
    down, along = i[None, :, None], i[None, None, :]
    first = part.to(tl.int64)[:, None, None] * 8
    return part, first + down, first + along, down, along, (part < parts)[:, None, None]


@triton.jit(do_not_specialize=["parts"])
def lengths_kernel(x, y, parts, lengths, BP: tl.constexpr):
    """lengths [parts]; x, y [parts, 8]. Programs: BP parts each. A piece is its end less its beginning, which is the
    last one that the end has behind it."""
    part, place_i, place_j, i, j, inside = _places(parts, BP)
    begin_i, end_i, unknown = _intervals(x, y, place_i, inside)
    begin_j, end_j, _ = _intervals(x, y, place_j, inside)
    later = _begins_later(begin_j, end_j, j, begin_i, end_i, i).to(tl.int32)
    begins_j = (end_j > begin_j) & (tl.max(later, 1, keep_dims=True) == 0)
    earlier = _ends_earlier(begin_i, end_i, i, begin_j, end_j, j).to(tl.int32)
    ends_i = (end_i > begin_i) & (tl.max(earlier, 2, keep_dims=True) == 0)
    start = tl.max(tl.where(begins_j & (begin_j <= end_i), begin_j, -float("inf")), 2, keep_dims=True)
    pieces = tl.where(unknown, NAN, tl.where(ends_i, end_i - start, 0.0))
    tl.store(lengths + part, tl.sum(tl.sum(pieces, 2), 1), mask=part < parts)


@triton.jit(do_not_specialize=["parts"])
def gradients_kernel(d, x, y, parts, dx, dy, NEED_X: tl.constexpr, NEED_Y: tl.constexpr, BP: tl.constexpr):
    """dx and dy [parts, 8] of sum(d * lengths); d [parts], x, y [parts, 8]. Programs: BP parts each."""
    part, place_i, place_j, i, j, inside = _places(parts, BP)
    begin_i, end_i, unknown = _intervals(x, y, place_i, inside)
    begin_j, end_j, _ = _intervals(x, y, place_j, inside)
    g = tl.load(d + part, mask=part < parts, other=0.0)[:, None, None]
    nothing = tl.where(tl.max(unknown.to(tl.int32), 1, keep_dims=True) > 0, NAN, 0.0)
    some = end_i > begin_i
    if NEED_X:
        later = _begins_later(begin_i, end_i, i, begin_j, end_j, j).to(tl.int32)
        begins = some & (tl.max(later, 2, keep_dims=True) == 0)
        tl.store(dx + place_i, tl.where(begins, -g, 0.0) + nothing, mask=inside)
    if NEED_Y:
        earlier = _ends_earlier(begin_i, end_i, i, begin_j, end_j, j).to(tl.int32)
        ends = some & (tl.max(earlier, 2, keep_dims=True) == 0)
        tl.store(dy + place_i, tl.where(ends, g, 0.0) + nothing, mask=inside)
