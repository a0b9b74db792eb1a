"""A round's gradient steps launched one by one and from a graph: the same bits, the same means."""

from __future__ import annotations

import logging

import pytest
import torch

from deepres.config import Config
from deepres.data.upload import uploaded
from deepres.kernels import backends
from deepres.kernels.residual_stack import cuda
from deepres.kernels.residual_stack.options import StackOptions
from deepres.training.cuda_graph import WARM_UP, GraphSteps, Steps, gradient_steps
from helpers.learners import METRICS, B, batch_for, learner_of, numbers, same, small, stream


def test_slots_give_the_plain_loops_bits_and_read_their_means():
    """All of GraphSteps but CUDA's own capture: the step that it records runs here each time it is replayed."""
    recorded = []

    def capture(step):
        recorded.append(step)
        return step

    plain, slotted = Steps(learner_of(small())), GraphSteps(learner_of(small()), capture)
    batches = stream(12)
    batches[7][0].goal[0] = torch.inf
    for i, (batch, noise) in enumerate(batches):
        for steps in (plain, slotted):
            steps(batch, noise)
        assert len(recorded) == slotted.captured == (i >= WARM_UP)
    assert same(numbers(plain.learner), numbers(slotted.learner))
    metrics = plain.read()
    assert metrics == slotted.read() and tuple(metrics) == METRICS
    assert metrics["skipped_steps"] == 1
    fresh = learner_of(small())
    kept = [fresh.update(*each)["critic_loss"].item() for i, each in enumerate(batches) if i != 7]
    assert metrics["critic_loss"] == pytest.approx(sum(kept) / 11, rel=1e-6)

    # new tensors behind the optimisers: recorded again
    slotted.learner.load_state_tensors(numbers(learner_of(small())))
    for batch, noise in batches[: WARM_UP + 1]:
        slotted(batch, noise)
    assert len(recorded) == 2
    assert set(slotted.read()) == set(METRICS)


def test_a_refused_capture_goes_on_from_python_and_says_why(caplog):
    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")

    refused, plain = GraphSteps(learner_of(small()), refuse), Steps(learner_of(small()))
    with caplog.at_level(logging.WARNING, logger="deepres"):
        for each in stream(WARM_UP + 2):
            refused(*each)
            plain(*each)
    assert same(numbers(refused.learner), numbers(plain.learner)) and refused.refused
    assert [r.getMessage() for r in caplog.records] == [
        "gradient steps are launched one by one: CUDA refused to capture one (operation not permitted when stream "
        "is capturing); cuda_graph=False leaves this out"
    ]


def on_kernels(**options) -> Config:
    """A config whose stacks a GPU's own kernels serve: packed weights and all streams are in its step."""
    assert backends()["residual_stack"]["cuda"] == "available"
    config = small(width=64, **options)
    x, stack = torch.zeros(B, 64, device="cuda"), StackOptions(precision=config.system.precision)
    assert cuda.unsupported(x, config.network.depth, stack) is None
    return config


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "options"),
    [("crl", {}), ("crl", {"max_grad_norm": 0.1, "precision": "bf16"}), ("sac", {"hindsight": 0.5})],
    ids=["crl", "crl bf16 clipped", "sac, whose critics are a group"],
)
def test_a_captured_step_gives_the_plain_loops_bits(name, options, caplog):
    device = torch.device("cuda")
    config = on_kernels(warmup_steps=5, **options) if name == "crl" else on_kernels(algorithm=name, **options)
    learners = [learner_of(config, device=device) for _ in range(2)]
    plain, captured = Steps(learners[0]), gradient_steps(learners[1])
    assert type(captured) is GraphSteps
    on_cpu = learner_of(config)
    batches = [batch_for(on_cpu, seed) for seed in range(12)]
    batches[7][0].goal[0] = torch.inf
    with caplog.at_level(logging.WARNING, logger="deepres"):
        for _ in range(2):
            for batch, noise in zip(
                uploaded((b for b, _ in batches), device), (n for _, n in batches), strict=True
            ):
                plain(batch, noise.to(device))
                captured(batch, noise.to(device))
            assert captured.captured and captured.read() == plain.read()
            captured.learner.lr_scale = plain.learner.lr_scale = 0.5
    assert not caplog.records
    assert same(numbers(plain.learner), numbers(captured.learner))


@pytest.mark.gpu
def test_a_step_waits_for_nothing():
    device = torch.device("cuda")
    learner = learner_of(on_kernels(), device=device)
    batches = list(uploaded((b for b, _ in stream(4)), device))
    noises = [noise.to(device) for _, noise in stream(4)]
    try:
        for i, (batch, noise) in enumerate(zip(batches, noises, strict=True)):
            torch.cuda.set_sync_debug_mode("error" if i == 3 else "default")  # compilers may wait at first
            learner.step(batch, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_on_a_cpu_nothing_is_captured():
    assert type(gradient_steps(learner_of(small()))) is Steps
