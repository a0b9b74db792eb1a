"""What the launchers of Triton kernels share: where they can run, and the shape of a kernel's work."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from deepres.kernels.dispatch import beside_gpu


def unavailable() -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed; pip install 'deepres[cuda]'"
    if interpreted():
        return None
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "Triton needs an NVIDIA GPU, and PyTorch sees none; check torch.cuda.is_available()"
    try:
        import triton

        triton.runtime.driver.active.get_current_target()  # built by a C compiler, as each kernel's launcher is
    except Exception as error:  # of whatever kind: auto then goes on to the next backend
        said = str(error).strip().partition("\n")[0]
        return (
            f"Triton cannot launch kernels here ({type(error).__name__}: {said}); it takes gcc or clang ($CC)"
        )
    return None


def unsupported_device(x: Tensor) -> str | None:
    """Why x lies where no kernel can be launched over it (a clause and a remedy), or None."""
    if interpreted():
        if x.device.type == "cpu":
            return None
        return "TRITON_INTERPRET is for CPU tensors; unset it to use the GPU"
    return beside_gpu(x)


def interpreted() -> bool:
    """Whether Triton emulates its kernels on the CPU in this process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


class Tiles(NamedTuple):
    """The shape of one kernel's work: its tile sizes (constants of the kernel) and the compiler's options."""

    blocks: dict[str, int]
    num_warps: int
    num_stages: int
    registers: int | None = (
        None  # that a thread may use; the compiler's own choice fits more programs on an SM
    )

    def arguments(self) -> dict[str, int | None]:
        compiler = {"num_warps": self.num_warps, "num_stages": self.num_stages, "maxnreg": self.registers}
        return {**self.blocks, **compiler, "enable_fp_fusion": True}
