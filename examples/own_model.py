"""A MuJoCo model of your own, and a training run on it: every engine steps it (C on a CPU, Warp on a GPU), and videos
show it.

    python examples/own_model.py
"""

import sys

import jax
import jax.numpy as jnp
import mujoco

import deepres
from deepres import envs
from deepres.envs.engines import at_rest

XML = """<mujoco><option timestep="0.01"/><worldbody>
<geom type="plane" size="3 3 1" contype="0" conaffinity="0"/>
<body pos="0 0 .1"><geom size=".1" rgba=".2 .5 .8 1"/>
<joint name="x" type="slide" axis="1 0 0" damping="2"/><joint name="y" type="slide" axis="0 1 0" damping="2"/>
</body></worldbody><actuator><motor joint="x" gear="8"/><motor joint="y" gear="8"/></actuator></mujoco>"""


class Ball(envs.Task):
    # sizes; which numbers of the state a goal speaks of; seconds to a step; metres that count as reached
    state_dim, goal_slice, dt, threshold = 4, slice(0, 2), 0.05, 0.2

    def spec(self):
        return mujoco.MjSpec.from_string(XML)

    def start(self, key):  # where an episode starts, and its goal
        return at_rest(jnp.zeros(2), jnp.zeros(2)), jax.random.uniform(key, (2,), minval=-1, maxval=1)

    def observe(self, physics):
        return jnp.concatenate([physics.qpos, physics.qvel])


envs.register("ball_model", Ball)

if __name__ == "__main__":
    config = deepres.Config(
        "crl", env="ball_model", num_envs=32, episode_length=50, depth=4, width=32, batch_size=128, total_steps=12_800,
        unroll_length=50, gradient_steps=50, buffer_steps=400, min_buffer_steps=50, gamma=0.95, eval_envs=32,
        eval_every=4,
    )  # fmt: skip
    result = deepres.train(config, sys.argv[1] if len(sys.argv) > 1 else "runs/own_model")
    print(f"goals reached: {result.before.success_any:.0%} -> {result.after.success_any:.0%}")
