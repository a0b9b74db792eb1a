"""A video of what a policy did.

Nothing here needs a display: frames come from MuJoCo's own renderer over EGL or OSMesa (or whatever MUJOCO_GL
names).

    frames = [snapshot(env, state, index=0)]
    for _ in range(200):
        state = env.step(state, policy(state.obs))
        frames.append(snapshot(env, state, index=0))
    render_rollout(env, frames, "policy.mp4")
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from deepres.report.film import check_writer, write_video

if TYPE_CHECKING:
    from deepres.envs.env import EnvState
    from deepres.envs.task import Task
    from deepres.envs.vector import VectorEnv

VIDEO_FORMATS = (".mp4", ".gif")
TRAIL_PIECES = 120  # at most: the path walked, drawn as that many short rods
GL_PLATFORMS = ("egl", "osmesa", "glfw")
GOAL_RGBA, REACHED_RGBA = (0.91, 0.30, 0.24, 0.45), (0.15, 0.68, 0.38, 0.55)
TRAIL_RGBA = (0.95, 0.61, 0.07, 0.9)


@dataclass(frozen=True)
class Frame:
    """One environment at one moment. qpos: [nq]. goal, achieved: [3] metres, where to be and where it is."""

    qpos: np.ndarray
    goal: np.ndarray
    achieved: np.ndarray
    success: bool


def snapshot(env: VectorEnv, state: EnvState, index: int = 0) -> Frame:
    """What a picture needs of environment `index` in `state`, copied to the host (record one a step)."""
    if not 0 <= index < env.num_envs:
        raise ValueError(f"index must be 0 to {env.num_envs - 1} (num_envs={env.num_envs}), got {index}")
    task = _filmable(env.task)
    obs, goal = np.asarray(state.obs[index]), np.asarray(state.goal[index])
    return Frame(
        np.asarray(state.physics.qpos[index]),
        task.marker(goal),
        task.marker(obs[: env.state_dim][env.goal_slice]),
        bool(state.success[index] > 0),
    )


def render_rollout(
    env: VectorEnv,
    frames: Sequence[Frame],
    path: str | Path,
    fps: float | None = None,
    width: int = 640,
    height: int = 480,
) -> Path:
    """Write `frames` as a video: robot, walls, the goal (a ball as wide as success; green once inside), the
    trail.

    path: ends in .mp4 or .gif. fps: frames a second, by default in real time (1 / env.dt). width, height:
    pixels.
    Returns the path. Raises: ValueError for no frames or another format; RuntimeError without EGL or OSMesa;
    ImportError without imageio (or, for MP4, its ffmpeg).
    """
    path = Path(path)
    if path.suffix.lower() not in VIDEO_FORMATS:
        raise ValueError(f"a video's path must end in {' or '.join(VIDEO_FORMATS)}, got {path.name!r}")
    if not frames:
        raise ValueError("a video needs at least one frame, got none; collect them with snapshot(env, state)")
    check_writer(path)
    fps = 1 / env.task.dt if fps is None else float(fps)
    if not 0 < fps < 1000:
        raise ValueError(f"fps must be between 0 and 1000 frames a second, got {fps}")
    if not all(isinstance(side, int) and side >= 16 for side in (width, height)):
        raise ValueError(f"width and height must be whole numbers of pixels >= 16, got {width} x {height}")
    task = _filmable(env.task)
    path.parent.mkdir(parents=True, exist_ok=True)
    _gl_platform()  # before the file is begun
    return write_video(path, pictures(task, frames, width, height), fps)


def _filmable(task: Any) -> Task:
    """`task`, if it has a model to show; raises ValueError otherwise."""
    from deepres.envs.task import Task

    if not isinstance(task, Task):
        raise ValueError(
            f"a video needs a MuJoCo model, which {task.name} does not have; draw the paths alone (plot_paths), or "
            "derive its class from deepres.envs.Task"
        )
    return task


def pictures(task: Task, frames: Sequence[Frame], width: int, height: int) -> Iterator[np.ndarray]:
    """RGB pictures [height, width, 3] uint8 of `frames`."""
    view = task.view()
    model = _dressed(task.scene(), view.distance, width, height).compile()
    data = mujoco.MjData(model)
    camera = mujoco.MjvCamera()
    camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
    camera.lookat[:] = view.lookat
    with _canvas(model, width, height) as draw:
        began = 0  # of the episode in the picture: a new goal clears the trail
        for t, frame in enumerate(frames):
            data.qpos[:] = frame.qpos
            mujoco.mj_forward(model, data)
            new_goal = t == 0 or bool((frame.goal != frames[t - 1].goal).any())
            if new_goal:
                began = t
            if view.follow:
                camera.lookat[:2] += (1.0 if new_goal else 0.2) * (data.qpos[:2] - camera.lookat[:2])
                if new_goal:  # the robot in front, its goal behind it
                    towards = frame.goal - frame.achieved
                    camera.azimuth = np.degrees(np.arctan2(towards[1], towards[0]))
            walked = frames[began : t + 1]
            yield draw(data, camera, lambda scene, walked=walked: _mark(scene, task, walked))


def _dressed(spec: mujoco.MjSpec, distance: float, width: int, height: int) -> mujoco.MjSpec:
    """`spec` with sky, sun and a chequered floor, for pictures of this size from `distance` metres."""
    spec.visual.global_.offwidth, spec.visual.global_.offheight = width, height
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.35] * 3, [0.2] * 3
    spec.visual.headlight.specular = [0.0] * 3
    spec.visual.quality.shadowsize, spec.visual.map.shadowclip = 2048, 3
    spec.stat.extent = distance  # what clipping planes and shadows are measured by
    spec.stat.center = [0, 0, 0]
    spec.add_texture(
        name="deepres_sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.80, 0.87, 0.94], rgb2=[0.45, 0.58, 0.74], width=128, height=768,
    )  # fmt: skip
    spec.add_texture(
        name="deepres_floor", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.88, 0.89, 0.91], rgb2=[0.78, 0.80, 0.83], width=256, height=256,
    )  # fmt: skip
    material = spec.add_material(name="deepres_floor", texuniform=True, texrepeat=[4 / distance] * 2)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "deepres_floor"
    for geom in spec.worldbody.geoms:  # a model need not have a floor
        if geom.name == "floor" or (geom.type == mujoco.mjtGeom.mjGEOM_PLANE and not geom.material):
            geom.material = "deepres_floor"
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, pos=[0, 0, distance], dir=[0.25, 0.35, -1],
        diffuse=[0.55] * 3, specular=[0.1] * 3, castshadow=True,
    )  # fmt: skip
    return spec


def _mark(scene: mujoco.MjvScene, task: Task, frames: Sequence[Frame]) -> None:
    """Add to `scene` the goal of the last of `frames` and the trail through them all."""
    now = frames[-1]
    rgba = REACHED_RGBA if now.success else GOAL_RGBA
    _add_geom(scene, mujoco.mjtGeom.mjGEOM_SPHERE, [task.threshold] * 3, now.goal, rgba)
    stride = -(-len(frames) // TRAIL_PIECES)
    points = [frame.achieved for frame in frames[::stride]] + [now.achieved]
    if task.goal_dim == 2:  # a goal on the floor: so is the trail
        points = [np.array([x, y, 0.05]) for x, y, _ in points]
    for a, b in pairwise(points):
        if 0 < np.linalg.norm(b - a) < 5 * task.threshold:  # a longer hop is the start of the next episode
            geom = _add_geom(scene, mujoco.mjtGeom.mjGEOM_CAPSULE, np.zeros(3), np.zeros(3), TRAIL_RGBA)
            mujoco.mjv_connector(geom, mujoco.mjtGeom.mjGEOM_CAPSULE, task.threshold / 12, a, b)


def _add_geom(scene: mujoco.MjvScene, kind: int, size: Any, position: Any, rgba: Any) -> mujoco.MjvGeom:
    geom = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(
        geom, kind, np.asarray(size, float), np.asarray(position, float), np.eye(3).ravel(), np.float32(rgba)
    )
    scene.ngeom += 1
    return geom


@contextmanager
def _canvas(model: mujoco.MjModel, width: int, height: int) -> Iterator[Callable[..., np.ndarray]]:
    """A function (data, camera, decorate) -> RGB picture, valid inside the block; no display is needed."""
    if importlib.util.find_spec(
        "triton"
    ):  # its LLVM crashes when it comes after Mesa's; torch.compile loads it
        with suppress(ImportError):
            import_module("triton")
    gl = import_module(f"mujoco.{_gl_platform()}").GLContext(width, height)
    gl.make_current()
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
    scene = mujoco.MjvScene(model, maxgeom=2000)
    option, rectangle = mujoco.MjvOption(), mujoco.MjrRect(0, 0, width, height)

    def draw(data: mujoco.MjData, camera: mujoco.MjvCamera, decorate: Callable[..., None]) -> np.ndarray:
        mujoco.mjv_updateScene(model, data, option, None, camera, mujoco.mjtCatBit.mjCAT_ALL.value, scene)
        decorate(scene)
        mujoco.mjr_render(rectangle, scene, context)
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, rectangle, context)
        return picture[::-1]  # OpenGL's first row is the lowest

    try:
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        yield draw
    finally:
        context.free()
        gl.free()


@cache
def _gl_platform() -> str:
    """Which of mujoco's OpenGL modules draws here: the one MUJOCO_GL names, else EGL, else OSMesa.

    Each is tried in a process of its own, because PyOpenGL can load only one in its life.
    """
    trial = (
        "import importlib, sys, mujoco\n"
        "gl = importlib.import_module('mujoco.' + sys.argv[1]).GLContext(8, 8)\n"
        "gl.make_current(); mujoco.MjrContext(mujoco.MjModel.from_xml_string('<mujoco/>'), 100)"
    )
    asked = os.environ.get("MUJOCO_GL", "").lower()
    candidates = (asked,) if asked in GL_PLATFORMS else ("egl", "osmesa")
    for name in candidates:
        environment = {**os.environ, "MUJOCO_GL": name}
        tried = subprocess.run([sys.executable, "-c", trial, name], env=environment, capture_output=True)
        if tried.returncode == 0:
            return name
    failed = f"MUJOCO_GL={asked} does not work" if len(candidates) == 1 else "neither EGL nor OSMesa works"
    raise RuntimeError(
        f"pictures need an OpenGL context, but {failed} here; on Debian or Ubuntu: "
        "apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 with MUJOCO_GL=osmesa"
    )
