"""The environments as gymnasium's, many or one, for the libraries that ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from deepres.envs import xla
from deepres.envs.draws import seeded
from deepres.envs.registry import LARGEST

try:
    import gymnasium
    from gymnasium.spaces import Box
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError(f"gymnasium_env needs gymnasium ({error}); pip install 'deepres[envs]'") from None

if TYPE_CHECKING:
    from deepres.envs.env import EnvState
    from deepres.envs.vector import VectorEnv as Environments

_TOLD = ("success", "distance", "traj_id")


class GymnasiumEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`env` under gymnasium's names, in numpy.

    Observations are concat(state [env.state_dim], goal [env.goal_dim]), float32; state[env.goal_slice] are the
    coordinates that the goal speaks of. Actions lie in [-1, 1]. Rewards are the published dense ones, float32.
    An episode that ends is followed by the next in the same step (AutoresetMode.SAME_STEP): obs is then the next
    one's first, infos["final_obs"][i] what the ended one reached, with the mask infos["_final_obs"].
    infos also has "success" (0 or 1) and "distance" (metres) of what the step reached, and "traj_id" of the
    trajectory that obs belongs to. Wrappers of gymnasium's that know another autoreset alone (NormalizeObservation)
    refuse it.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, env: Environments) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.metadata = {**self.metadata, "render_fps": round(1 / env.dt)}
        self.single_observation_space = Box(-np.inf, np.inf, (env.obs_dim,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (env.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._seed, self._resets = env.seed, 0
        self._state: EnvState | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New episodes everywhere. seed: decides all that follows; None goes on from the seed before."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"reset takes no options, got {', '.join(map(str, options))}; pass them to make")
        if seed is not None:
            self._seed, self._resets = int(seed), 0
        self._state = self.env.reset(self._next_key())
        return np.array(self._state.obs), self._infos(self._state)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control period under actions [num_envs, action_dim]."""
        if self._state is None:
            raise RuntimeError("step needs a state to start from; call reset() first")
        self._state = state = self.env.step(self._state, np.asarray(actions, np.float32))
        infos = self._infos(state)
        done, truncated = np.array(state.done), np.array(state.truncation)
        if done.any():
            final = np.full(self.num_envs, None, object)
            reached = np.array(state.terminal_obs)
            for i in np.flatnonzero(done):
                final[i] = reached[i]
            infos |= {"final_obs": final, "_final_obs": done.copy()}
        return np.array(state.obs), np.array(state.reward), done & ~truncated, truncated, infos

    def render(self) -> None:
        """Raises NotImplementedError, which says what draws these environments."""
        raise NotImplementedError(
            "GymnasiumEnv draws nothing itself; film states of its `env` with deepres.report.video.render_rollout, "
            "or a run with `deepres render`"
        )

    def _next_key(self) -> jax.Array:
        """The seed's own key, and at later resets one that no environment has had: environments draw from what the
        first key is split into."""
        with xla.settled():
            key = seeded(self._seed)
            if self._resets:
                key = jax.random.fold_in(jax.random.fold_in(key, LARGEST), self._resets)
        self._resets += 1
        return key

    def _infos(self, state: EnvState) -> dict[str, Any]:
        everywhere = np.ones(self.num_envs, bool)
        return {
            key: value
            for name in _TOLD
            for key, value in ((name, np.array(getattr(state, name))), (f"_{name}", everywhere.copy()))
        }


class SingleGymnasiumEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """`env`, of one environment, as a `gymnasium.Env`: GymnasiumEnv without the leading axis, and without autoreset.

    The step that ends an episode returns what it reached; reset() begins the next. infos has "success" (0.0 or 1.0)
    and "distance" (metres).
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, env: Environments) -> None:
        if env.num_envs != 1:
            raise ValueError(
                f"single=True is for one environment, got num_envs={env.num_envs}; make it with num_envs=1"
            )
        if getattr(env, "auto_reset", "fresh") == "first":
            raise ValueError(
                "single=True begins a new episode at every reset, and auto_reset='first' asks for the same one; make "
                "the environment with auto_reset='fresh'"
            )
        self.env, self._vector = env, GymnasiumEnv(env)
        self.metadata = {**self.metadata, "render_fps": self._vector.metadata["render_fps"]}
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode. seed: decides all that follows; None goes on from the seed before."""
        super().reset(seed=seed)
        obs, infos = self._vector.reset(seed=seed, options=options)
        self._over = False
        return obs[0], _of_one(infos)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control period under action [action_dim]. Raises RuntimeError when the episode is over."""
        if self._over:
            raise RuntimeError("step needs an episode under way; call reset() first")
        obs, rewards, terminated, truncated, infos = self._vector.step(np.asarray(action)[None])
        self._over = bool(terminated[0] or truncated[0])
        reached = infos["final_obs"][0] if self._over else obs[0]
        return reached, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _of_one(infos)


def _of_one(infos: dict[str, Any]) -> dict[str, Any]:
    return {name: float(infos[name][0]) for name in ("success", "distance")}
