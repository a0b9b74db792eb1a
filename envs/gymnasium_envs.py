"""Goal environments of gymnasium's under the words of all others: stepped by gymnasium's own vector environments.

In numpy: nothing here imports JAX or MuJoCo.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from deepres.envs.registry import check_whole

try:
    import gymnasium
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
except ImportError as error:
    raise ImportError(
        f"an environment of gymnasium's needs gymnasium ({error}); pip install 'deepres[envs]'"
    ) from None

VECTORIZATIONS = ("sync", "async")
GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
EXACT = 2**53  # whole numbers up to here are float64's, too


class GymnasiumTask:
    """What is known of a goal environment of gymnasium's, and how one is made.

    Observations are of one of two kinds:
    - a Dict of observation, achieved_goal and desired_goal (gymnasium-robotics): the state is concat(observation,
      achieved_goal), goal_slice its end, the goal desired_goal;
    - a Box of one axis, with goal_slice=: the state is all of it, and goal= says what is asked for.
    Actions are a Box with bounds; the learner's [-1, 1] are stretched over them, and rounded where they are whole
    numbers. Success is a distance below the
    threshold, Euclidean between state[goal_slice] and the goal: the environment's own verdict is not asked for.

    make: an id of gymnasium's, or a function that makes one environment; either gets `arguments`.
    goal_slice: where a Box has what the goal speaks of. goal: a function of the unwrapped environment -> goal [G],
    asked after every reset and step. threshold: by default the environment's distance_threshold.
    vectorization: "sync", one environment after the other; or "async", each in a process of its own.
    Raises: ValueError in one sentence for an environment that is not so.
    """

    threshold_easy: float | None = None
    threshold_hard: float | None = None

    def __init__(
        self,
        name: str,
        make: str | Callable[..., Any],
        *,
        goal_slice: slice | None = None,
        goal: Callable[[Any], Any] | None = None,
        threshold: float | None = None,
        vectorization: str = "sync",
        **arguments: Any,
    ) -> None:
        if vectorization not in VECTORIZATIONS:
            raise ValueError(f"vectorization must be sync or async, got {vectorization!r}")
        if goal_slice is not None and not isinstance(goal_slice, slice):
            raise ValueError(f"goal_slice of {name} must be a slice such as slice(0, 2), got {goal_slice!r}")
        if goal is not None and not callable(goal):
            raise ValueError(
                f"goal of {name} must be a function of the environment -> goal [G], got {goal!r}"
            )
        self.name, self.vectorization = name, vectorization
        self._make, self._arguments, self._goal = make, arguments, goal
        env = self._open()
        try:
            observed, actions = env.observation_space, env.action_space
            self.in_parts = isinstance(observed, Dict)
            if isinstance(observed, Dict):
                sizes = self._parts(observed, goal_slice)
                self.state_dim, self.goal_slice = sum(sizes), slice(sizes[0], sum(sizes))
            else:
                self.state_dim, self.goal_slice = self._whole(observed, goal_slice)
            self.low, self.high = self._bounds(actions)
            self.dt = _period(env)
            threshold = getattr(env.unwrapped, "distance_threshold", None) if threshold is None else threshold
            if threshold is None:
                raise ValueError(
                    f"{name} needs threshold=, the distance to the goal that counts as success: "
                    "the environment has no distance_threshold"
                )
            self.threshold = _distance(name, threshold)
        finally:
            env.close()
        self.goal_dim = self.goal_slice.stop - self.goal_slice.start
        self.action_dim = self.low.size

    def single(self, episode_length: int) -> gymnasium.Env[Any, Any]:
        """One environment of flat observations [state_dim + goal_dim] and actions [action_dim] in [-1, 1]."""
        return _Flat(self._open(), self, episode_length)

    def filmed(self, episode_length: int) -> gymnasium.Env[Any, Any]:
        """`single`, which gives pictures of itself by render(): RGB [height, width, 3] uint8.

        Raises ValueError in one sentence for an environment that cannot.
        """
        try:
            env = self._open(render_mode="rgb_array")
        except (TypeError, ValueError):
            env = None
        if env is None or env.render_mode != "rgb_array":
            if env is not None:
                env.close()
            raise ValueError(f"{self.name} takes no render_mode='rgb_array'")
        return _Flat(env, self, episode_length)

    def flat(self, observation: Any, env: Any) -> np.ndarray:
        """concat(state, goal) float32 of what `env` returned."""
        if self.in_parts:
            parts = [observation[key] for key in GOAL_KEYS]
        else:
            assert self._goal is not None
            parts = [observation, self._goal(env.unwrapped)]
        flat = np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)
        if flat.size != self.state_dim + self.goal_dim:
            raise ValueError(
                f"goal= of {self.name} must return {self.goal_dim} numbers, as goal_slice has, "
                f"got {flat.size - self.state_dim}"
            )
        return flat

    def _open(self, **more: Any) -> gymnasium.Env[Any, Any]:
        if callable(self._make):
            made = self._make(**self._arguments, **more)
            if not isinstance(made, gymnasium.Env):
                raise ValueError(f"gymnasium= of {self.name} must make a gymnasium.Env, got {made!r}")
            return made
        try:
            return gymnasium.make(self._make, **self._arguments, **more)
        except gymnasium.error.Error as error:
            raise ValueError(f"{self.name}: gymnasium cannot make {self._make!r}: {error}") from None

    def _parts(self, observed: Dict, goal_slice: slice | None) -> list[int]:
        """The sizes of observation and achieved goal."""
        if missing := [key for key in GOAL_KEYS if key not in observed.spaces]:
            raise ValueError(
                f"{self.name} must observe {', '.join(GOAL_KEYS)}; it lacks {', '.join(missing)}"
            )
        if goal_slice is not None or self._goal is not None:
            raise ValueError(f"{self.name} observes its goals itself; leave goal_slice= and goal= out")
        for key in GOAL_KEYS:
            if not isinstance(observed[key], Box | Discrete | MultiBinary | MultiDiscrete):
                raise ValueError(
                    f"{self.name} must observe numbers as its {key}, a Box say, got {observed[key]}; flatten it "
                    "(gymnasium.spaces.flatten)"
                )
        sizes = [int(np.prod(observed[key].shape or ())) for key in GOAL_KEYS]
        if sizes[1] != sizes[2]:
            raise ValueError(
                f"{self.name} must have goals of one size, got achieved {sizes[1]}, desired {sizes[2]}"
            )
        if sizes[1] == 0:
            raise ValueError(f"{self.name} must have goals of one number at least, got a size of 0")
        return sizes[:2]

    def _whole(self, observed: Any, goal_slice: slice | None) -> tuple[int, slice]:
        if not isinstance(observed, Box) or len(observed.shape) != 1:
            raise ValueError(
                f"{self.name} must observe a Dict of {', '.join(GOAL_KEYS)}, or a Box of one axis, got {observed}"
            )
        if goal_slice is None or self._goal is None:
            raise ValueError(
                f"{self.name} observes a plain Box: pass goal_slice=, where it has what the goal speaks of, and "
                "goal=, a function of the environment that returns the goal"
            )
        size = observed.shape[0]
        start, stop, stride = goal_slice.indices(size)
        if stride != 1 or start >= stop:
            raise ValueError(f"goal_slice must be a range of the {size} numbers observed, got {goal_slice}")
        return size, slice(start, stop)

    def _bounds(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        wanted = f"{self.name} must have actions in a Box with finite bounds"
        if not isinstance(actions, Box):
            raise ValueError(f"{wanted}, got {actions}")
        if actions.low.size == 0:
            raise ValueError(f"{wanted}, of one number at least, got {actions}")
        low, high = actions.low, actions.high
        if _whole_numbers(low):
            finite = max(abs(int(low.min())), abs(int(high.max()))) <= EXACT
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                finite = bool(np.isfinite(high - low).all())  # as far apart as can be stretched over
        if not finite:
            raise ValueError(
                f"{wanted}, and a finite span between them, got {actions}; wrap it in RescaleAction"
            )
        return low, high


def _whole_numbers(bounds: np.ndarray) -> bool:
    return bool(np.issubdtype(bounds.dtype, np.integer))


def _distance(name: str, threshold: Any) -> float:
    try:
        distance = float(threshold)
    except (TypeError, ValueError):
        distance = np.nan
    if not 0 < distance < np.inf:
        raise ValueError(f"threshold of {name} must be a finite distance above 0, got {threshold!r}")
    return distance


def _period(env: gymnasium.Env[Any, Any]) -> float:
    """Seconds to a step, as far as an environment says: its dt, else one picture of its videos, else 1."""
    dt, fps = getattr(env.unwrapped, "dt", None), env.metadata.get("render_fps")
    return float(dt) if isinstance(dt, (int, float)) else 1 / fps if fps else 1.0


class _Flat(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment as the learner wants it, with a time limit."""

    def __init__(self, env: gymnasium.Env[Any, Any], task: GymnasiumTask, episode_length: int) -> None:
        super().__init__(env)
        self._task, self._limit, self._steps = task, episode_length, 0
        self.observation_space = Box(-np.inf, np.inf, (task.state_dim + task.goal_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (task.action_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        self._steps = 0
        return self._task.flat(self.env.reset(seed=seed)[0], self.env), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, terminated, truncated, _ = self.env.step(self._stretched(action))
        self._steps += 1
        over = bool(truncated) or self._steps >= self._limit
        return self._task.flat(observation, self.env), self._number(reward), bool(terminated), over, {}

    def _stretched(self, action: np.ndarray) -> np.ndarray:
        """[-1, 1] over the bounds, float64 in between: a span of small whole numbers may pass their type's largest."""
        low, high = self._task.low, self._task.high
        finite = np.nan_to_num(action)  # of a broken policy, which GymnasiumVector.step shows
        share = (np.clip(finite, -1.0, 1.0).astype(np.float64).reshape(low.shape) + 1) / 2
        given = low + share * (high.astype(np.float64) - low)
        given = np.rint(given) if _whole_numbers(low) else given
        return np.clip(given.astype(low.dtype), low, high)

    def _number(self, reward: Any) -> float:
        """A reward that may be an array of one."""
        if np.size(reward) != 1:
            raise ValueError(
                f"{self._task.name} must reward with one number, got shape {list(np.shape(reward))}"
            )
        return float(np.asarray(reward).reshape(()))


@dataclass(frozen=True)
class GymnasiumState:
    """Environments between two steps, as EnvState (env.py) has them, in numpy; every field has a leading axis [N]."""

    obs: np.ndarray
    terminal_obs: np.ndarray
    reward: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    done: np.ndarray
    truncation: np.ndarray
    traj_id: np.ndarray
    steps: np.ndarray
    goal: np.ndarray


class GymnasiumVector:
    """`num_envs` gymnasium environments side by side; what deepres.envs.make returns for one.

        state = env.reset()
        state = env.step(state, action)      # action [num_envs, action_dim] in [-1, 1], numpy

    Unlike the other environments these remember where they are: a step goes on from the newest state alone, and a
    state cannot be saved. episode_length: an episode that has not ended by then is truncated.
    """

    auto_reset = "fresh"
    engine = "gymnasium"

    def __init__(self, task: GymnasiumTask, num_envs: int, seed: int = 0, episode_length: int = 1000) -> None:
        check_whole("episode_length", episode_length, 1)
        self.task = task
        self.name = task.name
        self.num_envs = num_envs
        self.seed = seed
        self.episode_length = episode_length
        self.state_dim, self.goal_dim, self.action_dim = task.state_dim, task.goal_dim, task.action_dim
        self.obs_dim = task.state_dim + task.goal_dim
        self.goal_slice, self.dt = task.goal_slice, task.dt
        self.threshold = task.threshold
        self.threshold_easy, self.threshold_hard = task.threshold_easy, task.threshold_hard
        makers = [partial(task.single, episode_length)] * num_envs
        self._vector: Any = (
            SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
            if task.vectorization == "sync"
            # a fork of a process with JAX's threads can lock up
            else AsyncVectorEnv(
                makers,
                context="forkserver" if "jax" in sys.modules else None,
                autoreset_mode=AutoresetMode.SAME_STEP,
            )
        )
        self._state: GymnasiumState | None = None

    def reset(self, seed: int | None = None, traj_ids: np.ndarray | None = None) -> GymnasiumState:
        """New episodes everywhere. seed: by default the one of `make`. traj_ids: [N], by default 0 everywhere."""
        obs, _ = self._vector.reset(seed=self._seeds(self.seed if seed is None else seed))
        return self._arrived(obs, np.zeros(self.num_envs) if traj_ids is None else traj_ids)

    def step(self, state: GymnasiumState, action: np.ndarray) -> GymnasiumState:
        """All environments one step later; where an episode ended, at the start of its next."""
        self._check_newest(state)
        given = np.asarray(action, np.float32)
        if given.shape != (self.num_envs, self.action_dim):
            wanted = f"[{self.num_envs}, {self.action_dim}] (num_envs, action_dim) for {self.name}"
            raise ValueError(f"action must have shape {wanted}, got {list(given.shape)}")
        obs, reward, terminated, truncated, infos = self._vector.step(given)
        done = terminated | truncated
        reached = obs.copy()
        for i in np.flatnonzero(done):
            reached[i] = infos["final_obs"][i]
        broken = ~np.isfinite(given).all(axis=1)  # they got 0 for it: it is to show, as elsewhere
        obs[broken], reached[broken] = np.nan, np.nan
        arrived = self._arrived(obs, state.traj_id + done, reached)
        self._state = replace(
            arrived,
            reward=reward.astype(np.float32),
            done=done,
            truncation=truncated & ~terminated,
            steps=np.where(done, 0, state.steps + 1).astype(np.int32),
        )
        return self._state

    def begin_anew(
        self, state: GymnasiumState, where: np.ndarray, traj_ids: np.ndarray, seed: int
    ) -> GymnasiumState:
        """`state` with new episodes of the trajectories `traj_ids` in the environments `where`, drawn with `seed`."""
        self._check_newest(state)
        anew = np.zeros(self.num_envs, bool)
        anew[where] = True
        obs, _ = self._vector.reset(seed=self._seeds(seed), options={"reset_mask": anew})
        ids = state.traj_id.copy()
        ids[where] = traj_ids
        fresh = self._arrived(obs, ids)

        def leaf(name: str) -> np.ndarray:
            old, new = getattr(state, name), getattr(fresh, name)
            return np.where(anew.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        self._state = GymnasiumState(**{part.name: leaf(part.name) for part in fields(fresh)})
        return self._state

    def close(self) -> None:
        """End the environments, and their processes if they have some."""
        self._vector.close()

    def _arrived(
        self, obs: np.ndarray, traj_id: np.ndarray, reached: np.ndarray | None = None
    ) -> GymnasiumState:
        """The state of `obs`; what the last step reached is judged by `reached`, by default the same."""
        reached = obs if reached is None else reached
        state, goal = reached[:, : self.state_dim], reached[:, self.state_dim :]
        distance = np.linalg.norm(state[:, self.goal_slice] - goal, axis=1)
        nothing = np.zeros(self.num_envs, bool)
        self._state = GymnasiumState(
            obs=obs,
            terminal_obs=reached,
            reward=np.zeros(self.num_envs, np.float32),
            success=(distance < self.threshold).astype(np.float32),
            distance=distance,
            done=nothing,
            truncation=nothing,
            traj_id=traj_id.astype(np.int32),
            steps=np.zeros(self.num_envs, np.int32),
            goal=obs[:, self.state_dim :],
        )
        return self._state

    def _check_newest(self, state: GymnasiumState) -> None:
        if state is not self._state:
            raise ValueError(
                f"{self.name} is a gymnasium environment, which goes on from its newest state alone; "
                "pass what the last reset or step returned"
            )

    def _seeds(self, seed: int) -> list[int]:
        """One for each environment: neighbouring seeds have none in common."""
        return [int(s) for s in np.random.SeedSequence(seed).generate_state(self.num_envs)]

    def __repr__(self) -> str:
        return f"GymnasiumVector({self.name!r}, num_envs={self.num_envs}, seed={self.seed})"
