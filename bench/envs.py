"""The tasks, one by one: sizes beside the published ones, what they cost, and what random actions achieve.

    python bench/envs.py                       # every task: most of its time goes into compiling MJX
    python bench/envs.py --rounds 3            # the same sooner, from three turns of each contestant for seven
    python bench/envs.py ant arm_reach         # these
    python bench/envs.py --only sizes          # nothing is compiled or timed
    python bench/envs.py --only random --engine jax     # random actions alone, on the engine named

A line for each task as it is done, then a table; the JSON, under bench/results/new/ or bench/results/ (--keep), is
complete after every task. Each engine steps in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `bench` and `deepres` are those of this checkout
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p).resolve() != here)]

from bench.harness import environment, turns
from bench.harness import results as files
from bench.harness.progress import Progress, draw_table
from bench.harness.results import Row
from bench.harness.workers import Crew, Failed
from deepres import envs

ENGINES, SIZES = ("jax", "c"), (64, 256)
LEAST_S, ROUNDS, EPISODES = 0.4, 7, 64

# The beginning of a name -> sizes of state, goal and action, slice of the goal in the state; the longest that fits.
PUBLISHED = {
    "reacher": (10, 3, 2, (4, 7)),
    "pusher": (20, 3, 7, (10, 13)),
    "half_cheetah": (18, 1, 6, (0, 1)),
    "ant": (29, 2, 8, (0, 2)),
    "ant_ball": (31, 2, 8, (29, 31)),
    "ant_push": (31, 2, 8, (0, 2)),
    "humanoid": (268, 3, 17, (0, 3)),
    "point": (4, 2, 2, (0, 2)),
    "arm_reach": (13, 3, 4, (7, 10)),
    "arm_push": (17, 3, 5, (0, 3)),
    "arm_binpick": (17, 3, 5, (0, 3)),
    "arm_grasp": (23, 7, 5, (16, 23)),
}


def published(name: str) -> tuple[int, int, int, tuple[int, int]]:
    """Sizes of state, goal and action, and the goal's slice, as the paper's code has them."""
    return PUBLISHED[max((start for start in PUBLISHED if name.startswith(start)), key=len)]


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 1 if a task's sizes are not the published ones or it came to NaN, 2 when an engine fails,
    130 when interrupted."""
    os.environ["DEEPRES_COMPILE_CACHE"] = "0"  # compiling is timed
    arguments = parse(argv)
    results = files.begin("envs", arguments, environment.describe("cpu"))
    results["environment"]["versions"] |= {name: version(name) for name in ("mujoco", "mujoco-mjx")}
    path = files.path(arguments, files.file_name("envs", results))
    interrupted = False
    try:
        with Progress(len(arguments.names)) as progress, Crew(None, "bench.envs:Desk") as crew:
            for name in arguments.names:
                progress.say(name)
                row = sizes(name)
                if arguments.only is None:
                    row |= speeds(name, arguments.envs, arguments.rounds, crew, progress.say)
                if arguments.only != "sizes":
                    row |= chance(name, arguments.engine)
                results["rows"].append(row)
                if arguments.only != "sizes":
                    files.save(results, path)
                progress.say(words(row))
                progress.advance()
        results["complete"] = True
    except Failed as failure:
        print(f"envs.py: {failure.reason}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: what was measured until then stays", file=sys.stderr)
        interrupted = True
    show(results["rows"], arguments.envs)
    if arguments.only != "sizes" and results["rows"]:
        files.save(results, path)
        print(f"wrote {path}")
    if not results["complete"]:
        return 130 if interrupted else 2
    return 0 if all(row["sizes_are_published"] and row.get("finite", True) for row in results["rows"]) else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="TASK", help="by default every registered one")
    add("--only", choices=("sizes", "random"), help="compile and time nothing; or random actions alone")
    add("--engine", default="auto", help="the engine that random actions run on: auto, c, jax or warp")
    add("--envs", nargs="+", type=int, default=list(SIZES), metavar="N", help="default: %(default)s")
    add("--rounds", type=int, default=ROUNDS, metavar="N", help="turns of each engine, default: %(default)s")
    files.add_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error(f"--rounds must be a number of turns >= 1, got {arguments.rounds}")
    arguments.names = arguments.names or envs.names()
    for name in arguments.names:
        envs.make_task(name)  # an unknown one is said before anything is measured
    from deepres.envs.engines import pick_engine

    pick_engine(arguments.engine)
    return arguments


def sizes(name: str) -> Row:
    """What is known of a task without stepping it."""
    from deepres.envs.engines import substeps
    from deepres.envs.engines.mjx import candidate_contacts
    from deepres.envs.task import Task

    task = envs.make_task(name)
    goal = (task.goal_slice.start, task.goal_slice.stop)
    own = (task.state_dim, task.goal_dim, task.action_dim, goal)
    return {
        "name": name,
        "state_goal_action": own[:3],
        "sizes_are_published": own == published(name),
        "episode_length": envs.EPISODE_LENGTH,
        "period_s": task.dt,
        "substeps": substeps(task.model, task.dt),
        "thresholds": [task.threshold_easy, task.threshold, task.threshold_hard],
        "terminates": type(task).terminated is not Task.terminated,
        "candidate_contacts": candidate_contacts(task.model),
    }


def speeds(name: str, counts: list[int], rounds: int, crew: Crew, say: Callable[[str], None]) -> Row:
    """Seconds to a first step of each engine, and its env steps a second, the engines taking turns."""
    compile_s: Row = {}
    askers: dict[str, Callable[[], float]] = {}
    for engine in ENGINES:
        worker = crew.get(engine)
        for count in counts:
            say(f"{name}: {engine} with {count} environments")
            seconds = worker.ask("build", name, engine, count)
            compile_s.setdefault(engine, seconds)
            askers[f"{engine}_{count}"] = lambda worker=worker, count=count: worker.ask("turn", count)
    rates: dict[str, list[float]] = {contestant: [] for contestant in askers}
    for contestant, _, rate in turns.interleave(askers, rounds):
        rates[contestant].append(rate)
    for engine in ENGINES:
        crew.get(engine).ask("drop")
    both = {count: (rates[f"c_{count}"], rates[f"jax_{count}"]) for count in counts}
    return {
        "compile_s": compile_s,
        "env_steps_per_s": {n: turns.spread(seen) | {"max": max(seen)} for n, seen in rates.items()},
        "c_over_jax": {
            count: turns.ratio([[1 / rate] for rate in jax], [[1 / rate] for rate in c])["median"]
            for count, (c, jax) in both.items()
        },
    }


class Desk:
    """What the process of an engine can be asked: `build` each number of environments, `turn` by turn, `drop`."""

    def __init__(self, threads: int | None):
        self.turns: dict[int, Callable[[], float]] = {}

    def build(self, name: str, engine: str, count: int) -> float:
        """Seconds until a first step is there, with JAX and MuJoCo imported before."""
        import jax
        import numpy as np

        envs.make_task(name)
        began = time.perf_counter()
        env = envs.make(name, num_envs=count, engine=engine)
        shape = (200, count, env.action_dim)
        actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        state = jax.block_until_ready(env.step(env.reset(), actions[0]))
        seconds = time.perf_counter() - began
        self.turns[count] = _turns(env, state, actions)
        return seconds

    def turn(self, count: int) -> float:
        """Env steps a second."""
        return self.turns[count]()

    def drop(self) -> None:
        self.turns.clear()


def _turns(env: Any, state: Any, actions: Any) -> Callable[[], float]:
    """A function that steps `env` on for a while under `actions` and returns its env steps a second."""
    import jax

    holder = [state]

    def steps(count: int) -> float:
        began = time.perf_counter()
        for t in range(count):
            holder[0] = env.step(holder[0], actions[t % len(actions)])
        jax.block_until_ready(holder[0])
        return time.perf_counter() - began

    count = max(3, round(LEAST_S / (steps(3) / 3)))  # after the three that also warm it

    def turn() -> float:
        steps(2)
        return count * env.num_envs / steps(count)

    return turn


def chance(name: str, engine: str) -> Row:
    """What uniformly random actions achieve in EPISODES first episodes, and whether every observation was finite."""
    import numpy as np

    env = envs.make(name, num_envs=EPISODES, engine=engine, seed=1)
    random = np.random.default_rng(1)
    state = env.reset()
    solved_at_start = float(np.mean(state.success))
    reached, alive, steps = np.zeros(EPISODES, bool), np.ones(EPISODES, bool), np.zeros(EPISODES)
    finite = np.isfinite(state.obs).all()
    while alive.any():
        actions = random.uniform(-1, 1, (EPISODES, env.action_dim)).astype(np.float32)
        state = env.step(state, actions)
        finite &= np.isfinite(state.terminal_obs).all()
        reached |= alive & (np.asarray(state.success) > 0)
        steps += alive
        alive &= ~np.asarray(state.done)
    return {
        "random_engine": env.engine,
        "finite": bool(finite),
        "random_success": float(reached.mean()),
        "solved_at_start": solved_at_start,
        "random_episode_length": float(steps.mean()),
    }


HEADINGS = (
    "task", "state goal action", "published", "steps", "easy / success / hard", "ends early", "contacts",
)  # fmt: skip


def cells(row: Row, counts: list[int]) -> list[str]:
    """A line of the table."""
    own = [
        row["name"],
        " ".join(map(str, row["state_goal_action"])),
        "yes" if row["sizes_are_published"] else "NO",
        str(row["episode_length"]),
        " / ".join("-" if threshold is None else f"{threshold:g}" for threshold in row["thresholds"]),
        "yes" if row["terminates"] else "no",
        str(row["candidate_contacts"]),
    ]
    if "env_steps_per_s" in row:
        own += [f"{row['compile_s'][engine]:.1f}" for engine in ENGINES]
        for count in counts:
            own += [f"{row['env_steps_per_s'][f'{engine}_{count}']['median']:,.0f}" for engine in ENGINES]
            own.append(f"{row['c_over_jax'][count]:.1f}x")
    if "finite" in row:
        success = f"{row['random_success']:.0%}" if row["finite"] else "NOT FINITE"
        own += [success, f"{row['random_episode_length']:.0f}"]
    return own


def words(row: Row) -> str:
    """The line on the terminal as a task is done."""
    said = [
        f"{name.replace('_', ' ')} {seen['median']:,.0f}/s"
        for name, seen in row.get("env_steps_per_s", {}).items()
    ]
    if "finite" in row:
        said.append(
            f"random {row['random_success']:.0%}" if row["finite"] else f"NaN on {row['random_engine']}"
        )
    return f"{row['name']}: {', '.join(said) or ' '.join(map(str, row['state_goal_action']))}"


def show(rows: list[Row], counts: list[int]) -> None:
    """The table."""
    first = rows[0] if rows else {}
    headings = [*HEADINGS]
    if "env_steps_per_s" in first:
        headings += [f"{engine} first step s" for engine in ENGINES]
        for count in counts:
            headings += [*(f"{engine} {count}/s" for engine in ENGINES), "c / jax"]
    if "finite" in first:
        headings += ["random success", "random steps"]
    draw_table(headings, [cells(row, counts) for row in rows], left={0, 1}, wrap=True)


if __name__ == "__main__":
    sys.exit(main())
