"""A policy written to a file: ONNX, or a program of torch.export.

Metadata of both, each a string: see `deepres.Policy.export`.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres.deploy.plain import PlainNetwork

OPSET, IR_VERSION = 18, 8  # runtimes since 2023 read both
ONE_FILE_BYTES = 2**31 - 2**24  # a protocol buffer ends at 2 GiB; larger weights go into a file beside it
INPUT, OUTPUT, PLAN = "obs", "action", "plan"

Metadata = dict[str, str]


def write_onnx(network: PlainNetwork, metadata: Metadata, path: Path) -> None:
    """Write `network` as ONNX, opset 18, standard operators alone: obs [batch, S + G] float32 -> action [batch, A], of
    a policy that plans H > 1 actions also plan [batch, H, A]. Weights above 2 GiB go to `path`.data beside it.

    Raises ImportError without the package onnx; OSError in one sentence if the disk refuses, and what was at `path`
    stays then.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"export to ONNX needs onnx ({error}); pip install 'deepres[export]'") from None
    model = _Graph(network).model(metadata)
    with drafts_of(path) as draft:
        if sum(4 * t.numel() for t in _tensors(network)) < ONE_FILE_BYTES:
            draft.write_bytes(model.SerializeToString())
        else:
            onnx.save_model(model, draft, save_as_external_data=True, location=f"{path.name}.data")


def write_program(network: PlainNetwork, metadata: Metadata, path: Path) -> None:
    """Write `network` as a program of torch.export (.pt2), obs [batch, S + G] -> action [batch, H * A];
    torch.export.load reads it, and the metadata as its extra_files. Raises OSError as write_onnx."""
    example = torch.zeros(2, network.inputs)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (example,), dynamic_shapes={INPUT: {0: batch}})
    held = io.BytesIO()
    torch.export.save(program, held, extra_files=dict(metadata))
    with drafts_of(path) as draft:
        draft.write_bytes(held.getbuffer())


WRITERS: dict[str, Callable[[PlainNetwork, Metadata, Path], None]] = {
    "onnx": write_onnx,
    "pt2": write_program,
}
"""By format, which is also the file's suffix."""


@contextmanager
def drafts_of(path: Path) -> Iterator[Path]:
    """Where to write what will be `path`, and files beside it; they come there whole, or not at all."""
    folder = path.parent / f".{path.name}.draft"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda one: one.name == path.name):  # path itself comes last
            file.replace(path.parent / file.name)
    except OSError as error:
        raise OSError(f"cannot write the policy to {path}: {error}; export it to another place") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tensors(network: PlainNetwork) -> list[Tensor]:
    return [t for t in vars(network).values() if isinstance(t, Tensor)]


class _Graph:
    """The nodes and weights of an ONNX graph, in order."""

    def __init__(self, network: PlainNetwork):
        self.network = network
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def model(self, metadata: Metadata) -> Any:
        from onnx import TensorProto, helper

        network = self.network
        actions = self._network()
        sizes: dict[str, list[Any]] = {OUTPUT: ["batch", network.outputs // network.horizon]}
        if network.horizon == 1:
            self.nodes[-1].output[0] = OUTPUT
        else:
            sizes[PLAN] = ["batch", network.horizon, network.outputs // network.horizon]
            shape = self._weight("plan_shape", torch.tensor([-1, *sizes[PLAN][1:]]))
            self._add("Reshape", actions, shape, to=PLAN)
            bounds = [
                self._weight(n, torch.tensor([v]))
                for n, v in (("from", 0), ("to", sizes[OUTPUT][1]), ("axis", 1))
            ]
            self._add("Slice", actions, *bounds, to=OUTPUT)
        inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", network.inputs])]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, size) for n, size in sizes.items()]
        graph = helper.make_graph(self.nodes, "policy", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="deepres", ir_version=IR_VERSION)
        helper.set_model_props(model, metadata)
        return model

    def _network(self) -> str:
        network, skip = self.network, self.network.options.skip_every
        a = self._dense("stem", self._clocked(INPUT), network.stem_weight, network.stem_bias)
        a = block = self._activated("stem", a, network.stem_gamma, network.stem_beta)
        for layer in range(network.depth):
            name = f"layer{layer}"
            a = self._add("MatMul", a, self._weight(f"{name}.weight", network.weight[layer]))
            a = self._add("Add", a, self._weight(f"{name}.bias", network.bias[layer]))
            scales = [None if t is None else t[layer] for t in (network.gamma, network.beta)]
            a = self._activated(name, a, *scales)
            if skip and (layer + 1) % skip == 0:
                a = block = self._add("Add", a, block)
        mean = self._dense("head", a, network.head_weight, network.head_bias)
        if not network.clipped:
            return self._add("Tanh", mean)
        bounds = [self._weight(name, torch.tensor(v)) for name, v in (("lowest", -1.0), ("highest", 1.0))]
        return self._add("Clip", mean, *bounds)

    def _clocked(self, obs: str) -> str:
        if not self.network.clocked:
            return obs
        last = self.network.inputs - 1
        sizes = self._weight("clock_split", torch.tensor([last, 1]))
        rest, left = "state_and_goal", "steps_left"
        self.nodes.append(_node("Split", [obs, sizes], [rest, left], axis=1))
        clock = self._add("Log", self._add("Add", left, self._weight("one", torch.ones(1))))
        return self._add("Concat", rest, clock, axis=1)

    def _dense(self, name: str, x: str, weight: Tensor, bias: Tensor) -> str:
        """x @ weight.T + bias."""
        parameters = self._weight(f"{name}.weight", weight), self._weight(f"{name}.bias", bias)
        return self._add("Gemm", x, *parameters, transB=1)

    def _activated(self, name: str, u: str, gamma: Tensor | None, beta: Tensor | None) -> str:
        if gamma is not None and beta is not None:
            scales = self._weight(f"{name}.gamma", gamma), self._weight(f"{name}.beta", beta)
            u = self._add("LayerNormalization", u, *scales, axis=-1, epsilon=self.network.options.eps)
        if self.network.options.activation == "relu":
            return self._add("Relu", u)
        return self._add("Mul", u, self._add("Sigmoid", u))  # Swish itself came with opset 24

    def _weight(self, name: str, value: Tensor) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def _add(self, op: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        to = to or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(_node(op, list(inputs), [to], **attributes))
        return to


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(op, inputs, outputs, **attributes)
