"""residual_stack on NVIDIA GPUs, sm_80 and newer: `impl="cuda"`, the kernels of csrc/cuda/residual_stack.cu.

A block of threads owns 16 rows and walks a whole stretch of layers in one launch, forward or back, while the
weights stream past it from L2. Weights are first packed, stretch by stretch, into the order and the format in
which the tensor cores take them; the weight gradients of a stretch are one grouped product. A stretch is as
many blocks of layers as keep its scratch in L2.

`activations` holds n of every layer (fp16 for the 16-bit precisions: |n| <= sqrt(W)), or, under recompute=k,
the float32 input of every k-th block but the first, from which backward runs a stretch forward again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deepres.kernels import cuda_program
from deepres.kernels.dispatch import beside_gpu
from deepres.kernels.residual_stack.options import StackOptions

WIDTHS = (64, 128, 256, 512)
KERNELS = tuple(f"residual_stack_{name}" for name in ("pack", "forward", "dgrad", "wgrad", "reduce"))
ROWS = 16  # of a team: a block of threads, or a cluster of blocks that split the columns
SCRATCH_BYTES = 26 * 2**20  # of a stretch: half of an H100's L2, and little beside what depth 1024 saves

_FORMATS = {"fp32": 32, "tf32": 19, "fp16": 16, "bf16": 116}


def unavailable() -> str | None:
    return cuda_program.missing()


def unsupported(x: Tensor, depth: int, options: StackOptions) -> str | None:
    if x.dtype != torch.float32:
        return f"it takes float32, got {x.dtype}; call .float()"
    if x.shape[1] not in WIDTHS:
        return f"it serves widths {', '.join(map(str, WIDTHS))}, got {x.shape[1]}"
    return beside_gpu(x)


@dataclass(frozen=True)
class Geometry:
    """The sizes that one build of the sources has; csrc/cuda/config.cuh computes and checks the same."""

    width: int
    options: StackOptions
    cluster: int = 1

    @cached_property
    def operand_bytes(self) -> int:
        return 2 if self.options.precision in ("bf16", "fp16") else 4

    @cached_property
    def saved_dtype(self) -> torch.dtype:
        return torch.float16 if self.options.norm and self.operand_bytes == 2 else torch.float32

    @cached_property
    def columns(self) -> int:
        return self.width // self.cluster

    @cached_property
    def warps(self) -> int:
        return 4 if self.columns == 64 else 8

    @cached_property
    def warp_stage_bytes(self) -> int:
        """Weights that one copy brings: 4 KB, or in clusters 8 with one warp to a scheduler (but for fp32) and
        else 2; no more than a warp needs of a layer. A warp alone with its scheduler waits and refills once."""
        early = self.warps == 4 and self.options.precision != "fp32"
        copy = 4096 if self.cluster == 1 else 8192 if early else 2048
        return min(copy, self.columns // self.warps * self.width * self.operand_bytes)

    @cached_property
    def stage_bytes(self) -> int:
        """Shared memory of a chain kernel for one stage of all warps' rings: weights and their barriers."""
        return self.warps * (self.warp_stage_bytes + 8)

    @cached_property
    def fixed_bytes(self) -> int:
        """The rest of it: 16 rows of the left operand, two floats of each row and warp, two barriers."""
        parts = self.cluster * self.warps
        return ROWS * (self.width * self.operand_bytes + 16) + ROWS * 4 * (2 * parts + 4) + 16

    @cached_property
    def wgrad_tile(self) -> int:
        return min(self.width, 128)

    @cached_property
    def wgrad_bytes(self) -> int:
        """Shared memory of wgrad: four chunks of 16 rows of both operands."""
        return 2 * 4 * 16 * (self.wgrad_tile * self.operand_bytes + (16 if self.operand_bytes == 2 else 32))

    def stages(self, shared_limit: int) -> int:
        """Stages in flight: two layers' worth, at least four; no more than fit.

        Clusters leave room for a second block on an SM if they can: they need not find free SMs side by side.
        """
        layer = self.columns // self.warps * self.width * self.operand_bytes // self.warp_stage_bytes
        alone = (shared_limit - self.fixed_bytes) // self.stage_bytes
        beside = (shared_limit // 2 - 1024 - self.fixed_bytes) // self.stage_bytes
        return min(max(4, 2 * layer), beside if self.cluster > 1 and beside >= 2 else alone)

    @property
    def program(self) -> cuda_program.Program:
        return cuda_program.Program("residual_stack.cu", tuple(self.macros.items()), KERNELS)

    @property
    def macros(self) -> dict[str, int]:
        return {
            "DEEPRES_WIDTH": self.width,
            "DEEPRES_PRECISION": _FORMATS[self.options.precision],
            "DEEPRES_NORM": int(self.options.norm),
            "DEEPRES_SWISH": int(self.options.activation == "swish"),
            "DEEPRES_CLUSTER": self.cluster,
            "DEEPRES_THREADS": 32 * self.warps,
            "DEEPRES_STAGE_BYTES": self.stage_bytes,
            "DEEPRES_FIXED_BYTES": self.fixed_bytes,
            "DEEPRES_WGRAD_BYTES": self.wgrad_bytes,
        }


def choose_cluster(width: int, blocks: int, capability: tuple[int, int], processors: int) -> int:
    """Thread blocks that split the columns of 16 rows: as many, up to 4, as leave each 64 columns and an SM.

    What a layer costs is bytes through one SM; a cluster divides them. Only sm_90 and newer have clusters.
    """
    if capability < (9, 0):
        return 1
    fitting = (c for c in (4, 2) if width // c >= 64 and blocks * c <= processors)
    return next(fitting, 1)


class Stack:
    """The kernels over one call's parameters and sizes."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, options: StackOptions
    ):
        self.x, self.weight = _aligned(x), weight
        self.bias, self.gamma, self.beta = _aligned(bias), _aligned(gamma), _aligned(beta)
        self.options = options
        self.depth, self.width = bias.shape
        self.batch = x.shape[0]
        self.blocks = -(-self.batch // ROWS)
        device = cuda_program.device_facts(x.device)
        cluster = choose_cluster(self.width, self.blocks, device.capability, device.processors)
        self.geometry = Geometry(self.width, options, cluster)
        self.program = cuda_program.load_program(self.geometry.program, x.device)
        self.grid = (self.blocks * cluster, 1)
        self.stages = self.geometry.stages(device.shared_limit)
        self.layer_bytes = self.width**2 * self.geometry.operand_bytes
        self.per_block = options.skip_every or self.depth
        self.segment = min(self.depth, options.skip_every * options.recompute)  # layers between kept inputs

    def stretches(self, bytes_per_layer: int) -> list[tuple[int, int]]:
        """[start, stop) of the layers of each launch: as many blocks, or segments, as SCRATCH_BYTES holds."""
        unit = self.segment or self.per_block
        layers = max(1, SCRATCH_BYTES // (bytes_per_layer * unit)) * unit
        return [(start, min(start + layers, self.depth)) for start in range(0, self.depth, layers)]

    def block_input(self, layer: int, kept: Tensor) -> Tensor:
        """The input of a segment's first layer, under recompute=k."""
        return self.x if layer == 0 else kept[layer // self.segment - 1]

    def pack(self, start: int, stop: int, packed: Tensor, *, transposed: bool) -> None:
        vectors = (stop - start) * self.layer_bytes // 16
        self.program.launch(
            "residual_stack_pack", (-(-vectors // 256), 1), 256, 0,
            self.weight[start:stop], packed, stop - start, int(transposed),
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
        )  # fmt: skip

    def wgrad(self, start: int, stop: int, scratch: Scratch, dweight: Tensor) -> None:
        tiles = (self.width // self.geometry.wgrad_tile) ** 2
        self.program.launch(
            "residual_stack_wgrad", (tiles, stop - start), 256, self.geometry.wgrad_bytes,
            scratch.inputs, scratch.du, dweight[start:stop], self.blocks * ROWS,
        )  # fmt: skip

    def reduce(self, start: int, stop: int, scratch: Scratch, sums: Iterable[Tensor | None]) -> None:
        outputs = [None if out is None else out[start:stop] for out in sums]
        self.program.launch(
            "residual_stack_reduce", (self.width // 64, 3 * (stop - start)), 64, 0,
            scratch.partials, *outputs, self.blocks,
        )  # fmt: skip

    def _chain_bytes(self) -> int:
        return self.geometry.fixed_bytes + self.stages * self.geometry.stage_bytes

    def _vectors(self, start: int) -> tuple[Tensor, Tensor, Tensor]:
        if not self.options.norm:  # gamma and beta are placeholders, never read
            return self.bias[start:], self.gamma, self.beta
        return self.bias[start:], self.gamma[start:], self.beta[start:]


@dataclass(frozen=True)
class Scratch:
    """What a stretch of backward writes for the sums over rows; None where no gradient asks for it."""

    inputs: Tensor | None
    du: Tensor | None
    partials: Tensor | None


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
    depth = weight.shape[0]
    y = torch.empty_like(x)
    activations, statistics = x.new_empty(0), x.new_empty(0)
    if save:
        specs = saved_spec(x.shape[0], x.shape[1], depth, options)
        activations, statistics = (x.new_empty(shape, dtype=dtype) for shape, dtype in specs)
    if x.shape[0] == 0:
        return y, activations, statistics
    stack = Stack(x, weight, bias, gamma, beta, options)
    stretches = stack.stretches(stack.layer_bytes)
    packed = x.new_empty((_longest(stretches), stack.layer_bytes), dtype=torch.uint8)
    keeps_inputs = save and options.recompute > 0
    source = stack.x
    for start, stop in stretches:
        stack.pack(start, stop, packed, transposed=False)
        if keeps_inputs:
            out = y if stop == depth else stack.block_input(stop, activations)
            stack.forward(start, stop, source, packed, out, kept=activations[start // stack.segment :])
        elif save:
            rstd = statistics[start:stop] if options.norm else None
            out = y
            stack.forward(start, stop, source, packed, y, activations[start:stop], rstd)
        else:
            out = y
            stack.forward(start, stop, source, packed, y)
        source = out
    return y, activations, statistics


def backward(
    dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor,
    activations: Tensor, statistics: Tensor, options: StackOptions, needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    parameters = (x, weight, bias, gamma, beta)
    if x.shape[0] == 0:
        return tuple(torch.zeros_like(t) if need else None for t, need in zip(parameters, needs, strict=True))
    grads = [torch.empty_like(t) if need else None for t, need in zip(parameters, needs, strict=True)]
    dx, dweight, *sums = grads
    depth, width = bias.shape
    stack = Stack(x, weight, bias, gamma, beta, options)
    padded, operand = stack.blocks * ROWS, stack.geometry.operand_bytes
    recompute = options.recompute > 0
    bytes_per_layer = (
        stack.layer_bytes
        + (2 * padded * width * operand if dweight is not None else 0)
        + (stack.blocks * 3 * width * 4 if any(needs[2:]) else 0)
        + (stack.batch * (width * stack.geometry.saved_dtype.itemsize + 4) if recompute else 0)
    )
    stretches = stack.stretches(bytes_per_layer)
    longest = _longest(stretches)

    def operands() -> Tensor | None:
        return None if dweight is None else x.new_empty((longest, padded, width * operand), dtype=torch.uint8)

    packed = x.new_empty((longest, stack.layer_bytes), dtype=torch.uint8)
    partials = x.new_empty((longest, stack.blocks, 3, width)) if any(needs[2:]) else None
    scratch = Scratch(operands(), operands(), partials)
    normalized = rstd = None
    if recompute:
        normalized = x.new_empty((longest, stack.batch, width), dtype=stack.geometry.saved_dtype)
        rstd = x.new_empty((longest, stack.batch))
    gradient, stream = _aligned(dy), _aligned(y)  # at the end of the stretch: dL/da, and a
    below = dx if dx is not None else torch.empty_like(x) if len(stretches) > 1 else None
    for start, stop in reversed(stretches):
        source = stack.x if start == 0 else None  # the stretch's input, where it is known
        block_input = None
        if recompute:
            source = stack.block_input(start, activations)
            stack.pack(start, stop, packed, transposed=False)
            stack.forward(start, stop, source, packed, None, normalized, rstd)
        else:
            normalized, rstd = activations[start:stop], statistics[start:stop]
            if start > 0:
                block_input = torch.empty_like(x) if stop == depth else stream
        stack.pack(start, stop, packed, transposed=True)
        stack.dgrad(
            start, stop, packed, scratch,
            dy=gradient, y=stream, x=source, normalized=normalized, rstd=rstd,
            dx=below if start > 0 else dx, block_input=block_input,
        )  # fmt: skip
        if dweight is not None:
            stack.wgrad(start, stop, scratch, dweight)
        if partials is not None:
            stack.reduce(start, stop, scratch, sums)
        if start > 0:
            assert below is not None
            gradient = below
            next_stream = source if recompute else block_input
            assert next_stream is not None
            stream = next_stream
    return tuple(grads)


def _longest(stretches: list[tuple[int, int]]) -> int:
    return max(stop - start for start, stop in stretches)


def _aligned(tensor: Tensor) -> Tensor:
    """Kernels move vectors of 16 bytes; a view may begin anywhere."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
