"""Two checkouts of deepres side by side: `python bench/compare_checkouts.py OLD NEW`.

OLD and NEW are folders, each a checkout with its own extension built (python setup.py build_ext --inplace). Each lives
in a process of its own that sleeps while the other runs, and they take turns: the residual stack forward + backward, a
gradient step, and a whole round of training (collect, then learn). Figures are new's time over old's, turn by turn:
below 1 the new one is faster. "same" tells whether both computed the same bits.

One adapter speaks to deepres 0.1 (deepres/learner.py), one to today's: see ADAPTERS.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.harness import results as files
from bench.harness import turns
from bench.harness.progress import Progress, draw_table
from bench.harness.workers import Crew, Failed, use_threads

DEPTHS = (16, 64)
WIDTH, BATCH = 256, 512
STATE, ACTION, GOAL = 268, 17, 3  # the humanoid's
# A round short enough for many turns: the published one takes 800 gradient steps.
ROUND = {
    "env": "point_u_maze", "num_envs": 512, "eval_envs": 8, "unroll_length": 62, "gradient_steps": 20,
    "batch_size": BATCH, "width": WIDTH, "buffer_steps": 1_000, "min_buffer_steps": 124, "device": "cpu",
}  # fmt: skip
ROUND_DEPTH = 16
VARIABLES = {"OMP_WAIT_POLICY": "passive"}  # as the deepres command sets it

Call = Callable[[], float]  # computes once; a number that tells what was computed


class Version01:
    """deepres 0.1, up to commit 2d649f2."""

    def learner(self, depth: int) -> tuple[Any, type]:
        import torch

        from deepres.config import Config
        from deepres.learner import Batch, Learner

        config = Config(critic_depth=depth, actor_depth=depth, width=WIDTH, batch_size=BATCH)
        dims = {"state_dim": STATE, "action_dim": ACTION, "goal_dim": GOAL}
        return Learner(config, **dims, generator=torch.Generator().manual_seed(0)), Batch

    def run(self, folder: Path) -> Any:
        from deepres.config import Config
        from deepres.run import Run

        return Run(Config(critic_depth=ROUND_DEPTH, actor_depth=ROUND_DEPTH, **ROUND), folder)


class Today:
    def learner(self, depth: int) -> tuple[Any, type]:
        import torch

        from deepres.config import Config
        from deepres.data.batch import Batch, Sizes
        from deepres.training.learner import Learner

        config = Config("crl", depth=depth, actor_depth=depth, width=WIDTH, batch_size=BATCH)
        sizes = Sizes(STATE, ACTION, GOAL)
        return Learner(config, sizes, generator=torch.Generator().manual_seed(0)), Batch

    def run(self, folder: Path) -> Any:
        from deepres.config import Config
        from deepres.training.run import Run

        return Run(Config("crl", depth=ROUND_DEPTH, actor_depth=ROUND_DEPTH, **ROUND))


ADAPTERS: dict[str, type] = {"0.1": Version01, "today": Today}


class Desk:
    """What the process of a checkout can be asked: `open` it, `build` each case, `turn` by turn."""

    def __init__(self, threads: int | None):
        use_threads(threads)
        self.calls: dict[str, Call] = {}
        self.call_s: dict[str, float] = {}

    def open(self, checkout: str, folder: str) -> str:
        """Import deepres from there; its commit."""
        sys.path.insert(0, checkout)
        import deepres

        assert Path(checkout) in Path(deepres.__file__).parents, f"deepres came from {deepres.__file__}"
        state = deepres.backends()["residual_stack"]["cpu"]
        assert state == "available", f"{checkout} has no CPU kernels: {state}"
        old = (Path(deepres.__file__).parent / "learner.py").exists()
        self.adapter = ADAPTERS["0.1" if old else "today"]()
        self.folder = Path(folder)
        git = ["git", "-C", checkout, "rev-parse", "--short=10", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"

    def describe(self) -> dict[str, Any]:
        from bench.harness import environment

        return environment.describe("cpu")

    def build(self, case: str) -> list[float]:
        """Ready and warm; what the first calls computed."""
        kind, _, depth = case.partition(", depth ")
        make = {STACK: self._stack, STEP: self._gradient_step, ROUND_CASE: self._round}[kind]
        call = self.calls[case] = make(int(depth or 0))
        values = [call(), call()]
        self.call_s[case] = turns.clocked(call)
        return values

    def turn(self, case: str) -> list[float]:
        """Seconds of each call of a turn."""
        return turns.turn(self.calls[case], lambda: None, self.call_s[case])

    def _stack(self, depth: int) -> Call:
        import torch

        import deepres

        random = torch.Generator().manual_seed(0)
        shapes = [(BATCH, WIDTH), (depth, WIDTH, WIDTH)] + [(depth, WIDTH)] * 3
        x, weight, *vectors = (torch.randn(shape, generator=random) for shape in shapes)
        bias, gamma, beta = (0.1 * v for v in vectors)
        leaves = [t.requires_grad_() for t in (x, weight / WIDTH**0.5, bias, 1 + gamma, beta)]
        dy = torch.randn(BATCH, WIDTH, generator=random)

        def call() -> float:
            gradients = torch.autograd.grad(deepres.residual_stack(*leaves), leaves, dy)
            return gradients[0][0, 0].item()

        return call

    def _gradient_step(self, depth: int) -> Call:
        import torch

        learner, batch_type = self.adapter.learner(depth)
        random = torch.Generator().manual_seed(1)
        state, action, goal, noise = (
            torch.randn(BATCH, n, generator=random) for n in (STATE, ACTION, GOAL, ACTION)
        )
        batch = batch_type(state, torch.tanh(action), goal)
        return lambda: learner.update(batch, noise)["critic_loss"].item()

    def _round(self, _: int) -> Call:
        run = self.adapter.run(self.folder)
        return lambda: run.round()["critic_loss"]


STACK, STEP, ROUND_CASE = "residual stack, forward + backward", "gradient step", "a round of point_u_maze"
CASES = (*(f"{kind}, depth {depth}" for kind in (STACK, STEP) for depth in DEPTHS), ROUND_CASE)


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, 2 when a checkout cannot be measured, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=25, help="turns of each (default: 25, three minutes)")
    parser.add_argument("--threads", type=int, help="CPU threads of each (default: PyTorch's own choice)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases that a word occurs in")
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    cases = [case for case in CASES if any(word in case for word in arguments.only)]
    if arguments.rounds < 1 or not cases:
        parser.error(f"--rounds must be >= 1, and --only a word of: {'; '.join(CASES)}")
    checkouts = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    try:
        with (
            Crew(arguments.threads, "bench.compare_checkouts:Desk") as crew,
            tempfile.TemporaryDirectory() as folder,
            Progress(len(cases)) as progress,
        ):
            workers = {side: crew.get(side, VARIABLES) for side in checkouts}
            commits = {
                side: workers[side].ask("open", str(checkout), f"{folder}/{side}")
                for side, checkout in checkouts.items()
            }
            asked = {
                "rounds": arguments.rounds,
                "threads": arguments.threads,
                "width": WIDTH,
                "batch": BATCH,
            }
            results = files.begin("compare_checkouts", asked, workers["new"].ask("describe"), commits=commits)
            for case in cases:
                progress.say(f"{case}: building")
                results["rows"].append(measure(case, workers, arguments.rounds, progress.say))
                progress.advance()
    except Failed as failure:
        print(f"compare_checkouts.py: {failure.reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    results["complete"] = True
    path = files.path(arguments, files.file_name("compare_checkouts", results))
    files.save(results, path)
    header = ["", f"old {commits['old']}, ms", f"new {commits['new']}, ms", "new / old (p10-p90)", "same"]
    draw_table(header, [cells(row) for row in results["rows"]], left={0})
    print(f"wrote {path}")
    return 0


def measure(case: str, workers: dict[str, Any], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """One case's row."""
    values = {side: worker.ask("build", case) for side, worker in workers.items()}
    seconds: dict[str, list[list[float]]] = {side: [] for side in workers}
    askers = {side: (lambda worker=worker: worker.ask("turn", case)) for side, worker in workers.items()}
    for side, r, turn in turns.interleave(askers, rounds):
        seconds[side].append(turn)
        say(f"{case}: round {r + 1} of {rounds}")
    return {
        "case": case,
        **{
            f"{side}_ms": turns.spread([1e3 * s for turn in own for s in turn])
            for side, own in seconds.items()
        },
        "new_over_old": turns.ratio(seconds["new"], seconds["old"]),
        "same_bits": values["old"] == values["new"],
        "values": values,
    }


def cells(row: dict[str, Any]) -> list[str]:
    ratio = row["new_over_old"]
    return [
        row["case"],
        f"{row['old_ms']['median']:.1f}",
        f"{row['new_ms']['median']:.1f}",
        f"{ratio['median']:.3f} ({ratio['p10']:.3f}-{ratio['p90']:.3f})",
        "yes" if row["same_bits"] else "NO",
    ]


if __name__ == "__main__":
    sys.exit(main())
