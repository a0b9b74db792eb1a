"""Hand-written policies for the jointed robots, through the actions that a learner has: each task can be done."""

from __future__ import annotations

import mujoco
import numpy as np

from deepres.envs.tasks import arm, reacher

LOW, HIGH = np.array(arm.REACH_LOW), np.array(arm.REACH_HIGH)
SAMPLES = 30_000


class Inverse:
    """Actions that bring the flange, or with `grip` the point between the fingertips, to a point.

    With joints 3 and 5 at 0 both stay in a vertical plane that joint 1 turns: the rest is the nearest of many
    sampled poses in it. With `grip` the hand points down, to within 25 degrees.
    """

    def __init__(self, model: mujoco.MjModel, grip: bool = False) -> None:
        rng, data = np.random.default_rng(0), mujoco.MjData(model)
        poses = rng.uniform(LOW[1:], HIGH[1:], (SAMPLES, 3))
        if grip:
            upright = poses[:, 0] - poses[:, 1] + rng.normal(0, 0.15, SAMPLES)
            poses[:, 2] = np.clip(upright, LOW[3], HIGH[3])
        flange, hand = model.body("link7").id, model.geom("hand").id
        points, keep = np.empty((SAMPLES, 2)), np.empty(SAMPLES, bool)
        for k, (two, four, six) in enumerate(poses):
            data.qpos[:7] = 0, two, 0, four, 0, six, arm.JOINT7
            mujoco.mj_kinematics(model, data)
            tips = (data.site("left_tip").xpos + data.site("right_tip").xpos) / 2 if grip else None
            points[k] = (data.xpos[flange] if tips is None else tips)[[0, 2]]
            above_table = data.geom_xpos[hand][2] - 0.05 - 0.06 * abs(data.geom_xmat[hand][8]) > 0
            keep[k] = above_table and (not grip or data.xmat[flange][8] < -0.9)
        self.poses, self.points = poses[keep], points[keep]

    def __call__(self, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions [N, 4] for the points `xyz` [N, 3], and how many metres short of them each ends [N]."""
        wanted = np.stack([np.hypot(xyz[:, 0], xyz[:, 1]), xyz[:, 2]], axis=1)
        off = np.linalg.norm(self.points - wanted[:, None], axis=2)
        best = off.argmin(axis=1)
        joints = np.column_stack([np.arctan2(xyz[:, 1], xyz[:, 0]), self.poses[best]])
        actions = (joints - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)
        return actions.clip(-1, 1).astype(np.float32), off.min(axis=1)


ABOVE, DOWN, CLOSE, LIFT, CARRY, LOWER, LET_GO = range(7)


class PickAndPlace:
    """Opens over the cube, goes down, closes, lifts, carries it over the goal and lets go; begins again if it falls."""

    def __init__(self, model: mujoco.MjModel, num_envs: int) -> None:
        self.inverse = Inverse(model, grip=True)
        self.stage, self.since = np.zeros(num_envs, int), np.zeros(num_envs, int)

    def __call__(self, obs: np.ndarray, tips: np.ndarray) -> np.ndarray:
        """Actions [N, 5] for obs [N, 20] with the point between the fingertips at `tips` [N, 3]."""
        cube, goal, stage = obs[:, :3], obs[:, 17:20], self.stage
        to_goal = goal[:, :2] - tips[:, :2]
        stride = to_goal / np.maximum(1.0, np.linalg.norm(to_goal, axis=1) / 0.12)[:, None]
        xy = np.where((stage <= CLOSE)[:, None], cube[:, :2], goal[:, :2])
        xy = np.where((stage == LIFT)[:, None], tips[:, :2], xy)
        xy = np.where((stage == CARRY)[:, None], tips[:, :2] + stride, xy)
        z = np.array([0.14, 0.02, 0.02, 0.22, 0.22, 0.06, 0.1])[stage]
        closed = (stage >= CLOSE) & (stage < LET_GO)
        actions, _ = self.inverse(np.column_stack([xy, z]))

        over_cube = np.linalg.norm(tips[:, :2] - cube[:, :2], axis=1) < 0.015
        over_goal = np.linalg.norm(to_goal, axis=1) < 0.02
        ready = np.stack(
            [
                over_cube & (np.abs(tips[:, 2] - 0.14) < 0.04),
                tips[:, 2] < 0.035,
                self.since > 8,
                self.since > 10,
                over_goal,
                tips[:, 2] < 0.08,
                np.zeros(len(obs), bool),
            ]
        )[stage, np.arange(len(obs))]
        dropped = (stage >= LIFT) & (stage < LET_GO) & (cube[:, 2] < 0.05) & (tips[:, 2] > 0.1)
        self.stage = np.where(dropped, ABOVE, stage + ready)
        self.since = np.where(dropped | ready, 0, self.since + 1)
        return np.column_stack([actions, np.where(closed, 1.0, -1.0)]).astype(np.float32)


def tips_of(physics) -> np.ndarray:
    """[N, 3]: the point between the fingertips, as the sensors read it."""
    sensors = np.asarray(physics.sensors)
    return (sensors[:, arm.LEFT_TIP] + sensors[:, arm.RIGHT_TIP]) / 2


class Push:
    """Goes high behind the object, seen from its goal, down, and through it to the goal; and again if it slips."""

    GAIN = np.array([8, 12, 2, 6, 1, 1, 1]), np.array([2, 3, 0.2, 1, 0.1, 0.1, 0.1])  # of angles, of speeds
    BASE = np.array([0.0, -0.6])  # metres: the shoulder's axis

    def __init__(self, model: mujoco.MjModel, num_envs: int) -> None:
        rng, data = np.random.default_rng(0), mujoco.MjData(model)
        poses = rng.uniform([-0.5236, -2.3213, -1.094], [1.3963, 0, 0], (SAMPLES, 3))  # rolls stay at 0
        points = np.empty((SAMPLES, 2))
        for k, (lift, elbow, wrist) in enumerate(poses):
            data.qpos[:7] = 0, lift, 0, elbow, 0, wrist, 0
            mujoco.mj_kinematics(model, data)
            points[k] = data.site("tip").xpos[[0, 2]]
        self.poses, self.points = poses[points[:, 1] > -0.29], points[points[:, 1] > -0.29]
        self.pushing = np.zeros(num_envs, bool)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Actions [N, 7] for obs [N, 23]."""
        tip, thing = obs[:, 7:10], obs[:, 10:12]
        way = obs[:, 20:22] - thing
        length = np.linalg.norm(way, axis=1, keepdims=True)
        way = way / np.maximum(length, 1e-6)
        behind = thing - 0.18 * way
        off = tip[:, :2] - thing
        along, across = (off * way).sum(axis=1), np.abs(off[:, 0] * way[:, 1] - off[:, 1] * way[:, 0])
        arrived = np.linalg.norm(behind - tip[:, :2], axis=1) < 0.04
        self.pushing = (self.pushing & (along < 0.02) & (across < 0.1)) | arrived
        low = self.pushing & (tip[:, 2] < -0.2)
        xy = np.where(low[:, None], thing + way * np.minimum(length, 0.05), behind) - self.BASE
        wanted = np.column_stack([np.hypot(*xy.T), np.where(self.pushing, -0.26, -0.06)])
        best = np.linalg.norm(self.points - wanted[:, None], axis=2).argmin(axis=1)
        angles = np.zeros((len(obs), 7))
        angles[:, 0] = np.arctan2(xy[:, 1], xy[:, 0])
        angles[:, [1, 3, 5]] = self.poses[best]
        stiffness, damping = self.GAIN
        return (stiffness * (angles - obs[:, :7]) - damping * obs[:, 13:20]).clip(-1, 1).astype(np.float32)


def reacher_policy(obs):
    """Joint angles at which the fingertip is on the target, then torques that go there and stop: actions [N, 2]."""
    first = np.arctan2(obs[:, 2], obs[:, 0])
    bend = np.arctan2(obs[:, 3], obs[:, 1])
    target, distance = obs[:, 10:12], np.linalg.norm(obs[:, 10:12], axis=1)
    a, b = reacher.UPPER, reacher.LOWER
    want_bend = np.arccos(((distance**2 - a**2 - b**2) / (2 * a * b)).clip(np.cos(2.9), 1))
    lead = np.arctan2(b * np.sin(want_bend), a + b * np.cos(want_bend))
    want_first = np.arctan2(target[:, 1], target[:, 0]) - lead
    error = np.stack([(want_first - first + np.pi) % (2 * np.pi) - np.pi, want_bend - bend], axis=1)
    tip = obs[:, 4:6]
    lower = tip - a * np.stack([np.cos(first), np.sin(first)], axis=1)
    # Both joints turn the tip about themselves: its velocity is a sum of (-y, x) of what reaches from each to it.
    arms = np.stack([tip, lower], axis=2)[:, ::-1] * [[-1], [1]]
    speeds = np.linalg.solve(arms + 1e-4 * np.eye(2), obs[:, 7:9, None])[:, :, 0]
    return (0.3 * error - 0.04 * speeds).clip(-1, 1).astype(np.float32)
