"""Whole training runs side by side: `python bench/train.py`.

deepres's learner in fp32 and bf16 against the published algorithm in jitted JAX (bench/published/crl_jax.py) and in
plain PyTorch (bench/published/crl.py): the same weights, the same recorded batches, the same noise, in turns, each
contestant in its own process. Prints tables and leaves a JSON and a picture under bench/results/new/, or
bench/results/ (--keep): gradient steps per second, the critic's loss over those steps, and where the time of a whole
run goes (collect, sample, actor, critic, optimiser, log, evaluate), at the published proportions: 512 environments, 62
steps each, then 800 gradient steps; an evaluation of 1000 steps every 50 rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.harness import results as files
from bench.harness.workers import Crew, Failed
from bench.train import report
from bench.train.contest import VARIABLES, Contest
from bench.train.race import LABELS, Race

DESK = "bench.train.desk:Desk"
DEFAULT_CASES = (("ant", 4), ("point_u_maze", 64), ("ant", 64), ("ant", 1024))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"train.py: {message}; --help lists the options\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--env", nargs="+", metavar="ENV", help="tasks (default: ant and point_u_maze at depth 64, else ant)")
    add("--depth", nargs="+", type=int, metavar="D", help="layers of the critic (default: 4, 64, 1024)")
    add("--steps", type=int, default=100, help="gradient steps of each curve, at most (default: %(default)s)")
    add("--seconds", type=float, default=90.0, help="timed seconds of a curve, all contestants together (90)")
    add("--contestant", nargs="+", choices=tuple(LABELS), default=list(LABELS), help="default: all")
    add("--batch", type=int, default=512, help="rows (default: %(default)s)")
    add("--width", type=int, default=256, help="columns (default: %(default)s)")
    add("--num-envs", type=int, default=512, help="environments (default: %(default)s)")
    add("--eval-envs", type=int, default=128, help="of an evaluation (default: %(default)s)")
    add("--threads", type=int, help="CPU threads of each contestant (default: PyTorch's own choice)")
    add("--limit", type=float, default=300.0, help="longest wait for one answer, in s (default: %(default)s)")
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    for depth in arguments.depth or ():
        if depth < 4 or depth % 4:
            parser.error(f"--depth must be multiples of 4 (four layers to a block), got {depth}")
    for name in ("seconds", "batch", "width", "num_envs", "eval_envs", "threads", "limit"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be greater than 0, got {value}")
    if arguments.steps < 4:
        parser.error(f"--steps must be at least 4, got {arguments.steps}")
    return arguments


def races(arguments: argparse.Namespace, data: Path) -> list[Race]:
    """Each case; data: the file of recorded batches, which the cases use one after another."""
    if arguments.env or arguments.depth:
        envs = arguments.env or ["ant", "point_u_maze"]
        cases = [(env, depth) for env in envs for depth in arguments.depth or (4, 64, 1024)]
    else:
        cases = list(DEFAULT_CASES)
    return [
        Race(
            env=env,
            depth=depth,
            batch=arguments.batch,
            width=arguments.width,
            num_envs=arguments.num_envs,
            eval_envs=arguments.eval_envs,
            seed=0,
            data=str(data),
        )
        for env, depth in cases
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 when a contestant has no figure, 2 for bad arguments, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    results: dict[str, Any] = {"rows": []}
    try:
        with Crew(arguments.threads, DESK) as crew, tempfile.TemporaryDirectory() as folder:
            environment = crew.get("deepres", VARIABLES).ask("describe")
            results = files.begin("train", arguments, environment)
            results["command"] = " ".join(["python bench/train.py", *argv])
            path = files.path(arguments, files.file_name("train", results))
            for race in races(arguments, Path(folder) / "data.pt"):
                results["rows"] += Contest(race, arguments, crew).run()
                files.save(results, path)
        results["complete"] = True
        files.save(results, path)
    except Failed as failure:
        print(f"train.py: {failure.reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not results["rows"]:
            print("interrupted before anything was measured", file=sys.stderr)
            return 130
    report.show(results)
    print(f"wrote {path}")
    if report.draw(results, path.with_suffix(".png")):
        print(f"wrote {path.with_suffix('.png')}")
    if not results["complete"]:
        return 130
    return 1 if any(row["status"] != "measured" for row in results["rows"]) else 0
