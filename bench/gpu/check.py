"""What a GPU does, beside what the model predicts: ceilings, and a dependent layer by mechanism.

    python bench/gpu/check.py [--out DIR] [--width 256] [--batch 512] [--precision bf16]

Each mechanism and precision has a process of its own and a minute. It runs two depths; the difference over the layers
between them is the cost of one dependent layer, free of what a call costs once. Times are CUDA events around a call,
the median of many; "cold" has the L2 cache overwritten before each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch

if (
    not __package__
):  # run as a file: the folder above bench/ holds `bench`, and `deepres` where it is not installed
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parents[1]), *(p for p in sys.path if Path(p).resolve() != here)]

import deepres
from bench.gpu import children, model
from bench.harness import environment, turns
from bench.harness import results as files
from bench.harness.cuda_graph import captured
from bench.published.crl import HALF, Stack
from deepres.kernels.residual_stack import cuda as backend
from deepres.kernels.residual_stack.cuda_geometry import Tuning, tuned

DEPTHS = (64, 128)
CALLS = 30
DESK = "bench.gpu.check:Desk"
DEVICE = "cuda"
LIMIT_S = 60.0  # of one mechanism in one precision
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
        return microseconds(captured(lambda: [one.add_(1) for _ in range(kernels)]))["median"]

    found["graph_kernel_us"] = (chain(200) - chain(100)) / 100
    return found


def tensors(size: model.Size) -> list[torch.Tensor]:
    """x and parameters."""
    random = torch.Generator().manual_seed(0)
    shapes = [(size.batch, size.width), (size.depth, size.width, size.width)] + [(size.depth, size.width)] * 3
    x, weight, *vectors = (torch.randn(shape, generator=random).to(DEVICE) for shape in shapes)
    bias, gamma, beta = (0.1 * v for v in vectors)
    return [x, weight / size.width**0.5, bias, 1 + gamma, beta]


def plain(
    size: model.Size,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """The network as one writes it by hand, with a tensor for each parameter of each layer.

    Its products are in the precision of `size`, for the rest of the process.
    """
    torch.set_float32_matmul_precision("high" if size.precision == "tf32" else "highest")
    x, *parameters = tensors(size)
    stack, half = Stack(*parameters), HALF.get(size.precision)

    def network(a: torch.Tensor) -> torch.Tensor:
        # nothing cached: a recorded graph would keep one call's casts of the weights
        with torch.autocast(DEVICE, half, enabled=half is not None, cache_enabled=False):
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
    return {mode: captured(run) for mode, run in eager(size).items()}


def compiled(size: model.Size) -> dict[str, Run]:
    network, parameters, x = plain(size)
    return runs(torch.compile(network, mode="reduce-overhead", dynamic=False), parameters, x)


def fused(
    impl: str, cluster: int | None = None, swapped_rows: int = 0
) -> Callable[[model.Size], dict[str, Run]]:
    """deepres under a graph; cluster: the CUDA backend's design A (1), B (2) or C (4)."""

    def build(size: model.Size) -> dict[str, Run]:
        x, *parameters = tensors(size)
        leaves = [p.requires_grad_() for p in parameters]

        def network(a: torch.Tensor) -> torch.Tensor:
            return deepres.residual_stack(a, *leaves, precision=size.precision, impl=impl)

        chosen = (
            mock.patch.object(backend, "choose_cluster", lambda *_: cluster) if cluster else nullcontext()
        )
        with chosen, tuned(Tuning(swapped_rows)):
            return {mode: captured(run) for mode, run in runs(network, leaves, x).items()}

    return build


MECHANISMS: dict[str, Callable[[model.Size], dict[str, Run]]] = {
    "deepres cuda, C": fused("cuda", 4),
    "deepres cuda, swapped, 16 rows": fused("cuda", swapped_rows=16),
    "deepres cuda, swapped, 32 rows": fused("cuda", swapped_rows=32),
    "deepres cuda, A": fused("cuda", 1),
    "deepres cuda, B": fused("cuda", 2),
    "deepres triton": fused("triton"),
    "eager in a graph": eager_graph,
    "eager": eager,
    "torch.compile, reduce-overhead": compiled,
}
"""What is asked first is what nobody else can tell; the slowest to build comes last."""


def measure(size: model.Size, build: Callable[[model.Size], dict[str, Run]]) -> dict[str, object]:
    """Per mode: the times of both depths, and of one dependent layer."""
    found: dict[str, object] = {}
    medians: dict[str, list[float]] = {}
    for depth in DEPTHS:
        for mode, run in build(dataclasses.replace(size, depth=depth)).items():
            times = microseconds(run)
            found[f"{mode}, depth {depth}"] = {"warm": times, "cold": microseconds(run, cold=True)}
            medians.setdefault(mode, []).append(times["median"])
    for mode, (short, long) in medians.items():
        found[f"{mode}, us a layer"] = (long - short) / (DEPTHS[1] - DEPTHS[0])
    return found


class Desk:
    """What a child can be asked."""

    def __init__(self, threads: int | None):
        pass

    def machine(self) -> dict[str, object]:
        return {"environment": environment.describe("cuda"), "ceilings": ceilings()}

    def measure(self, mechanism: str, size: model.Size) -> dict[str, object]:
        return measure(size, MECHANISMS[mechanism])


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
    if reason := children.without_gpu("bench/gpu/check.py"):
        print(f"{reason}; bench/model.py predicts without one")
        return 2
    path = files.path(arguments, "gpu_check.json")
    results = begun(arguments)
    if results is None:
        return 1
    files.save(results, path)
    machine = machine_of(results["environment"]["device"]["name"])
    sizes = [model.Size(DEPTHS[0], arguments.batch, arguments.width, p) for p in arguments.precision]
    tasks = [
        (mechanism, size)
        for mechanism in MECHANISMS
        for size in sizes
        if "swapped" not in mechanism or size.precision in ("bf16", "fp16")
    ]
    for (mechanism, size), outcome in children.each(DESK, "measure", tasks, limit_s=LIMIT_S):
        predicted = _predicted(machine, size)
        row = {"mechanism": mechanism, **dataclasses.asdict(size), "predicted_us": predicted}
        row |= {"status": outcome.status, "reason": outcome.reason, "measured": outcome.answer}
        results["rows"].append(row)
        files.save(results, path)  # what is measured stays, whatever comes next
        print(size.precision, mechanism, json.dumps(outcome.answer or outcome.reason), flush=True)
    results["complete"] = True
    files.save(results, path)
    return 0 if all(row["status"] == "measured" for row in results["rows"]) else 1


def _predicted(machine: model.Machine | None, size: model.Size) -> object:
    """What the model says, or why it says nothing."""
    if machine is None:
        return "no entry in bench/gpu/model.py"
    try:
        return model.predictions(machine, size)
    except ValueError as error:
        return str(error)


def begun(arguments: argparse.Namespace) -> files.Row | None:
    """The result without rows, the machine's facts in it; None, and a sentence printed, where it tells none."""
    ((_, outcome),) = children.each(DESK, "machine", [()], limit_s=LIMIT_S)
    if outcome.answer is None:
        print(f"check.py learned nothing of this GPU: {outcome.reason}")
        return None
    return files.begin(
        "gpu/check", arguments, outcome.answer["environment"], ceilings=outcome.answer["ceilings"]
    )


if __name__ == "__main__":
    sys.exit(main())
