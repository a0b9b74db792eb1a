"""The gradient steps of a round: from Python one by one, or as one CUDA graph that is replayed.

A gradient step of a shallow network is hundreds of launches of microseconds each, so launching them costs more than
running them. A captured step is one launch: batch and noise are copied into slots that never move, the graph runs
the very same step on them, and adds its metrics up on the device. Python reads them once a round.

Only `cuda_capture` needs a GPU. It has not run on one yet; everything around it is tested on the CPU with a capture
that runs the step each time it is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from deepres.data.batch import Batch
from deepres.training.learner import SKIPPED, Learner

WARM_UP = 3  # steps before a capture: compilers, workspaces and moments are there after the first ones

_log = logging.getLogger("deepres")

Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Steps:
    """Gradient steps of one learner, each launched from Python, and the means of their metrics."""

    def __init__(self, learner: Learner):
        self.learner = learner
        self._total: Tensor | None = None
        self._count = 0

    def __call__(self, batch: Batch, noise: Tensor) -> None:
        """One step; see `Learner.step`. Waits for nothing."""
        self._run(batch, noise)
        self._count += 1

    def _run(self, batch: Batch, noise: Tensor) -> None:
        self._add(self.learner.step(batch, noise))

    def _add(self, metrics: Tensor) -> None:
        if self._total is None:
            self._total = torch.zeros_like(metrics)
        self._total += metrics

    def read(self) -> dict[str, float]:
        """Means over the steps since the last reading that were not skipped (NaN if all were), and how many were.

        This waits for the device.
        """
        assert self._total is not None, "no step was made yet"
        sums = dict(zip(self.learner.metric_names, self._total.tolist(), strict=True))
        skipped = sums.pop(SKIPPED)
        kept = self._count - skipped
        self._total.zero_()
        self._count = 0
        means = {name: value / kept if kept else float("nan") for name, value in sums.items()}
        return {**means, SKIPPED: skipped}


def cuda_capture(step: Callable[[], None]) -> Callable[[], None]:
    """The kernels that `step` launches, recorded without being run; calling what is returned runs them.

    Raises RuntimeError if something in `step` cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may be collecting
        step()
    return graph.replay


class GraphSteps(Steps):
    """The same steps, to the same numbers, captured once and replayed.

    The first `WARM_UP` steps run from Python, as do all of them once a capture was refused (logger "deepres" says
    why). A state loaded into the learner is captured anew. capture: `cuda_capture`, or a stand-in for tests.
    """

    def __init__(self, learner: Learner, capture: Capture = cuda_capture):
        super().__init__(learner)
        self._capture: Capture | None = capture
        self._replay: Callable[[], None] | None = None
        self._slots: dict[str, Tensor] = {}
        self._warm, self._seen = 0, learner.rebuilt

    @property
    def captured(self) -> bool:
        """Whether the last step was a replay."""
        return self._replay is not None

    @property
    def refused(self) -> bool:
        """Whether CUDA refused a capture, so that every step is launched from Python."""
        return self._capture is None

    def _run(self, batch: Batch, noise: Tensor) -> None:
        self._fill({**batch.tensors(), "noise": noise})
        if self._seen != self.learner.rebuilt:
            self._replay, self._warm, self._seen = None, 0, self.learner.rebuilt
        if self._replay is None and self._capture is not None and self._warm >= WARM_UP:
            try:
                self._replay = self._capture(self._step)
            except RuntimeError as error:
                self._capture = None
                _log.warning(
                    "gradient steps are launched one by one: CUDA refused to capture one (%s); cuda_graph=False "
                    "leaves this out",
                    str(error).partition("\n")[0],
                )
        if self._replay is not None:
            self._replay()
        else:
            self._step()
            self._warm += 1

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        shapes = {name: t.shape for name, t in tensors.items()}
        if {
            name: t.shape for name, t in self._slots.items()
        } != shapes:  # the first batch, or one of another size
            self._slots = {name: torch.empty_like(t) for name, t in tensors.items()}
            self._replay, self._warm = None, 0
        for name, tensor in tensors.items():
            self._slots[name].copy_(tensor)

    def _step(self) -> None:
        slots = dict(self._slots)
        noise = slots.pop("noise")
        self._add(self.learner.step(Batch.of(slots), noise))


def gradient_steps(learner: Learner) -> Steps:
    """What runs this learner's steps fastest: a graph on a GPU, unless its config has none of it."""
    captures = learner.device.type == "cuda" and learner.config.system.cuda_graph
    return GraphSteps(learner) if captures else Steps(learner)
