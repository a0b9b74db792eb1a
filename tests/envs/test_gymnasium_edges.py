"""What environments of gymnasium's may ask for at the edges: checked actions, whole numbers, odd rewards and spaces."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import Box

from deepres import envs
from helpers.own_environments import Flat, Reach

BOX = {"goal_slice": slice(1, 3), "goal": lambda env: env.target, "threshold": 0.2}


pytestmark = pytest.mark.usefixtures("forgotten")


def registered(kind, changed, **options):
    """The name of a variant of `kind` with other attributes."""

    def make():
        env = type("Odd", (kind,), changed)()
        env.observation_space = changed.get("observation_space", env.observation_space)  # Reach sets its own
        return env

    envs.register("odd", gymnasium=make, **options)
    return "odd"


def given(actions, box):
    """The actions that an environment with `box`, which checks them, gets for the learner's."""
    got = []

    def step(self, action):
        assert action in self.action_space, action
        got.append(action)
        return np.zeros(3, np.float32), 0.0, False, False, {}

    env = envs.make(registered(Flat, {"action_space": box, "step": step}, **BOX), 1)
    state = env.reset()
    for action in actions:
        state = env.step(state, np.array([action], np.float32))
    return [action.tolist() for action in got]


def test_an_environment_that_checks_its_actions_sees_none_of_a_broken_policy():
    box = Box(np.float32([-2, 0]), np.float32([2, 1]))
    actions = [[np.nan, 1.0], [np.inf, -np.inf], [-7.0, np.nan]]
    assert given(actions, box) == [[0, 1], [2, 0], [-2, 0.5]]


def test_whole_numbers_are_rounded_not_cut():
    # -0.9 and 0.9 are -114.25 and 113.25 of int8's own bounds, whose span int8 does not hold
    assert given([[-0.9], [0.9], [1.0], [-1.0]], Box(-128, 127, (1,), np.int8)) == [
        [-115],
        [114],
        [127],
        [-128],
    ]
    assert given([[0.3], [0.2]], Box(0, 3, (1,), np.int64)) == [[2], [2]]


@pytest.mark.parametrize("reward", [np.array([-2.5]), np.float32(-2.5), -2.5, np.array(-2.5)])
def test_a_reward_may_be_an_array_of_one(reward):
    name = registered(Flat, {"step": lambda self, _: (self.at, reward, False, False, {})}, **BOX)
    env = envs.make(name, 2)
    assert env.step(env.reset(), np.zeros((2, 2), np.float32)).reward.tolist() == [-2.5, -2.5]


def test_a_reward_of_several_numbers_gets_a_sentence():
    name = registered(Flat, {"step": lambda self, _: (self.at, np.zeros(2), False, False, {})}, **BOX)
    env = envs.make(name, 1)
    with pytest.raises(ValueError, match=r"odd must reward with one number, got shape \[2\]"):
        env.step(env.reset(), np.zeros((1, 2), np.float32))


def parts(**changed):
    one, two = (Box(-1, 1, (n,)) for n in (1, 2))
    return {"observation_space": spaces.Dict({**dict(zip(KEYS, (one, two, two), strict=True)), **changed})}


KEYS = ("observation", "achieved_goal", "desired_goal")
NONE = Box(-1, 1, (0,))
ACTIONS = "odd must have actions in a Box with finite bounds"


@pytest.mark.parametrize(
    ("kind", "changed", "options", "sentence"),
    [
        (Flat, {}, BOX | {"goal_slice": (0, 2)}, r"goal_slice of odd must be a slice .*, got \(0, 2\)"),
        (Flat, {}, BOX | {"goal": [1, 2]}, r"goal of odd must be a function .*, got \[1, 2\]"),
        *((Flat, {}, BOX | {"threshold": t}, "threshold of odd must be a finite distance above 0, got")
          for t in (0, -1.0, np.nan, np.inf, "near")),
        (Reach, {"distance_threshold": -0.5}, {}, "threshold of odd must be a finite .* got -0.5"),
        (Flat, {"action_space": Box(-3e38, 3e38, (2,), np.float32)}, BOX, f"{ACTIONS}, and a finite span"),
        (Flat, {"action_space": Box(-(2**60), 2**60, (2,), np.int64)}, BOX, f"{ACTIONS}, and a finite span"),
        (Flat, {"action_space": NONE}, BOX, f"{ACTIONS}, of one number at least"),
        (Reach, parts(achieved_goal=NONE, desired_goal=NONE), {}, "odd must have goals of one number at least"),
        (Reach, parts(observation=spaces.Dict(a=NONE)), {}, "odd must observe numbers as its observation"),
        (Reach, parts(observation=spaces.Tuple([NONE])), {}, "odd must observe numbers as its observation"),
        (Reach, parts(desired_goal=spaces.Text(3)), {}, "odd must observe numbers as its desired_goal"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_gets_a_sentence(kind, changed, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        envs.make(registered(kind, changed, **options), 1)


def test_a_function_that_makes_something_else_gets_a_sentence():
    envs.register("three", gymnasium=lambda: 3)
    with pytest.raises(ValueError, match=r"gymnasium= of three must make a gymnasium\.Env, got 3"):
        envs.make("three", 1)


def test_parts_may_be_of_whole_numbers():
    env = envs.make(registered(Reach, parts(observation=spaces.Discrete(9))), 1)
    assert env.state_dim == 3 and env.step(env.reset(), np.ones((1, 2), np.float32)).obs[0, 0] == 1
