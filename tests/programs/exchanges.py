"""Ranks learn from shares of a batch, save together on a disk of 4 MB and fail together: FOLDER on that disk."""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from deepres import Batch, CheckpointError, Config, Learner, ResidualStack, Sizes
from deepres.ranks import ALONE, Ranks, join
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import Checkpoint

BATCH, SIZES = 12, Sizes(state=5, action=2, goal=3)
SMALL = {"depth": 4, "actor_depth": 4, "width": 32, "batch_size": BATCH, "num_envs": 12}
CONFIG = Config("crl", **SMALL, feature_dim=8)
Step = tuple[dict[str, Tensor], dict[str, Tensor]]


def learner(config: Config, ranks: Ranks) -> Learner:
    return Learner(config, SIZES, generator=torch.Generator().manual_seed(3), ranks=ranks)


def step(learner: Learner, rows: slice) -> Step:
    """The gradients of what is learned, and the metrics, of one step with `rows` of the joint batch."""
    draw = torch.Generator().manual_seed(4)
    state, action, goal, noise = (torch.randn(BATCH, n, generator=draw)[rows] for n in (5, 2, 3, 2))
    batch = Batch(state, action.tanh(), goal)
    if learner.config.algorithm_name == "sac":
        there, reward, terminal = (
            torch.randn(*shape, generator=draw)[rows] for shape in ((BATCH, 5), (BATCH,), (BATCH,))
        )
        batch = Batch(state, action.tanh(), goal, there, (reward > 0).float(), (terminal > 1).float())
        noise = torch.stack([noise, noise.flip(1)])
    metrics = learner.update(batch, noise)
    return {k: p.grad.clone() for k, p in learner.parameters().items() if p.requires_grad}, metrics


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).norm() / b[k].norm().clamp_min(1e-6)) for k in a)


def same_everywhere(ranks: Ranks, tensors: dict[str, Tensor]) -> bool:
    return all(torch.equal(other[k], tensors[k]) for other in ranks.gather(tensors) for k in tensors)


def share_of(rank: int, size: int) -> slice:
    return slice(rank * BATCH // size, (rank + 1) * BATCH // size)


def gathered_negatives(ranks: Ranks) -> None:
    """Contrasted with the goals of all ranks, the gradients are the joint batch's."""
    for form in ("forward", "backward", "symmetric", "binary"):
        for energy in ("norm", "dot"):
            config = CONFIG.replace(form=form, energy=energy)
            joint, joint_metrics = step(learner(config, ALONE), slice(None))
            share = ranks.share(config.replace(gather_negatives=True))
            gathered, metrics = step(learner(share, ranks), share_of(ranks.rank, ranks.size))
            assert apart(gathered, joint) < 1e-5, (form, energy, apart(gathered, joint))
            told = ranks.mean({k: float(v) for k, v in metrics.items()})
            for name in ("critic_loss", "actor_loss", "alpha_loss", "logsumexp", "negative_logit"):
                assert abs(told[name] - joint_metrics[name]) < 1e-4, (form, energy, name)
            assert same_everywhere(ranks, gathered)


def means_of_shares(ranks: Ranks) -> None:
    """Otherwise they are the mean of the shares'; where rows do not meet, that is the joint batch's again."""
    part = share_of(ranks.rank, ranks.size)
    alone, _ = step(learner(CONFIG, ranks), part)
    shares = [step(learner(CONFIG, ALONE), share_of(r, ranks.size))[0] for r in range(ranks.size)]
    mean = {k: sum(s[k] for s in shares) / ranks.size for k in alone}
    assert apart(alone, mean) < 1e-5 and apart(alone, step(learner(CONFIG, ALONE), slice(None))[0]) > 1e-2
    for name in ("sac", "gcbc"):
        together = learner(Config(name, **SMALL), ranks)
        found, _ = step(together, part)
        assert apart(found, step(learner(Config(name, **SMALL), ALONE), slice(None))[0]) < 1e-4, name
        assert same_everywhere(ranks, together.state_tensors()), name


def skipped_steps(ranks: Ranks) -> None:
    """What one rank cannot use, none does."""
    skipping, part = learner(CONFIG, ranks), share_of(ranks.rank, ranks.size)
    before = {k: p.detach().clone() for k, p in skipping.parameters().items()}
    noise = torch.full((part.stop - part.start, 2), float("nan") if ranks.rank == 1 else 0.0)
    metrics = skipping.update(Batch(*(torch.zeros(len(noise), n) for n in (5, 2, 3))), noise)
    assert metrics["skipped_steps"] == 1
    assert all(torch.equal(p, before[k]) for k, p in skipping.parameters().items())


def large_gradients(ranks: Ranks) -> None:
    """A wide stack's weight travels alone, and is averaged as the small ones are."""
    part = share_of(ranks.rank, ranks.size)
    stack = ResidualStack(256, 4, generator=torch.Generator().manual_seed(5))
    x = torch.randn(BATCH, 256, generator=torch.Generator().manual_seed(6))
    stack(x).square().mean().backward()
    joint = {k: p.grad.clone() for k, p in stack.named_parameters()}
    stack.zero_grad()
    stack(x[part]).square().mean().backward()
    ranks.average([p.grad for p in stack.parameters()])
    assert apart({k: p.grad for k, p in stack.named_parameters()}, joint) < 1e-5


def checkpoints_together(ranks: Ranks, disk: Path) -> None:
    def save(env_steps: int, numbers: int) -> Path:
        own = {"ring": torch.full((numbers,), float(ranks.rank))}
        state = Checkpoint({}, {"env_steps": env_steps}, {}, {ranks.rank: own})
        return checkpoints.save(disk, state, keep=3, ranks=ranks)

    save(10, 100)
    try:
        save(20, 2_000_000 if ranks.rank == 1 else 100)
        raise AssertionError("8 MB fitted a disk of 4")
    except CheckpointError as error:
        assert "nothing there was lost" in str(error)  # in every rank, though one alone met the full disk
    save(30, 50)
    loaded = checkpoints.load_newest(disk, ranks)[1]
    assert sorted(os.listdir(disk)) == ["000000000010", "000000000030"] and list(loaded.shards) == [
        ranks.rank
    ]
    assert torch.equal(loaded.shards[ranks.rank]["ring"], torch.full((50,), float(ranks.rank)))


def failing_together(ranks: Ranks) -> None:
    def refuse() -> None:
        if ranks.rank == ranks.size - 1:
            raise ValueError("the last one would not")

    try:
        with ranks.together():
            refuse()
    except ValueError as error:
        assert ranks.rank == 0 and str(error) == "the last one would not"
    except SystemExit as end:
        assert ranks.rank > 0 and end.code == 1
    assert ranks.any(ranks.rank == 1) and not ranks.any(False) and ranks.first(lambda: ranks.rank) == 0


def threads() -> list[str]:
    """The names of this process's threads (Linux)."""
    return [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]


with join(Config(device="cpu")) as ranks:
    gathered_negatives(ranks)
    means_of_shares(ranks)
    skipped_steps(ranks)
    large_gradients(ranks)
    checkpoints_together(ranks, Path(sys.argv[1]))
    failing_together(ranks)
# One that outlived its group may abort the process as Python ends.
assert not any("gloo" in name for name in threads()), threads()
if ranks.rank == 0:
    print("all equal", ranks.size)
