"""A call as a CUDA graph: what is timed on a GPU, where launching from Python costs more than the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WARM_CALLS = 3  # compilers, workspaces and the allocator are done after the first ones


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run`, recorded; what is returned replays it and gives the same tensors each time, with new contents.

    `run` must wait for nothing and allocate through PyTorch alone. Raises RuntimeError if CUDA cannot record it.
    """
    import torch

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_CALLS):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
