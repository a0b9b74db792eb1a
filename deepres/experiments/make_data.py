"""Makes data sets of episodes in any maze: a driver that knows the way, a controller that follows it, and noise.

    navigate   from any free cell to a random one, and on to another as soon as one is reached
    stitch     to a cell four away by the shortest way, and no farther: long ways must be put together from short ones
    explore    a new random direction every ten steps, with much noise

Source: OGBench's generators (arXiv 2410.20092, appendix on data sets). The driver goes from cell to cell along the
shortest way; noise is added to the action, which is then clipped. An episode never ends at a goal.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deepres.data import datasets
from deepres.data.datasets import Dataset
from deepres.data.environments import JaxEnvironments
from deepres.experiments.gait import Gait, unending
from deepres.runs.folder import require_asked

Kind = Literal["navigate", "stitch", "explore"]
Walk = Callable[[Tensor, Tensor], Tensor]
"""(state [N, S], direction [N, 2]) -> action [N, A] that goes that way."""
AT_ONCE = 100  # episodes made side by side; one part of a file
STITCH_CELLS = 4
EXPLORE_EVERY = 10
VALIDATION = 0.1  # episodes of the validation file, as a share


@dataclass(frozen=True)
class Plan:
    """What is made. length: transitions of an episode. noise: standard deviation of what is added to an action."""

    env: str
    kind: Kind
    episodes: int
    length: int
    noise: float
    seed: int


def plan(env: str, kind: Kind, episodes: int, length: int | None, noise: float | None, seed: int) -> Plan:
    """The plan with OGBench's lengths and noises where none are given. Raises ValueError in one sentence."""
    if kind not in ("navigate", "stitch", "explore"):
        raise ValueError(f"kind must be navigate, stitch or explore, got {kind!r}")
    if episodes < 1 or (length is not None and length < 1):
        raise ValueError(f"episodes and length must be at least 1, got {episodes} and {length}")
    usual = {"navigate": 0.5, "stitch": 0.5, "explore": 1.0} if env.startswith("point") else {"explore": 1.0}
    return Plan(
        env,
        kind,
        episodes,
        length or {"navigate": 1000, "stitch": 200, "explore": 500}[kind],
        usual.get(kind, 0.2) if noise is None else noise,
        seed,
    )


def make_data(made: Plan, path: Path, policy: Path | None = None) -> list[Path]:
    """Write the data set `path` and its validation set NAME-val.npz; goes on where it was stopped.

    policy: of a robot with joints, the folder of a run that learned to walk to a goal on open ground ("ant"); without
    one the ant walks as gait.py says, and the point needs none. Raises FileExistsError if `path` is there, ValueError
    in one sentence for a task without a maze.
    """
    from rich.progress import track

    require_new(path)
    world = World.open(made, policy)
    parts = path.with_name(f".{path.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    asked = asdict(made) | {"policy": None if policy is None else str(policy)}
    require_asked(parts / "asked.json", asked, f"{parts} holds a data set")
    training = math.ceil(made.episodes / AT_ONCE)
    validation = max(1, round(VALIDATION * made.episodes))
    total = training + math.ceil(validation / AT_ONCE)
    for number in track(range(total), description=f"{made.env}, {made.kind}"):
        if not (parts / f"{number}.npz").exists():
            datasets.write(parts / f"{number}.npz", world.episodes(number))
    first = [parts / f"{number}.npz" for number in range(training)]
    rest = [parts / f"{number}.npz" for number in range(training, total)]
    written = [
        datasets.write(validation_of(path), _joined(rest, validation)),
        datasets.write(path, _joined(first, made.episodes)),
    ]
    shutil.rmtree(parts)
    return written[::-1]


def validation_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-val.npz")


def require_new(path: Path) -> None:
    """Raise ValueError or FileExistsError unless a data set and its validation set can be written to `path`."""
    if path.suffix != ".npz":
        raise ValueError(f"a data set is an .npz file, got {path}; name it so")
    for one in (path, validation_of(path)):
        if one.exists():
            raise FileExistsError(f"{one} is there already; pass another file, or remove it")


def _joined(parts: list[Path], episodes: int) -> Dataset:
    read = [datasets.read(part) for part in parts]
    rows = read[0].rows
    observations, actions = (
        np.concatenate([getattr(one, name) for one in read])[: episodes * rows]
        for name in ("observations", "actions")
    )
    return Dataset(observations, actions, rows)


@dataclass
class World:
    """The environments, the maze's map and what drives them."""

    made: Plan
    env: JaxEnvironments
    map: Map
    walker: Callable[[], Walk]
    """Who walks for a part, from its first step on."""

    @classmethod
    def open(cls, made: Plan, policy: Path | None) -> World:
        from deepres.envs import make, make_task

        maze = getattr(make_task(made.env), "maze", None)
        if maze is None:
            raise ValueError(
                f"{made.env} has no maze to find ways in; pass a maze's name, e.g. point_big_maze"
            )
        rows = _starts_everywhere(maze.rows)
        base = made.env.partition("_")[0] + "_maze"
        env = unending(make(base, min(AT_ONCE, made.episodes), made.seed, made.length + 1, layout=rows))
        return cls(made, JaxEnvironments(env, "cpu"), Map(maze), _walker(policy, base, made.env))

    @torch.no_grad()
    def episodes(self, number: int) -> Dataset:
        """Part `number`: as many episodes as there are environments. The same plan and number give the same."""
        made, env, size = self.made, self.env, self.env.num_envs
        draw = torch.Generator().manual_seed(
            int(np.random.SeedSequence((made.seed, number)).generate_state(1)[0])
        )
        step = env.reset(int(np.random.SeedSequence((made.seed, number, 1)).generate_state(1)[0] >> 1))
        states = torch.empty(size, made.length + 1, env.state_dim)
        actions = torch.zeros(size, made.length + 1, env.action_dim)
        route, walk = self._route(step.obs[:, :2].clone(), draw), self.walker()
        for t in range(made.length):
            state = step.obs[:, : env.state_dim].clone()
            action = walk(state, next(route) if t == 0 else route.send(state[:, :2]))
            noise = made.noise * torch.randn(action.shape, generator=draw)
            states[:, t], actions[:, t] = state, (action + noise).clamp(-1, 1)
            step = env.step(step, actions[:, t].clone())
        states[:, -1] = step.terminal_obs[:, : env.state_dim]
        observations, acted = (part.reshape(-1, part.shape[2]).numpy() for part in (states, actions))
        return Dataset(observations, acted, made.length + 1)

    def _route(self, place: Tensor, draw: torch.Generator) -> Any:
        """A generator: sent where the robots are [N, 2], it gives the unit vectors [N, 2] that they are to follow."""
        if self.made.kind == "explore":
            yield from self._wander(len(place), draw)
        cells = self.map.cell_of(place)
        if self.made.kind == "stitch":
            goal = self.map.draw_at(cells, STITCH_CELLS, draw)
        else:
            goal = self.map.draw(len(place), draw)
        while True:
            cells = self.map.cell_of(place)
            if self.made.kind == "navigate" and (there := cells == goal).any():
                goal = torch.where(there, self.map.draw(len(place), draw), goal)
            target = self.map.centres[self.map.onward[goal, cells]]
            there = target - place
            place = yield there / there.norm(dim=1, keepdim=True).clamp_min(1e-6)

    @staticmethod
    def _wander(count: int, draw: torch.Generator) -> Iterator[Tensor]:
        while True:
            bearing = 2 * math.pi * torch.rand(count, generator=draw)
            direction = torch.stack([bearing.cos(), bearing.sin()], dim=1)
            for _ in range(EXPLORE_EVERY):
                yield direction


class Map:
    """The free cells of a maze: centres [C, 2] in metres; onward [C, C], of a goal and a cell the next one on a
    shortest way (itself at the goal); apart [C, C], the steps between them."""

    def __init__(self, maze: Any):
        free = np.argwhere(~maze.walls)
        self.cell = float(maze.cell)
        self.centres = torch.tensor(free * maze.cell, dtype=torch.float32)
        number = {tuple(cell): i for i, cell in enumerate(free.tolist())}
        beside = [
            [number[n] for n in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)) if n in number]
            for i, j in free.tolist()
        ]
        self.onward = torch.empty(len(free), len(free), dtype=torch.int64)
        self.apart = torch.empty(len(free), len(free), dtype=torch.int64)
        for goal in range(len(free)):
            far, waiting = {goal: 0}, deque([goal])
            self.onward[goal, goal] = goal
            while waiting:
                cell = waiting.popleft()
                for other in beside[cell]:
                    if other not in far:
                        far[other] = far[cell] + 1
                        self.onward[goal, other] = cell
                        waiting.append(other)
            self.apart[goal] = torch.tensor([far[cell] for cell in range(len(free))])

    def cell_of(self, place: Tensor) -> Tensor:
        """[N] the free cell whose centre is nearest to `place` [N, 2]."""
        return torch.cdist(place, self.centres).argmin(dim=1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] free cells, uniformly."""
        return torch.randint(len(self.centres), (count,), generator=generator)

    def draw_at(self, cells: Tensor, far: int, generator: torch.Generator) -> Tensor:
        """[N] of each cell one that is `far` cells away, or as far as there are, uniformly."""
        reach = self.apart[cells].amax(dim=1).clamp(max=far)
        eligible = (self.apart[cells] == reach[:, None]).float()
        return torch.multinomial(eligible, 1, generator=generator)[:, 0]


SPEED, STRENGTH, DT = 2.5, 3.8, 0.05  # of the point: m/s that it is driven at, m/s^2 of a full action, s


def _push(state: Tensor, direction: Tensor) -> Tensor:
    """The point's action towards SPEED along `direction`: it keeps what velocity it has unless something brakes it."""
    return ((SPEED * direction - state[:, 2:4]) / (STRENGTH * DT)).clamp(-1, 1)


def _walker(run: Path | None, base: str, env: str) -> Callable[[], Walk]:
    """Who walks in `env`, a maze of the kind `base`: the policy of a run, the ant's gait, or the point's driver."""
    if base == "point_maze":
        return lambda: _push
    if run is None and base == "ant_maze":
        return Gait
    if run is None:
        raise ValueError(
            f"{env} needs a policy that walks: train one on open ground (deepres train crl --env humanoid) and pass "
            "its folder (--policy)"
        )
    walk = _learned(run, env)
    return lambda: walk


def _learned(run: Path, env: str) -> Walk:
    """The action of a policy trained on open ground, told that it stands at the origin and the goal lies ahead."""
    from deepres.policy import Policy

    policy = Policy.load(run)

    def walk(state: Tensor, direction: Tensor) -> Tensor:
        if state.shape[1] != policy.sizes.state:
            raise ValueError(
                f"{run} walks states of {policy.sizes.state} numbers, {env} has {state.shape[1]}; pass a run of "
                "that robot"
            )
        here = state.clone()
        here[:, :2] = 0
        return policy.act(torch.cat([here, 4.0 * direction], dim=1))

    return walk


def _starts_everywhere(rows: tuple[str, ...]) -> list[str]:
    """The maze with a start in every free cell but the last, which is its one goal."""
    opened = [row.replace("G", "R").replace(".", "R") for row in rows]
    last = max(i for i, row in enumerate(opened) if "R" in row)
    at = opened[last].rindex("R")
    opened[last] = f"{opened[last][:at]}G{opened[last][at + 1 :]}"
    return opened
