"""What a gradient step launches on a GPU, counted with none: it runs on CPU tensors as if they lay on one.

Fused ops take the backend that an H100 has, whose kernels are counted in place of being run: results are whatever the
memory held. Streams and events are stand-ins. Of PyTorch's operations those that only look at memory or take it launch
nothing, every other one kernel, or what `_KERNELS` says (its CUDA sources). Left out is what the sources decide by the
card and the size: products that cuBLAS splits, and the memset before a large reduction.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepres.config import Config
from deepres.data.batch import Batch, Sizes
from deepres.kernels import cuda_program, dispatch, streams
from deepres.training.cuda_graph import Steps
from deepres.training.learner import Learner

FACTS = cuda_program.DeviceFacts((9, 0), 132, 227 * 1024)  # an H100's
PLACES = {
    "kernels/residual_stack": "residual stacks",
    "kernels/info_nce": "InfoNCE",
    "kernels/stem": "stems and heads",
    "kernels/policy": "policy's density, energy, losses",
    "networks.py": "stems and heads",
    "modules.py": "stems and heads",
    "algorithms/parts.py": "policy's density, energy, losses",
    "algorithms": "inputs and metrics of the losses",
    "training/optimizer.py": "Adam",
    "training": "sum, verdict and metrics of the step",
}
"""Part of the package -> what its launches are for; the first that fits."""
OUTSIDE = ("residual stacks", "InfoNCE")  # those that no other part's count holds


class Launch(NamedTuple):
    """place: of PLACES. way: "forward", or "backward" for what autograd launches. kernel: as PyTorch or deepres names
    it."""

    place: str
    way: str
    kernel: str


def count(step: Callable[[], object]) -> Counter[Launch]:
    """What `step`, of a learner on the CPU, would launch on a GPU."""
    counter = _Counter()
    with _as_on_a_gpu(counter), counter:
        step()
    return counter.launches


def of_step(config: Config, sizes: Sizes) -> Counter[Launch]:
    """A gradient step of `config` after its first, as a captured graph holds it: with the sum of its metrics."""
    steps, rows = Steps(Learner(config, sizes)), config.schedule.batch_size
    batch = Batch(
        torch.zeros(rows, sizes.state), torch.zeros(rows, sizes.action), torch.zeros(rows, sizes.goal)
    )
    noise = torch.zeros(rows, sizes.action)
    count(lambda: steps(batch, noise))  # makes the moments
    return count(lambda: steps(batch, noise))


def outside(launches: Counter[Launch]) -> int:
    """How many are neither the stacks' nor InfoNCE's."""
    return sum(number for launch, number in launches.items() if launch.place not in OUTSIDE)


_MEMORY = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "detach_", "_unsafe_view",
    "lift_fresh", "record_stream", "_reshape_alias", "set_", "resize_",
}  # fmt: skip


def _adam(tensors: list[torch.Tensor], *_: Any) -> int:
    """A launch takes at most 36 tensors and 320 chunks of 2^16 numbers."""
    chunks = sum(math.ceil(t.numel() / 2**16) for t in tensors)
    return max(math.ceil(chunks / 320), math.ceil(len(tensors) / 36))


_KERNELS: dict[str, Callable[..., int]] = {
    "_fused_adam_": _adam,
    "_foreach_norm": lambda *_: 3,  # zeros, a norm of each chunk, of each tensor
    "native_layer_norm_backward": lambda *args: bool(args[-1][0]) + any(args[-1][1:]),
}


class _Counter(TorchDispatchMode):
    """Counts what is launched within it."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[Launch] = Counter()
        self._places: dict[int, str] = {}

    def add(self, kernel: str, number: int = 1) -> None:
        node = torch._C._current_autograd_node()
        if node is None:
            place = _place()
            asked_by = (
                torch.autograd._get_sequence_nr() - 1
            )  # the node that autograd has just made, if it made one
            self._places.setdefault(asked_by, place)
        else:
            place = self._places.get(node._sequence_nr(), "gradients' sums")
        if number:
            self.launches[Launch(place, "forward" if node is None else "backward", kernel)] += number

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the whole compiler is imported to say that it should not trace this

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if func.namespace == "deepres":  # what its backend launches counts
            self.add(name, 0)
            with self:
                return func.redispatch(_BACKEND, *args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        silent = func.is_view or name in _MEMORY or func.namespace in ("prim", "profiler")
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if made and not any(t.numel() for t in made):
            silent = True
        self.add(name, 0 if silent else _KERNELS.get(name, lambda *_: 1)(*args))
        return out


_BACKEND = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def _place() -> str:
    """Of PLACES, the innermost that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        _, _, file = frame.f_code.co_filename.rpartition("/deepres/")
        for part, place in PLACES.items():
            if file.startswith(part):
                return place
        frame = frame.f_back
    return "else"


@contextmanager
def _as_on_a_gpu(counter: _Counter) -> Iterator[None]:
    """Within, what asks sees a GPU, and its backends launch nothing."""

    from triton.runtime.jit import JITFunction

    class Program:
        def launch(self, kernel: str, *_: Any) -> None:
            counter.add(kernel)

    def first(op: str, impl: str, _: object) -> str:
        return impl if impl == "reference" else next(iter(dispatch.BACKENDS[op]))

    stand_ins: list[tuple[Any, str, Any]] = [
        (torch.Tensor, "is_cuda", property(lambda _: True)),
        (torch.Tensor, "record_stream", lambda *_: None),
        (torch.cuda, "Stream", _Stream),
        (torch.cuda, "Event", _Stream),
        (torch.cuda, "stream", lambda _: nullcontext()),
        (torch.cuda, "current_stream", lambda *_: _Stream()),
        (torch.cuda, "is_current_stream_capturing", lambda: True),
        (torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=FACTS.processors)),
        (streams, "has_streams", lambda _: True),
        (dispatch, "choose", first),
        (cuda_program, "device_facts", lambda _: FACTS),
        (cuda_program, "load_program", lambda *_: Program()),
        (JITFunction, "run", lambda kernel, *_, **__: counter.add(kernel.fn.__name__)),
    ]  # fmt: skip
    with ExitStack() as stack:
        for owner, name, stand_in in stand_ins:
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield


class _Stream:
    """Of a stream and of an event what a step calls; all of it does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        self.cuda_stream = 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None
