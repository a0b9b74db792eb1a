"""Whole training runs side by side: `python bench/train.py`.

deepres's learner in fp32 and bf16 against the published algorithm in jitted JAX (bench/crl_jax.py) and in plain
PyTorch (bench/crl_eager.py): the same weights, the same recorded batches, the same noise, in turns, each contestant in
its own process. Prints tables and leaves a JSON and a picture under bench/results/: gradient steps per second, the
critic's loss over those steps, and where the time of a whole run goes (collect, sample, actor, critic, optimiser, log,
evaluate), at the published proportions: 512 environments, 62 steps each, then 800 gradient steps; an evaluation of 1000
steps every 50 rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # run as a file: the folder above holds `bench`, and `deepres` where it is not installed
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import environment, timing, train_report
from bench.registry import Case, step_memory, step_parameters
from bench.throughput import save
from bench.worker import Crew, Failed, Worker

RESULTS = Path(__file__).resolve().parent / "results"
CONTESTANTS = ("eager", "jax", "deepres", "deepres-bf16")
DEFAULT_CASES = (("ant", 4), ("point_u_maze", 64), ("ant", 64), ("ant", 1024))
ROUNDS = 3  # of collecting and learning, for each contestant; one where a step takes SLOW_S
SLOW_S = 2.0
TURN_S = 2.0  # of the slowest contestant
ROUND_S = 1.0  # of each half of a round
# as the deepres command sets it for itself: workers sleep after their work, so that XLA's find a core (CONTRIBUTING);
# rivals keep their own defaults
VARIABLES = {"OMP_WAIT_POLICY": "passive"}


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
    add(
        "--seconds",
        type=float,
        default=90.0,
        help="timed seconds of a curve, all contestants together (90)",
    )
    add("--contestant", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="default: all")
    add("--batch", type=int, default=512, help="rows (default: %(default)s)")
    add("--width", type=int, default=256, help="columns (default: %(default)s)")
    add("--num-envs", type=int, default=512, help="environments (default: %(default)s)")
    add("--eval-envs", type=int, default=128, help="of an evaluation (default: %(default)s)")
    add("--threads", type=int, help="CPU threads of each contestant (default: PyTorch's own choice)")
    add("--limit", type=float, default=300.0, help="longest wait for one answer, in s (default: %(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON and the picture go")
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


def cases(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """(task, depth) of each case."""
    if not arguments.env and not arguments.depth:
        return list(DEFAULT_CASES)
    envs = arguments.env or ["ant", "point_u_maze"]
    return [(env, depth) for env in envs for depth in arguments.depth or (4, 64, 1024)]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 when a contestant has no figure, 2 for bad arguments, 130 when interrupted."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    path = arguments.out / f"train_{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.json"
    results: dict[str, Any] = {
        "kind": "deepres train",
        "schema": 1,
        "complete": False,
        "command": "python bench/train.py",
        "arguments": {k: v for k, v in vars(arguments).items() if k != "out"},
        "rows": [],
    }
    try:
        with (
            Crew(arguments.threads, desk="bench.train_worker:Desk") as crew,
            tempfile.TemporaryDirectory() as folder,
        ):
            results["environment"] = crew.get("deepres", VARIABLES).ask("describe")
            for env, depth in cases(arguments):
                contest = Contest(env, depth, arguments, crew, Path(folder) / "data.pt")
                results["rows"] += contest.run()
                save(results, path)
        results["complete"] = True
        save(results, path)
    except Failed as failure:
        print(f"train.py: {failure.reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not results["rows"]:
            print("interrupted before anything was measured", file=sys.stderr)
            return 130
    train_report.show(results)
    print(f"wrote {path}")
    if train_report.draw(results, path.with_suffix(".png")):
        print(f"wrote {path.with_suffix('.png')}")
    if not results["complete"]:
        return 130
    return 1 if any(row["status"] != "measured" for row in results["rows"]) else 0


class Contest:
    """All contestants at one task and depth."""

    def __init__(self, env: str, depth: int, arguments: argparse.Namespace, crew: Crew, data: Path):
        from bench.train_worker import LABELS, Race

        self.arguments, self.crew = arguments, crew
        self.race = Race(
            env,
            depth,
            arguments.batch,
            arguments.width,
            arguments.num_envs,
            arguments.eval_envs,
            0,
            str(data),
        )
        self.rows = {
            name: {"env": env, "depth": depth, "contestant": name, "label": LABELS[name]}
            | {"status": "measured", "reason": None}
            for name in arguments.contestant
        }
        self.built: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, list[list[float]]] = {}
        self.losses: dict[str, list[float]] = {}
        self.rounds: dict[str, list[dict[str, float]]] = {}

    def run(self) -> list[dict[str, Any]]:
        """The case's rows."""
        say(f"{self.race.env}, depth {self.race.depth}: recording batches")
        self._ask("deepres", "record", self.race, min(self.arguments.steps, 200))
        together = self._fits_together()
        groups = [list(self.rows)] if together else [[name] for name in self.rows]
        for group in groups:
            for name in group:
                self._attempt(name, self._build)
            self._steps([name for name in group if name in self.built])
            self._rounds([name for name in group if name in self.built])
            for name in group:
                if name in self.built:
                    self._attempt(name, self._finish)
        return train_report.finished(self.rows, self.seconds, self.losses, self.rounds, interleaved=together)

    def _ask(self, name: str, question: str, *arguments: Any) -> Any:
        worker: Worker = self.crew.get(name, VARIABLES if name.startswith("deepres") else {})
        return worker.ask(question, *arguments, limit_s=self.arguments.limit)

    def _attempt(self, name: str, step: Any) -> None:
        """`step(name)`, or the reason why the contestant is out."""
        try:
            step(name)
        except Failed as failure:
            self.rows[name] |= {"status": failure.status, "reason": failure.reason}
            self.built.pop(name, None)

    def _build(self, name: str) -> None:
        say(f"{self.race.env}, depth {self.race.depth}: {name} gets ready")
        built = self._ask(name, "build", self.race, name)
        self.built[name] = built
        self.losses[name], self.seconds[name] = built.pop("losses"), []
        self.rows[name] |= {"compile_s": max(0.0, built["first_s"] - built["call_s"])}

    def _steps(self, names: list[str]) -> None:
        """Every contestant through the same recorded steps, a stretch at a time, the order rotated."""
        if not names:
            return
        calls = [self.built[name]["call_s"] for name in names]
        budget = self.arguments.seconds * len(names) / len(self.rows)
        last = max(4, min(self.arguments.steps, round(budget / sum(calls))))
        stretch = max(2, min(25, round(TURN_S / max(calls)) + 1))
        first, turn = 2, 0  # `build` took the first two
        while first < last and names:
            until = min(first + stretch, last)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                say(f"{self.race.env}, depth {self.race.depth}: steps {first} to {until} of {last}, {name}")
                time.sleep(timing.QUIET_S)
                self._attempt(name, lambda name, a=first, b=until: self._stretch(name, a, b))
            names = [name for name in names if name in self.built]
            first, turn = until, turn + 1

    def _stretch(self, name: str, first: int, until: int) -> None:
        seconds, losses = self._ask(name, "steps", first, until)
        warm = 1 if seconds[0] < timing.SLOW_CALL_S and len(seconds) > 1 else 0  # of its own caches and clock
        self.seconds[name].append(seconds[warm:])
        self.losses[name] += losses

    def _rounds(self, names: list[str]) -> None:
        """Rounds of collecting and learning on each contestant's own data, in turns."""
        count = 1 if any(self.built[name]["call_s"] > SLOW_S for name in names) else ROUNDS
        for turn in range(count):
            for name in names[turn % max(1, len(names)) :] + names[: turn % max(1, len(names))]:
                say(f"{self.race.env}, depth {self.race.depth}: round {turn + 1} of {count}, {name}")
                self._attempt(name, self._round)
            names = [name for name in names if name in self.built]

    def _round(self, name: str) -> None:
        call = self.built[name]["call_s"]
        gradient_steps = max(1, min(20, round(ROUND_S / call)))
        unroll = max(4, min(62, round(ROUND_S / (0.1 * call))))  # acting takes about a tenth of a step
        if name not in self.rounds:  # what the first one compiles is no round's
            self._ask(name, "round", unroll, 0)
        self.rounds.setdefault(name, []).append(self._ask(name, "round", unroll, gradient_steps))

    def _finish(self, name: str) -> None:
        call = self.built[name]["call_s"]
        # few lengths, as an environment is compiled for its episode's
        eval_steps = 50 if call < 0.5 else 10 if call < SLOW_S else 2
        self.rows[name] |= {
            "overheads": self._ask(name, "overheads", eval_steps),
            "split": self._ask(name, "split"),
        }
        self._ask(name, "drop")

    def _fits_together(self) -> bool:
        """Whether all contestants' networks and the greediest one's step fit the free memory at once."""
        race = self.race
        case = Case("gradient_step", "step", race.depth, race.batch, race.width, "fp32", "cpu")
        # weights, gradients and moments of each, twice for safety
        idle = 2 * 4 * 4 * step_parameters(case) * len(self.rows)
        free = environment.memory_bytes("MemAvailable")
        return free is None or idle + step_memory(case) < 0.8 * free


def say(text: str) -> None:
    """A line that replaces the last one on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(
            f"\r\033[K{text[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]}",
            end="",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
