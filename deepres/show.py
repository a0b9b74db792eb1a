"""What a trained policy does, as pictures: a video of some episodes, and every episode's path from above."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepres.evaluate import Evaluation
from deepres.run import Run

_LINGER = 1.0  # seconds that a video stays with an episode after its goal is reached
_LONGEST = 15.0  # seconds of an episode whose goal is not
_FPS = 12.0  # about; every frame costs a software renderer 50 ms


def show_policy(
    run: Run, out: Path, *, episodes: int = 3, format: str = "mp4", seed: int | None = None
) -> tuple[Evaluation, list[Path]]:
    """Evaluate `run` and write policy.<format> and paths.png into `out`; returns the figures and the files.

    episodes: how many the video shows, those with the farthest goals first. format: "mp4" or "gif".
    Raises ValueError, RuntimeError (no renderer) or ImportError in one sentence.
    """
    from deepres.render import plot_paths, render_rollout

    if not 1 <= episodes <= run.eval_env.num_envs:
        raise ValueError(f"episodes must be 1 to {run.eval_env.num_envs} (eval_envs), got {episodes}")
    if format not in ("mp4", "gif"):
        raise ValueError(f"format must be mp4 or gif, got {format!r}")
    camera = _Camera(run.eval_env, episodes)
    figures, paths = run.evaluate(seed, watch=camera)
    walks = [walk[~walk[:, 0].isnan()].cpu().numpy() for walk in paths.achieved.unbind(dim=1)]
    title = f"{run.config.env}: {figures.success_any:.0%} of {len(walks)} episodes reach their goal"
    picture = plot_paths(run.eval_env, walks, list(paths.goal.cpu().numpy()), out / "paths.png", title)
    film = camera.film([len(w) for w in walks])
    video = render_rollout(run.eval_env, film, out / f"policy.{format}", fps=camera.fps)
    return figures, [picture, video]


class _Camera:
    """Films the environments whose goals lie farthest from their starts, one of each goal first."""

    def __init__(self, env: Any, episodes: int):
        self.env, self.episodes = env, episodes
        self.every = max(1, round(1 / (_FPS * env.dt)))
        self.fps = 1 / (self.every * env.dt)
        self.frames: dict[int, list[Any]] = {}
        self.step = 0

    def __call__(self, state: Any) -> None:
        from deepres.render import snapshot

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
