"""One training run: its parts, one round of it, and the checkpoints that hold it whole.

Data flows one way: environments -> bridge -> buffer -> learner -> kernels.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepres import checkpoint as checkpoints
from deepres import memory
from deepres.buffer import DTYPES, ReplayBuffer, uploaded
from deepres.config import CHANGEABLE, Config
from deepres.device import pick_device
from deepres.distributed import ALONE, Ranks, deal
from deepres.evaluate import Evaluation, Paths, evaluate
from deepres.graph import gradient_steps
from deepres.learner import Learner
from deepres.stability import Diverged, Returns, check_round

if TYPE_CHECKING:
    from concurrent.futures import Future

    from deepres.collect import Ahead, Unroll

_EVAL_SEED = 1_000_003  # added to the run's seed, so that no training episode is an evaluation's


class Run:
    """One training run: everything that a checkpoint holds, and the steps that change it.

    run_dir: a new folder, or with resume=True one that a run left. ranks: the processes that make the run together;
    each has its share of environments and batch, and calls the same methods. Raises ValueError, FileExistsError,
    CheckpointError, MemoryError in one sentence; nothing in run_dir is changed before everything fits.
    """

    def __init__(self, config: Config, run_dir: Path, *, resume: bool = False, ranks: Ranks = ALONE):
        self.config, self.run_dir, self.ranks = config, run_dir, ranks
        restored = self._find_checkpoint() if resume else None
        with ranks.together():
            self._build(restored)
        ranks.first(lambda: self._claim_folder(resume))

    def _build(self, restored: checkpoints.Checkpoint | None) -> None:
        config, ranks = self.config, self.ranks
        self.share = ranks.share(config)
        self.device = ranks.place(pick_device(config.device))
        if threads := ranks.threads(config.threads):
            torch.set_num_threads(threads)
        self.env = make_env(config, self.share.num_envs, seed=ranks.seed(config.seed))
        self.eval_env = make_env(config, config.eval_envs, name=config.eval_env)
        for name in ("state_dim", "action_dim", "goal_dim"):
            if getattr(self.eval_env, name) != getattr(self.env, name):
                raise ValueError(
                    f"eval_env must have {config.env}'s {name} {getattr(self.env, name)}, got {config.eval_env} "
                    f"with {getattr(self.eval_env, name)}; pass a variant of the same task"
                )
        memory.require(self.share, memory.env_sizes(self.env))
        dims = {"state_dim": self.env.state_dim, "action_dim": self.env.action_dim}
        self.learner = Learner(
            self.share,
            **dims,
            goal_dim=self.env.goal_dim,
            device=self.device,
            generator=torch.Generator().manual_seed(config.seed),  # the same in every rank
            ranks=ranks,
        )
        beside = config.buffer_device in ("auto", self.device.type)
        where = self.device if beside else pick_device(config.buffer_device)
        self.buffer = ReplayBuffer(
            self.share.num_envs,
            config.buffer_steps,
            **dims,
            goal_slice=self.env.goal_slice,
            device=where,
            dtype=DTYPES[config.buffer_dtype],
            pinned=(where.type, self.device.type) == ("cpu", "cuda"),
        )
        self.steps = gradient_steps(self.learner)
        self._returns = Returns()
        self._ahead: Ahead | None = None
        self.generator = torch.Generator(self.device).manual_seed(ranks.seed(config.seed + 1))
        self.env_state = self.env.reset()
        self.env_steps = self.rounds = self.gradient_steps = 0
        self.dealt_from = ranks.size
        """Processes that this run's environments and buffers were dealt from; its own number unless resumed."""
        self.seconds = 0.0
        self.before: Evaluation | None = None
        if restored is not None:
            self._restore(restored)

    def _claim_folder(self, resume: bool) -> None:
        run_dir = self.run_dir
        if not resume:
            if run_dir.exists() and any(run_dir.iterdir()):
                raise FileExistsError(
                    f"{run_dir} is not empty; pass a new folder, or resume the run that is there (--resume {run_dir})"
                )
            run_dir.mkdir(parents=True, exist_ok=True)
        draft = run_dir / "config.json.draft"
        draft.write_text(self.config.to_json())
        os.replace(draft, run_dir / "config.json")

    # --- one round ---

    @property
    def done(self) -> bool:
        return self.rounds > 0 and self.env_steps >= self.config.total_steps

    def round(self) -> dict[str, float]:
        """Collect, then learn; returns the round's figures. The first round fills the buffer to its minimum."""
        config = self.config
        began = time.perf_counter()
        missing = config.min_buffer_steps - self.buffer.size
        steps = max(config.unroll_length, missing)
        ahead = self._collect_ahead() if config.overlap and missing <= 0 else None
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
        try:
            check_round(metrics, config, self.rounds)
        except Diverged as diverged:
            if config.on_divergence == "rollback":  # every rank catches it, and they go back together
                raise
            raise self.ranks.agreed(diverged) from None
        return {
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
            **metrics,
            "seconds": self.seconds,
            "env_steps_per_second": config.num_envs * steps / ((ended if ahead else collected) - began),
            "gradient_steps_per_second": config.gradient_steps / (ended - collected),
        }

    def _collect(self, steps: int) -> tuple[float, int]:
        """Returns the share of steps at the goal, and how often an environment broke."""
        from deepres.collect import collect

        share, collected, broken = 0.0, 0, 0
        while collected < steps:
            part = min(self.config.unroll_length, steps - collected)
            unroll = collect(self.env, self.env_state, self.learner.policy, part, self.generator)
            success, dropped = self._keep(*unroll)
            share += success * part / steps
            collected += part
            broken += dropped
        return share, broken

    def _keep(self, env_state: Any, unroll: Unroll) -> tuple[float, int]:
        """Put an unroll into the buffer, without environments that broke; its success, and their number."""
        from deepres.repair import drop_broken

        seed = self.ranks.seed(self.config.seed, "repair", self.env_steps)
        self.env_state, unroll, dropped = drop_broken(self.env, env_state, unroll, seed)
        self.buffer.insert(unroll.states, unroll.actions, unroll.traj_ids)
        self.env_steps += unroll.states.shape[0] * self.config.num_envs
        return unroll.success, dropped

    def _tell_broken(self, count: int) -> None:
        if count and self.ranks.rank == 0:
            warnings.warn(
                f"{count} of {self.config.num_envs} environments returned values that are not finite in round "
                f"{self.rounds}; what they did was dropped and they began anew",
                RuntimeWarning,
                stacklevel=3,
            )

    def _collect_ahead(self) -> Future[tuple[Any, Unroll]]:
        from deepres.collect import Ahead

        if self._ahead is None:
            self._ahead = Ahead(self.env)
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.device))
        return self._ahead.start(self.env_state, self.learner.policy, self.config.unroll_length, seed)

    def _learn(self) -> dict[str, float]:
        config = self.config
        batches = self.buffer.batches(
            config.gradient_steps,
            self.share.batch_size,
            window=config.episode_length,
            gamma=config.gamma,
            generator=self.generator,
        )
        if self.buffer.device.type != self.device.type:
            batches = uploaded(batches, self.device)
        for batch in batches:
            noise = torch.randn(batch.action.shape, generator=self.generator, device=self.device)
            self.steps(batch, noise)
        self.gradient_steps += config.gradient_steps
        return self.steps.read()

    def evaluate(
        self, seed: int | None = None, watch: Callable[[Any], None] | None = None
    ) -> tuple[Evaluation, Paths]:
        """Figures of the deterministic policy; without a seed of its own, on the run's fixed starts and goals."""
        seed = self.config.seed + _EVAL_SEED if seed is None else seed
        return evaluate(self.eval_env, self.learner, seed=seed, watch=watch)

    # --- checkpoints ---

    @property
    def checkpoint_folder(self) -> Path:
        return self.run_dir / "checkpoints"

    def save(self) -> Path:
        """Write a checkpoint; raises CheckpointError if the disk refuses (what was there stays)."""
        import jax

        own = {"generator": self.generator.get_state()}
        for index, leaf in enumerate(jax.tree.leaves(self.env_state)):
            own[f"env/{index}"] = _to_tensor(leaf)
        if self.config.save_buffer:
            own.update({f"buffer/{k}": v for k, v in self.buffer.state_tensors().items()})
        counters = {
            "env_steps": self.env_steps,
            "rounds": self.rounds,
            "gradient_steps": self.gradient_steps,
            "seconds": self.seconds,
            "buffer_inserted": self.buffer.inserted,
            "before": asdict(self.before) if self.before else None,
        }
        shared = self.learner.state_tensors()
        state = checkpoints.Checkpoint(shared, counters, asdict(self.config), {self.ranks.rank: own})
        return checkpoints.save(
            self.checkpoint_folder, state, keep=self.config.keep_checkpoints, ranks=self.ranks
        )

    def roll_back(self, reason: Diverged) -> None:
        """Go back to the newest checkpoint that reads, with all learning rates times `rollback_lr_factor`.

        Otherwise as a resumed run would, with this run's config. Raises Diverged if there is no checkpoint, or if
        this one was gone back to too often; logs are the caller's (rows past `env_steps` are undone).
        """
        scale = self.learner.lr_scale * self.config.rollback_lr_factor
        try:
            restored = self._find_checkpoint()
        except checkpoints.CheckpointError as error:
            raise Diverged(f"{reason} -- and nothing to go back to: {error}") from reason
        with self.ranks.together():
            self._restore(restored)
            self.learner.lr_scale = scale
            self._returns.count(self.env_steps, reason)

    def _find_checkpoint(self) -> checkpoints.Checkpoint:
        """This rank's part of the newest checkpoint that reads; rank 0 says which."""
        read: list[checkpoints.Checkpoint] = []

        def find() -> Path:
            path, restored, skipped = checkpoints.load_newest(self.checkpoint_folder, self.ranks)
            for sentence in skipped:
                print(f"{sentence} -- going on from {path.name}")
            self._check_config(restored, path)
            read.append(restored)
            return path

        path = self.ranks.first(find)
        with self.ranks.together():
            restored = read[0] if read else checkpoints.load(path, self.ranks, check_all=False)
        return restored

    def _check_config(self, restored: checkpoints.Checkpoint, path: Path) -> None:
        started = Config.from_dict(restored.config, str(path))
        for name, was in asdict(started).items():
            if name not in CHANGEABLE and getattr(self.config, name) != was:
                raise ValueError(
                    f"{name} cannot change when a run is resumed: it was started with {was!r}, got "
                    f"{getattr(self.config, name)!r}; leave it out, or start a new run"
                )

    def _restore(self, restored: checkpoints.Checkpoint) -> None:
        import jax

        counters, ranks = restored.counters, self.ranks
        own = self._own_part(restored)
        self.learner.load_state_tensors(restored.tensors)
        if restored.size == ranks.size:
            self.generator.set_state(own["generator"])
        else:
            purpose = ("resumed", counters["env_steps"], ranks.size)
            self.generator.manual_seed(ranks.seed(self.config.seed + 1, *purpose))
        leaves, structure = jax.tree.flatten(self.env_state)
        self.env_state = jax.tree.unflatten(
            structure, [_from_tensor(own[f"env/{i}"], leaf) for i, leaf in enumerate(leaves)]
        )
        held = {k.removeprefix("buffer/"): v for k, v in own.items() if k.startswith("buffer/")}
        if held:
            self.buffer.load_state_tensors(held, counters["buffer_inserted"])
        else:
            self.buffer.inserted = 0
        self.env_steps, self.rounds = counters["env_steps"], counters["rounds"]
        self.gradient_steps, self.seconds = counters["gradient_steps"], counters["seconds"]
        self.before = Evaluation(**counters["before"]) if counters["before"] else None
        self.dealt_from = restored.size

    def _own_part(self, restored: checkpoints.Checkpoint) -> dict[str, torch.Tensor]:
        """What this rank owns of the environments and buffers that restored.size processes had."""
        if restored.size == self.ranks.size:
            return restored.shards[self.ranks.rank]
        own = {}
        for name in next(iter(restored.shards.values())):
            if name != "generator":
                held = {i: shard[name] for i, shard in restored.shards.items()}
                axis = 1 if name.startswith("buffer/") else 0  # a ring is [steps, environments, ...]
                own[name] = deal(held, restored.size, self.ranks.rank, self.ranks.size, axis)
        return own


def load_run(run_dir: str | Path, **changes: Any) -> Run:
    """The run that `train` left in run_dir, at its newest checkpoint that reads.

    changes: fields of `deepres.config.CHANGEABLE` to set otherwise, e.g. device="cpu", eval_envs=512.
    """
    folder = Path(run_dir)
    return Run(replace(Config.from_file(folder / "config.json"), **changes), folder, resume=True)


def make_env(config: Config, num_envs: int, *, seed: int | None = None, name: str | None = None) -> Any:
    """`num_envs` environments as the config wants them; asked for again, the ones that are compiled already."""
    seed = config.seed if seed is None else seed
    options = (config.episode_length, config.auto_reset, config.physics, config.parity)
    return _make_env(name or config.env, num_envs, seed, *options)


@lru_cache(maxsize=4)
def _make_env(
    name: str, num_envs: int, seed: int, episode_length: int, auto_reset: str, physics: str, parity: bool
) -> Any:
    from deepres import envs

    quirks: dict[str, Any] = {"parity": True} if parity else {}
    return envs.make(name, num_envs, seed, episode_length, auto_reset, physics, **quirks)


def _to_tensor(leaf: Any) -> torch.Tensor:
    """A leaf of the environments' state as a tensor of its own, random keys as their words."""
    import jax
    import numpy as np

    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.array(leaf)
    return torch.from_numpy(array.astype(np.int64) if array.dtype == np.uint32 else array)


def _from_tensor(tensor: torch.Tensor, like: Any) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np

    array = tensor.numpy()
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array.astype(np.uint32)), impl=jax.random.key_impl(like))
    if array.shape != like.shape:
        raise ValueError(
            f"the checkpoint does not fit this environment: a state array must have shape {list(like.shape)}, "
            f"got {list(array.shape)}; resume with the num_envs and the version that the run was started with"
        )
    return jnp.asarray(array.astype(like.dtype))
