"""residual_stack on NVIDIA GPUs, sm_80 and newer: `impl="cuda"`, the kernels of csrc/cuda/residual_stack.cu.

A block of threads owns 16 rows and walks a whole stretch of layers in one launch, forward or back, while the
weights stream past it from L2. Weights are first packed, stretch by stretch, into the order and the format in
which the tensor cores take them; the weight gradients of a stretch are one grouped product. A stretch is as
many blocks of layers as keep its scratch in L2.

A group of E stacks is one launch of each kernel: the grid's second dimension, or a part of its first, is the member.
Teams of different members never wait for each other, so they need not all be there at once. A group is cut into
clusters and stretches as one of its members would be, for sums that are split otherwise have other bits.

`activations` holds n of every layer (fp16 for the 16-bit precisions: |n| <= sqrt(W)), or, under recompute=k,
the float32 input of every k-th block but the first, from which backward runs a stretch forward again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.kernels import cuda_program, packing
from deepres.kernels.dispatch import beside_gpu
from deepres.kernels.residual_stack.cuda_geometry import (
    CLUSTERED,
    ROWS,
    WIDTHS,
    Geometry,
    choose_cluster,
    tuning,
)
from deepres.kernels.residual_stack.group import as_group, held, of_layers
from deepres.kernels.residual_stack.options import StackOptions
from deepres.kernels.residual_stack.scaling import scaled_in_fp16
from deepres.kernels.streams import SecondStream

PACKED_BYTES = 2**30  # of one order of one network's weights, the most that is kept beyond a call
MOST_LAYERS = 65_535 // 3  # of a stretch, whose sums are a grid of three rows of blocks a layer
SCRATCH_BYTES = 26 * 2**20  # of a stretch and member: half of an H100's L2


def unavailable() -> str | None:
    return cuda_program.missing()


def unsupported(x: Tensor, depth: int, options: StackOptions) -> str | None:
    if x.dtype != torch.float32:
        return f"it takes float32, got {x.dtype}; call .float()"
    width, served = x.shape[1], (*WIDTHS, *CLUSTERED)
    if width not in served:
        return f"it serves widths {', '.join(map(str, served))}, got {width}"
    whole = options.recompute * options.skip_every if options.skip_every else depth
    if min(whole, depth) > MOST_LAYERS:
        return (
            f"it walks back at most {MOST_LAYERS:,} layers at a time, got {min(whole, depth):,}; pass skip_every=4, or "
            "recompute fewer blocks"
        )
    elsewhere = beside_gpu(x)
    if elsewhere is not None or width in WIDTHS:
        return elsewhere
    device = cuda_program.device_facts(x.device)
    geometry = Geometry(width, options, CLUSTERED[width])
    if device.capability < (9, 0) or geometry.stages(device.shared_limit) < 2:
        return (
            f"width {width} takes clusters of blocks and the shared memory of an H100, which this GPU lacks"
        )
    return None


class Stack:
    """The kernels over one call's parameters and sizes: x [E, B, W], weight [E, D, W, W], the others [E, D, W]."""

    def __init__(
        self, options: StackOptions, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor
    ):
        self.x, self.weight = _aligned(x), weight
        self.bias, self.gamma, self.beta = _aligned(bias), _aligned(gamma), _aligned(beta)
        self.options = options
        self.members, self.depth, self.width = bias.shape
        self.batch = x.shape[1]
        device = cuda_program.device_facts(x.device)
        self.geometry = _geometry(self.width, self.batch, options, device)
        self.blocks = -(-self.batch // self.geometry.rows)
        self.padded = self.blocks * self.geometry.rows
        self.program = cuda_program.load_program(self.geometry.program, x.device)
        self.grid = (self.blocks * self.geometry.cluster, self.members)
        self.stages = self.geometry.stages(device.shared_limit)
        self.layer_bytes = self.width**2 * self.geometry.operand_bytes
        self.per_block = options.skip_every or self.depth
        self.segment = min(self.depth, options.skip_every * options.recompute)  # layers between kept inputs

    def stretches(self, bytes_per_layer: int) -> list[tuple[int, int]]:
        """[start, stop) of the layers of each launch: as many blocks, or segments, as SCRATCH_BYTES holds."""
        unit = self.segment or self.per_block
        layers = max(1, SCRATCH_BYTES // max(1, bytes_per_layer * unit)) * unit
        return [(start, min(start + layers, self.depth)) for start in range(0, self.depth, layers)]

    def packing_scratch(self, stretches: list[tuple[int, int]]) -> Tensor:
        return self._packed_layers(_longest(stretches))

    def _packed_layers(self, layers: int) -> Tensor:
        return self.x.new_empty((self.members, layers, self.layer_bytes), dtype=torch.uint8)

    def block_input(self, layer: int, kept: Tensor) -> Tensor:
        """The input of a segment's first layer, under recompute=k."""
        return self.x if layer == 0 else kept[:, layer // self.segment - 1]

    @property
    def packs_once(self) -> bool:
        """Whether the packed weights of all layers outlive this call (deepres.kernels.packing)."""
        return packing.keeps(self.weight) and self.depth * self.layer_bytes <= PACKED_BYTES

    @property
    def packs_both(self) -> bool:
        """Whether one order of the weights serves forward and backward."""
        return self.geometry.swapped_rows > 0

    def packed(self, start: int, stop: int, scratch: Tensor | None, *, transposed: bool) -> Tensor:
        """The weights of a stretch as a chain takes them, in `scratch` if they are packed for this call alone."""
        if scratch is None:
            transposed = transposed and not self.packs_both
            what = (self.geometry, transposed)
            return packing.packed(self.weight, what, lambda: self._pack_all(transposed))[:, start:stop]
        self._pack(start, stop, scratch, transposed)
        return scratch

    def _pack_all(self, transposed: bool) -> Tensor:
        packed = self._packed_layers(self.depth)
        self._pack(0, self.depth, packed, transposed)
        return packed

    def _pack(self, start: int, stop: int, packed: Tensor, transposed: bool) -> None:
        vectors = (stop - start) * self.layer_bytes // 16
        self.program.launch(
            "residual_stack_pack", (-(-vectors // 256), self.members), 256, 0,
            self.weight[:, start:stop], packed, stop - start, int(transposed),
            self.depth, held(packed, self.layer_bytes),
        )  # fmt: skip

    def forward(
        self, start: int, stop: int, x: Tensor, packed: Tensor, y: Tensor | None,
        normalized: Tensor | None = None, rstd: Tensor | None = None, kept: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.program.launch(
            "residual_stack_forward", self.grid, 32 * self.geometry.warps, self._chain_bytes(),
            x, packed, *self._vectors(start), y, normalized, rstd, kept,
            self.batch, stop - start, self.options.skip_every, 0 if kept is None else self.segment,
            self.options.eps, self.stages,
            self.depth, held(packed, self.layer_bytes), *self._rows_held(x, y, kept, normalized),
        )  # fmt: skip

    def dgrad(
        self, start: int, stop: int, packed: Tensor, scratch: Scratch, **tensors: Tensor | None
    ) -> None:
        """tensors: dy, y, x, normalized, rstd, dx and block_input of residual_stack_dgrad."""
        _, gamma, beta = self._vectors(start)
        self.program.launch(
            "residual_stack_dgrad", self.grid, 32 * self.geometry.warps, self._chain_bytes(),
            tensors["dy"], tensors["y"], tensors["x"], packed, gamma, beta,
            tensors["normalized"], tensors["rstd"], tensors["dx"], tensors["block_input"],
            scratch.inputs, scratch.du, scratch.partials,
            self.batch, stop - start, self.options.skip_every, self.stages,
            self.depth, held(packed, self.layer_bytes),
            *self._rows_held(tensors["x"], tensors["y"], tensors["normalized"]),
        )  # fmt: skip

    def wgrad(self, start: int, stop: int, scratch: Scratch, dweight: Tensor) -> None:
        tiles = (self.width // self.geometry.wgrad_tile) ** 2
        self.program.launch(
            "residual_stack_wgrad", (tiles * self.members, stop - start), 256, self.geometry.wgrad_bytes,
            scratch.inputs, scratch.du, dweight[:, start:stop], self.padded, stop - start, self.depth,
        )  # fmt: skip

    def reduce(self, start: int, stop: int, scratch: Scratch, sums: Iterable[Tensor | None]) -> None:
        outputs = [None if out is None else out[:, start:stop] for out in sums]
        self.program.launch(
            "residual_stack_reduce", (self.width // 64 * self.members, 3 * (stop - start)), 64, 0,
            scratch.partials, *outputs, self.blocks, stop - start, self.depth,
        )  # fmt: skip

    def _chain_bytes(self) -> int:
        return self.geometry.fixed_bytes + self.stages * self.geometry.stage_bytes

    def _vectors(self, start: int) -> tuple[Tensor, Tensor, Tensor]:
        layers = slice(start, None)
        return self.bias[:, layers], of_layers(self.gamma, layers), of_layers(self.beta, layers)

    def _rows_held(self, *tensors: Tensor | None) -> list[int]:
        """Of each, how many [B, W] lie from one member to the next: it may be one of what was kept."""
        return [held(tensor, self.batch * self.width) for tensor in tensors]


@dataclass(frozen=True)
class Scratch:
    """What a stretch of backward writes for the sums over rows; None where no gradient asks for it.

    Of all members, each with as many layers as the stretch has, from the memory's beginning.
    """

    inputs: Tensor | None
    du: Tensor | None
    partials: Tensor | None

    @staticmethod
    def layer_bytes(stack: Stack, needs: tuple[bool, ...]) -> int:
        """Of one member."""
        operands = 2 * stack.padded * stack.width * stack.geometry.operand_bytes
        return operands * needs[1] + stack.blocks * 3 * stack.width * 4 * any(needs[2:])

    @classmethod
    def of(cls, stack: Stack, layers: int, needs: tuple[bool, ...]) -> Scratch:
        def operands() -> Tensor | None:
            shape = (stack.members, layers, stack.padded, stack.width * stack.geometry.operand_bytes)
            return stack.x.new_empty(shape, dtype=torch.uint8) if needs[1] else None

        shape = (stack.members, layers, stack.blocks, 3, stack.width)
        partials = stack.x.new_empty(shape) if any(needs[2:]) else None
        return cls(operands(), operands(), partials)


class WeightGradients:
    """The sums over rows of one stretch after another, on a stream beside the chain's, which goes on meanwhile: two
    stretches have scratch of their own in turns."""

    def __init__(self, stack: Stack, layers: int, stretches: int, needs: tuple[bool, ...]):
        self._stack, self._device = stack, stack.x.device
        self._side = SecondStream.of_current(self._device)
        self._scratch = [Scratch.of(stack, layers, needs) for _ in range(min(2, stretches))]
        self._done: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def scratch(self) -> Scratch:
        """Of the next stretch, once what it held has been summed."""
        SecondStream.wait(self._device, self._done[self._turn])
        return self._scratch[self._turn]

    def add(self, start: int, stop: int, dweight: Tensor | None, sums: list[Tensor | None]) -> None:
        """Sums of what the chain has left in `scratch`."""
        scratch = self._scratch[self._turn]
        with self._side.beside(self._device):
            if dweight is not None:
                self._stack.wgrad(start, stop, scratch, dweight)
            if scratch.partials is not None:
                self._stack.reduce(start, stop, scratch, sums)
            self._done[self._turn] = SecondStream.mark(self._device)
        self._turn = (self._turn + 1) % len(self._scratch)

    def join(self) -> None:
        self._side.join(self._device)


def saved_spec(
    batch: int, width: int, depth: int, options: StackOptions
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    if options.recompute:
        segments = -(-depth // (options.skip_every * options.recompute))
        return [((segments - 1, batch, width), torch.float32), ((0,), torch.float32)]
    statistics = (depth, batch) if options.norm else (0,)
    return [
        ((depth, batch, width), Geometry(width, options).saved_dtype),
        (statistics, torch.float32),
    ]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, options: StackOptions, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    members, (batch, width), depth = x.shape[:-2], x.shape[-2:], weight.shape[-3]
    y = torch.empty_like(x)
    saved = (x.new_empty(0), x.new_empty(0))
    if save:
        (kept, kind), (rstd, fp32) = saved_spec(batch, width, depth, options)
        saved = (x.new_empty((*members, *kept), dtype=kind), x.new_empty((*members, *rstd), dtype=fp32))
    if batch > 0:
        stack = Stack(options, *as_group(members, x, weight, bias, gamma, beta))
        _forward(stack, save, *as_group(members, y, *saved))
    return y, *saved


def _forward(stack: Stack, save: bool, y: Tensor, activations: Tensor, statistics: Tensor) -> None:
    """A group's y, and what backward needs if it is to be saved."""
    depth, options, device = stack.depth, stack.options, y.device
    once, begun = stack.packs_once, SecondStream.mark(device)
    stretches = [(0, depth)] if once else stack.stretches(stack.layer_bytes)
    scratch = None if once else stack.packing_scratch(stretches)
    keeps_inputs = save and options.recompute > 0
    source = stack.x
    for start, stop in stretches:
        packed = stack.packed(start, stop, scratch, transposed=False)
        if keeps_inputs:
            out = y if stop == depth else stack.block_input(stop, activations)
            stack.forward(start, stop, source, packed, out, kept=activations[:, start // stack.segment :])
        elif save:
            rstd = statistics[:, start:stop] if options.norm else None
            out = y
            stack.forward(start, stop, source, packed, y, activations[:, start:stop], rstd)
        else:
            out = y
            stack.forward(start, stop, source, packed, y)
        source = out
    if once and save and not stack.packs_both:  # backward's order, beside the chain
        with SecondStream.of_current(device).beside(device, after=begun):
            stack.packed(0, depth, None, transposed=True)


@scaled_in_fp16
def backward(
    dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor,
    activations: Tensor, statistics: Tensor, options: StackOptions, needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    inputs, members = (x, weight, bias, gamma, beta), x.shape[:-2]
    new = torch.zeros_like if x.shape[-2] == 0 else torch.empty_like
    grads = tuple(new(t) if need else None for t, need in zip(inputs, needs, strict=True))
    if x.shape[-2] > 0:
        stack = Stack(options, *as_group(members, *inputs))
        outputs = [None if grad is None else as_group(members, grad)[0] for grad in grads]
        _backward(stack, outputs, *as_group(members, dy, y, activations, statistics))
    return grads


def _backward(
    stack: Stack, grads: list[Tensor | None], dy: Tensor, y: Tensor, activations: Tensor, statistics: Tensor
) -> None:
    """A group's gradients, into those of [dx, dweight, dbias, dgamma, dbeta] that there is room for."""
    dx, dweight, *sums = grads
    x, width, options = stack.x, stack.width, stack.options
    needs = tuple(grad is not None for grad in grads)
    once, recompute, summed = stack.packs_once, options.recompute > 0, any(needs[1:])
    stretches = stack.stretches(
        (0 if once else stack.layer_bytes)
        + 2 * Scratch.layer_bytes(stack, needs)
        + (stack.batch * (width * stack.geometry.saved_dtype.itemsize + 4) if recompute else 0)
    )
    longest = _longest(stretches)
    packing_scratch = None if once else stack.packing_scratch(stretches)
    weights = WeightGradients(stack, longest, len(stretches), needs)
    normalized = rstd = None
    if recompute:
        shape = (stack.members, longest, stack.batch)
        normalized = x.new_empty((*shape, width), dtype=stack.geometry.saved_dtype)
        rstd = x.new_empty(shape)
    gradient, stream = _aligned(dy), _aligned(y)  # at the end of the stretch: dL/da, and a
    below = dx if dx is not None else torch.empty_like(x) if len(stretches) > 1 else None
    for start, stop in reversed(stretches):
        source = x if start == 0 else None  # the stretch's input, where it is known
        block_input = None
        if recompute:
            source = stack.block_input(start, activations)
            packed = stack.packed(start, stop, packing_scratch, transposed=False)
            stack.forward(start, stop, source, packed, None, normalized, rstd)
        else:
            normalized = activations[:, start:stop]
            rstd = of_layers(statistics, slice(start, stop))
            if start > 0:
                block_input = torch.empty_like(x) if stop == stack.depth else stream
        packed = stack.packed(start, stop, packing_scratch, transposed=True)
        stack.dgrad(
            start, stop, packed, weights.scratch(),
            dy=gradient, y=stream, x=source, normalized=normalized, rstd=rstd,
            dx=below if start > 0 else dx, block_input=block_input,
        )  # fmt: skip
        if summed:
            weights.add(start, stop, dweight, sums)
        if start > 0:
            assert below is not None
            gradient = below
            next_stream = source if recompute else block_input
            assert next_stream is not None
            stream = next_stream
    if summed:  # else nothing went beside, and a capture must not wait for a stream that it has not forked
        weights.join()


def _geometry(width: int, batch: int, options: StackOptions, device: cuda_program.DeviceFacts) -> Geometry:
    """What `tuning` asks for, where it applies to forward and backward alike."""
    asked = tuning()
    if (reason := asked.refused(width, options, device.capability)) is not None:
        raise RuntimeError(reason)
    if asked.swapped_rows:
        return Geometry(width, options, width // 64, asked.swapped_rows)
    blocks = -(-batch // ROWS)
    return Geometry(width, options, choose_cluster(width, blocks, device.capability, device.processors))


def _longest(stretches: list[tuple[int, int]]) -> int:
    return max(stop - start for start, stop in stretches)


def _aligned(tensor: Tensor) -> Tensor:
    """Kernels move vectors of 16 bytes; a view may begin anywhere."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
