"""One contestant of bench/train.py in its own process: learner, environments, replay buffer, and their clocks."""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import environment
from bench.registry import ACTOR_DEPTH_LIMIT
from bench.worker import Unavailable
from deepres.buffer import ReplayBuffer
from deepres.config import Config
from deepres.learner import Batch, Learner

LABELS = {
    "eager": "eager PyTorch, fp32",
    "jax": "JAX jit, fp32",
    "deepres": "deepres, fp32",
    "deepres-bf16": "deepres, bf16",
}
PUBLISHED = (
    Config()
)  # gradient steps in a round, unroll, rounds between evaluations, episode: what parts are scaled to
WINDOW = 1_000  # steps of each environment in the buffer: what a round samples from


@dataclass(frozen=True)
class Race:
    """What the contestants do side by side, the same for all."""

    env: str
    depth: int
    batch: int
    width: int
    num_envs: int
    eval_envs: int
    seed: int
    data: str  # file of recorded batches and noise

    def config(self, precision: str = "fp32") -> Config:
        return Config(
            env=self.env,
            num_envs=self.num_envs,
            eval_envs=self.eval_envs,
            critic_depth=self.depth,
            actor_depth=min(self.depth, ACTOR_DEPTH_LIMIT),
            width=self.width,
            batch_size=self.batch,
            buffer_steps=WINDOW,
            min_buffer_steps=2,
            precision=precision,
            seed=self.seed,
        )


class Desk:
    """What a worker can be asked, in this order: `record` (of one), `build`, then `steps`, `round`, `overheads`."""

    def __init__(self, threads: int | None):
        if threads is not None:
            torch.set_num_threads(threads)
            if hasattr(os, "sched_setaffinity"):  # XLA counts the cores that it may run on, and only then
                os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    def describe(self) -> dict[str, Any]:
        return environment.describe("cpu")

    def record(self, race: Race, steps: int) -> None:
        """Write `steps` batches and noises to race.data: an untrained policy's walks, sampled as a run samples."""
        self._set_up(race, "deepres")
        self._fill(PUBLISHED.unroll_length)
        batches = list(self._batches(steps))
        stacked = {
            name: torch.stack([getattr(batch, name) for batch in batches])
            for name in ("state", "action", "goal")
        }
        shape = stacked["action"].shape
        torch.save({**stacked, "noise": torch.randn(shape, generator=self.generator)}, race.data)
        self.drop()

    def build(self, race: Race, contestant: str) -> dict[str, Any]:
        """Get ready; seconds of the first step (with what is compiled in it), its loss, and seconds of the second."""
        self.drop()
        self._set_up(race, contestant)
        self.data = torch.load(race.data)
        (first, loss), (warm, second_loss) = self._step(0), self._step(1)
        return {
            "first_s": first,
            "call_s": warm,
            "losses": [loss, second_loss],
            "threads": torch.get_num_threads(),
        }

    def steps(self, first: int, last: int) -> tuple[list[float], list[float]]:
        """(seconds, critic losses) of the recorded batches first..last-1."""
        timed = [self._step(index) for index in range(first, last)]
        return [seconds for seconds, _ in timed], [loss for _, loss in timed]

    def round(self, unroll: int, gradient_steps: int) -> dict[str, float]:
        """A round on the contestant's own data: seconds, for each gradient step of a published round, of collecting
        (measured over `unroll` steps), sampling and updating; {} of no gradient steps."""
        if not self.buffer.inserted:
            self._fill(unroll)
        collect = _clocked(lambda: self._collect(unroll))
        if not gradient_steps:
            return {}
        sample = update = 0.0
        batches = self._batches(gradient_steps)
        for _ in range(gradient_steps):
            began = time.perf_counter()
            batch = next(batches)
            noise = torch.randn(batch.action.shape, generator=self.generator)
            sampled = time.perf_counter()
            self._wait(self.learner.update(batch, noise))
            sample += sampled - began
            update += time.perf_counter() - sampled
        return {
            "collect": collect / unroll * PUBLISHED.unroll_length / PUBLISHED.gradient_steps,
            "sample": sample / gradient_steps,
            "update": update / gradient_steps,
        }

    def overheads(self, eval_steps: int) -> dict[str, float]:
        """Seconds of a round's log row and of an evaluation, for each gradient step of a published run."""
        from deepres.logs import RunLog

        with tempfile.TemporaryDirectory() as folder:
            log = RunLog(Path(folder), 0)
            row = {f"metric_{i}": 1.0 for i in range(15)} | {"env_steps": 0}
            log.write("train", row)
            log_s = min(_clocked(lambda: log.write("train", row)) for _ in range(3))
            log.close()
        evaluation = self._evaluation_step_s(eval_steps) * PUBLISHED.episode_length
        return {
            "log": log_s / PUBLISHED.gradient_steps,
            "evaluate": evaluation / (PUBLISHED.eval_every * PUBLISHED.gradient_steps),
        }

    def split(self) -> dict[str, float] | None:
        """Shares of `update` by part, from a step whose parts are timed; None where it is one call."""
        batch, noise = self._recorded(0)
        if self.contestant == "jax":
            return None
        if self.contestant == "eager":
            self.learner.update(batch, noise)
            seconds = self.learner.seconds
        else:
            from bench.train_split import parts

            seconds = parts(self.learner, batch, noise)
        return {name: value / sum(seconds.values()) for name, value in seconds.items()}

    def drop(self) -> None:
        self.learner = self.buffer = self.data = self.env_state = None
        gc.collect()

    def _set_up(self, race: Race, contestant: str) -> None:
        from deepres.run import make_env

        self.contestant = contestant
        self.config = race.config("bf16" if contestant == "deepres-bf16" else "fp32")
        self.env = make_env(self.config, race.num_envs)
        dims = {"state_dim": self.env.state_dim, "action_dim": self.env.action_dim}
        weights = torch.Generator().manual_seed(race.seed)
        given = Learner(self.config, **dims, goal_dim=self.env.goal_dim, generator=weights)
        self.learner, self._wait = _learner(contestant, given)
        self.buffer = ReplayBuffer(race.num_envs, WINDOW, **dims, goal_slice=self.env.goal_slice)
        self.generator = torch.Generator().manual_seed(race.seed + 1)
        self.env_state = None

    def _recorded(self, index: int) -> tuple[Batch, Tensor]:
        at = {name: tensor[index % len(tensor)] for name, tensor in self.data.items()}
        return Batch(at["state"], at["action"], at["goal"]), at["noise"]

    def _step(self, index: int) -> tuple[float, float]:
        batch, noise = self._recorded(index)
        began = time.perf_counter()
        metrics = self.learner.update(batch, noise)
        self._wait(metrics)
        seconds = time.perf_counter() - began
        loss = float(metrics["critic_loss"])
        assert math.isfinite(loss), f"its critic loss is {loss} at step {index}"
        return seconds, loss

    def _fill(self, steps: int) -> None:
        """A window of steps in the buffer: one unroll, repeated as so many trajectories."""
        unroll = self._collect(steps)
        trajectories = int(unroll.traj_ids.max()) + 1
        for again in range(1, -(-WINDOW // steps)):
            self.buffer.insert(unroll.states, unroll.actions, unroll.traj_ids + again * trajectories)

    def _collect(self, steps: int) -> Any:
        from deepres.collect import collect

        if self.env_state is None:
            self.env_state = self.env.reset()
        self.env_state, unroll = collect(self.env, self.env_state, self.learner, steps, self.generator)
        self.buffer.insert(unroll.states, unroll.actions, unroll.traj_ids)
        return unroll

    def _batches(self, count: int) -> Any:
        config = self.config
        return self.buffer.batches(
            count, config.batch_size, window=WINDOW, gamma=config.gamma, generator=self.generator
        )

    def _evaluation_step_s(self, steps: int) -> float:
        """Seconds of an evaluation, for each step of its episode."""
        from deepres import envs
        from deepres.evaluate import evaluate

        env = envs.make(self.config.env, num_envs=self.config.eval_envs, episode_length=steps)
        evaluate(env, self.learner, seed=0)  # compiles
        return _clocked(lambda: evaluate(env, self.learner, seed=0)) / steps


def _learner(contestant: str, given: Learner) -> tuple[Any, Callable[[Any], None]]:
    """The contestant's learner with the weights of `given`, and what waits until a step is computed."""
    if contestant == "jax":
        from bench import crl_jax

        return crl_jax.JaxLearner(given), crl_jax.wait
    if contestant == "eager":
        from bench.crl_eager import EagerLearner

        return EagerLearner(given), lambda metrics: None
    states = {op: here.get("cpu") for op, here in _backends().items()}
    if states["residual_stack"] != "available":
        raise Unavailable(f"the CPU kernels are missing: {states['residual_stack']}")
    return given, lambda metrics: None


def _backends() -> dict[str, dict[str, str]]:
    from deepres.kernels import backends

    return backends()


def _clocked(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
