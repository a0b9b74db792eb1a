"""Environments as a learner in torch sees them: one interface, whatever they are made of.

    envs = open_environments("ant", num_envs=64, device="cuda")
    step = envs.reset()
    step = envs.step(step, policy(step.obs))

A tensor of a step is made when it is asked for: what nobody reads costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from deepres.envs.xla import settled

if TYPE_CHECKING:
    import jax

    from deepres.envs.gymnasium_envs import GymnasiumVector
    from deepres.envs.vector import VectorEnv


class Step:
    """Environments between two steps, [N] of them. Tensors are for reading: they may share memory with `raw`.

    raw: the environments' own state (EnvState, or GymnasiumState), for cameras.
    obs: [N, S + G] float32, what the policy sees next. terminal_obs: the same, what the last step reached.
    reward, success (0 or 1), distance: [N] float32 of what the last step reached.
    done: [N] bool, the last step ended its episode; truncation: [N] bool, by the time limit alone.
    traj_id: [N] int32, of the transition that starts here. elapsed: [N] int32, steps taken in the running episode.
    """

    def __init__(self, raw: Any, tensor: Callable[[Any], Tensor]) -> None:
        self.raw = raw
        self._tensor = tensor

    @cached_property
    def obs(self) -> Tensor:
        return self._tensor(self.raw.obs)

    @cached_property
    def terminal_obs(self) -> Tensor:
        return self._tensor(self.raw.terminal_obs)

    @cached_property
    def reward(self) -> Tensor:
        return self._tensor(self.raw.reward)

    @cached_property
    def success(self) -> Tensor:
        return self._tensor(self.raw.success)

    @cached_property
    def distance(self) -> Tensor:
        return self._tensor(self.raw.distance)

    @cached_property
    def done(self) -> Tensor:
        return self._tensor(self.raw.done).bool()

    @cached_property
    def truncation(self) -> Tensor:
        return self._tensor(self.raw.truncation).bool()

    @cached_property
    def traj_id(self) -> Tensor:
        return self._tensor(self.raw.traj_id)

    @cached_property
    def elapsed(self) -> Tensor:
        return self._tensor(self.raw.steps)


class Environments(Protocol):
    """`num_envs` environments of one task, side by side; their tensors are on `device`.

    Sizes in numbers: state S, action A, goal G. goal_slice: where a state has what the goal speaks of.
    action_bounds: (low [A], high [A]) that the environment stretches [-1, 1] over; None where it does not.
    episode_length: steps of dt seconds. threshold: distance to the goal that counts as success; graded: the published
    "easy" and "hard" ones, where there are.
    """

    name: str
    num_envs: int
    state_dim: int
    action_dim: int
    goal_dim: int
    goal_slice: slice
    episode_length: int
    dt: float
    threshold: float
    graded: dict[str, float]
    action_bounds: tuple[list[float], list[float]] | None
    device: torch.device

    def reset(self, seed: int | None = None) -> Step:
        """New episodes everywhere, of trajectories 0. seed: decides starts and goals, by default the one they have."""

    def step(self, step: Step, action: Tensor) -> Step:
        """One step later, under action [N, A] in [-1, 1]; where an episode ended, at the start of its next.

        action: a tensor that nobody writes to afterwards.
        """

    def begin_anew(self, step: Step, where: Tensor, traj_ids: Tensor, seed: int) -> Step:
        """New episodes of the trajectories traj_ids [K] in the environments `where` [K] int64; the others go on."""

    def reached(self, state: Tensor, goal: Tensor) -> Tensor:
        """[B] bool: whether state [B, S] has reached goal [B, G]."""

    def within(self, step: Step) -> dict[str, Tensor]:
        """[N] bool by level of `graded`: whether what `step` led to is a success by that threshold."""

    def state_tensors(self, step: Step) -> dict[str, Tensor]:
        """What `load_state_tensors` needs to go on from `step`: named tensors with an axis [N] first, on the CPU."""

    def load_state_tensors(self, step: Step, tensors: dict[str, Tensor]) -> Step:
        """The step that was saved. step: any one of these environments. Raises ValueError for another's tensors."""

    def bytes_per_env(self) -> int:
        """Of one environment's state."""


class _Shared:
    """What both kinds have in common."""

    action_bounds: tuple[list[float], list[float]] | None = None

    def __init__(self, env: Any, device: torch.device | str) -> None:
        self.env = env
        self.task = env.task
        self.device = torch.device(device)
        self.name: str = env.name
        self.num_envs: int = env.num_envs
        self.state_dim: int = env.state_dim
        self.action_dim: int = env.action_dim
        self.goal_dim: int = env.goal_dim
        self.goal_slice: slice = env.goal_slice
        self.episode_length: int = env.episode_length
        self.dt: float = env.dt
        self.threshold: float = env.threshold
        published = {"easy": env.threshold_easy, "hard": env.threshold_hard}
        self.graded = {name: value for name, value in published.items() if value is not None}

    def reached(self, state: Tensor, goal: Tensor) -> Tensor:
        return torch.linalg.vector_norm(state[:, self.goal_slice] - goal, dim=1) < self.threshold

    def within(self, step: Step) -> dict[str, Tensor]:
        return {level: step.distance < value for level, value in self.graded.items()}


def _check_step(step: Any, action: Any) -> None:
    """Raise TypeError, in one sentence, for what `Environments.step` does not take."""
    if not hasattr(step, "raw"):
        raise TypeError(
            f"step must be what reset or step returned, got {type(step).__name__}; call env.step(step, action)"
        )
    if not isinstance(action, Tensor):
        raise TypeError(
            f"action must be a torch tensor [N, A], got {type(action).__name__}; pass torch.as_tensor(action)"
        )


def require_environments(env: Any) -> None:
    """Raise TypeError, in one sentence, for what no policy acts in, such as what deepres.envs.make gives."""
    if not hasattr(env, "device"):
        raise TypeError(
            "env must be environments with tensors, as Policy.environments() and "
            f"deepres.data.environments.open_environments(name, num_envs) give them, got {type(env).__name__}"
        )


class JaxEnvironments(_Shared):
    """Environments of deepres.envs that compute with JAX, or around MuJoCo's C engine.

    Their state is all there is to them: a step that was saved goes on bit for bit.
    """

    def __init__(self, env: VectorEnv, device: torch.device | str = "cpu") -> None:
        from deepres.data.bridge import to_jax, to_torch
        from deepres.envs.task import FunctionalTask

        super().__init__(env, device)
        self._to_jax, self._to_torch = to_jax, to_torch
        kind = type(env.task)
        if kind.success is not FunctionalTask.success:
            self.graded = {}
        by_distance = kind.success_at is FunctionalTask.success_at
        plain = kind.success is FunctionalTask.success and kind.distance is FunctionalTask.distance
        self._success: Callable[..., jax.Array] | None = (
            None if by_distance and plain else _jitted_success(env.task)
        )
        told = self.graded and not by_distance
        self._levels = _jitted_levels(env.task, tuple(self.graded)) if told else None

    def _step(self, raw: Any) -> Step:
        return Step(raw, lambda leaf: self._to_torch(leaf, self.device))

    def reset(self, seed: int | None = None) -> Step:
        return self._step(self.env.reset(seed=seed))

    def step(self, step: Step, action: Tensor) -> Step:
        _check_step(step, action)
        return self._step(self.env.step(step.raw, self._to_jax(action)))

    def begin_anew(self, step: Step, where: Tensor, traj_ids: Tensor, seed: int) -> Step:
        from dataclasses import replace

        import jax

        at, ids = where.cpu().numpy(), traj_ids.cpu().numpy()
        with settled():
            fresh = self.env.reset(seed=seed)
            fresh = replace(fresh, traj_id=step.raw.traj_id.at[at].set(ids))
            return self._step(jax.tree.map(lambda old, new: old.at[at].set(new[at]), step.raw, fresh))

    def reached(self, state: Tensor, goal: Tensor) -> Tensor:
        if self._success is None:
            return super().reached(state, goal)
        with settled():
            reached = self._success(self._to_jax(state), self._to_jax(goal))
        return self._to_torch(reached, state.device).bool()

    def within(self, step: Step) -> dict[str, Tensor]:
        if self._levels is None:
            return super().within(step)
        with settled():
            reached = self._levels(step.raw.terminal_obs)
        return {level: self._to_torch(value, self.device).bool() for level, value in reached.items()}

    def state_tensors(self, step: Step) -> dict[str, Tensor]:
        names, leaves, _ = _named_leaves(step.raw)
        return {name: _to_tensor(leaf) for name, leaf in zip(names, leaves, strict=True)}

    def load_state_tensors(self, step: Step, tensors: dict[str, Tensor]) -> Step:
        import jax

        names, leaves, structure = _named_leaves(step.raw)
        if set(names) != set(tensors):
            odd = sorted(set(names) ^ set(tensors))
            raise ValueError(
                f"what was saved must be a state of {self.name} as it is now, got another: {', '.join(odd)} in one "
                "of them alone; resume with the environment and options that the run was started with"
            )
        with settled():
            loaded = [
                _from_tensor(tensors[name], leaf, name) for name, leaf in zip(names, leaves, strict=True)
            ]
        return self._step(jax.tree.unflatten(structure, loaded))

    def bytes_per_env(self) -> int:
        import jax

        with settled():
            leaves = jax.tree.leaves(jax.eval_shape(self.env.functional.reset, jax.random.PRNGKey(0)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


class GymnasiumEnvironments(_Shared):
    """Goal environments of gymnasium's, in numpy on the CPU; nothing here imports JAX.

    They cannot be saved: what is kept is their trajectories' numbers, and a run goes on with new episodes of
    later ones.
    """

    def __init__(self, env: GymnasiumVector, device: torch.device | str = "cpu") -> None:
        super().__init__(env, device)
        self.action_bounds = env.task.low.reshape(-1).tolist(), env.task.high.reshape(-1).tolist()

    def _step(self, raw: Any) -> Step:
        return Step(raw, lambda leaf: torch.from_numpy(leaf).to(self.device))

    def reset(self, seed: int | None = None) -> Step:
        return self._step(self.env.reset(seed))

    def step(self, step: Step, action: Tensor) -> Step:
        _check_step(step, action)
        return self._step(self.env.step(step.raw, action.detach().float().cpu().numpy()))

    def begin_anew(self, step: Step, where: Tensor, traj_ids: Tensor, seed: int) -> Step:
        return self._step(self.env.begin_anew(step.raw, where.cpu().numpy(), traj_ids.cpu().numpy(), seed))

    def state_tensors(self, step: Step) -> dict[str, Tensor]:
        return {"traj_id": torch.from_numpy(step.raw.traj_id.copy())}

    def load_state_tensors(self, step: Step, tensors: dict[str, Tensor]) -> Step:
        ids = tensors.get("traj_id")
        if ids is None or ids.shape != (self.num_envs,):
            raise ValueError(
                f"what was saved must have traj_id [{self.num_envs}] of {self.name}, got "
                f"{ {name: list(t.shape) for name, t in tensors.items()} }; resume with the num_envs that the run had"
            )
        # the seed moves on, lest the run see its first episodes again
        seed = self.env.seed + 1 + int(ids.long().sum())
        return self._step(self.env.reset(seed, ids.cpu().numpy() + 1))

    def bytes_per_env(self) -> int:
        """Of what crosses over to the learner; an environment's own memory is not known here."""
        numbers = 2 * (self.state_dim + self.goal_dim) + self.goal_dim + 4
        return 4 * numbers + 2


def open_environments(
    name: str,
    num_envs: int = 64,
    seed: int = 0,
    episode_length: int = 1000,
    auto_reset: str = "fresh",
    engine: str = "auto",
    parity: bool = False,
    device: torch.device | str = "cpu",
    goal_sampler: str | None = None,
    **own: Any,
) -> JaxEnvironments | GymnasiumEnvironments:
    """Environments of the task called `name`, a user's or the package's, for a learner on `device`.

    The options are those of deepres.envs.make, which refuses in a sentence what does not apply to `name`; own: the
    task's.
    """
    from deepres.envs import make

    asked: dict[str, Any] = {**own, "parity": True} if parity else own
    try:
        made: Any = make(name, num_envs, seed, episode_length, auto_reset, engine, goal_sampler, **asked)
    except TypeError as error:
        if not own and goal_sampler is None:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in (own | {"goal_sampler": goal_sampler}).items())
        raise ValueError(f"{name} cannot be made with {given}: {error}") from error
    return (GymnasiumEnvironments if made.engine == "gymnasium" else JaxEnvironments)(made, device)


def _jitted_success(task: Any) -> Callable[..., jax.Array]:
    import jax

    return jax.jit(jax.vmap(task.success))


def _jitted_levels(task: Any, levels: tuple[str, ...]) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Observations [N, S + G] -> {level: success [N] bool}."""
    import jax

    def reached(obs: jax.Array) -> dict[str, jax.Array]:
        state, goal = obs[: task.state_dim], obs[task.state_dim :]
        return {level: task.success_at(level, state, goal) for level in levels}

    return jax.jit(jax.vmap(reached))


def _named_leaves(state: Any) -> tuple[list[str], list[Any], Any]:
    """The leaves of a pytree by their paths, such as physics.qpos."""
    import jax

    paths, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return names, [leaf for _, leaf in paths], structure


def _to_tensor(leaf: Any) -> Tensor:
    """A leaf of the environments' state as a tensor of its own, random keys as their words."""
    import jax
    import numpy as np

    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.array(leaf)
    return torch.from_numpy(array.astype(np.int64) if array.dtype == np.uint32 else array)


def _from_tensor(tensor: Tensor, like: Any, name: str) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np

    array = tensor.numpy()
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array.astype(np.uint32)), impl=jax.random.key_impl(like))
    if array.shape != like.shape:
        raise ValueError(
            f"what was saved does not fit this environment: {name} must have shape {list(like.shape)}, "
            f"got {list(array.shape)}; resume with the num_envs and the version that the run was started with"
        )
    return jnp.asarray(array.astype(like.dtype))
