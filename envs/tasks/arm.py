"""Arm: a Franka Panda on a table that is to reach a point, push a cube, put it into a bin, or grasp it.

Actions are absolute: a1 to a4 set the targets of joints 1, 2, 4 and 6, linear on REACH_LOW..REACH_HIGH, the other
joints hold theirs, and a5 (not in arm_reach) closes the gripper where it is positive and opens it elsewhere. The
flange is the frame of link 7, behind the hand. No episode ends early.

Physics. A servo's damping kv is written into the model as joint armature, kv times the timestep, with an explicit
Euler step. In free motion that is the published implicit step, digit for digit, and still is where a servo's force is
at its limit: the published engine, MJX, keeps the damping's share of the implicit step there, whereas MuJoCo's C engine
drops it and lets the wrist fly off. So the arms' truth is MJX's behaviour, and this way every engine has it: jax and c
agree to 1e-4 over ten periods, force limits on, as long as nothing is hit.
The fingers' pads are capsules with the published boxes' thickness, length and inner face: 16 candidate contacts in
place of 28, and they lift and carry the cube. The pair of fingers is left out: their limits stop them 1 mm apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from deepres.envs.engines import PhysicsState, at_rest, resting_sensors
from deepres.envs.task import Task, View
from deepres.envs.tasks import ASSETS

HOME = (1.571, 0.742, 0.0, -1.571, 0.0, 3.054, 1.449)  # radians: the arm at the start
OPEN = 0.04  # metres: each finger at the start
REACH_LOW = (0.3491, 0.0, -3.0718, 2.3562)  # radians: joints 1, 2, 4, 6 at action -1
REACH_HIGH = (2.7925, 1.48353, -0.0698, 3.7525)  # and at +1
JOINT7 = 0.72435  # radians: what it is told, the fingers square to the arm
PUBLISHED_JOINT7 = 2 * JOINT7  # of which the published servo makes the half
FINGER_OPEN = 255.0  # the gripper's controls are a byte: 0 is closed
CUBE_HALF, CUBE_START = 0.03, 0.07  # metres: half a side, and the height it is let fall from
ARM, FINGERS, CUBE = slice(0, 7), slice(7, 9), slice(9, 12)  # in qpos
FLANGE, FLANGE_VELOCITY, LEFT_TIP, RIGHT_TIP = (slice(i, i + 3) for i in range(0, 12, 3))  # in sensors
MAX_CONTACTS = 16  # the deepest of 96 candidates with bins: 12 touch at most, and MJX is twice as fast
PUBLISHED_GAIN = {"joint3": 2000, "joint4": 2000, "joint5": 1000, "joint6": 1000, "joint7": 1000}
PUBLISHED_PAD = (0.015, 0.005, 0.04)  # metres: half sides of a finger's box
START_RGBA, GOAL_RGBA, WALL_RGBA = (0.55, 0.65, 0.85, 1), (0.62, 0.82, 0.66, 1), (0.55, 0.60, 0.68, 1)


class Arm(Task):
    """What the arm's tasks share.

    Parity: the published servos of joints 3 to 7 multiply the command by less than they do the angle, so that joints
    3 and 4 come to rest at 4/7 of what they are told, and 5 to 7 at half. By default a joint goes where it is told, and
    every goal of arm_reach is within its threshold of some pose (about half were not). parity=True brings back the
    gains, the implicit step (see above; there engine "jax" is the published physics, and "auto" takes it, "c" is not)
    and the fingers' boxes. Either way, as published, the flange and the fingertips are read one timestep (2 ms) before
    the angles and the cube. ArmPush reads the gap between the fingers with the angles; the published one was late, too.
    """

    dt = 0.05
    threshold, threshold_easy, threshold_hard = 0.1, 0.3, 0.03
    gripper = True

    def __init__(self, parity: bool = False) -> None:
        self.parity = parity
        self.own_engine = "jax" if parity else "auto"

    @property
    def action_dim(self) -> int:  # type: ignore[override]
        return 5 if self.gripper else 4

    def spec(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec.from_file(str(ASSETS / "arm.xml"))
        if self.parity:
            _publish(spec)
        if not self.gripper:
            for body in ("left_finger", "right_finger", "cube"):
                spec.delete(spec.body(body))
        return spec

    def view(self) -> View:
        return View(distance=1.6, azimuth=-50.0, elevation=-28.0, lookat=(0.0, 0.45, 0.2))

    def control(self, action: jax.Array) -> jax.Array:
        action = jnp.clip(action, -1.0, 1.0)
        low, high = jnp.array(REACH_LOW), jnp.array(REACH_HIGH)
        one, two, four, six = (low + high) / 2 + (high - low) / 2 * action[:4]
        joint7 = PUBLISHED_JOINT7 if self.parity else JOINT7
        joints = jnp.stack([one, two, jnp.zeros(()), four, jnp.zeros(()), six, jnp.float32(joint7)])
        if not self.gripper:
            return joints
        return jnp.concatenate([joints, jnp.full(2, jnp.where(action[4] > 0, 0.0, FINGER_OPEN))])

    def at_home(self, cube_xy: jax.Array) -> PhysicsState:
        """The arm in its first pose, and the cube let go above `cube_xy` [2]."""
        qpos = jnp.asarray(self._home).at[CUBE].set(jnp.append(cube_xy, CUBE_START))
        return at_rest(qpos, jnp.zeros(self.model.nv), self._resting)

    @cached_property
    def _home(self) -> np.ndarray:
        fingers = (OPEN, OPEN, 0.0, 0.6, CUBE_START, 1.0, 0.0, 0.0, 0.0) if self.gripper else ()
        return np.array([*HOME, *fingers])

    @cached_property
    def _resting(self) -> np.ndarray:
        return resting_sensors(self.model, self._home)

    def reward(self, before: jax.Array, action: jax.Array, after: jax.Array, goal: jax.Array) -> jax.Array:
        return self.success(after, goal).astype(jnp.float32)


class ArmReach(Arm):
    """The flange is to come to a point in a cube of 0.4 m; there are no fingers.

    State: joint angles (0-6), flange position (7-9) and velocity (10-12). Goal: x, y, z of the flange.
    Parity: see Arm.
    """

    state_dim = 13
    goal_slice = slice(7, 10)
    gripper = False

    def scene(self) -> mujoco.MjSpec:
        spec = self.spec()
        _add_mat(spec, (0.0, 0.5), 0.2, GOAL_RGBA)
        return spec

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        goal = jnp.array([0.0, 0.5, 0.3]) + jax.random.uniform(key, (3,), minval=-0.2, maxval=0.2)
        return at_rest(jnp.asarray(self._home), jnp.zeros(7), self._resting), goal

    def observe(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate([physics.qpos, physics.sensors])


@dataclass(frozen=True)
class Places:
    """Where the cube starts and where it is to go: squares with centres `start`, `goal`, half sides in metres."""

    start: tuple[float, float]
    goal: tuple[float, float]
    half: float

    def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The cube's first x, y and its goal x, y, z."""
        start_key, goal_key = jax.random.split(key)
        start = jnp.array(self.start) + jax.random.uniform(
            start_key, (2,), minval=-self.half, maxval=self.half
        )
        goal = jnp.array(self.goal) + jax.random.uniform(goal_key, (2,), minval=-self.half, maxval=self.half)
        return start, jnp.append(goal, CUBE_HALF)


class ArmPush(Arm):
    """The cube is to come to a place on the table, from a neighbouring square (hard: a larger one, farther off).

    State: cube's centre (0-2), joint angles (3-9), flange position (10-12) and velocity (13-15), the gap between the
    fingers (16). Goal: x, y, z of the cube's centre.
    Parity: see Arm.
    """

    state_dim = 17
    goal_slice = slice(0, 3)

    def __init__(self, hard: bool = False, parity: bool = False) -> None:
        super().__init__(parity)
        self.places = (
            Places((-0.25, 0.65), (0.25, 0.65), 0.25) if hard else Places((-0.1, 0.6), (0.1, 0.6), 0.1)
        )

    def scene(self) -> mujoco.MjSpec:
        spec = self.spec()
        _add_mat(spec, self.places.start, self.places.half, START_RGBA)
        _add_mat(spec, self.places.goal, self.places.half, GOAL_RGBA)
        return spec

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        cube_xy, goal = self.places.draw(key)
        return self.at_home(cube_xy), goal

    def observe(self, physics: PhysicsState) -> jax.Array:
        return jnp.concatenate(
            [
                physics.qpos[CUBE],
                physics.qpos[ARM],
                physics.sensors[FLANGE],
                physics.sensors[FLANGE_VELOCITY],
                jnp.sum(physics.qpos[FINGERS], keepdims=True),
            ]
        )


class ArmBinpick(ArmPush):
    """The cube is to be lifted out of one bin into another; state and goal as ArmPush's.

    Parity: see Arm.
    """

    def __init__(self, hard: bool = False, parity: bool = False) -> None:
        super().__init__(parity=parity)
        self.places = (
            Places((-0.3, 0.6), (0.3, 0.6), 0.15) if hard else Places((-0.15, 0.6), (0.17, 0.6), 0.09)
        )
        self.bins = ((-0.3, 0.6), (0.3, 0.6)) if hard else ((-0.17, 0.6), (0.17, 0.6))
        self.bin_half = 0.19 if hard else 0.14  # metres: a bin's centre to the middle of its walls

    def spec(self) -> mujoco.MjSpec:
        spec = super().spec()
        spec.option.impratio = 10
        spec.add_numeric(name="max_contact_points", data=[MAX_CONTACTS])
        for name, centre in zip(("first", "second"), self.bins, strict=True):
            self._add_bin(spec, name, centre)
        return spec

    def _add_bin(self, spec: mujoco.MjSpec, name: str, centre: tuple[float, float]) -> None:
        (x, y), half = centre, self.bin_half
        along_x, along_y = (half + 0.005, 0.005, 0.033), (0.005, half - 0.005, 0.033)
        walls = (
            (x, y - half, along_x),
            (x, y + half, along_x),
            (x - half, y, along_y),
            (x + half, y, along_y),
        )
        for k, (wall_x, wall_y, size) in enumerate(walls):
            wall = spec.worldbody.add_geom(
                name=f"{name}_bin_{k}",
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=[wall_x, wall_y, size[2]],
                size=size,
            )
            wall.rgba = WALL_RGBA
            for other in ("cube", "hand", "left_finger", "right_finger"):
                spec.add_pair(geomname1=wall.name, geomname2=other)


class ArmGrasp(Arm):
    """The gripper is to close around the cube: fingertips on both its sides, a grip's width apart.

    State: cube's centre (0-2), joint angles (3-9), flange position (10-12) and velocity (13-15), left (16-18) and
    right (19-21) fingertip, the gap between them (22). Goal, of the last three: 0.0375 m to both sides of the cube
    along x, and 0.075 m; it follows the cube. Success: the point between the tips is within `threshold` of the
    cube, and the gap within 0.02 m (easy 0.05, hard 0.005) of the goal's. distance: to the cube alone.

    cube_noise: metres, half the side of the square where the cube starts.
    Parity: see Arm; and one finger begins closed (the published start writes the angles in another order). The
    published goal lagged one step behind the cube; here it never does.
    """

    own_goals = True
    state_dim = 23
    goal_slice = slice(16, 23)
    threshold, threshold_easy, threshold_hard = 0.05, 0.15, 0.02
    gap_thresholds: ClassVar[dict[str, float]] = {"plain": 0.02, "easy": 0.05, "hard": 0.005}  # metres
    half_grip, gap = 0.0375, 0.075  # metres

    def __init__(self, cube_noise: float = 0.3, parity: bool = False) -> None:
        super().__init__(parity)
        if not 0 <= cube_noise <= 0.5:
            raise ValueError(f"cube_noise must be between 0 and 0.5 metres, got {cube_noise!r}")
        self.cube_noise = float(cube_noise)

    @cached_property
    def _home(self) -> np.ndarray:
        home = super()._home.copy()
        if self.parity:
            home[8] = 0.0
        return home

    def scene(self) -> mujoco.MjSpec:
        spec = self.spec()
        _add_mat(spec, (0.0, 0.6), self.cube_noise, START_RGBA)
        return spec

    def start(self, key: jax.Array) -> tuple[PhysicsState, jax.Array]:
        noise = jax.random.uniform(key, (2,), minval=-self.cube_noise, maxval=self.cube_noise)
        physics = self.at_home(jnp.array([0.0, 0.6]) + noise)
        return physics, self._goal_at(physics.qpos[CUBE])

    def observe(self, physics: PhysicsState) -> jax.Array:
        left, right = physics.sensors[LEFT_TIP], physics.sensors[RIGHT_TIP]
        return jnp.concatenate(
            [
                physics.qpos[CUBE],
                physics.qpos[ARM],
                physics.sensors[FLANGE],
                physics.sensors[FLANGE_VELOCITY],
                left,
                right,
                jnp.linalg.norm(left - right, keepdims=True),
            ]
        )

    def goal_after(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        return self._goal_at(state[:3])

    def _goal_at(self, cube: jax.Array) -> jax.Array:
        side = jnp.array([self.half_grip, 0.0, 0.0])
        return jnp.concatenate([cube + side, cube - side, jnp.array([self.gap])])

    def distance(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        reached = state[self.goal_slice]
        return jnp.linalg.norm((reached[:3] + reached[3:6] - goal[:3] - goal[3:6]) / 2)

    def success_at(self, level: str, state: jax.Array, goal: jax.Array) -> jax.Array:
        gap_error = jnp.abs(state[self.goal_slice][6] - goal[6])
        return super().success_at(level, state, goal) & (gap_error < self.gap_thresholds[level])

    def marker(self, goal: np.ndarray) -> np.ndarray:
        return (goal[:3] + goal[3:6]) / 2


def _publish(spec: mujoco.MjSpec) -> None:
    """Give `spec` the published servos and fingers."""
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.iterations, spec.option.ls_iterations = 6, 12
    for actuator in spec.actuators:
        if actuator.target in PUBLISHED_GAIN:
            actuator.gainprm[0] = PUBLISHED_GAIN[actuator.target]
    for joint in spec.joints:
        joint.armature = 0.1 if joint.name.endswith("finger") else 0.0
    for name in ("left_finger", "right_finger"):
        spec.geom(name).type, spec.geom(name).size = mujoco.mjtGeom.mjGEOM_BOX, PUBLISHED_PAD


def _add_mat(spec: mujoco.MjSpec, centre: tuple[float, float], half: float, rgba: tuple[float, ...]) -> None:
    """A coloured square on the table, for pictures: nothing collides with it."""
    mat = spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, pos=[*centre, 0.0], size=[half, half, 0.001]
    )
    mat.contype = mat.conaffinity = 0
    mat.rgba = rgba
