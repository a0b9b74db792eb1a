"""What the numbers of the studies' tables mean, a line each."""

from __future__ import annotations

from collections.abc import Iterable

MEANINGS = {
    "success": "share of evaluation episodes that reach the goal, without noise; mean of the last five evaluations, or "
    "of one of 512 episodes where policies are compressed",
    "success_easy": "the same within the easier radius of the task",
    "success_far": "mean of success 4, 5 and 6",
    "success_4": "success where start and goal lie 4 cells apart",
    "success_5": "success where start and goal lie 5 cells apart",
    "success_6": "success where start and goal lie 6 cells apart",
    "success_area": "mean success of all evaluations but that of the untrained policy",
    "time_at_goal": "steps of an episode within the goal's radius, mean of the last five evaluations",
    "final_distance": "metres to the goal at an episode's end",
    "steps_to_half": "environment steps until half of the goals were reached; nan if they never were",
    "seconds": "seconds of training, beside whatever else ran on the machine",
    "env_steps": "environment steps",
    "way_rank": "rank correlation (Spearman) of the critic's energy of a place with minus the shortest way to the goal",
    "line_rank": "the same of minus the straight line: what a critic reaches that knows no walls",
    "step_near": "mean length of a step of phi within ten steps of the goal, over that further away",
    "branch_decay": "rms of what phi's last block adds to the stream, over that of its first",
    "varying": "rms of the part of a network's last features that depends on its input",
    "mean_spread": "standard deviation of the action's means before tanh",
    "live_means": "share of the action's means below 7.6, where tanh still has a slope",
    "live_spreads": "share of the outputs for log std whose tanh has a slope above 1e-3",
    "critic_loss": "the critic's loss of the first batch",
    "actor_loss": "the actor's loss",
    "first_gradient": "norm of the actor loss's gradient in the first block's weights",
    "last_gradient": "norm of it in the last block's weights",
    "loss": "the critic's loss, mean of the last 50 steps",
    "first_loss": "the critic's loss, mean of the first 50 steps",
    "entropy": "entropy of the policy in nats, mean of the last 50 steps",
    "log_alpha": "logarithm of the temperature at the end",
    "finite": "share of gradient steps that were not skipped",
    "cells": "share of the maze's free cells that an episode comes to",
    "farthest": "largest distance from the start, metres",
    "random_success": "share of episodes of random actions that reach the goal",
    "escaped": "share of spheres that a wall did not hold",
    "rebound": "speed after meeting a wall head-on at 2 m/s, over that speed",
    "retained": "success over the teacher's on the same starts and goals",
    "action_rmse": "root mean square difference to the teacher's actions, both without noise",
    "megabytes": "size of the policy in float32",
    "train_accuracy": "share of state-actions of the data that the critic finds their own goal for, among 256",
    "val_accuracy": "the same of episodes that were held out",
    "time_rank": "rank correlation, within a held-out episode, of the critic's energy to the episode's last state with "
    "minus the steps until then",
    "published_medium": "success that OGBench published for pointmaze-medium",
    "published_large": "success that OGBench published for pointmaze-large",
}


def meanings(names: Iterable[str]) -> str:
    """One sentence of what `names` mean, for those that have a line here."""
    told = "; ".join(f"{name.replace('_', ' ')}: {MEANINGS[name]}" for name in names if name in MEANINGS)
    return f"{told[:1].upper()}{told[1:]}." if told else ""
