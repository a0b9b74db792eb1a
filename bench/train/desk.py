"""One contestant of bench/train.py in its own process: learner, environments, replay buffer, and their clocks."""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness import environment
from bench.harness.turns import clocked
from bench.harness.workers import Unavailable, use_threads
from bench.ops.registry import ACTOR_DEPTH_LIMIT
from bench.train.race import Race
from deepres.config import Config
from deepres.data.batch import Batch, Unroll
from deepres.data.collect import collect
from deepres.data.replay import ReplayBuffer
from deepres.kernels import backends
from deepres.runs.folder import RunFolder
from deepres.runs.logs import RunLog
from deepres.training.environments import open_for, sizes_of
from deepres.training.evaluate import evaluate
from deepres.training.learner import Learner

# steps, unroll, evaluations and episode of a published run: what parts are scaled to
PUBLISHED = Config("crl")
ROUND_STEPS = PUBLISHED.schedule.gradient_steps
UNROLL = PUBLISHED.schedule.unroll_length
CPU = torch.device("cpu")
WINDOW = 1_000  # steps of each environment in the buffer: what a round samples from


def config_of(race: Race, precision: str) -> Config:
    return Config(
        "crl",
        env=race.env,
        num_envs=race.num_envs,
        eval_envs=race.eval_envs,
        depth=race.depth,
        actor_depth=min(race.depth, ACTOR_DEPTH_LIMIT),
        width=race.width,
        batch_size=race.batch,
        buffer_steps=WINDOW,
        min_buffer_steps=2,
        precision=precision,
        seed=race.seed,
    )


class Desk:
    """What a worker can be asked, in this order: `record` (of one), `build`, then `steps`, `round`, `overheads`."""

    def __init__(self, threads: int | None):
        use_threads(threads)

    def describe(self) -> dict[str, Any]:
        return environment.describe("cpu")

    def record(self, race: Race, steps: int) -> None:
        """Write `steps` batches and noises to race.data: an untrained policy's walks, sampled as a run samples."""
        self._set_up(race, "deepres")
        self._fill(UNROLL)
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
        collecting = clocked(lambda: self._collect(unroll))
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
            "collect": collecting / unroll * UNROLL / ROUND_STEPS,
            "sample": sample / gradient_steps,
            "update": update / gradient_steps,
        }

    def overheads(self, eval_steps: int) -> dict[str, float]:
        """Seconds of a round's log row and of an evaluation, for each gradient step of a published run."""
        with tempfile.TemporaryDirectory() as folder:
            log = RunLog(RunFolder(Path(folder)), 0)
            row = {f"metric_{i}": 1.0 for i in range(15)} | {"env_steps": 0}
            log.write("train", row)
            log_s = min(clocked(lambda: log.write("train", row)) for _ in range(3))
            log.close()
        evaluation = self._evaluation_step_s(eval_steps) * PUBLISHED.env.episode_length
        return {
            "log": log_s / ROUND_STEPS,
            "evaluate": evaluation / (PUBLISHED.schedule.eval_every * ROUND_STEPS),
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
            from bench.train.split import parts

            seconds = parts(self.learner, batch, noise)
        return {name: value / sum(seconds.values()) for name, value in seconds.items()}

    def drop(self) -> None:
        self.learner = self.buffer = self.data = self.standing = None
        gc.collect()

    def _set_up(self, race: Race, contestant: str) -> None:
        self.contestant = contestant
        self.config = config_of(race, "bf16" if contestant == "deepres-bf16" else "fp32")
        self.env = open_for(self.config.env, race.num_envs, seed=race.seed, device=CPU)
        sizes = sizes_of(self.env)
        given = Learner(self.config, sizes, generator=torch.Generator().manual_seed(race.seed))
        self.sampler = given.algorithm.sampler
        self.learner, self._wait = _learner(contestant, given)
        self.policy: Any = given.policy if self.learner is given else self.learner
        self.buffer = ReplayBuffer(
            race.num_envs, WINDOW, sizes, self.env.goal_slice, self.sampler.columns, reached=self.env.reached
        )
        self.generator = torch.Generator().manual_seed(race.seed + 1)
        self.standing = None

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
            self.buffer.insert(replace(unroll, traj_ids=unroll.traj_ids + again * trajectories))

    def _collect(self, steps: int) -> Unroll:
        if self.standing is None:
            self.standing = self.env.reset()
        self.standing, unroll = collect(
            self.env, self.standing, self.policy, steps, self.generator, self.sampler.columns
        )
        self.buffer.insert(unroll)
        return unroll

    def _batches(self, count: int) -> Iterator[Batch]:
        batch_size = self.config.schedule.batch_size
        return self.sampler.batches(self.buffer, count, batch_size, window=WINDOW, generator=self.generator)

    def _evaluation_step_s(self, steps: int) -> float:
        """Seconds of an evaluation, for each step of its episode."""
        options = replace(self.config.env, episode_length=steps)
        env = open_for(options, self.config.schedule.eval_envs, seed=0, device=CPU)
        evaluate(env, self.policy, seed=0)  # compiles
        return clocked(lambda: evaluate(env, self.policy, seed=0)) / steps


def _learner(contestant: str, given: Learner) -> tuple[Any, Callable[[Any], None]]:
    """The contestant's learner with the weights of `given`, and what waits until a step is computed."""
    if contestant == "jax":
        from bench.published import crl_jax

        return crl_jax.JaxLearner(given), crl_jax.wait
    if contestant == "eager":
        from bench.published.crl import EagerLearner

        return EagerLearner(given), lambda metrics: None
    state = backends()["residual_stack"].get("cpu")
    if state != "available":
        raise Unavailable(f"the CPU kernels are missing: {state}")
    return given, lambda metrics: None
