"""Small environments as a user would write them, one of each kind that can be registered."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict

from deepres import envs
from deepres.envs.engines import at_rest

XML = """<mujoco><option timestep="0.01"/>
<asset><texture name="sky" type="skybox" builtin="flat" width="8" height="48"/></asset>
<worldbody><body><geom size=".1"/>
<joint name="x" type="slide" axis="1 0 0" damping="1"/><joint name="y" type="slide" axis="0 1 0" damping="1"/>
</body></worldbody>
<actuator><motor joint="x" gear="5"/><motor joint="y" gear="5"/></actuator></mujoco>"""


class Ball(envs.Task):
    """A model of MuJoCo's, without a floor."""

    state_dim, goal_slice, dt, threshold = 4, slice(0, 2), 0.05, 0.3

    def __init__(self, far: float = 2.0) -> None:
        self.far = far

    def spec(self):
        return mujoco.MjSpec.from_string(XML)

    def start(self, key):
        goal = jax.random.uniform(key, (2,), minval=-self.far, maxval=self.far)
        return at_rest(jnp.zeros(2), jnp.zeros(2)), goal

    def observe(self, sim):
        return jnp.concatenate([sim.qpos, sim.qvel])


class Disc(envs.FunctionalTask):
    """Physics of its own: a disc that slides where it is pushed, and ends past x = `edge`."""

    state_dim, action_dim, goal_slice, dt, threshold = 4, 2, slice(0, 2), 0.1, 0.3

    def __init__(self, edge: float = 3.0) -> None:
        self.edge = edge

    def start(self, key):
        place, goal = jax.random.uniform(key, (2, 2), minval=-1, maxval=1)
        return {"x": place, "v": jnp.zeros(2), "clock": 0}, goal

    def advance(self, sim, action):
        v = 0.8 * sim["v"] + action
        return {"x": sim["x"] + self.dt * v, "v": v, "clock": sim["clock"] + 1}

    def observe(self, sim):
        return jnp.concatenate([sim["x"], sim["v"]])

    def terminated(self, state):
        return state[0] > self.edge


class Reach(gymnasium.Env):
    """gymnasium-robotics' form: a point that goes where it is told, and ends past `edge`."""

    distance_threshold = 0.5
    metadata = {"render_fps": 20, "render_modes": []}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, edge: float = 9.0) -> None:
        self.edge = edge
        one, two = (Box(-np.inf, np.inf, (n,), np.float64) for n in (1, 2))
        self.observation_space = Dict(observation=one, achieved_goal=two, desired_goal=two)
        self.action_space = Box(np.float32([-2, 0]), np.float32([2, 1]))

    def _observe(self):
        clock = np.array([float(self.clock)])
        return {"observation": clock, "achieved_goal": self.at.copy(), "desired_goal": self.goal.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.clock = np.zeros(2), 0
        self.goal = self.np_random.uniform(-1, 1, 2)
        return self._observe(), {}

    def step(self, action):
        self.at, self.clock = self.at + 0.1 * action, self.clock + 1
        return self._observe(), -1.0, bool(self.at[0] > self.edge), False, {"odd": object()}

    def compute_reward(self, achieved, desired, info):
        return -(np.linalg.norm(achieved - desired, axis=-1) > self.distance_threshold).astype(np.float32)


class Flat(gymnasium.Env):
    """A plain Box of numbers that only has x and y of the goal inside the environment."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.target = np.zeros(3, np.float32), self.np_random.uniform(1, 2, 2)
        return self.at.copy(), {}

    def step(self, action):
        self.at[1:] += action
        return self.at.copy(), 0.0, False, False, {}


def corner(key):
    """Goals of one place, for any task whose goals are places."""
    return jnp.array([1.5, 2.5])


def too_many(key):
    return jnp.zeros(3)
