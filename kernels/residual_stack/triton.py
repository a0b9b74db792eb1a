"""The residual stack in Triton, for NVIDIA GPUs of compute capability 8.0 or newer.

    forward     forward_kernel: one launch, a program to a tile of rows, walks all layers (256 of them where
                operands are rounded, so that no second copy of all weights is ever in memory)
    backward    for each stretch of layers, from the last to the first,
                    forward_kernel   with recompute=k: n and rstd of the stretch once more
                    dgrad_kernel     the chain of input gradients; writes du and the rebuilt inputs a
                    wgrad_kernel     dweight = a.T @ du of all its layers, one grouped product
                    reduce_kernel    sums what dgrad_kernel found for dbias, dgamma, dbeta in each tile of rows

What is saved: the normalised n of every layer (fp16 for bf16 and fp16; fp32 for fp32, tf32 and without norm)
and rstd per row; with recompute=k the input of every k-th block instead, in fp32. Forward itself goes on
from the n it stores, so backward rebuilds every layer's output to fp32's last digit, and the residual stream
from y by subtraction.

No atomics: every sum has one order, so the same input gives the same bits. Nothing waits for the device, and
all memory comes from PyTorch: a CUDA graph may capture both directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepres.kernels.residual_stack.group import as_group, held, of_layers
from deepres.kernels.residual_stack.options import StackOptions
from deepres.kernels.residual_stack.scaling import scaled_in_fp16
from deepres.kernels.triton_device import Tiles, interpreted, unsupported_device
from deepres.kernels.triton_device import unavailable as unavailable

WIDTHS = (64, 128, 256, 512)
# Formats that tensors are rounded to, and the dtype that holds them. The last is for Triton's interpreter,
# which multiplies bf16 wrongly and rounds to it by truncation: the same values in fp32.
FORMATS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "bf16 in fp32": torch.float32,
}
# Layers whose du and a are in memory at a time, of all members of a group, where n of every layer is saved.
STRETCH = 32
# Layers whose weights are in memory a second time, rounded to the operand format, during forward; of all members.
ROUNDED_AHEAD = 256


def unsupported(x: Tensor, depth: int, options: StackOptions) -> str | None:
    if x.dtype != torch.float32:
        return f"it computes in float32, got x of {x.dtype}; call x.float()"
    if x.shape[1] not in WIDTHS:
        return f"it is built for widths {', '.join(map(str, WIDTHS))}, got {x.shape[1]}"
    return unsupported_device(x)


def shared_memory(capability: tuple[int, int]) -> int:
    """The bytes of shared memory that one block may use on a GPU of this compute capability."""
    return {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}.get(capability, 99) * 1024


def tiles(kernel: str, width: int, precision: str, capability: tuple[int, int]) -> Tiles:
    """Of the kernel "forward", "dgrad" or "wgrad", so that nothing spills (bench/compile_report.py)."""
    size = operand_bytes(precision)
    if kernel == "wgrad":
        side, rows = (min(width, 128), 64) if size == 2 else (64, 32)
        return Tiles({"BLOCK_M": side, "BLOCK_N": side, "BLOCK_B": rows}, 8 if side == 128 else 4, 3)
    # Four stages of weights are on their way: as L2 feeds one SM 137 GB/s, 32 KB last 0.24 us, and four times
    # that covers the latency of memory (about 0.8 us), which a deep stack's weights come from.
    stage = 32768 if shared_memory(capability) > 128 * 1024 else 16384
    block_k = max(32 // size, min(stage // (width * size), width // 2, 64))  # tl.dot takes 32 bytes or more
    return Tiles({"BLOCK_B": 16, "BLOCK_K": block_k}, 4 if width == 64 else 8, 5)


def operand_bytes(precision: str) -> int:
    return 2 if precision in ("bf16", "fp16") else 4


def chain_constants(width: int, options: StackOptions) -> dict[str, object]:
    """The constants that forward_kernel and dgrad_kernel share, beside their tiles."""
    return {
        "W": width,
        "SKIP": options.skip_every,
        "NORM": options.norm,
        "SWISH": options.activation == "swish",
        "OPERAND": operand_format(options),
        "DOT": dot_precision(options.precision),
    }


def dot_precision(precision: str) -> str:
    """How `tl.dot` multiplies fp32 operands: three tf32 products, or one for operands already rounded."""
    return "tf32x3" if precision == "fp32" else "tf32"


def operand_format(options: StackOptions) -> str:
    return "bf16 in fp32" if options.precision == "bf16" and interpreted() else options.precision


def stored_format(options: StackOptions) -> str:
    """Of the saved n: |n| <= sqrt(W), so fp16 holds it 8 times finer than bf16 would.

    Without LayerNorm z is saved, of any size, and what is rounded off is lost to the residual stream: fp32.
    """
    return "fp16" if options.norm and options.precision in ("bf16", "fp16") else "fp32"


def saved_spec(
    batch: int, width: int, depth: int, options: StackOptions
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    if options.recompute:
        inputs = len(stretches(depth, options)) - 1  # the input of the first stretch is x
        return [((inputs, batch, width), torch.float32), ((0,), torch.float32)]
    rstd = (depth, batch) if options.norm else (0,)
    return [((depth, batch, width), FORMATS[stored_format(options)]), (rstd, torch.float32)]


def stretches(depth: int, options: StackOptions, members: int = 1) -> list[slice]:
    """The layers that backward works on at a time, bottom first."""
    length = options.recompute * options.skip_every or _whole_blocks(STRETCH // members, options)
    return [slice(start, min(start + length, depth)) for start in range(0, depth, length)]


def _whole_blocks(layers: int, options: StackOptions) -> int:
    """About `layers` layers, in whole blocks and, with recompute=k, in whole groups of k."""
    unit = options.skip_every * max(options.recompute, 1) or 1
    return max(layers // unit, 1) * unit


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, options: StackOptions, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    members, (batch, width) = x.shape[:-2], x.shape[-2:]
    y = torch.empty_like(x)
    saved, rstd = x.new_empty(0), x.new_empty(0)
    if save:
        specs = saved_spec(batch, width, weight.shape[-3], options)
        saved, rstd = (x.new_empty((*members, *shape), dtype=dtype) for shape, dtype in specs)
    if batch > 0:
        tensors = as_group(members, x, weight, bias, gamma, beta, y)
        _forward(tensors, options, as_group(members, saved, rstd) if save else None)
    return y, saved, rstd


def _forward(tensors: tuple[Tensor, ...], options: StackOptions, saved: tuple[Tensor, ...] | None) -> None:
    """A group's x, weight, bias, gamma, beta into its y, the last of `tensors`; and into what is saved (n, rstd)."""
    x, weight, bias, gamma, beta, y = tensors
    members, depth = weight.shape[:2]
    every = options.recompute * options.skip_every
    piece = depth if options.precision == "fp32" else _whole_blocks(ROUNDED_AHEAD // members, options)
    with torch.cuda.device_of(x):
        launch = _Launches(x, depth, options)
        for start in range(0, depth, piece):
            layers = slice(start, start + piece)
            part = launch.part(weight, bias, gamma, beta, layers)
            rows = x if start == 0 else y
            if saved is None:
                launch.forward(rows, part, y)
            elif every:
                launch.forward(rows, part, y, inputs=saved[0][:, start // every :], every=every)
            else:
                launch.forward(rows, part, y, n=saved[0][:, layers], rstd=of_layers(saved[1], layers))


@scaled_in_fp16
def backward(
    dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor,
    activations: Tensor, statistics: Tensor, options: StackOptions, needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    members, rows = x.shape[:-2], x.shape[-2]
    new = torch.empty_like if rows > 0 else torch.zeros_like
    dx = new(x)  # between two stretches, the gradient of the rows there
    parameters = (weight, bias, gamma, beta)
    grads = [new(t) if need else None for t, need in zip(parameters, needs[1:], strict=True)]
    if rows > 0:
        tensors = as_group(members, dy, x, y, *parameters, activations, statistics, dx)
        _backward(tensors, [None if g is None else as_group(members, g)[0] for g in grads], options, needs[0])
    return (dx if needs[0] else None, *grads)


def _backward(
    tensors: tuple[Tensor, ...], grads: list[Tensor | None], options: StackOptions, need_x: bool
) -> None:
    """A group, into dx, the last of its `tensors`, and the gradients of its parameters that there is room for."""
    dy, x, y, weight, bias, gamma, beta, activations, statistics, dx = tensors
    dweight, *dvectors = grads
    need_vectors = any(gradient is not None for gradient in dvectors)
    members, depth = weight.shape[:2]
    with torch.cuda.device_of(x):
        launch = _Launches(x, depth, options)
        stream = y.clone() if dweight is not None else None
        dout = dy
        for i, layers in reversed(list(enumerate(stretches(depth, options, members)))):
            part = launch.part(weight, bias, gamma, beta, layers)
            if options.recompute:
                n, rstd = launch.recomputed(x if i == 0 else activations[:, i - 1], part)
            else:
                n, rstd = activations[:, layers], of_layers(statistics, layers)
            chain = launch.dgrad(
                dout, dx, need_x or i > 0, part, n, rstd, x if i == 0 else None, stream, need_vectors
            )  # fmt: skip
            if dweight is not None:
                launch.wgrad(chain, dweight[:, layers])
            if need_vectors:
                launch.reduce(chain, [g if g is None else g[:, layers] for g in dvectors])
            dout = dx


class _Part(NamedTuple):
    """The parameters of L consecutive layers as the kernels read them, slices of those of more."""

    weight: Tensor  # [E, L, W, W] in the operand format
    bias: Tensor  # [E, L, W], gamma and beta too
    gamma: Tensor
    beta: Tensor

    @property
    def layers(self) -> int:
        return self.weight.shape[1]


class _Chain(NamedTuple):
    """What the chain of a part leaves for the weight gradients."""

    a: Tensor  # [E, L, B, W], the layers' inputs in the operand format; empty if no weight gradient is asked for
    du: Tensor  # likewise, the gradients of their products
    sums: Tensor  # [3, E, tiles of rows, L, W]: dbias, dgamma, dbeta of a tile; those that are asked for


class _Launches:
    """The kernels' launches for the rows [E, B, W] of one call, on the current device and stream: one for all members
    each."""

    def __init__(self, x: Tensor, depth: int, options: StackOptions) -> None:
        from deepres.kernels.residual_stack import triton_kernels as kernels

        self.kernels, self.x, self.depth, self.options = kernels, x, depth, options
        self.members, self.batch, self.width = x.shape
        self.nothing = x.new_empty(0)
        self.capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)
        self.chain = tiles("forward", self.width, options.precision, self.capability)
        self.constants = chain_constants(self.width, options)
        self.programs = -(-self.batch // self.chain.blocks["BLOCK_B"])

    def part(self, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, layers: slice) -> _Part:
        own = weight[:, layers]
        vectors = (of_layers(t, layers) for t in (bias, gamma, beta))
        if self.options.precision == "fp32":
            return _Part(own, *vectors)
        operand = own.new_empty(own.shape, dtype=FORMATS[operand_format(self.options)])
        count, block = own.shape[1] * self.width**2, 4096
        self.kernels.round_kernel[(-(-count // block), self.members)](
            own, operand, own.shape[1], self.depth,
            W=self.width, OPERAND=operand_format(self.options), BLOCK=block, enable_fp_fusion=True,
        )  # fmt: skip
        return _Part(operand, *vectors)

    def forward(
        self, rows: Tensor, part: _Part, y: Tensor, *,
        n: Tensor | None = None, rstd: Tensor | None = None, inputs: Tensor | None = None, every: int = 1,
    ) -> None:  # fmt: skip
        """y of the part's layers; keeps n and rstd of each, or the `inputs` of one in `every`, or nothing."""
        save, saved, tile = "nothing", self.nothing, self.batch * self.width
        if n is not None:
            save, saved = "layers", n
        elif inputs is not None:
            save, saved = "blocks", inputs
        self.kernels.forward_kernel[(self.programs, self.members)](
            rows, *part, y, saved, self.nothing if rstd is None else rstd,
            self.batch, part.layers, every, 0 if inputs is None else inputs.shape[1], self.options.eps,
            self.depth, held(part.weight, self.width**2), held(rows, tile), held(saved, tile),
            STORED=stored_format(self.options), SAVE=save,
            **self.constants, **self.chain.arguments(),
        )  # fmt: skip

    def recomputed(self, rows: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
        """n and rstd of the part's layers, from the part's input."""
        shape = (self.members, part.layers, self.batch)
        n = self.x.new_empty((*shape, self.width), dtype=FORMATS[stored_format(self.options)])
        rstd = self.x.new_empty(shape)
        self.forward(rows, part, torch.empty_like(self.x), n=n, rstd=rstd)
        return n, rstd

    def dgrad(
        self, dy: Tensor, dx: Tensor, need_dx: bool, part: _Part, n: Tensor, rstd: Tensor,
        x: Tensor | None, stream: Tensor | None, need_vectors: bool,
    ) -> _Chain:  # fmt: skip
        """dx of the part's layers from dy (which may be dx).

        x: the input of the stack if the part begins with layer 0. stream: the output of the part, replaced by
        its input; None if no weight gradient is asked for.
        """
        operands = (2, self.members, part.layers, self.batch, self.width) if stream is not None else (2, 0)
        a, du = self.x.new_empty(operands, dtype=part.weight.dtype)
        kinds = (3 if self.options.norm else 1) if need_vectors else 0
        sums = self.x.new_empty((kinds, self.members, self.programs, part.layers, self.width))
        self.kernels.dgrad_kernel[(self.programs, self.members)](
            dy, self.nothing if x is None else x, part.weight, part.gamma, part.beta, n, rstd,
            dx, self.nothing if stream is None else stream, a, du, sums,
            self.batch, part.layers, self.depth,
            held(part.weight, self.width**2), held(n, self.batch * self.width),
            FIRST=x is not None, NEED_INPUT=need_dx, NEED_WEIGHT=stream is not None,
            NEED_VECTORS=need_vectors, **self.constants, **self.chain.arguments(),
        )  # fmt: skip
        return _Chain(a, du, sums)

    def wgrad(self, chain: _Chain, dweight: Tensor) -> None:
        grouped = tiles("wgrad", self.width, self.options.precision, self.capability)
        layers, side = dweight.shape[1], grouped.blocks["BLOCK_M"]
        self.kernels.wgrad_kernel[(layers * (self.width // side) ** 2, self.members)](
            chain.a, chain.du, dweight, self.batch, layers, self.depth,
            W=self.width, DOT=self.constants["DOT"], **grouped.arguments(),
        )  # fmt: skip

    def reduce(self, chain: _Chain, dvectors: list[Tensor | None]) -> None:
        kinds, _, _, layers, _ = chain.sums.shape
        self.kernels.reduce_kernel[(layers, self.members, kinds)](
            chain.sums, *dvectors, self.programs, layers, self.depth,
            W=self.width, BLOCK_P=8, enable_fp_fusion=True,
        )  # fmt: skip
