"""The goal-conditioned environment made of a task: reset and step as pure JAX functions.

`GoalEnv` adds physics, the time limit, trajectory ids and auto-reset to a task (task.py). vmap and jit are left to the
caller; vector.py does both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import mujoco

from deepres.envs.draws import unrolled
from deepres.envs.engines import PhysicsState
from deepres.envs.registry import check_whole
from deepres.envs.task import FunctionalTask, Task, needs_engine

if TYPE_CHECKING:
    from deepres.envs.engines.mjx import MjxPhysics

AUTO_RESETS = ("fresh", "first")
GoalSampler = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FirstState:
    """What `auto_reset="first"` goes back to: an environment's own first physics and goal."""

    physics: Any
    goal: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EnvState:
    """An environment between two steps; in a batch every leaf has a leading axis [N].

    Record a transition from the state BEFORE its step: (s.obs, action, s.traj_id). After
    t = env.step(s, action), t.reward, t.done and t.truncation belong to the same transition. Everything that
    the future depends on is in here, so saving and restoring the leaves continues a run bit for bit.

    obs: [state_dim + goal_dim] float32, what the policy sees next; after a done, the new episode's first.
    terminal_obs: same shape, what the last step reached; differs from obs only where done.
    reward, success (0 or 1), distance (metres to the goal): float32 of what the last step reached.
    done: bool, the last step ended its episode. truncation: bool, it did so by the time limit alone.
    traj_id: int32, of the transition that starts here: 0 in the first episode, one more in each next one.
    steps: int32, steps taken in the running episode.
    goal: [goal_dim] float32. key: uint32 [2], what later episodes are drawn with.
    physics: a PhysicsState, or the sim of a FunctionalTask. first: what auto_reset="first" goes back to, else None.
    """

    obs: jax.Array
    terminal_obs: jax.Array
    reward: jax.Array
    success: jax.Array
    distance: jax.Array
    done: jax.Array
    truncation: jax.Array
    traj_id: jax.Array
    steps: jax.Array
    goal: jax.Array
    key: jax.Array
    physics: Any
    first: FirstState | None


BEGINNING = ("key", "physics", "goal", "obs")  # what a new episode puts in the place of the last one's


def began(state: EnvState, beginning: dict[str, Any]) -> EnvState:
    """`state`, of one environment or many, with `beginning` for its BEGINNING; where done, one trajectory on."""
    steps = jnp.where(state.done, 0, state.steps)
    return replace(state, traj_id=state.traj_id + state.done, steps=steps, **beginning)


class GoalEnv:
    """A single environment of `task` as pure functions: `reset(key)` and `step(state, action)`.

    episode_length: the time limit, in control periods. auto_reset: after a done, "fresh" draws a new start
    and goal; "first" goes back to the environment's own first start and goal (as the published runs did).
    physics: what steps the model; None for a task that advances itself, and if a whole batch is stepped at once,
    between `drive` and `arrive` (vector.py does). goal_sampler: draws goals in the task's place, see deepres.envs.make.
    """

    def __init__(
        self,
        task: FunctionalTask,
        episode_length: int = 1000,
        auto_reset: str = "fresh",
        physics: MjxPhysics | None = None,
        goal_sampler: GoalSampler | None = None,
    ) -> None:
        check_whole("episode_length", episode_length, 1)
        if auto_reset not in AUTO_RESETS:
            raise ValueError(f"auto_reset must be one of {', '.join(AUTO_RESETS)}, got {auto_reset!r}")
        self.task = task
        self.episode_length = episode_length
        self.auto_reset = auto_reset
        self.model = task.model if isinstance(task, Task) else None
        self.action_dim = task.action_dim
        self._physics = physics
        self._goal_sampler = goal_sampler
        self._typed: Callable[[jax.Array], jax.Array] = unrolled
        if goal_sampler is not None and task.own_goals:
            kind = type(task).__name__ + (" with parity=True" if getattr(task, "parity", False) else "")
            raise ValueError(
                f"goal_sampler does not apply to {kind}, whose goal is part of what it simulates; leave it out"
            )
        self._check()

    def _check(self) -> None:
        """Raises ValueError, in a sentence, where the task's functions do not return what its figures say."""
        task = self.task
        kind = type(task).__name__
        try:
            sim, goal = jax.eval_shape(self._begin, jax.random.PRNGKey(0))
        except NotImplementedError:  # some of JAX's distributions know its own generator alone
            self._typed = jax.random.wrap_key_data
            sim, goal = jax.eval_shape(self._begin, jax.random.PRNGKey(0))
        for leaf in jax.tree.leaves(sim):
            if getattr(leaf.dtype, "isbuiltin", 1) == 2:
                raise ValueError(
                    f"what {kind}.start returns must be of NumPy's own types, to be saved, got {leaf.dtype}; take "
                    "float32"
                )
        if self.model is not None and needs_engine(task):
            self._check_physics(sim, self.model)
        else:
            action = jax.ShapeDtypeStruct((self.action_dim,), jnp.float32)
            before, after = _layout(sim), _layout(jax.eval_shape(self._advance, sim, action))
            if before != after:
                raise ValueError(f"{kind}.advance must return what start does, {before}, got {after}")
        if goal.shape != (task.goal_dim,):
            who = "goal_sampler" if self._goal_sampler else f"{kind}.start"
            raise ValueError(f"{who} must return a goal [{task.goal_dim}], got {list(goal.shape)}")
        state = jax.eval_shape(task.observe, sim)
        if _layout(state) != f"float32[{task.state_dim}]":
            raise ValueError(
                f"{kind}.observe must return float32[{task.state_dim}] (state_dim), got {_layout(state)}"
            )
        self._check_numbers()

    def _check_physics(self, sim: Any, model: mujoco.MjModel) -> None:
        kind = type(self.task).__name__
        for what, count in (("activations", model.na), ("plugin states", model.npluginstate)):
            if count:
                raise ValueError(
                    f"the model of {kind} must have no actuators or plugins with a state of their own, which a step "
                    f"would lose, got {count} {what}; take motors, or position servos without timeconst"
                )
        if not isinstance(sim, PhysicsState):
            raise ValueError(
                f"{kind}.start must return at_rest(qpos, qvel) (deepres.envs.engines) and a goal, got {_layout(sim)}"
            )
        if sim.sensors.shape != (model.nsensordata,):
            raise ValueError(
                f"a start of {kind} must have sensors [{model.nsensordata}], as its model "
                f"does, got {list(sim.sensors.shape)}; pass at_rest(..., sensors=resting_sensors(...))"
            )
        for what, size in (("qpos", model.nq), ("qvel", model.nv)):
            if (got := getattr(sim, what).shape) != (size,):
                raise ValueError(
                    f"a start of {kind} must have {what} [{size}], as its model does, got {list(got)}"
                )
        control = jax.eval_shape(self.task.control, _numbers(self.action_dim))  # type: ignore[attr-defined]
        if control.shape != (model.nu,):
            raise ValueError(
                f"{kind}.control must return [{model.nu}], the model's controls, got {list(control.shape)}"
            )

    def _check_numbers(self) -> None:
        task, kind = self.task, type(self.task).__name__
        state, goal, action = map(_numbers, (task.state_dim, task.goal_dim, self.action_dim))
        wanted: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
            "distance": ((), (state, goal)),
            "success": ((), (state, goal)),
            "terminated": ((), (state,)),
            "reward": ((), (state, action, state, goal)),
            "goal_after": ((task.goal_dim,), (state, goal)),
        }
        for name, (shape, given) in wanted.items():
            function = getattr(task, name)
            got = jax.eval_shape(lambda *one, function=function: jnp.asarray(function(*one)), *given).shape
            if got != shape:
                told = f"[{task.goal_dim}]" if shape else "one number"
                raise ValueError(f"{kind}.{name} must return {told}, got shape {list(got)}")

    def reset(self, key: jax.Array) -> EnvState:
        """The first state of the first episode, drawn with `key` (uint32 [2], see `jax.random.PRNGKey`)."""
        key, draw = self._split(key)
        physics, goal = self._begin(draw)
        state = self.task.observe(physics)
        obs = jnp.concatenate([state, goal])
        return EnvState(
            obs=obs,
            terminal_obs=obs,
            reward=jnp.zeros((), jnp.float32),
            success=jnp.asarray(self.task.success(state, goal), jnp.float32),
            distance=jnp.asarray(self.task.distance(state, goal), jnp.float32),
            done=jnp.zeros((), bool),
            truncation=jnp.zeros((), bool),
            traj_id=jnp.zeros((), jnp.int32),
            steps=jnp.zeros((), jnp.int32),
            goal=goal,
            key=key,
            physics=physics,
            first=FirstState(physics, goal) if self.auto_reset == "first" else None,
        )

    def step(self, state: EnvState, action: jax.Array) -> EnvState:
        """The state one control period later, under `action` [action_dim] in [-1, 1].

        Where the episode ends, the state returned is already the next episode's first.
        Raises: TypeError for engine="c", whose physics is no JAX function.
        """
        return self.renew(self.arrive(state, action, self._advance(state.physics, action)))

    def _advance(self, physics: Any, action: jax.Array) -> Any:
        """`physics` one control period later: the engine's doing, or the task's own."""
        if self._physics is not None:
            return self._physics.step(physics, *self.drive(physics, action))
        return jax.tree.map(_strong, self.task.advance(physics, jnp.clip(action, -1.0, 1.0)))

    def drive(self, physics: Any, action: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """What an engine is told for the coming control period: controls [nu] and mocap positions or None."""
        assert isinstance(self.task, Task)
        return self.task.control(action), self.task.mocap(physics)

    def arrive(self, state: EnvState, action: jax.Array, physics: Any) -> EnvState:
        """What the step from `state` under `action` reached, where physics came to `physics`."""
        task = self.task
        before, after = state.obs[: task.state_dim], task.observe(physics)
        goal = task.goal_after(after, state.goal)
        terminated = jnp.asarray(task.terminated(after), bool)
        steps = state.steps + 1
        done = terminated | (steps >= self.episode_length)
        obs = jnp.concatenate([after, goal])
        return replace(
            state,
            obs=obs,
            terminal_obs=obs,
            reward=jnp.asarray(task.reward(before, action, after, goal), jnp.float32),
            success=jnp.asarray(task.success(after, goal), jnp.float32),
            distance=jnp.asarray(task.distance(after, goal), jnp.float32),
            done=done,
            truncation=done & ~terminated,
            steps=steps,
            goal=goal,
            physics=physics,
        )

    def renew(self, state: EnvState) -> EnvState:
        """`state`, or where it ended its episode the first of the next: a few random draws."""
        again = self.again(state.key, state.first)
        own = {name: getattr(state, name) for name in BEGINNING}
        return began(state, jax.tree.map(lambda new, old: jnp.where(state.done, new, old), again, own))

    def again(self, key: jax.Array, first: FirstState | None) -> dict[str, Any]:
        """What the next episode starts with: BEGINNING of EnvState.

        key: [2], drawn with it. first: what to go back to, or None for a new start and goal.
        """
        if first is not None:
            physics, goal = first.physics, first.goal
        else:
            key, draw = self._split(key)
            physics, goal = self._begin(draw)
        obs = jnp.concatenate([self.task.observe(physics), goal])
        return {"key": key, "physics": physics, "goal": goal, "obs": obs}

    @staticmethod
    def _split(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The raw key [2] of all later episodes, and the raw key [2] of this one."""
        key, draw = jax.random.key_data(jax.random.split(unrolled(key)))
        return key, draw

    def _begin(self, key: jax.Array) -> tuple[Any, jax.Array]:
        """A new episode's physics and goal, drawn with the raw `key` [2]; a goal sampler gets a raw one, too."""
        if self._goal_sampler is None:
            physics, goal = self.task.start(self._typed(key))
        else:
            start_key, goal_key = jax.random.split(self._typed(key))
            goal = self._goal_sampler(jax.random.key_data(goal_key))
            physics = self.task.start(start_key)[0]
        return jax.tree.map(_strong, physics), jnp.asarray(goal, jnp.float32)


def _numbers(count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count,), jnp.float32)


def _strong(leaf: Any) -> jax.Array:
    """`leaf` as an array of a type of its own: with a Python number's, a step would be compiled once more."""
    array = jnp.asarray(leaf)
    return array.astype(array.dtype) if array.weak_type else array


def _layout(tree: Any) -> str:
    """The shapes and types of a pytree's arrays, for a sentence: float32[3], or (float32[3], int32[])."""
    text = jax.tree.map(lambda leaf: f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]", tree)
    return str(text).replace("'", "")
