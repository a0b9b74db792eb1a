"""A distillation step against an independent one from its equation; students of real runs, begun, stopped, resumed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deepres import Config, Policy
from deepres.commands.main import main
from deepres.compress.distill import distill, evenly, open_student
from deepres.runs.folder import RunFolder
from deepres.training.grow import grow
from deepres.training.loop import find_state, train
from deepres.training.optimizer import Adam
from helpers.learners import batch_for, learner_of, small
from helpers.plain_networks import encoded, gaussian, leaves
from helpers.policies import untrained
from helpers.tiny_runs import TINY as CRL
from helpers.tiny_runs import different


@pytest.mark.parametrize(("share", "late"), [(0.0, 0.0), (0.1, 0.0), (1.0, 1.0)])
def test_a_step_equals_the_equation(share, late):
    options = {"teacher_depth": 8, "teacher_width": 16, "kl": 0.3, "energy_share": share, "energy_depth": 4}
    learner = learner_of(small("distill", **options), apart=0.3)
    learner.algorithm.actor.log_std.bias.data[0] = -1.5  # below the bound on the student's spread
    batch, noise = batch_for(learner)
    p = leaves(learner.parameters())
    state, goal = batch.state.double(), batch.goal.double()
    student = gaussian(p, state, goal)
    known = {f"actor.{name.removeprefix('teacher.')}": t for name, t in p.items() if name[0] == "t"}
    teacher = gaussian(known, state, goal)
    apart = torch.tanh(student.mean) - torch.tanh(teacher.mean)
    huber = torch.where(apart.abs() <= 1, apart.square() / 2, apart.abs() - 0.5).sum(1).mean()
    bounded = torch.distributions.Normal(student.mean, student.stddev.clamp(min=torch.tensor(-3.0).exp()))
    kl = torch.distributions.kl_divergence(teacher, bounded).sum(1).mean()
    assert (student.stddev.log() < -3).any() and (apart.abs() > 1).any()
    loss = huber + 0.3 * kl
    if late:
        far = encoded(p, "phi", state, torch.tanh(student.mean)) - encoded(p, "psi", goal)
        loss = loss + far.square().sum(1).sqrt().mean()  # minus the energy
    own = [name for name in p if name.startswith("actor.")]
    grads = dict(zip(own, torch.autograd.grad(loss, [p[n] for n in own]), strict=True))

    metrics = learner.update(batch, noise)

    for name, value in (("actor_loss", loss), ("huber", huber), ("kl", kl)):
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert metrics["action_error"].item() == pytest.approx(apart.square().mean().item(), rel=1e-5)
    for name, after in learner.parameters().items():
        if name == "taken":
            assert after.item() == pytest.approx(p[name].item() + 1)
        elif not name.startswith("actor."):
            assert after.grad is None and torch.equal(after.double(), p[name]), name
        else:
            worst = (after.grad.double() - grads[name]).abs().max()
            assert worst <= 1e-5 * max(1.0, float(grads[name].abs().max())), name


def test_the_step_size_falls_along_half_a_cosine():
    mine, theirs = (nn.Parameter(torch.ones(3, dtype=torch.double)) for _ in range(2))
    ours, plain = Adam([mine], 0.1, decay_steps=6, last_share=0.1), torch.optim.Adam([theirs], 0.1)
    for step in range(9):
        plain.param_groups[0]["lr"] = 0.01 + 0.09 * (1 + math.cos(math.pi * min(step, 6) / 6)) / 2
        for p, optimizer in ((mine, ours), (theirs, plain)):
            p.grad = torch.tensor([1.0, -0.5, 2.0 + step], dtype=torch.double)
            optimizer.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


def test_a_student_starts_from_every_so_manieth_block():
    known = dict(untrained(actor_depth=32).network.actor.named_parameters())
    weight, stem = "trunk.stack.weight", "trunk.stem.weight"
    for depth, layers in ((8, [*range(12, 16), *range(28, 32)]), (4, [*range(28, 32)]), (32, [*range(32)])):
        found = evenly(known, depth, 4)
        assert torch.equal(found[weight], known[weight][layers]) and found[stem] is known[stem]
        assert found.keys() == known.keys()
    assert len(evenly(known, 12, 4)[weight]) == 12  # no whole number of blocks apart
    assert evenly(known, 64, 4) == evenly(known, 2, 4) == evenly(known, 8, 0) == {}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A file of an untrained policy of 16 layers: it teaches as well as any."""
    return untrained(depth=16, actor_depth=16, width=8).save(
        tmp_path_factory.mktemp("teacher") / "t.safetensors"
    )


TINY = {"num_envs": 4, "unroll_length": 5, "gradient_steps": 20, "batch_size": 16, "eval_every": 2}


def test_a_student_is_a_run_as_any_other(teacher, tmp_path, capsys):
    policy = Policy.load(teacher)
    run = open_student(policy, 8, steps=60, **TINY)
    assert run.buffer.size == 25 and run.env_steps == 0  # an episode of the teacher's, not counted
    assert run.config.schedule.total_steps == 4 * 3 * 5 and run.config.schedule.buffer_steps == 40
    obs = torch.randn(64, 6)
    started = run.learner.act(obs)
    assert torch.equal(run.learner.algorithm.teacher(obs)[0], policy.network.actor(obs)[0])
    kept = evenly(dict(policy.network.actor.named_parameters()), 8, 4)
    assert torch.equal(run.learner.parameters()["actor.trunk.stack.weight"], kept["trunk.stack.weight"])

    result = distill(teacher, 8, tmp_path / "whole", steps=60, progress=False, **TINY)
    assert result.env_steps == 60 and result.before.final_distance > 0
    student = Policy.load(tmp_path / "whole")
    error = (student.act(obs) - policy.act(obs)).square().mean()
    assert error < 0.8 * (started - policy.act(obs)).square().mean()

    # in parts: stopped after a round, resumed
    begun = distill(teacher, 8, tmp_path / "parts", steps=60, progress=False, **TINY, total_steps=20).run_dir
    config = student.config
    train(config, begun, resume=True, progress=False)
    ends = [find_state(RunFolder(path), config) for path in (tmp_path / "whole", begun)]
    assert different(*ends) == []

    assert grow(begun, 16, tmp_path / "grown") and Policy.load(tmp_path / "grown").config.network.depth == 16
    assert torch.equal(Policy.load(tmp_path / "grown").act(obs), student.act(obs))
    main(["export", str(begun), "--out", str(tmp_path / "policy.pt2")])
    assert (tmp_path / "policy.pt2").exists()


def test_the_teachers_critic_comes_from_its_run(tmp_path):
    folder = train(CRL, tmp_path / "teacher", progress=False).run_dir
    run = open_student(folder, 4, steps=20, energy_share=0.1, **TINY)
    theirs = find_state(RunFolder(folder), CRL).tensors
    judges = {name: p for name, p in run.learner.parameters().items() if name.startswith(("phi.", "psi."))}
    assert judges and all(torch.equal(p, theirs[f"parameters/{name}"]) for name, p in judges.items())
    run.round()
    assert run.learner.algorithm.taken == 20
    with pytest.raises(
        ValueError, match=r"energy_share=0.1 asks the teacher's whole run, got a policy; pass"
    ):
        open_student(Policy.load(folder), 4, steps=20, energy_share=0.1, **TINY)


def test_what_cannot_be_taught_is_told(teacher, tmp_path):
    for arguments, options, sentence in (
        ((teacher, 6), {}, "multiple of skip_every=4, got 6; use 4"),
        ((teacher, 8), {"env": "ant"}, "learns its teacher's task, env=point_u_maze, got env=ant"),
        (
            (teacher, 8),
            {"env_options": {"layout": "big_maze"}},
            r"env_options=\(\), got env_options={'layout'",
        ),
        ((teacher, 8), {"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ((teacher, 8), {"depht": 3}, "no option 'depht'"),
        ((teacher, 8), {"norm": False}, "a network of its teacher's kind, .* got norm=False; leave norm out"),
        ((teacher, 8), {"skip_every": 8}, "got skip_every=8; leave skip_every out"),
        (
            (teacher, 8),
            {"steps": 150},
            "gradient steps must be a multiple of 100, .* got 150; take 100 or 200",
        ),
        ((untrained("td3"), 8), {}, "tanh of a Gaussian of state and goal, got a DeterministicPolicy of td3"),
        ((untrained("gcsl"), 8), {}, "got a ClockedGaussianPolicy of gcsl"),
    ):
        with pytest.raises(ValueError, match=sentence):
            distill(*arguments, tmp_path / "no", **options)
    with pytest.raises(
        ValueError, match=r"actor.trunk.stack.weight must have shape \[4, 8, 8\], got \[16, 8, 8\]"
    ):
        open_student(teacher, 4, start=dict(Policy.load(teacher).network.actor.named_parameters()), **TINY)
    with pytest.raises(ValueError, match="begins with `deepres distill RUN --depth D`"):
        train(Config("distill", env="point_u_maze"), tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
