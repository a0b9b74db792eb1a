"""A policy for one observation at a time on one thread, in C++ (csrc/cpu/policy.cpp): its weights packed once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepres.deploy.plain import PlainNetwork
from deepres.kernels.residual_stack import cpu

PRECISIONS = ("fp32", "bf16")


class CompiledActor(nn.Module):
    """obs [N, S + G] -> actions [N, H * A], as PlainNetwork gives them, row after row on the calling thread.

    precision: fp32, or bf16, which rounds the weights alone and halves what each row reads. Its memory is its own, and
    threads take turns. Raises ImportError without deepres._C, ValueError for another precision or a clipped mean.
    """

    def __init__(self, network: PlainNetwork, precision: str = "fp32"):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if network.clipped:
            raise ValueError(
                "a compiled policy ends in tanh, and this one's mean is clipped; export it to ONNX instead"
            )
        if reason := cpu.unavailable():
            raise ImportError(f"a compiled policy needs deepres._C: {reason}")
        options = network.options
        self.inputs, self.outputs = network.inputs, network.outputs
        self.runtime = cpu._C.Policy(
            (network.inputs, network.width, network.depth, network.outputs, options.skip_every),
            options.norm, options.activation == "swish", network.clocked, options.eps, precision == "bf16",
            _addresses(network.stem_weight, network.stem_bias, network.stem_gamma, network.stem_beta),
            _addresses(network.weight, network.bias, network.gamma, network.beta),
            _addresses(network.head_weight, network.head_bias),
        )  # fmt: skip

    def forward(self, obs: Tensor) -> Tensor:
        return self.act_into(obs.contiguous(), torch.empty(len(obs), self.outputs))

    def act_into(self, obs: Tensor, actions: Tensor) -> Tensor:
        """The same into `actions` [N, H * A], which it returns: nothing is allocated. Both are contiguous float32
        tensors on the CPU; raises ValueError otherwise."""
        for name, tensor, columns in (("obs", obs, self.inputs), ("actions", actions, self.outputs)):
            if (
                tensor.shape != (len(obs), columns)
                or tensor.dtype != torch.float32
                or tensor.device.type != "cpu"
                or not tensor.is_contiguous()
            ):
                raise ValueError(
                    f"{name} must be contiguous float32 of shape [{len(obs)}, {columns}] on the CPU, got "
                    f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}; pass {name}.float().contiguous()"
                )
        self.runtime.act(obs.data_ptr(), actions.data_ptr(), len(obs))
        return actions

    @property
    def weight_bytes(self) -> int:
        """What one row reads, once and in order."""
        return self.runtime.bytes


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if t is None else t.data_ptr() for t in tensors)
