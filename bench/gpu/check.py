"""What a GPU does, beside what the model predicts: ceilings, and a dependent layer by mechanism.

    python bench/gpu/check.py [--out DIR] [--width 256] [--batch 512] [--precision bf16]

Each mechanism runs two depths; the difference over the layers between them is the cost of one dependent
layer, free of what a call costs once. Times are CUDA events around a call, the median of many; "cold" has the
L2 cache overwritten before each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

if (
    not __package__
):  # run as a file: the folder above bench/ holds `bench`, and `deepres` where it is not installed
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parents[1]), *(p for p in sys.path if Path(p).resolve() != here)]

import deepres
from bench.gpu import model
from bench.harness import environment, turns
from bench.harness import results as files
from bench.published.crl import HALF, Stack
from deepres.kernels.residual_stack import cuda as backend

DEPTHS = (64, 128)
CALLS = 30
Run = Callable[[], object]


def microseconds(run: Run, *, cold: bool = False) -> dict[str, float]:
    """Of one call on the device: median, 10th and 90th percentile."""
    sweep = torch.empty(2**28, dtype=torch.uint8, device="cuda") if cold else None
    for _ in range(3):
        run()
    pairs = []
    for _ in range(CALLS):
        if sweep is not None:
            sweep.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        pairs.append((start, stop))
    torch.cuda.synchronize()
    return turns.spread([1e3 * start.elapsed_time(stop) for start, stop in pairs])


def graphed(run: Run) -> Run:
    """The call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def ceilings() -> dict[str, float]:
    """Copy bandwidth in GB/s (read and written), dense products in TFLOP/s, a kernel of a graph in us."""
    big = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(big)
    found = {"copy_gb_s": 2 * big.numel() / microseconds(lambda: other.copy_(big))["median"] * 1e-3}
    side = 8192
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32), ("fp32", torch.float32)):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        a, b = (torch.randn(side, side, device="cuda").to(dtype) for _ in range(2))
        found[f"{name}_tflop_s"] = 2 * side**3 / microseconds(lambda a=a, b=b: a @ b)["median"] * 1e-6
    one = torch.zeros(1, device="cuda")

    def chain(kernels: int) -> float:
        return microseconds(graphed(lambda: [one.add_(1) for _ in range(kernels)]))["median"]

    found["graph_kernel_us"] = (chain(200) - chain(100)) / 100
    return found


def tensors(size: model.Size) -> list[torch.Tensor]:
    """x and parameters, on the device."""
    random = torch.Generator().manual_seed(0)
    shapes = [(size.batch, size.width), (size.depth, size.width, size.width)] + [(size.depth, size.width)] * 3
    x, weight, *vectors = (torch.randn(shape, generator=random).cuda() for shape in shapes)
    bias, gamma, beta = (0.1 * v for v in vectors)
    return [x, weight / size.width**0.5, bias, 1 + gamma, beta]


def plain(
    size: model.Size,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """The network as one writes it by hand, with a tensor for each parameter of each layer."""
    x, *parameters = tensors(size)
    stack, half = Stack(*parameters), HALF.get(size.precision)

    def network(a: torch.Tensor) -> torch.Tensor:
        # nothing cached: a recorded graph would keep one call's casts of the weights
        with torch.autocast("cuda", half, enabled=half is not None, cache_enabled=False):
            return stack(a)

    return network, list(stack.parameters()), x


def runs(
    network: Callable[[torch.Tensor], torch.Tensor], parameters: list[torch.Tensor], x: torch.Tensor
) -> dict[str, Run]:
    dy = torch.randn_like(x)

    def forward() -> object:
        with torch.no_grad():
            return network(x)

    leaf = x.clone().requires_grad_()
    return {
        "forward": forward,
        "forward_backward": lambda: torch.autograd.grad(network(leaf), [leaf, *parameters], dy),
    }


def eager(size: model.Size) -> dict[str, Run]:
    return runs(*plain(size))


def eager_graph(size: model.Size) -> dict[str, Run]:
    return {mode: graphed(run) for mode, run in eager(size).items()}


def compiled(size: model.Size) -> dict[str, Run]:
    network, parameters, x = plain(size)
    return runs(torch.compile(network, mode="reduce-overhead", dynamic=False), parameters, x)


def fused(impl: str, cluster: int | None = None) -> Callable[[model.Size], dict[str, Run]]:
    """deepres under a graph; cluster: the CUDA backend's design A (1), B (2) or C (4)."""

    def build(size: model.Size) -> dict[str, Run]:
        x, *parameters = tensors(size)
        leaves = [p.requires_grad_() for p in parameters]

        def network(a: torch.Tensor) -> torch.Tensor:
            return deepres.residual_stack(a, *leaves, precision=size.precision, impl=impl)

        if cluster is None:
            return {mode: graphed(run) for mode, run in runs(network, leaves, x).items()}
        with mock.patch.object(backend, "choose_cluster", lambda *_: cluster):
            return {mode: graphed(run) for mode, run in runs(network, leaves, x).items()}

    return build


MECHANISMS: dict[str, Callable[[model.Size], dict[str, Run]]] = {
    "eager": eager,
    "eager in a graph": eager_graph,
    "deepres triton": fused("triton"),
    "deepres cuda, A": fused("cuda", 1),
    "deepres cuda, B": fused("cuda", 2),
    "deepres cuda, C": fused("cuda", 4),
    "torch.compile, reduce-overhead": compiled,
}


def measure(size: model.Size, build: Callable[[model.Size], dict[str, Run]]) -> dict[str, object]:
    """Per mode: the times of both depths, and of one dependent layer; or why there are none."""
    found: dict[str, object] = {}
    medians: dict[str, list[float]] = {}
    try:
        for depth in DEPTHS:
            for mode, run in build(dataclasses.replace(size, depth=depth)).items():
                times = microseconds(run)
                found[f"{mode}, depth {depth}"] = {"warm": times, "cold": microseconds(run, cold=True)}
                medians.setdefault(mode, []).append(times["median"])
    except Exception as error:  # one mechanism that is missing or fails leaves the others their figures
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    for mode, (short, long) in medians.items():
        found[f"{mode}, us a layer"] = (long - short) / (DEPTHS[1] - DEPTHS[0])
    return found


def machine_of(name: str) -> model.Machine | None:
    """The model's entry for a device's name."""
    return next((m for key, m in model.MACHINES.items() if key in name.lower().replace(" ", "")), None)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a GPU beside its prediction.")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--precision", nargs="*", choices=tuple(model.PRECISIONS), default=["bf16", "tf32"])
    files.add_options(parser)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("check.py measures a CUDA device, and PyTorch sees none; bench/model.py predicts without one")
        return 2
    described = environment.describe("cuda")
    results = files.begin("gpu_check", arguments, described, ceilings=ceilings())
    path = files.path(arguments, "gpu_check.json")
    machine = machine_of(described["device"]["name"])
    for name, build in MECHANISMS.items():  # the slowest to build comes last, for every precision
        for precision in arguments.precision:
            size = model.Size(DEPTHS[0], arguments.batch, arguments.width, precision)
            predicted = model.predictions(machine, size) if machine else "no entry in bench/gpu/model.py"
            row = {"mechanism": name, **dataclasses.asdict(size), "predicted_us": predicted}
            results["rows"].append(row | {"measured": measure(size, build)})
            print(precision, name, json.dumps(results["rows"][-1]["measured"]))
            files.save(results, path)  # what is measured stays, whatever comes next
    results["complete"] = True
    files.save(results, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
