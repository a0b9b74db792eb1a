"""The residual stack on the CPU: `deepres._C` behind the contract of op.py.

Saved for backward: n of every layer, padded to `StackShape.padded` columns; and in a flat tensor rstd [D, B],
then the inputs of spans of layers, from which backward rebuilds those of the blocks inside. With recompute=k:
the input of every segment of k blocks, and nothing else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepres.kernels.extension import extension, why_missing
from deepres.kernels.residual_stack.options import StackOptions

try:
    _C = extension()
except ImportError:
    _C = None

PRECISIONS = ("fp32", "bf16")
PAD, STRETCH_LAYERS, SPAN_LAYERS, STRETCH_WORDS = 32, 8, 64, 6 << 20  # as in csrc/cpu
NEEDS_OUTPUT = False


def unavailable() -> str | None:
    return why_missing() if _C is None else None


def unsupported(x: Tensor, depth: int, options: StackOptions) -> str | None:
    if x.device.type != "cpu":
        return f"impl='cpu' wants tensors on the CPU, got {x.device}"
    if x.dtype != torch.float32:
        return f"impl='cpu' computes in float32, got {x.dtype}; call .float()"
    if options.precision not in PRECISIONS:
        return f"impl='cpu' offers precision {', '.join(PRECISIONS)}, got {options.precision!r}"
    return None


def _shape(x: Tensor, depth: int, options: StackOptions):
    members, (batch, width) = math.prod(x.shape[:-2]), x.shape[-2:]
    return _C.StackShape(
        (members, batch, width, depth), options.skip_every, options.norm, options.activation == "swish",
        options.eps, options.recompute, options.precision == "bf16",
    )  # fmt: skip


def saved_spec(batch: int, width: int, depth: int, options: StackOptions):
    """In Python alone: a compiler leaves the batch open, and the shapes are then expressions of it."""
    padded = -(-width // PAD) * PAD
    if options.recompute:
        segment = min(options.recompute * options.skip_every, depth)
        return [((-(-depth // segment), batch, padded), torch.float32), ((0,), torch.float32)]
    if options.precision == "fp32":
        saved = torch.float32
    else:  # |n| < sqrt(width) fits fp16, which keeps three bits more; without norm nothing bounds it
        saved = torch.float16 if options.norm else torch.bfloat16
    spans = -(-depth // span_of(batch, padded, depth, options))
    return [((depth, batch, padded), saved), ((batch * (depth + spans * padded),), torch.float32)]


def span_of(batch: int, padded: int, depth: int, options: StackOptions) -> int:
    """Layers between the inputs that are saved: stack_span of csrc/cpu/residual_stack_driver.cpp."""
    most, least = (max, min) if isinstance(batch, int) else (torch.sym_max, torch.sym_min)
    words = 2 * most(batch, 1) * padded // (2 if options.precision == "bf16" else 1)
    layers = least(most(STRETCH_WORDS // words, 1), STRETCH_LAYERS)
    skip = options.skip_every
    if not skip:
        return least(layers, depth)
    stretch = least(most(layers - layers % skip, skip), depth)
    return most(SPAN_LAYERS // stretch, 1) * stretch


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, options: StackOptions, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    members, (batch, width), depth = x.shape[:-2], x.shape[-2:], weight.shape[-3]
    y = torch.empty_like(x)
    specs = saved_spec(batch, width, depth, options) if save else []
    saved = [_pooled((*members, *shape), dtype) for shape, dtype in specs]
    activations, statistics = saved or (x.new_empty(0), x.new_empty(0))
    _C.residual_stack_forward(
        _shape(x, depth, options),
        _addresses(weight, bias, gamma, beta),
        x.data_ptr(),
        y.data_ptr(),
        _addresses(activations, statistics),
        torch.get_num_threads(),
    )
    return y, activations, statistics


def backward(
    dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor,
    activations: Tensor, statistics: Tensor, options: StackOptions, needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    grads = [
        _pooled(tuple(t.shape), t.dtype) if need else None
        for t, need in zip((x, weight, bias, gamma, beta), needs, strict=True)
    ]
    _C.residual_stack_backward(
        _shape(x, weight.shape[-3], options),
        _addresses(weight, bias, gamma, beta),
        dy.data_ptr(),
        _addresses(activations, statistics),
        _addresses(*grads),
        torch.get_num_threads(),
    )
    return tuple(grads)


def pooled_bytes() -> int:
    """Bytes of freed memory that the CPU kernels keep for their next call, at most."""
    return 0 if _C is None else _C.pooled_bytes()


def _pooled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in memory that the extension keeps for the next call once nobody holds it."""
    count = math.prod(shape)
    memory = _C.Memory(count * dtype.itemsize)  # never quite empty, as frombuffer wants it
    return torch.frombuffer(memory, dtype=dtype)[:count].view(shape)


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if t is None else t.data_ptr() for t in tensors)
