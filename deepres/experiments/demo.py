"""The demo: a 16-layer agent learns to find its way in a maze on a plain CPU, and shows what it learned."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote

from deepres.config import Config
from deepres.policy import Policy
from deepres.ranks import is_first
from deepres.report.curves import plot_curves
from deepres.report.show import show_policy
from deepres.training.loop import train

# The published algorithm at a published depth, narrower and with a larger step size, so that a few minutes on two CPU
# cores suffice.
CONFIG = Config(
    "crl",
    env="point_u_maze",
    num_envs=256,
    episode_length=1000,
    depth=16,
    width=64,
    batch_size=256,
    actor_lr=1e-3,
    critic_lr=1e-3,
    alpha_lr=1e-3,
    target_entropy_per_action=0.0,  # a livelier policy finds the far end of the maze sooner
    gamma=0.995,  # goals lie far along a path around the wall
    total_steps=2_000_000,
    stop_at_success=0.8,
    unroll_length=50,
    gradient_steps=200,
    buffer_steps=3_000,
    min_buffer_steps=300,
    eval_every=10,
    checkpoint_every=20,
    gather_negatives=True,  # under torchrun the same loss
    threads=1,  # as fast as two on networks this narrow, and a busy neighbour costs nothing
)


def main(run_dir: Path | None = None, seed: int = 0) -> None:
    """Train `CONFIG`, evaluate its checkpoint afresh, and leave a video, the paths and the curves in run_dir.

    `torchrun --nproc-per-node 2 -m deepres demo` trains it in two processes.
    """
    began = time.perf_counter()
    if is_first():
        print("contrastive RL in a U-shaped maze: 16 residual layers, goals on both sides of the wall")
    result = train(CONFIG.replace(seed=seed), run_dir)
    if result.status:
        raise SystemExit(result.status)
    if not is_first():
        return
    figures, pictures = show_policy(Policy.load(result.run_dir), result.run_dir)
    pictures.append(plot_curves(result.run_dir, result.run_dir / "curves.png"))
    print(
        f"\nepisodes that reach their goal: {result.before.success_any:.1%} untrained, "
        f"{result.after.success_any:.1%} trained\n"
        f"the same from its checkpoint:   {figures.success_any:.1%} (deepres eval {quote(str(result.run_dir))})"
    )
    for picture in pictures:
        print(f"  {picture}")
    print(f"in {time.perf_counter() - began:.0f} seconds")
