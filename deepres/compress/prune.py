"""Pruning: residual blocks are left out of a trained policy by their scores, in rounds, with healing between them.

    while more blocks than wanted:
        score every block (analyse.py) on states that the unpruned policy visited
        drop an eighth of as many blocks as the run has, the least
        heal: so many gradient steps of distillation, teacher the unpruned policy (compress/distill.py)

A pruned actor is weight[kept] of the stacked parameters, so every kernel serves it as it is. What comes out is a run's
folder with the policy alone in its checkpoint:

    OUT/config.json       the run's, with actor_depth as asked
        checkpoints/      the actor's parameters, at the run's env_steps
        evaluations.csv   the pruned policy's evaluation
        pruned.json       blocks kept, and of each round what was scored, dropped, and the action's error
        pruning/          until it is done: the rounds so far, from which the same command goes on
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deepres.acting import ActorPolicy
from deepres.compress.analyse import SCORES, STATES, analyse, visited
from deepres.compress.blocks import Blocks
from deepres.compress.distill import open_student, student_config
from deepres.machine import plain_torch
from deepres.policy import Policy
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import Checkpoint
from deepres.runs.folder import RunFolder, require_asked, write_whole
from deepres.runs.logs import CsvLog

RECORD = "pruned.json"


@dataclass(frozen=True)
class Asked:
    """What is asked of a pruning: its source and that one's env_steps, layers to be left, score, gradient steps of
    healing after each round, rounds, states to score on, seed."""

    source: str
    env_steps: int
    depth: int
    score: str
    heal: int
    rounds: int
    states: int
    seed: int


@dataclass(frozen=True)
class Round:
    """One round. kept: the blocks of the run that are left, in order. dropped: those that went, the least first, and
    their scores. error: rms of the difference of its actions from the unpruned policy's, on the states that were scored
    on. healed: the same after healing; None without."""

    kept: list[int]
    dropped: list[int]
    scores: list[float]
    error: float
    healed: float | None


@plain_torch()
def prune(
    run: str | Path,
    depth: int,
    out: str | Path,
    *,
    score: str = "exact",
    heal: int = 0,
    rounds: int | None = None,
    states: int = STATES,
    seed: int = 0,
    device: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Policy:
    """Write the policy of `run`, with `depth` layers left of its actor, into the new folder `out`; returns it.

        prune("runs/ant-crl-d64-s0", 16, "runs/ant-p16", heal=1000);  Policy.load("runs/ant-p16").evaluate()

    run: a run's folder, or a file of Policy.save; it stays as it is. depth: a multiple of skip_every below the actor's.
    score: exact, ablated, gradient, angular or norm. heal: gradient steps of distillation after each round. rounds:
    over which the removal is spread evenly; None drops an eighth of the run's blocks in each. states: how many are
    scored on. seed: draws them, and is that of healing. device: auto, cpu, cuda or cuda:1;
    None is the run's own. tell: called with a line for each round.

    Interrupted, the same call goes on after the last round that was done. Raises what Policy.load raises, ValueError in
    one sentence for what cannot be, FileExistsError if something else is in `out`, InUse.
    """
    teacher = Policy.load(run, **({} if device is None else {"device": device}))
    whole = Blocks(teacher.network)
    counts = _checked(teacher, whole, depth, score, heal, rounds)
    asked = Asked(str(run), teacher.env_steps, depth, score, heal, len(counts), states, seed)
    folder = RunFolder(Path(out))
    progress = _Progress(folder.path / "pruning", asked)
    lock = folder.take(resume=progress.begun)
    try:
        done, policy = progress.read(teacher)
        obs = visited(teacher, states, seed)
        for number in range(len(done), len(counts)):
            before = done[-1].kept if done else list(range(whole.count))
            policy, one = _round(teacher, policy, before, counts[number], obs, asked)
            done.append(one)
            progress.write(done, policy)
            errors = " -> ".join(f"{e:.4f}" for e in (one.error, one.healed) if e is not None)
            tell(
                f"round {number + 1} of {len(counts)}: {counts[number]} of {whole.count} blocks left, "
                f"action error {errors}"
            )
        policy = _finish(folder, policy, asked, done)
        progress.remove()
        figures = policy.evaluation
        assert figures is not None
        tell(f"goals reached {figures['success_any']:.1%}, time at goal {figures['time_at_goal']:.1f} steps")
    finally:
        lock.give_back()
    return policy


def schedule(blocks: int, wanted: int, rounds: int | None = None) -> list[int]:
    """Blocks left after each round, `wanted` at last: in so many rounds, or an eighth of all gone in each."""
    if rounds is None:
        each = max(1, blocks // 8)
        return [*range(blocks - each, wanted, -each), wanted]
    return [blocks - (blocks - wanted) * i // rounds for i in range(1, rounds + 1)]


def _checked(
    teacher: Policy, blocks: Blocks, depth: int, score: str, heal: int, rounds: int | None
) -> list[int]:
    """`schedule` of what is asked; ValueError in one sentence where it cannot be."""
    size, layers = blocks.size, blocks.size * blocks.count
    for name, value, least in (("depth", depth, size), ("heal", heal, 0), ("rounds", rounds, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    if depth >= layers:
        raise ValueError(f"depth must be below the {layers} layers of this policy, got {depth}")
    if depth % size:
        raise ValueError(
            f"depth must be a multiple of {size}, the layers of a block, got {depth}; use {depth - depth % size}"
        )
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    gone = blocks.count - depth // size
    if rounds is not None and rounds > gone:
        raise ValueError(f"rounds must be at most the {gone} blocks that go, got {rounds}")
    if heal:
        student_config(teacher, None, depth, steps=heal)
    return schedule(blocks.count, depth // size, rounds)


def _round(
    teacher: Policy, policy: Policy, before: list[int], count: int, obs: Tensor, asked: Asked
) -> tuple[Policy, Round]:
    """`policy`, of the teacher's blocks `before`, with the `count` best of them, healed; and what was done."""
    blocks = Blocks(policy.network)
    scores = analyse(blocks, obs, asked.seed).score(asked.score)
    by_score = sorted(range(len(before)), key=lambda place: scores[place])
    dropped, left = by_score[: len(before) - count], sorted(by_score[len(before) - count :])
    policy = _with(policy, blocks.kept(left), count * blocks.size)
    error, healed = _error(policy, teacher, obs), None
    if asked.heal:
        policy = _healed(teacher, policy, asked.heal, asked.seed)
        healed = _error(policy, teacher, obs)
    kept, gone = [before[place] for place in left], [before[place] for place in dropped]
    return policy, Round(kept, gone, [scores[place] for place in dropped], error, healed)


def _with(policy: Policy, network: ActorPolicy, depth: int) -> Policy:
    return replace(policy, network=network, config=policy.config.replace(actor_depth=depth), evaluation=None)


def _healed(teacher: Policy, policy: Policy, steps: int, seed: int) -> Policy:
    """`policy` after so many gradient steps of distillation from `teacher`."""
    depth = policy.config.network.actor_depth
    assert depth is not None
    start = dict(policy.network.actor.named_parameters())
    student = open_student(teacher, depth, start=start, steps=steps, seed=seed)
    while not student.done:
        student.round()
    actor = student.learner.policy.copy().actor
    return replace(policy, network=replace(policy.network, actor=actor))


@torch.no_grad()
def _error(policy: Policy, teacher: Policy, obs: Tensor) -> float:
    apart = policy.network.actions(obs, None) - teacher.network.actions(obs, None)
    return float(apart.square().mean().sqrt())


class _Progress:
    """The rounds that are done, in a folder of their own: asked.json, rounds.json, and the newest round's policy."""

    def __init__(self, folder: Path, asked: Asked):
        self.folder, self.asked = folder, asked

    @property
    def begun(self) -> bool:
        return self.folder.is_dir()

    @property
    def _rounds(self) -> Path:
        return self.folder / "rounds.json"

    def read(self, teacher: Policy) -> tuple[list[Round], Policy]:
        """The rounds so far and their policy; none and the teacher at the beginning. Raises ValueError if something
        else was asked for."""
        self.folder.mkdir(exist_ok=True)
        require_asked(self.folder / "asked.json", asdict(self.asked), f"{self.folder.parent} is a pruning")
        if not self._rounds.exists():
            return [], teacher
        done = [Round(**one) for one in json.loads(self._rounds.read_text())]
        policy = Policy.load(self._file(len(done)), device=str(teacher.device))
        return done, replace(policy, config=policy.config.replace(device=teacher.config.system.device))

    def write(self, done: list[Round], policy: Policy) -> None:
        policy.save(self._file(len(done)))
        write_whole(self._rounds, json.dumps([asdict(one) for one in done]) + "\n")
        self._file(len(done) - 1).unlink(missing_ok=True)

    def _file(self, rounds: int) -> Path:
        return self.folder / f"round-{rounds}.safetensors"

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def _finish(folder: RunFolder, policy: Policy, asked: Asked, done: list[Round]) -> Policy:
    """Make `folder` the pruned policy's run: config.json, which makes it one, comes last."""
    figures = policy.evaluate()[0].as_dict()
    row = {"env_steps": policy.env_steps, "seconds": 0.0, **figures}
    CsvLog(folder.evaluations, keep_until=-1).write(row)
    counters = {"env_steps": policy.env_steps, "policy_alone": True}
    alone = Checkpoint(policy.tensors(), counters, policy.config.to_dict(), {0: {}}, asdict(policy.sizes))
    checkpoints.save(folder.checkpoints, alone, keep=1)
    record = {**asdict(asked), "kept": done[-1].kept, "done": [asdict(one) for one in done]}
    write_whole(folder.path / RECORD, json.dumps(record, indent=2) + "\n")
    write_whole(folder.config, policy.config.to_json())
    return replace(policy, evaluation={name: float(value) for name, value in row.items()})
