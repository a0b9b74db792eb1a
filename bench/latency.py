"""How long a policy takes to act: one observation on one pinned thread, and observations a second in a batch.

    python bench/latency.py                                   # depths 4 to 1024, fp32 and bf16: about an hour
    python bench/latency.py --depths 64 --precisions fp32     # these
    python bench/latency.py --only eager compiled --calls 200

Contestants, each in a process of its own on the same core, taking turns: plain PyTorch as scripts have it (modules:
nn.Linear, nn.LayerNorm, nn.SiLU, one for each operation) and as bare functions of the same tensors (eager),
torch.compile of the functions, onnxruntime (the file of Policy.export; fp32 alone), deepres (Policy.act, the kernels of
training) and Policy.compiled (one observation alone). `read` is reading the packed weights once and no more: what no
contestant can beat where they come from memory.
Each is compared with float64 before its clock starts. The JSON, under bench/results/new/ or bench/results/ (--keep), is
complete after every case.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.harness import environment, turns
from bench.harness import results as files
from bench.harness.progress import Progress, draw_table
from bench.harness.results import Row
from bench.harness.workers import Crew, Failed, Unavailable

CONTESTANTS = ("modules", "eager", "compile", "onnxruntime", "deepres", "compiled", "read")
DEPTHS, WIDTH, BATCHES = (4, 16, 64, 256, 512, 1024), 256, (1, 512)
INPUTS, OUTPUTS = 31, 8  # of the ant
CALLS, WARM, ROUNDS = 1000, 100, 10
BATCH_CALLS = 50  # as many fewer calls of a large batch
WORSE, HAIR = 8.0, 2e-7  # of float64, beside plain PyTorch in the same precision


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, 1 if a contestant's actions were wrong, 130 when interrupted."""
    arguments = parse(argv)
    results = files.begin("latency", arguments, environment.describe("cpu"))
    path = files.path(arguments, files.file_name("latency", results))
    cases = [(d, p, b) for d in arguments.depths for p in arguments.precisions for b in arguments.batches]
    try:
        with Progress(len(cases)) as progress, Crew(1, "bench.latency:Desk") as crew:
            for depth, precision, batch in cases:
                progress.say(f"depth {depth}, {precision}, batch {batch}")
                results["rows"] += measure(arguments, crew, depth, precision, batch)
                files.save(results, path)
                progress.advance()
        results["complete"] = True
    except KeyboardInterrupt:
        print("interrupted: what was measured until then stays", file=sys.stderr)
    show(results["rows"])
    files.save(results, path)
    print(f"wrote {path}")
    if not results["complete"]:
        return 130
    return int(any(row["status"] == "refused" for row in results["rows"]))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--depths", nargs="+", type=int, default=list(DEPTHS), metavar="D", help="default: %(default)s")
    add("--width", type=int, default=WIDTH, metavar="W", help="default: %(default)s")
    add("--batches", nargs="+", type=int, default=list(BATCHES), metavar="N", help="default: %(default)s")
    add("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    add("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="these contestants")
    add(
        "--calls", type=int, default=CALLS, metavar="N", help="calls of each at batch 1, default: %(default)s"
    )
    add("--warm", type=int, default=WARM, metavar="N", help="calls before the first, default: %(default)s")
    add("--rounds", type=int, default=ROUNDS, metavar="N", help="turns of each, default: %(default)s")
    add("--limit", type=float, default=600.0, metavar="S", help="seconds to get ready, default: %(default)s")
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    for name in ("rounds", "calls", "warm"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be a number >= 1, got {getattr(arguments, name)}")
    return arguments


def measure(arguments: argparse.Namespace, crew: Crew, depth: int, precision: str, batch: int) -> list[Row]:
    """A row for each contestant of one case."""
    rows: dict[str, Row] = {}
    case = {"depth": depth, "width": arguments.width, "precision": precision, "batch": batch}

    def leave(name: str, failure: Failed) -> None:
        rows[name] |= {"status": failure.status, "reason": failure.reason}

    workers = {name: crew.get(name) for name in arguments.only}
    for name, worker in workers.items():
        rows[name] = {**case, "contestant": name, "status": "measured"}
        try:
            rows[name] |= worker.ask("build", name, case, arguments.warm, limit_s=arguments.limit)
        except Failed as failure:
            leave(name, failure)
    calls = arguments.calls if batch == 1 else -(-arguments.calls // BATCH_CALLS)
    each = -(-calls // arguments.rounds)
    ready = {
        name: lambda worker=worker: worker.ask("turn", each)
        for name, worker in workers.items()
        if rows[name]["status"] == "measured"
    }
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for name, _, found in turns.interleave(ready, arguments.rounds, leave=leave):
        seconds[name] += found
    for name, all_of in seconds.items():
        if all_of and rows[name]["status"] == "measured":
            rows[name] |= {"s": percentiles(all_of), "observations_per_s": batch / percentiles(all_of)["p50"]}
    for worker in workers.values():
        if not worker.dead:
            worker.ask("drop")
    return list(rows.values())


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, the 99th percentile (the least value that so many do not exceed), least, and how many."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        "p50": ordered[last // 2],
        "p99": ordered[min(last, -(-99 * len(ordered) // 100) - 1)],
        "min": ordered[0],
        "n": len(ordered),
    }


class Desk:
    """What a contestant's process can be asked: `build`, `turn` again and again, `drop`."""

    def __init__(self, threads: int | None):
        import torch

        torch.set_num_threads(threads or 1)
        if hasattr(os, "sched_setaffinity"):  # the same core for all: they take turns
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        self.run: Callable[[], Any] | None = None

    def build(self, name: str, case: dict[str, Any], warm: int) -> Row:
        """Gets ready, compares with float64, and calls `warm` times: the worst error and the weights' bytes."""
        import torch

        torch.manual_seed(0)
        obs = torch.randn(case["batch"], INPUTS)
        with torch.no_grad():
            self.run, row = BUILDERS[name](case, obs)
            for _ in range(warm if case["batch"] == 1 else max(1, warm // BATCH_CALLS)):
                self.run()
        return row

    def turn(self, calls: int) -> list[float]:
        """Seconds of each of `calls` calls, after a few that bring back what others displaced."""
        import torch

        assert self.run is not None
        seconds = []
        with torch.no_grad():
            for call in range(-2, calls):
                began = time.perf_counter()
                self.run()
                if call >= 0:
                    seconds.append(time.perf_counter() - began)
        return seconds

    def drop(self) -> None:
        import torch

        self.run = None
        torch.compiler.reset()  # else the next size would be compiled for any size


Built = tuple[Callable[[], Any], Row]


def _policy(case: dict[str, Any], precision: str = "fp32") -> Any:
    """A policy of the case's size that nobody trained, whose actions stay off tanh's ends at every depth."""
    import torch

    from deepres.acting import GaussianPolicy
    from deepres.networks import NetworkOptions, Networks

    options = NetworkOptions(depth=case["depth"], width=case["width"], init="scaled")
    generator = torch.Generator().manual_seed(1)
    return GaussianPolicy(Networks(options, {"precision": precision}, generator).actor(INPUTS, OUTPUTS))


def _plain(case: dict[str, Any], dtype: Any) -> Any:
    """The network by PyTorch's own operators, weights in `dtype`."""
    import torch

    from deepres.deploy.plain import PlainNetwork

    network = PlainNetwork(_policy(case))
    for name, value in vars(network).items():
        if isinstance(value, torch.Tensor):
            setattr(network, name, value.to(dtype))
    return network


def _dtype(case: dict[str, Any]) -> Any:
    import torch

    return torch.bfloat16 if case["precision"] == "bf16" else torch.float32


def _judged(case: dict[str, Any], obs: Any, run: Callable[[], Any]) -> Built:
    """`run`, once its actions are as near float64's as plain PyTorch's are, within WORSE."""
    import torch

    from deepres.testing import worst_error

    truth = _plain(case, torch.float64)(obs.double())
    theirs = worst_error(_plain(case, _dtype(case))(obs.to(_dtype(case))), truth)
    ours = worst_error(torch.as_tensor(run()), truth)
    assert ours <= WORSE * theirs + HAIR, (
        f"off by {ours:.1e} of float64's largest, plain PyTorch by {theirs:.1e}"
    )
    return run, {"worst_error": ours}


def _eager(case: dict[str, Any], obs: Any) -> Built:
    network, given = _plain(case, _dtype(case)), obs.to(_dtype(case))
    return _judged(case, obs, lambda: network(given))


def _modules(case: dict[str, Any], obs: Any) -> Built:
    network, given = _written_out(case), obs.to(_dtype(case))
    return _judged(case, obs, lambda: network(given))


def _written_out(case: dict[str, Any]) -> Any:
    """The network as a script without this library has it: a module for each operation."""
    from torch import nn

    trunk, head = (actor := _policy(case).actor).trunk, actor.mean
    layers = trunk.stack.to_layers()

    class Block(nn.Sequential):
        def forward(self, x: Any) -> Any:
            return x + super().forward(x)

    def swished(pairs: list[Any]) -> list[Any]:
        return [each for i in range(0, len(pairs), 2) for each in (*pairs[i : i + 2], nn.SiLU())]

    each = 2 * trunk.stack.options["skip_every"]
    blocks = [Block(*swished(layers[i : i + each])) for i in range(0, len(layers), each)]
    network = nn.Sequential(*swished([trunk.stem, trunk.norm]), *blocks, head, nn.Tanh())
    return network.to(_dtype(case))


def _compile(case: dict[str, Any], obs: Any) -> Built:
    import torch

    network, given = torch.compile(_plain(case, _dtype(case))), obs.to(_dtype(case))
    return _judged(case, obs, lambda: network(given))


def _onnxruntime(case: dict[str, Any], obs: Any) -> Built:
    from deepres.deploy.files import write_onnx
    from deepres.deploy.plain import PlainNetwork
    from deepres.deploy.runtime import open_session

    if case["precision"] != "fp32":
        raise Unavailable("onnxruntime has no bf16 on a CPU")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.onnx"
        try:
            write_onnx(PlainNetwork(_policy(case)), {}, file)
            session = open_session(file, threads=1)
        except ImportError as error:
            raise Unavailable(str(error)) from None
    given = {"obs": obs.numpy()}
    return _judged(case, obs, lambda: session.run(["action"], given)[0])


def _deepres(case: dict[str, Any], obs: Any) -> Built:
    policy = _policy(case, case["precision"])
    return _judged(case, obs, lambda: policy.act(obs))


def _compiled_actor(case: dict[str, Any]) -> Any:
    from deepres.deploy.compiled import CompiledActor
    from deepres.deploy.plain import PlainNetwork

    try:
        return CompiledActor(PlainNetwork(_policy(case)), case["precision"])
    except ImportError as error:
        raise Unavailable(str(error)) from None


def _compiled(case: dict[str, Any], obs: Any) -> Built:
    import torch

    if case["batch"] != 1:
        raise Unavailable("it is for one observation at a time")
    actor, actions = _compiled_actor(case), torch.empty(1, OUTPUTS)
    run, row = _judged(case, obs, lambda: actor.act_into(obs, actions))
    return run, row | {"weight_bytes": actor.weight_bytes}


def _read(case: dict[str, Any], obs: Any) -> Built:
    if case["batch"] != 1:
        raise Unavailable("weights are read once at any batch")
    actor = _compiled_actor(case)
    return actor.runtime.read, {"weight_bytes": actor.weight_bytes}


BUILDERS: dict[str, Callable[[dict[str, Any], Any], Built]] = {
    "modules": _modules, "eager": _eager, "compile": _compile, "onnxruntime": _onnxruntime,
    "deepres": _deepres, "compiled": _compiled, "read": _read,
}  # fmt: skip

HEADINGS = ("depth", "precision", "batch", "contestant", "p50 ms", "p99 ms", "observations/s", "GB/s", "")


def cells(row: Row) -> list[str]:
    """A line of the table."""
    own = [str(row["depth"]), row["precision"], str(row["batch"]), row["contestant"]]
    if "s" not in row:
        return [*own, "", "", "", "", f"{row['status']}: {row.get('reason', 'no turn came')}"]
    rate = f"{row['weight_bytes'] / row['s']['p50'] / 1e9:.1f}" if "weight_bytes" in row else ""
    speed = "" if row["contestant"] == "read" else f"{row['observations_per_s']:,.0f}"
    return [*own, f"{1e3 * row['s']['p50']:.3f}", f"{1e3 * row['s']['p99']:.3f}", speed, rate, ""]


def show(rows: list[Row]) -> None:
    """The table."""
    ours = {i for i, row in enumerate(rows) if row["contestant"] in ("deepres", "compiled")}
    ends = {i for i, row in enumerate(rows[:-1]) if row["contestant"] == rows[-1]["contestant"]}
    draw_table(HEADINGS, [cells(row) for row in rows], left={1, 3, 8}, ours=ours, ends=ends)


if __name__ == "__main__":
    sys.exit(main())
