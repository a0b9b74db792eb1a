"""One training run in memory: its parts, one round of it, and the state that a checkpoint holds.

Data flows one way: environments -> data -> algorithm -> training -> kernels. Nothing here knows of folders.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from functools import wraps
from typing import Any, TypeVar

import torch

from deepres.acting import ActorPolicy
from deepres.config import Config
from deepres.data.batch import COLUMNS, Unroll
from deepres.data.chunks import Chunk
from deepres.data.collect import Ahead, collect
from deepres.data.environments import Environments, Step
from deepres.data.replay import DTYPES, ReplayBuffer
from deepres.data.upload import uploaded
from deepres.machine import pick_device, plain_torch, seeded
from deepres.ranks import ALONE, Ranks, deal
from deepres.runs.checkpoint import Checkpoint, named_leaves
from deepres.training import memory_plan
from deepres.training.cuda_graph import gradient_steps
from deepres.training.environments import open_for, require_like, sizes_of
from deepres.training.evaluate import EVAL_SEED, Evaluation, Paths, evaluate
from deepres.training.faults import drop_broken
from deepres.training.instruments import measure
from deepres.training.learner import Learner
from deepres.training.stability import Diverged, Rollbacks, check_round

Method = TypeVar("Method", bound=Callable[..., Any])


def settled(method: Method) -> Method:
    """A method of a run that computes with the run's threads and PyTorch's own settings, and leaves the caller's."""

    @wraps(method)
    def call(run: Run, *arguments: Any, **options: Any) -> Any:
        with plain_torch(run.threads):
            return method(run, *arguments, **options)

    return call  # type: ignore[return-value]


class Run:
    """One training run: everything that a checkpoint holds, and the steps that change it.

    ranks: the processes that make the run together; each has its share of environments and batch, and calls the same
    methods. restored: the state to go on from. Raises ValueError, MemoryError in one sentence, before anything large
    is allocated.
    """

    def __init__(self, config: Config, *, ranks: Ranks = ALONE, restored: Checkpoint | None = None):
        self.config, self.ranks = config, ranks
        self.share = ranks.share(config)
        self.device = ranks.place(pick_device(config.system.device))
        self.threads = ranks.threads(config.system.threads)
        seed = config.schedule.seed
        self.env = self._open_env()
        episodes = config.schedule.eval_envs
        self.eval_env = open_for(config.env.evaluated, episodes, seed=seed, device=self.device)
        self.sizes = sizes_of(self.env)
        require_like(self.eval_env, self.sizes, config.env)
        memory_plan.require(self.share, self.sizes)
        self.learner = Learner(
            self.share,
            self.sizes,
            device=self.device,
            generator=seeded(seed),  # the same in every rank
            ranks=ranks,
        )
        self.sampler = self.learner.algorithm.sampler
        self.buffer = self._open_buffer()
        self.steps = gradient_steps(self.learner)
        self.rollbacks = Rollbacks()
        self._ahead: Ahead | None = None
        self.generator = seeded(ranks.seed(seed + 1), self.device)
        self.standing: Step = self.env.reset()
        """Where the environments stand."""
        self.chunk: Chunk | None = None
        """What the policy has planned for them; None before the first step, and where it plans one action at a time."""
        self.env_steps = self.rounds = self.gradient_steps = 0
        self.dealt_from = ranks.size
        """Processes that this run's environments and buffers were dealt from; its own number unless resumed."""
        self.moved = False
        """Whether it was resumed from another kind of device, whose random numbers cannot go on here."""
        self.seconds = 0.0
        self.measured: list[dict[str, Any]] = []
        """What the instruments told in the last round (see instruments.py)."""
        self.before: Evaluation | None = None
        self.latest: Evaluation | None = None
        """The figures of the newest evaluation, which was at `evaluated` env steps; none yet at -1."""
        self.evaluated = -1
        if restored is not None:
            self.load_state(restored)

    # --- what is learned from ---

    def _open_env(self) -> Environments:
        share, seed = self.share.env.num_envs, self.ranks.seed(self.config.schedule.seed)
        return open_for(self.config.env, share, seed=seed, device=self.device)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the ring keeps beside states, actions and trajectories."""
        return tuple(COLUMNS) if self.config.schedule.record == "all" else self.sampler.columns

    def _open_buffer(self) -> Any:
        where = self._buffer_device()
        return ReplayBuffer(
            self.share.env.num_envs,
            self.config.schedule.buffer_steps,
            self.sizes,
            self.env.goal_slice,
            self.columns,
            reached=self.env.reached,
            threshold=self.env.threshold,
            device=where,
            dtype=DTYPES[self.config.system.buffer_dtype],
            pinned=(where.type, self.device.type) == ("cpu", "cuda"),
        )

    def _buffer_device(self) -> torch.device:
        asked = self.config.system.buffer_device
        return self.device if asked in ("auto", self.device.type) else pick_device(asked)

    # --- one round ---

    @property
    def done(self) -> bool:
        return self.rounds > 0 and self.env_steps >= self.config.schedule.total_steps

    @property
    def reached(self) -> bool:
        """Whether the policy as it is reached the success at which the run ends."""
        stop = self.config.schedule.stop_at_success
        if stop is None or self.latest is None or self.evaluated != self.env_steps:
            return False
        return self.rounds > 0 and self.latest.success_any >= stop

    @property
    def due(self) -> bool:
        """Whether the policy as it is is to be evaluated, and was not."""
        scheduled = self.done or self.rounds % self.config.schedule.eval_every == 0
        return scheduled and self.evaluated != self.env_steps

    @settled
    def round(self) -> dict[str, float]:
        """Collect, then learn; returns the round's figures. The first round fills the buffer to its minimum."""
        schedule = self.config.schedule
        began = time.perf_counter()
        missing = schedule.min_buffer_steps - self.buffer.size
        steps = max(schedule.unroll_length, missing)
        ahead = self._collect_ahead() if self.config.system.overlap and missing <= 0 else None
        success, broken = self._collect(steps) if ahead is None else (0.0, 0)
        collected = time.perf_counter()
        try:
            metrics = self._learn()
        finally:
            if ahead is not None:
                success, broken = self._keep(*ahead.result())
        metrics = self.ranks.mean({"train_success": success, "broken_envs": float(broken), **metrics})
        ended = time.perf_counter()
        self.rounds += 1
        self.seconds += ended - began
        metrics["broken_envs"] *= self.ranks.size
        self._tell_broken(round(metrics["broken_envs"]))
        self._check(metrics)
        return {
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            **metrics,
            "seconds": self.seconds,
            "env_steps_per_second": self.config.env.num_envs
            * steps
            / ((ended if ahead else collected) - began),
            "gradient_steps_per_second": schedule.gradient_steps / (ended - collected),
        }

    def _check(self, metrics: dict[str, float]) -> None:
        """Raise Diverged, or what rank 0 tells for all, after a round that cannot be gone on from."""
        schedule = self.config.schedule
        try:
            check_round(metrics, schedule, self.rounds)
        except Diverged as diverged:
            if schedule.on_divergence == "rollback":  # every rank catches it, and they go back together
                raise
            raise self.ranks.agreed(diverged) from None

    @settled
    def watch(self, policy: ActorPolicy, steps: int) -> None:
        """Let another policy act: `steps` steps of each environment go into the buffer, and count as none of the
        run's."""
        counted, self.chunk = self.env_steps, None
        self._collect(steps, policy)
        self.env_steps, self.chunk = counted, None

    def _collect(self, steps: int, policy: ActorPolicy | None = None) -> tuple[float, int]:
        """Returns the share of steps at the goal, and how often an environment broke."""
        share, collected, broken = 0.0, 0, 0
        while collected < steps:
            part = min(self.config.schedule.unroll_length, steps - collected)
            standing, unroll = collect(
                self.env,
                self.standing,
                policy or self.learner.policy,
                part,
                self.generator,
                self.columns,
                self.chunk,
            )
            success, dropped = self._keep(standing, unroll)
            share += success * part / steps
            collected += part
            broken += dropped
        return share, broken

    def _keep(self, standing: Step, unroll: Unroll) -> tuple[float, int]:
        """Put an unroll into the buffer, without environments that broke; its success, and their number."""
        seed = self.ranks.seed(self.config.schedule.seed, "repair", self.env_steps)
        self.standing, unroll, dropped = drop_broken(self.env, standing, unroll, seed)
        self.chunk = unroll.chunk
        self.buffer.insert(unroll)
        self.env_steps += unroll.states.shape[0] * self.config.env.num_envs
        return unroll.success, dropped

    def _tell_broken(self, count: int) -> None:
        if count and self.ranks.rank == 0:
            warnings.warn(
                f"{count} of {self.config.env.num_envs} environments returned values that are not finite in round "
                f"{self.rounds}; what they did was dropped and they began anew",
                RuntimeWarning,
                stacklevel=3,
            )

    def _collect_ahead(self) -> Future[tuple[Step, Unroll]]:
        if self._ahead is None:
            self._ahead = Ahead(self.env, self.columns)
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.device))
        steps = self.config.schedule.unroll_length
        return self._ahead.start(self.standing, self.learner.policy, steps, seed, self.chunk)

    def _learn(self) -> dict[str, float]:
        schedule = self.config.schedule
        batches = self.sampler.batches(
            self.buffer,
            schedule.gradient_steps,
            self.share.schedule.batch_size,
            window=self._window,
            generator=self.generator,
        )
        if self.buffer.device.type != self.device.type:
            batches = uploaded(batches, self.device)
        for batch in batches:
            noise = self.learner.noise(batch, self.generator)
            self.steps(batch, noise)
        every = schedule.instruments_every
        self.measured = (
            measure(self.learner, batch, noise) if every and (self.rounds + 1) % every == 0 else []
        )
        self.gradient_steps += schedule.gradient_steps
        return self.steps.read()

    @property
    def _window(self) -> int:
        """Consecutive steps that a goal and its row lie within; of an on-policy algorithm those that it learns from."""
        if self.learner.algorithm.on_policy:
            return self.config.schedule.unroll_length
        return self.config.env.episode_length

    @settled
    def evaluate(
        self,
        seed: int | None = None,
        watch: Callable[[Any], None] | None = None,
        abandon: Callable[[], bool] = lambda: False,
    ) -> tuple[Evaluation, Paths]:
        """Figures of the deterministic policy; without a seed of its own, on the run's fixed starts and goals. See
        training.evaluate."""
        seed = self.config.schedule.seed + EVAL_SEED if seed is None else seed
        return evaluate(self.eval_env, self.learner.policy, seed=seed, watch=watch, abandon=abandon)

    def note(self, figures: Evaluation) -> None:
        """Keep the figures of the policy as it is."""
        self.before = self.before or figures
        self.latest, self.evaluated = figures, self.env_steps

    # --- state ---

    def state(self) -> Checkpoint:
        """Everything that the run goes on from."""
        own = {"generator": self.generator.get_state()} | self._own_tensors()
        counters = {
            "env_steps": self.env_steps,
            "rounds": self.rounds,
            "gradient_steps": self.gradient_steps,
            "seconds": self.seconds,
            "buffer_inserted": self.buffer.inserted,
            "before": asdict(self.before) if self.before else None,
            "latest": asdict(self.latest) if self.latest else None,
            "evaluated": self.evaluated,
        }
        shared = self.learner.state_tensors()
        return Checkpoint(shared, counters, self.config.to_dict(), {self.ranks.rank: own}, asdict(self.sizes))

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        """What this rank alone has of the state: where its environments stand, and what its buffer holds."""
        own = {f"env/{name}": leaf for name, leaf in self.env.state_tensors(self.standing).items()}
        if self.chunk is not None:
            own |= {f"chunk/{name}": tensor for name, tensor in self.chunk.state_tensors().items()}
        if self.config.schedule.save_buffer:
            own |= {f"buffer/{name}": column for name, column in self.buffer.state_tensors().items()}
        return own

    def _load_own_tensors(self, own: dict[str, torch.Tensor], inserted: int) -> None:
        """What `_own_tensors` gave. inserted: steps that the buffer had ever held."""
        self.standing = self.env.load_state_tensors(self.standing, _part(own, "env/"))
        planned = _part(own, "chunk/")
        self.chunk = Chunk.of(planned, self.device) if planned else None
        held = _part(own, "buffer/")
        if held:
            self.buffer.load_state_tensors(held, inserted)
        else:
            self.buffer.inserted = 0

    def load_state(self, restored: Checkpoint) -> None:
        """Go on from what `state` gave. Raises ValueError if it does not fit this run's options."""
        counters, ranks = restored.counters, self.ranks
        if counters.get("policy_alone"):
            raise ValueError(
                "this run holds a pruned policy alone, without what it was trained with, and cannot learn on; "
                "evaluate, export or distill it, or train the run that it came from"
            )
        own = self._own_part(restored)
        self.learner.load_state_tensors(restored.tensors)
        saved = own.get("generator")  # none where they are dealt anew
        if saved is not None and saved.shape == self.generator.get_state().shape:
            self.generator.set_state(saved)
        else:
            self.moved = saved is not None
            purpose = ("resumed", counters["env_steps"], ranks.size)
            self.generator.manual_seed(ranks.seed(self.config.schedule.seed + 1, *purpose))
        self._load_own_tensors(own, counters["buffer_inserted"])
        self.env_steps, self.rounds = counters["env_steps"], counters["rounds"]
        self.gradient_steps, self.seconds = counters["gradient_steps"], counters["seconds"]
        for name in ("before", "latest"):  # checkpoints before version 0.2 have no latest, and were evaluated
            figures = counters.get(name)
            setattr(self, name, Evaluation(**figures) if figures else None)
        self.evaluated = counters.get("evaluated", self.env_steps)
        self.dealt_from = restored.size

    def _own_part(self, restored: Checkpoint) -> dict[str, torch.Tensor]:
        """What this rank owns of the environments and buffers that restored.size processes had."""
        names = list(self.env.state_tensors(self.standing))
        shards = {i: named_leaves(shard, names) for i, shard in restored.shards.items()}
        if restored.size == self.ranks.size:
            return shards[self.ranks.rank]
        own = {}
        for name in next(iter(shards.values())):
            if name != "generator":
                held = {i: shard[name] for i, shard in shards.items()}
                axis = 1 if name.startswith("buffer/") else 0  # a ring is [steps, environments, ...]
                own[name] = deal(held, restored.size, self.ranks.rank, self.ranks.size, axis)
        return own


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
