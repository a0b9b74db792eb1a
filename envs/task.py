"""What a task is: for ONE environment and in JAX, where an episode starts, what an action does, what is observed, how
far the goal is, when an episode ends.

`Task` has a MuJoCo model, which an engine steps and pictures show. `FunctionalTask` steps itself: physics of your own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from deepres.envs.engines import PhysicsState


@dataclass(frozen=True)
class View:
    """Where a video's camera stands. distance: metres to `lookat`; azimuth, elevation: degrees.

    follow: keep looking at the robot (qpos's first two) as it goes.
    """

    distance: float
    azimuth: float = 90.0
    elevation: float = -45.0
    lookat: tuple[float, float, float] = (0.0, 0.0, 0.0)
    follow: bool = False


class FunctionalTask(ABC):
    """One goal-reaching task, for a single environment, as pure JAX functions. Subclasses fill in the figures and
    `start`, `advance` and `observe`; the rest has defaults.

    What is simulated, `sim`, is any pytree of arrays. The observation is concat(state [state_dim], goal [goal_dim]);
    `state[goal_slice]` are the coordinates that the goal speaks of, so that any later state of a trajectory can stand
    as its goal.
    """

    name: str
    state_dim: int
    action_dim: int
    goal_slice: slice
    dt: float  # seconds to a control period
    threshold: float  # success below this distance to the goal
    threshold_easy: float | None = None  # and the published easier and harder ones, where there are
    threshold_hard: float | None = None
    own_goals: bool = False  # whether the goal is part of what is simulated, so that no goal_sampler applies

    @abstractmethod
    def start(self, key: jax.Array) -> tuple[Any, jax.Array]:
        """A new episode's sim and goal [goal_dim], drawn with `key`."""

    @abstractmethod
    def advance(self, sim: Any, action: jax.Array) -> Any:
        """`sim` one control period later, under `action` [action_dim] in [-1, 1]."""

    @abstractmethod
    def observe(self, sim: Any) -> jax.Array:
        """The state vector [state_dim] float32 that the policy and the critic see."""

    def distance(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        """Metres from `state` [state_dim] to `goal` [goal_dim]: Euclidean on the goal's coordinates."""
        return jnp.linalg.norm(state[self.goal_slice] - goal)

    def success(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        """Whether `state` [state_dim] has reached `goal` [goal_dim]: bool."""
        return self.success_at("plain", state, goal)

    def success_at(self, level: str, state: jax.Array, goal: jax.Array) -> jax.Array:
        """`success` by the "plain" threshold, or by the published "easy" or "hard" one: bool.

        A task whose success is more than a distance overrides this; `success`, overridden, knows no other level.
        """
        name = "threshold" if level == "plain" else f"threshold_{level}"
        return self.distance(state, goal) < getattr(self, name)

    def goal_after(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        """[goal_dim]: the goal, once the episode has come to `state`; the same all along, unless a task moves it.

        What a step reached is judged and shown against the goal that this returns.
        """
        return goal

    def terminated(self, state: jax.Array) -> jax.Array:
        """Whether the episode ends here, its time limit aside; never, unless a task says otherwise."""
        return jnp.zeros((), bool)

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        """The dense reward of a step between two state vectors: minus the distance, unless a task says otherwise.

        Of the tasks here it is the published one.
        """
        return -self.distance(after, goal)

    @property
    def goal_dim(self) -> int:
        return self.goal_slice.stop - self.goal_slice.start


class Task(FunctionalTask):
    """A goal-reaching task with a MuJoCo model, whose sim is a PhysicsState. Subclasses give `spec`, `start`,
    `observe` and the figures; an engine does the rest.

    A task whose published form has quirks that look unintended mends them, and brings them back under its
    option parity=True; its docstring lists each under "Parity:".
    """

    dt: float  # a whole number of the model's timesteps
    goal_height: ClassVar[float] = 0.0  # metres: where pictures show a goal that has no z of its own
    own_engine: str = (
        "auto"  # what engine="auto" takes: "jax" where C moves this task otherwise than it should
    )

    @abstractmethod
    def spec(self) -> mujoco.MjSpec:
        """The model that physics steps: no target bodies, no scenery."""

    def scene(self) -> mujoco.MjSpec:
        """The model that pictures show, with the same qpos as `spec`; a task adds its scenery here."""
        return self.spec()

    def view(self) -> View:
        """The camera of this task's videos; by default it sees the whole model as it is first put."""
        shown = self.model.stat
        return View(distance=2.5 * float(shown.extent), lookat=tuple(shown.center.tolist()))

    def marker(self, goal: np.ndarray) -> np.ndarray:
        """[3] metres: where pictures show `goal` [goal_dim]."""
        return np.append(goal, [0.0] * (2 - len(goal)) + [self.goal_height])[:3]

    def advance(self, sim: PhysicsState, action: jax.Array) -> PhysicsState:
        """Left to the engine that `make` was asked for. A task that overrides it is stepped by it alone, in JAX."""
        raise TypeError(
            "the C engine steps whole batches outside JAX, so it cannot be under jit, vmap or scan; "
            "make the environments with engine='jax' for env.functional.step"
        )

    def control(self, action: jax.Array) -> jax.Array:
        """[nu]: the model's controls in the coming control period, from `action` [action_dim] in [-1, 1]."""
        return jnp.clip(action, -1.0, 1.0)

    def mocap(self, physics: PhysicsState) -> jax.Array | None:
        """[nmocap, 3]: where the mocap bodies stand in the coming control period; None without any."""
        return None

    @property
    def action_dim(self) -> int:  # type: ignore[override]
        """Length of an action: the model's controls, unless `control` maps another."""
        return int(self.model.nu)

    @cached_property
    def model(self) -> mujoco.MjModel:
        """`spec`, compiled without the geoms that nothing collides with: they have a mass, but cost every step."""
        spec = self.spec()
        spec.compiler.discardvisual = True
        return spec.compile()


def needs_engine(task: FunctionalTask) -> bool:
    """Whether `task` is stepped by one of the engines, rather than by an `advance` of its own."""
    return isinstance(task, Task) and type(task).advance is Task.advance
