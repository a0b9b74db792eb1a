"""Hand-written policies for the arm, through the actions that a learner has: where to put the hand, and how."""

from __future__ import annotations

import mujoco
import numpy as np

from deepres.envs import arm

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
