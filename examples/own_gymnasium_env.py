"""A goal environment written for gymnasium, and a training run on it. No JAX is needed.

Its observations are a Dict of observation, achieved_goal and desired_goal, as those of gymnasium-robotics are; so
`register("fetch", gymnasium="FetchReach-v4")` is all that one of those takes. One that observes a plain Box says where
its goals are: `register("flat", gymnasium=Flat, goal_slice=slice(0, 2), goal=lambda env: env.goal, threshold=0.2)`. One
that takes render_mode="rgb_array" gets videos from `deepres render`.

    python examples/own_gymnasium_env.py
"""

import sys

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict

import deepres
from deepres import envs


class Point(gymnasium.Env):
    """A point with a speed is pushed to a place."""

    distance_threshold = 0.2  # metres that count as reached; or pass threshold= to register

    def __init__(self):
        two = Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = Dict(observation=two, achieved_goal=two, desired_goal=two)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.speed, self.goal = np.zeros(2), np.zeros(2), self.np_random.uniform(-1, 1, 2)
        return self._observe(), {}

    def step(self, action):
        self.speed = 0.9 * self.speed + 0.4 * action
        self.place = self.place + 0.05 * self.speed
        return self._observe(), -float(np.linalg.norm(self.place - self.goal)), False, False, {}

    def _observe(self):
        return {"observation": self.speed, "achieved_goal": self.place, "desired_goal": self.goal}


# vectorization="async" would give each environment a process of its own
envs.register("point_gym", gymnasium=Point)

if __name__ == "__main__":
    config = deepres.Config(
        "crl", env="point_gym", num_envs=32, episode_length=50, depth=4, width=32, batch_size=128, total_steps=12_800,
        unroll_length=50, gradient_steps=50, buffer_steps=400, min_buffer_steps=50, gamma=0.95,
        eval_envs=32, eval_every=4,
    )  # fmt: skip
    result = deepres.train(config, sys.argv[1] if len(sys.argv) > 1 else "runs/own_gymnasium_env")
    print(f"goals reached: {result.before.success_any:.0%} -> {result.after.success_any:.0%}")

    # The policy alone, in an environment of its own: it sees observation, achieved_goal, desired_goal in this order.
    policy, env = deepres.Policy.load(result.run_dir), Point()
    seen, _ = env.reset(seed=0)
    nearest = np.inf
    for _ in range(50):
        row = np.concatenate([seen[key] for key in ("observation", "achieved_goal", "desired_goal")])
        seen, *_ = env.step(policy.act(torch.as_tensor(row)[None])[0].numpy())
        nearest = min(nearest, np.linalg.norm(seen["achieved_goal"] - seen["desired_goal"]))
    print(f"acting alone, it comes as near as {nearest:.2f} m to its goal")
