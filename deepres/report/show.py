"""What a trained policy does, as pictures: a video of some episodes, and every episode's path from above."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from deepres.data.environments import Environments, JaxEnvironments
from deepres.policy import Policy
from deepres.training.evaluate import Evaluation

_LINGER = 1.0  # seconds that a video stays with an episode after its goal is reached
_LONGEST = 15.0  # seconds of an episode whose goal is not
_FPS = 12.0  # about; every frame costs a software renderer 50 ms


def show_policy(
    policy: Policy, out: Path, *, episodes: int = 3, format: str = "mp4", seed: int | None = None
) -> tuple[Evaluation, list[Path]]:
    """Evaluate `policy` and write policy.<format>, paths.png and paths.pdf into `out`; returns the figures, and
    the film and the PNG.

    episodes: how many the video shows, those with the farthest goals first. format: "mp4" or "gif". A video
    that cannot be made, as of physics without a model, is told and left out.
    Raises ValueError, RuntimeError (no renderer) or ImportError in one sentence.
    """
    from deepres.report.paths import plot_paths

    count = policy.config.schedule.eval_envs
    if not 1 <= episodes <= count:
        raise ValueError(f"episodes must be 1 to {count} (eval_envs), got {episodes}")
    if format not in ("mp4", "gif"):
        raise ValueError(f"format must be mp4 or gif, got {format!r}")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(f"pictures cannot be written into {out}; pass another folder (--out)")
    env = policy.environments()
    film = _film_of(env, episodes)
    figures, paths = policy.evaluate(seed, watch=film if isinstance(film, _Camera) else None)
    walks = [walk[~walk[:, 0].isnan()].cpu().numpy() for walk in paths.achieved.unbind(dim=1)]
    title = f"{policy.config.env.name}: {figures.success_any:.0%} of {len(walks)} episodes reach their goal"
    pictures = [plot_paths(env, walks, list(paths.goal.cpu().numpy()), out / "paths.png", title)]
    video = out / f"policy.{format}"
    if isinstance(film, str):
        print(f"no video: {film}")
    elif isinstance(film, _Camera):
        from deepres.report.video import render_rollout

        frames = film.film([len(walk) for walk in walks])
        pictures.append(render_rollout(film.env, frames, video, fps=film.fps))
    else:
        from deepres.report.video import write_video

        seed = policy.config.schedule.seed if seed is None else seed
        longest = min(env.episode_length, round(_LONGEST / env.dt))
        pictures.append(write_video(video, _pictures(policy, film, episodes, longest, seed), 1 / env.dt))
    return figures, pictures


def _film_of(env: Environments, episodes: int) -> _Camera | Any | str:
    """What films `env`: a camera; of gymnasium's, an environment that draws itself; or why there is no film."""
    if not isinstance(env, JaxEnvironments):
        try:
            return env.task.filmed(env.episode_length)  # type: ignore[attr-defined]
        except ValueError as error:
            return str(error)
    from deepres.envs.task import Task

    if not isinstance(env.task, Task):
        return f"the physics of {env.name} has no MuJoCo model to show"
    return _Camera(env.env, episodes)


def _pictures(policy: Policy, env: Any, episodes: int, longest: int, seed: int) -> Iterator[Any]:
    """Frames of episodes of one gymnasium environment, each of at most `longest` steps."""
    player = policy.player()
    with closing(env):
        for episode in range(episodes):
            obs, _ = env.reset(seed=seed + episode)
            for t in range(longest):
                yield env.render()
                seen = torch.from_numpy(obs)[None].to(policy.device, torch.float32)
                if policy.network.clocked:
                    left = policy.config.env.episode_length - 1 - t
                    seen = torch.cat([seen, seen.new_full((1, 1), left)], dim=1)
                action = player.act(seen, torch.tensor([episode], device=policy.device))[0].cpu().numpy()
                obs, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    break
            yield env.render()


class _Camera:
    """Films the environments whose goals lie farthest from their starts, one of each goal first."""

    def __init__(self, env: Any, episodes: int):
        self.env, self.episodes = env, episodes
        self.every = max(1, round(1 / (_FPS * env.dt)))
        self.fps = 1 / (self.every * env.dt)
        self.frames: dict[int, list[Any]] = {}
        self.step = 0

    def __call__(self, state: Any) -> None:
        from deepres.report.video import snapshot

        if not self.frames:
            self.frames = {index: [] for index in self._choose(state)}
        if self.step % self.every == 0 and self.step * self.env.dt < _LONGEST:
            for index, frames in self.frames.items():
                frames.append(snapshot(self.env, state, index))
        self.step += 1

    def _choose(self, state: Any) -> list[int]:
        import numpy as np

        goals, distances = np.asarray(state.goal), np.asarray(state.distance)
        farthest = [int(i) for i in np.argsort(-distances, kind="stable")]
        one_of_each = {goals[i].tobytes(): i for i in reversed(farthest)}  # the farthest start of each goal
        first = sorted(one_of_each.values(), key=farthest.index)
        return [*first, *(i for i in farthest if i not in first)][: self.episodes]

    def film(self, lengths: list[int]) -> list[Any]:
        """The episodes' frames one after another, each up to its end or a moment after its goal is reached."""
        linger = max(1, round(_LINGER * self.fps))
        film: list[Any] = []
        for index, frames in self.frames.items():
            episode = frames[: -(-lengths[index] // self.every)]
            reached = next((t for t, frame in enumerate(episode) if frame.success), len(episode))
            film += episode[: reached + linger]
        return film
