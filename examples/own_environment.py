"""An environment of your own, its physics stepped by MuJoCo MJX: ten lines, then a training run on it.

A ball on a table is pushed to a point. Any other JAX code can stand in the place of MJX: `start`, `advance` and
`observe` are pure functions of one environment; deepres batches, compiles, ends and begins the episodes.

    python examples/own_environment.py
"""

import sys

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

import deepres
from deepres import envs

XML = """<mujoco><option timestep="0.05"/><worldbody><body><geom size=".1"/>
<joint name="x" type="slide" axis="1 0 0" damping="2"/><joint name="y" type="slide" axis="0 1 0" damping="2"/>
</body></worldbody><actuator><motor joint="x" gear="8"/><motor joint="y" gear="8"/></actuator></mujoco>"""


class Ball(envs.FunctionalTask):
    # sizes; which numbers of the state a goal speaks of; seconds to a step; metres that count as reached
    state_dim, action_dim, goal_slice, dt, threshold = 4, 2, slice(0, 2), 0.05, 0.2

    def __init__(self):
        self.model = mjx.put_model(mujoco.MjModel.from_xml_string(XML))
        self.data = mjx.make_data(self.model)

    def start(self, key):  # what is simulated, any arrays you like; and the goal
        return (jnp.zeros(2), jnp.zeros(2)), jax.random.uniform(key, (2,), minval=-1, maxval=1)

    def advance(self, sim, action):  # action in [-1, 1]
        after = mjx.step(self.model, self.data.replace(qpos=sim[0], qvel=sim[1], ctrl=action))
        return after.qpos, after.qvel

    def observe(self, sim):
        return jnp.concatenate(sim)

    # distance, success, terminated and reward have defaults; override them where yours differ


envs.register("ball_mjx", Ball)

if __name__ == "__main__":
    config = deepres.Config(
        "crl", env="ball_mjx", num_envs=32, episode_length=50, depth=4, width=32, batch_size=128, total_steps=12_800,
        unroll_length=50, gradient_steps=50, buffer_steps=400, min_buffer_steps=50, gamma=0.95,
        eval_envs=32, eval_every=4,
    )  # fmt: skip
    result = deepres.train(config, sys.argv[1] if len(sys.argv) > 1 else "runs/own_environment")
    print(f"goals reached: {result.before.success_any:.0%} -> {result.after.success_any:.0%}")
