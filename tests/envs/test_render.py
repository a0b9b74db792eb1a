"""Videos and path plots: real files with the goal, the walls and the motion in them."""

from __future__ import annotations

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from deepres.report import film, video
from deepres.report.paths import plot_paths
from helpers.envs_fixtures import environment

SIZE = {"width": 160, "height": 120}


def can_draw() -> bool:
    try:
        video._gl_platform()
    except RuntimeError:
        return False
    return True


def pushed(name: str, steps: int):
    env = environment(name)
    state = env.reset()
    frames, paths = [video.snapshot(env, state, 1)], [state.obs]
    for _ in range(steps):
        state = env.step(state, jnp.full((env.num_envs, env.action_dim), 0.3))
        frames.append(video.snapshot(env, state, 1))
        paths.append(state.obs)
    return env, frames, np.stack(paths)


@pytest.mark.parametrize("name", ["ant", "point_u_maze", "reacher"])
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_rollout_becomes_a_video(name, suffix, tmp_path):
    import imageio.v2 as imageio

    env, frames, _ = pushed(name, 6)
    target = tmp_path / "new folder" / f"video{suffix}"
    if not can_draw():
        with pytest.raises(
            RuntimeError, match=r"neither EGL nor OSMesa works here; .*apt-get install libegl1"
        ):
            video.render_rollout(env, frames, target, **SIZE)
        return
    assert video.render_rollout(env, frames, target, **SIZE) == target
    pictures = [np.asarray(p)[..., :3] for p in imageio.mimread(target)]
    assert len(pictures) == len(frames) and pictures[0].shape == (120, 160, 3)
    assert pictures[0].std() > 10  # not one flat colour
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 40  # and something moved
    assert redness(pictures[0]).sum() > 3  # the goal is in the picture


def redness(picture):
    r, g, b = np.moveaxis(picture.astype(int), -1, 0)
    return (r > g + 50) & (r > b + 50)


def test_walls_are_drawn_and_a_reached_goal_turns_green(tmp_path):
    env, frames, _ = pushed("point_u_maze", 1)
    if not can_draw():
        with pytest.raises(RuntimeError, match="pictures need an OpenGL context"):
            next(video.pictures(env.task, frames, 160, 120))
        return
    reached = video.Frame(frames[0].qpos, frames[0].goal, frames[0].achieved, success=True)
    missed, green = video.pictures(env.task, [frames[0], reached], 160, 120)
    r, g, b = np.moveaxis(missed.astype(int), -1, 0)
    wall = (b > r + 15) & (abs(r - g) < 20) & (b > 100)
    assert 0.3 < wall.mean() < 0.9
    assert redness(missed).sum() > 3 and redness(green).sum() == 0


def test_paths_become_a_plot(tmp_path):
    import imageio.v2 as imageio

    env, _, paths = pushed("point_u_maze", 60)
    walks = [paths[:, n, :2] for n in range(4)]
    goals = [walks[0][-1], *paths[0, 1:4, 4:]]  # the first ends at its goal
    picture = imageio.imread(plot_paths(env, walks, goals, tmp_path / "paths.png"))
    green = (picture[..., 1].astype(int) > picture[..., 0].astype(int) + 60).sum()
    wall = (np.abs(picture[..., :3].astype(int) - [0x8D, 0x99, 0xA8]).max(-1) < 4).mean()
    assert green > 20 and 0.2 < wall < 0.7

    open_env = environment("ant")
    target = plot_paths(open_env, [np.zeros((1, 2))], [np.ones(2)], tmp_path / "deep" / "ant.png", "One ant")
    assert imageio.imread(target).shape[0] > 300
    line = plot_paths(open_env, [np.ones((3, 1))], [np.ones(1)], tmp_path / "line.png")  # half_cheetah's
    assert imageio.imread(line).shape[0] > 300


def test_what_cannot_be_drawn_gets_a_sentence(tmp_path, monkeypatch):
    env, frames, _ = pushed("reacher", 1)
    with pytest.raises(ValueError, match=r"must end in \.mp4 or \.gif, got 'film\.avi'"):
        video.render_rollout(env, frames, tmp_path / "film.avi")
    with pytest.raises(ValueError, match="at least one frame, got none"):
        video.render_rollout(env, [], tmp_path / "film.gif")
    with pytest.raises(ValueError, match="fps must be between 0 and 1000"):
        video.render_rollout(env, frames, tmp_path / "film.gif", fps=0)
    with pytest.raises(
        ValueError, match="width and height must be whole numbers of pixels >= 16, got 0 x 480"
    ):
        video.render_rollout(env, frames, tmp_path / "film.gif", width=0)
    with pytest.raises(ValueError, match=r"index must be 0 to 7 \(num_envs=8\), got 8"):
        video.snapshot(env, env.reset(), 8)
    with pytest.raises(ValueError, match="one goal per path and at least one, got 1 paths, 0 goals"):
        plot_paths(env, [np.zeros((3, 2))], [], tmp_path / "paths.png")
    with pytest.raises(ValueError, match=r"a path must have shape \[T, 2\], T >= 1, got \[4\]"):
        plot_paths(env, [np.zeros(4)], [np.zeros(2)], tmp_path / "paths.png")
    monkeypatch.setattr(film.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"writing \.gif needs imageio; pip install 'deepres\[envs\]'"):
        video.render_rollout(env, frames, tmp_path / "film.gif")


def test_an_opengl_that_does_not_work_is_named():
    code = (
        "import os\n"
        "os.environ['MUJOCO_GL'] = 'glfw'\n"
        "for display in ('DISPLAY', 'WAYLAND_DISPLAY'): os.environ.pop(display, None)\n"
        "from deepres.report import video\n"
        "try: print(video._gl_platform())\n"
        "except RuntimeError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert "MUJOCO_GL=glfw does not work here; on Debian or Ubuntu: apt-get install libegl1" in out


def test_pictures_and_pytorchs_compiler_live_in_one_process(tmp_path):
    """Mesa's LLVM and Triton's crash a process that loads them in that order."""
    script = (
        "from deepres import envs\n"
        "from deepres.report import video\n"
        "env = envs.make('point_u_maze', num_envs=1)\n"
        "list(video.pictures(env.task, [video.snapshot(env, env.reset())], 64, 48))\n"
        "import torch._dynamo\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
