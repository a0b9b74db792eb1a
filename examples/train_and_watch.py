"""Train a policy, evaluate it afresh, and look at it: a video, and every episode's path from above.

python examples/train_and_watch.py                        # a maze of seconds, into runs/train_and_watch
python examples/train_and_watch.py ant_u_maze runs/ant    # any of `deepres envs`; the options below are for a point
"""

import sys
from pathlib import Path

import deepres
from deepres.report.show import show_policy


def main(
    env: str = "point_u_maze", run_dir: str = "runs/train_and_watch", total_steps: int = 400_000
) -> None:
    config = deepres.Config(
        "crl", env=env, depth=8, width=64, num_envs=128, episode_length=400, batch_size=256, gamma=0.99,
        actor_lr=1e-3, critic_lr=1e-3, alpha_lr=1e-3, target_entropy_per_action=0.0, total_steps=400_000,
        unroll_length=50, gradient_steps=100, buffer_steps=2_000, min_buffer_steps=100, eval_envs=64, eval_every=10,
    )  # fmt: skip
    result = deepres.train(config, run_dir)
    print(f"goals reached: {result.before.success_any:.0%} -> {result.after.success_any:.0%}")

    policy = deepres.Policy.load(
        result.run_dir
    )  # the actor alone: neither critics nor replay buffer are read
    figures, _ = policy.evaluate(seed=1)  # episodes that the run did not see
    print(
        f"in other episodes: {figures.success_any:.0%}, {figures.time_at_goal:.0f} steps of each at the goal"
    )

    _, files = show_policy(policy, Path(run_dir), episodes=2, format="gif")
    print(*files, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
