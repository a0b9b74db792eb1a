"""Pictures of what a policy did: a video of one environment, and the paths walked seen from above.

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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

if TYPE_CHECKING:
    from deepres.envs.env import EnvState
    from deepres.envs.task import FunctionalTask, Task
    from deepres.envs.vector import VectorEnv

VIDEO_FORMATS = (".mp4", ".gif")
TRAIL_PIECES = 120  # at most: the path walked, drawn as that many short rods
GL_PLATFORMS = ("egl", "osmesa", "glfw")
WALL, START, GOAL = "#8d99a8", "#2d3e50", "#e74c3c"  # colours of a plot
REACHED, MISSED = "#27ae60", "#a0a7b0"
GOAL_RGBA, REACHED_RGBA = (0.91, 0.30, 0.24, 0.45), (0.15, 0.68, 0.38, 0.55)  # and of a video
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
    _check_writer(path)
    fps = 1 / env.task.dt if fps is None else float(fps)
    if not 0 < fps < 1000:
        raise ValueError(f"fps must be between 0 and 1000 frames a second, got {fps}")
    if not all(isinstance(side, int) and side >= 16 for side in (width, height)):
        raise ValueError(f"width and height must be whole numbers of pixels >= 16, got {width} x {height}")
    task = _filmable(env.task)
    path.parent.mkdir(parents=True, exist_ok=True)
    _gl_platform()  # before the file is begun
    _write_video(path, pictures(task, frames, width, height), fps)
    return path


def _filmable(task: FunctionalTask) -> Task:
    """`task`, if it has a model to show; raises ValueError otherwise."""
    from deepres.envs.task import Task

    if not isinstance(task, Task):
        raise ValueError(
            f"a video needs a MuJoCo model, which {task.name} does not have; draw the paths alone (plot_paths), or "
            "derive its class from deepres.envs.Task"
        )
    return task


def plot_paths(
    env: VectorEnv,
    paths: Sequence[np.ndarray],
    goals: Sequence[np.ndarray],
    path: str | Path,
    title: str | None = None,
) -> Path:
    """Write a PNG of the x, y paths walked, seen from above: walls, starts, goals; green where the goal was
    reached.

    paths: one [T, 2] array (or wider; x and y come first) in metres per episode, T >= 1. goals: its goal, [2]
    or wider. Where there is one coordinate alone, it is x. path: of the picture. A path counts as reaching its goal if
    it comes within env.threshold of it.
    Returns the path. Raises: ValueError for paths that are not so; ImportError without matplotlib.
    """
    walks = [_in_plane(np.asarray(walk, np.float64)) for walk in paths]
    ends = [_in_plane(np.asarray(goal, np.float64).reshape(-1))[:2] for goal in goals]
    if len(walks) != len(ends) or not walks:
        raise ValueError(
            f"plot_paths wants one goal per path and at least one, got {len(walks)} paths, {len(ends)} goals"
        )
    for walk in walks:
        if walk.ndim != 2 or walk.shape[0] < 1 or walk.shape[1] < 2:
            raise ValueError(f"a path must have shape [T, 2], T >= 1, got {list(walk.shape)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plot_paths needs matplotlib ({error}); pip install 'deepres[envs]'") from None
    figure = Figure(figsize=(6.4, 6.4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    reached = _draw_paths(axes, env, walks, ends)
    axes.set_title(title or f"{env.name}: {reached} of {len(walks)} reach their goal", fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _in_plane(places: np.ndarray) -> np.ndarray:
    """`places` [..., G]; those of one coordinate lie at y = 0."""
    if places.ndim and places.shape[-1] == 1:
        return np.concatenate([places, np.zeros_like(places)], axis=-1)
    return places


def _draw_paths(axes: Any, env: VectorEnv, walks: list[np.ndarray], goals: list[np.ndarray]) -> int:
    """Everything on `axes`; returns how many walks reach their goal."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, Rectangle

    maze = getattr(env.task, "maze", None)
    if maze is not None:
        side = maze.cell
        for x, y in np.argwhere(maze.walls) * side - side / 2:
            axes.add_patch(Rectangle((x, y), side, side, facecolor=WALL, edgecolor=WALL, linewidth=0.5))
    reached = 0
    for walk, goal in zip(walks, goals, strict=True):
        inside = np.linalg.norm(walk[:, :2] - goal, axis=1) < env.threshold
        reached += bool(inside.any())
        colour = REACHED if inside.any() else MISSED
        axes.plot(walk[:, 0], walk[:, 1], color=colour, linewidth=1.3, alpha=0.75, zorder=3)
        axes.plot(*walk[-1, :2], marker="o", markersize=3.5, color=colour, zorder=4)
        axes.add_patch(
            Circle((goal[0], goal[1]), env.threshold, facecolor=GOAL, edgecolor="none", alpha=0.35, zorder=2)
        )
        axes.plot(*goal, marker="*", markersize=9, color=GOAL, markeredgecolor="white", zorder=6)
    starts = np.stack([walk[0, :2] for walk in walks])
    axes.plot(*starts.T, linestyle="none", marker="o", markersize=5, color=START, zorder=5)
    handles = [
        Line2D([], [], color=REACHED, label="reached"),
        Line2D([], [], color=MISSED, label="not reached"),
        Line2D([], [], color=START, marker="o", linestyle="none", label="start"),
        Line2D([], [], color=GOAL, marker="*", markersize=9, linestyle="none", label="goal"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=4, frameon=False)
    axes.set_aspect("equal")
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)")
    axes.margins(0 if maze is not None else 0.05)
    axes.spines[["top", "right"]].set_visible(False)
    return reached


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


def _check_writer(path: Path) -> None:
    needs = ("imageio", "PIL") if path.suffix.lower() == ".gif" else ("imageio", "imageio_ffmpeg")
    for module in needs:
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"writing {path.suffix} needs {module.replace('_', '-')}; pip install 'deepres[envs]'"
            )


def _write_video(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    import imageio.v2 as imageio

    # Left to itself imageio starts ffmpeg by a bare fork, which can hang a process that has JAX's threads.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    gif = {"duration": 1000 / fps, "loop": 0}
    mp4 = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2}
    writer: Any = imageio.get_writer(path, **(gif if path.suffix.lower() == ".gif" else mp4))
    with writer:
        for picture in pictures:
            writer.append_data(picture)
