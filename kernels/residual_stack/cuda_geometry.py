"""The sizes of the CUDA residual stack: what one build of csrc/cuda serves, and how many blocks share its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from deepres.kernels import cuda_program
from deepres.kernels.residual_stack.options import StackOptions

WIDTHS = (64, 128, 256, 512)
CLUSTERED = {1024: 4}  # widths for which one block has too few registers, and the blocks that share them
KERNELS = tuple(f"residual_stack_{name}" for name in ("pack", "forward", "dgrad", "wgrad", "reduce"))
ROWS = 16  # of a team: a block of threads, or a cluster of blocks that split the columns
SQUARE_BYTES = 64 * 64 * 2  # what one copy brings where operands are swapped
SWAPPED_WIDTHS = (64, 128, 256)  # whose blocks then have 64 columns each, in clusters of up to 4

_FORMATS = {"fp32": 32, "tf32": 19, "fp16": 16, "bf16": 116}


@dataclass(frozen=True)
class Tuning:
    """How a stack is computed where there is a choice that only a measurement can make; the results are as good.

    swapped_rows: 0, or 16 or 32 to multiply weights by rows, so many at a time, with sm_90a's warpgroup products in
    place of rows by weights with mma.sync. It takes an H100 or H200, bf16 or fp16 and a width of 64, 128 or 256.
    """

    swapped_rows: int = 0

    def __post_init__(self) -> None:
        if self.swapped_rows not in (0, 16, 32):
            raise ValueError(f"swapped_rows must be 0, 16 or 32, got {self.swapped_rows!r}")

    def refused(self, width: int, options: StackOptions, capability: tuple[int, int]) -> str | None:
        """Why it does not apply, with what to do, or None."""
        if self.swapped_rows == 0:
            return None
        remedy = "pass Tuning(swapped_rows=0)"
        if capability != (9, 0):
            found = ".".join(map(str, capability))
            return f"swapped_rows takes a GPU of compute capability 9.0, this one has {found}; {remedy}"
        if options.precision not in ("bf16", "fp16"):
            return f"swapped_rows takes precision bf16 or fp16, got {options.precision}; {remedy}"
        if width not in SWAPPED_WIDTHS:
            return f"swapped_rows serves widths {', '.join(map(str, SWAPPED_WIDTHS))}, got {width}; {remedy}"
        return None


_tunings = [Tuning()]


@contextmanager
def tuned(tuning: Tuning) -> Iterator[None]:
    """Within, the kernels are chosen so, in every thread: backward runs in autograd's."""
    _tunings.append(tuning)
    try:
        yield
    finally:
        _tunings.pop()


def tuning() -> Tuning:
    return _tunings[-1]


@dataclass(frozen=True)
class Geometry:
    """The sizes that one build of the sources has; csrc/cuda/config.cuh computes and checks the same."""

    width: int
    options: StackOptions
    cluster: int = 1
    swapped_rows: int = 0

    @cached_property
    def operand_bytes(self) -> int:
        return 2 if self.options.precision in ("bf16", "fp16") else 4

    @cached_property
    def saved_dtype(self) -> torch.dtype:
        return torch.float16 if self.options.norm and self.operand_bytes == 2 else torch.float32

    @cached_property
    def rows(self) -> int:
        """Of a team."""
        return self.swapped_rows or ROWS

    @cached_property
    def columns(self) -> int:
        return self.width // self.cluster

    @cached_property
    def warps(self) -> int:
        return 4 if self.columns == 64 else 8

    @cached_property
    def warp_stage_bytes(self) -> int:
        """Weights that one copy brings, no more than a warp needs of a layer; each copy costs a wait and a refill.

        4 KB. In clusters 8 where a warp is alone with its scheduler (but for fp32, which is short of registers),
        and 2 where 8 warps take 4-byte weights, which is short of shared memory.
        """
        copy = 4096
        if self.cluster > 1 and self.warps == 4 and self.options.precision != "fp32":
            copy = 8192
        elif self.cluster > 1 and self.warps == 8 and self.operand_bytes == 4:
            copy = 2048
        return min(copy, self.columns // self.warps * self.width * self.operand_bytes)

    @cached_property
    def stage_bytes(self) -> int:
        """Shared memory of a chain kernel for one stage of all warps' rings: weights and their barriers."""
        if self.swapped_rows:
            return self.width // 64 * SQUARE_BYTES + 16  # a layer
        return self.warps * (self.warp_stage_bytes + 8)

    @cached_property
    def fixed_bytes(self) -> int:
        """The rest of it: a team's rows as an operand, two floats of each row and warp, two barriers."""
        operand = self.rows * (self.width * self.operand_bytes + 16)
        if self.swapped_rows:  # core matrices of 128 bytes, 32 bytes apart
            operand = self.width // 8 * self.rows // 8 * (128 + 32)
        return operand + self.rows * 4 * (2 * self.cluster * self.warps + 4) + 16

    @cached_property
    def wgrad_tile(self) -> int:
        return min(self.width, 128)

    @cached_property
    def wgrad_bytes(self) -> int:
        """Shared memory of wgrad: four chunks of 16 rows of both operands."""
        return 2 * 4 * 16 * (self.wgrad_tile * self.operand_bytes + (16 if self.operand_bytes == 2 else 32))

    @cached_property
    def stages_of_layer(self) -> int:
        if self.swapped_rows:
            return 1
        return self.columns // self.warps * self.width * self.operand_bytes // self.warp_stage_bytes

    def stages(self, shared_limit: int) -> int:
        """Stages in flight: two layers' worth, at least four; no more than fit.

        Clusters leave room for a second block on an SM if they can: they need not find free SMs side by side.
        """
        alone = (shared_limit - self.fixed_bytes) // self.stage_bytes
        beside = (shared_limit // 2 - 1024 - self.fixed_bytes) // self.stage_bytes
        return min(max(4, 2 * self.stages_of_layer), beside if self.cluster > 1 and beside >= 2 else alone)

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
            "DEEPRES_SWAPPED": self.swapped_rows,
            "DEEPRES_THREADS": 32 * self.warps,
            "DEEPRES_STAGE_BYTES": self.stage_bytes,
            "DEEPRES_FIXED_BYTES": self.fixed_bytes,
            "DEEPRES_WGRAD_BYTES": self.wgrad_bytes,
        }


def choose_cluster(width: int, blocks: int, capability: tuple[int, int], processors: int) -> int:
    """Thread blocks that split the columns of 16 rows: as many, up to 4, as leave each 64 columns and an SM.

    What a layer costs is bytes through one SM; a cluster divides them. Only sm_90 and newer have clusters.
    """
    if width in CLUSTERED or capability < (9, 0):
        return fewest_blocks(width, capability)
    fitting = (c for c in (4, 2) if width // c >= 64 and blocks * c <= processors)
    return next(fitting, fewest_blocks(width, capability))


def fewest_blocks(width: int, capability: tuple[int, int]) -> int:
    """Blocks that a row takes at least: on sm_120 512 columns of fp32 are 20 bytes more than one block's registers."""
    if width in CLUSTERED:
        return CLUSTERED[width]
    return 2 if width == 512 and capability >= (12, 0) else 1
