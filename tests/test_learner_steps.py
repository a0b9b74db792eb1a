"""The gradient step with its savings against a plain one, and what it does when numbers stop being numbers."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from deepres.buffer import uploaded
from deepres.config import Config
from deepres.graph import WARM_UP, GraphSteps, Steps, gradient_steps
from deepres.learner import METRICS, Batch, Learner
from deepres.losses import actor_loss, alpha_loss, pair_energy, squashed_gaussian
from deepres.optimizer import Adam, sum_of_squares
from deepres.stability import MOST_RETURNS, Diverged, Returns, check_round

STATE, ACTION, GOAL, B = 7, 3, 2, 24
SMALL = Config(critic_depth=8, actor_depth=4, width=32, feature_dim=16, batch_size=B)


def make(device: torch.device | str = "cpu", **changes) -> Learner:
    config = Config(**{**vars(SMALL), **changes})
    dims = {"state_dim": STATE, "action_dim": ACTION, "goal_dim": GOAL}
    return Learner(config, **dims, device=device, generator=torch.Generator().manual_seed(0))


def stream(count: int, seed: int = 1) -> list[tuple[Batch, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(B, n, generator=g)  # noqa: E731
    return [(Batch(draw(STATE), torch.tanh(draw(ACTION)), draw(GOAL)), draw(ACTION)) for _ in range(count)]


def numbers(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_tensors().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class PlainLoop:
    """The published step with no saving: three losses apart, psi twice, gradients of everything, loops of torch."""

    def __init__(self, learner: Learner, dtype: torch.dtype):
        self.actor, self.phi, self.psi = (
            copy.deepcopy(each).to(dtype) for each in (learner.actor, learner.phi, learner.psi)
        )
        for network in (self.actor, self.phi, self.psi):
            network.trunk.stack.options = {**network.trunk.stack.options, "impl": "reference"}
        self.log_alpha = nn.Parameter(learner.log_alpha.detach().clone().to(dtype))
        self.target = learner.target_entropy
        critic = [*self.phi.parameters(), *self.psi.parameters()]
        groups = {"actor": list(self.actor.parameters()), "critic": critic, "alpha": [self.log_alpha]}
        self.optimizers = {k: torch.optim.Adam(p, lr=3e-4, foreach=False) for k, p in groups.items()}

    def step(self, batch: Batch, noise: torch.Tensor) -> None:
        s, a, g = (t.to(self.log_alpha.dtype) for t in (batch.state, batch.action, batch.goal))
        distance = (self.phi(torch.cat([s, a], 1))[:, None] - self.psi(g)[None]).square().sum(-1).sqrt()
        lse = (-distance).logsumexp(1)
        critic = (lse + distance.diagonal()).mean() + 0.1 * (lse + 1e-6).square().mean()
        action, log_prob = squashed_gaussian(*self.actor(torch.cat([s, g], 1)), noise.to(s.dtype))
        energy = pair_energy(self.phi(torch.cat([s, action], 1)), self.psi(g), "norm")
        losses = {
            "critic": critic,
            "actor": actor_loss(self.log_alpha.exp().detach(), log_prob, energy),
            "alpha": alpha_loss(self.log_alpha, log_prob, self.target),
        }
        grads = {}
        for which, loss in losses.items():
            own = self.optimizers[which].param_groups[0]["params"]
            everything = [p for o in self.optimizers.values() for p in o.param_groups[0]["params"]]
            found = torch.autograd.grad(loss, everything, retain_graph=True, allow_unused=True)
            by_id = {id(p): grad for p, grad in zip(everything, found, strict=True)}
            grads[which] = [by_id[id(p)] for p in own]
        for which, optimizer in self.optimizers.items():
            for p, grad in zip(optimizer.param_groups[0]["params"], grads[which], strict=True):
                p.grad = grad
            optimizer.step()

    def parameters(self) -> dict[str, torch.Tensor]:
        named = {"log_alpha": self.log_alpha}
        for prefix in ("actor", "phi", "psi"):
            for name, p in getattr(self, prefix).named_parameters():
                named[f"{prefix}.{name}"] = p
        return named


def test_a_hundred_steps_equal_the_plain_loop():
    """In float64, where nothing but what is computed can tell the two apart."""
    learner = make(impl="reference")
    for network in (learner.actor, learner.phi, learner.psi):
        network.double()
    learner.log_alpha.data = learner.log_alpha.data.double()
    plain, start = PlainLoop(learner, torch.float64), numbers(learner)
    for batch, noise in stream(100):
        learner.step(Batch(*(t.double() for t in vars(batch).values())), noise.double())
        plain.step(batch, noise)
    wanted = plain.parameters()
    for name, p in learner.parameters().items():
        assert (p.detach() - wanted[name].detach()).abs().max() <= 1e-9, name
        assert (p.detach() - start[f"parameters/{name}"]).abs().max() > 1e-3, name


@pytest.mark.parametrize("field", ["state", "action", "goal"])
def test_a_nan_in_a_batch_is_skipped_and_counted(field):
    learner = make()
    (good, noise), (bad, _) = stream(2)
    learner.step(good, noise)
    before = numbers(learner)
    getattr(bad, field)[3] = torch.nan
    metrics = learner.update(bad, noise)
    assert same(before, numbers(learner))
    assert metrics.pop("skipped_steps") == 1 and not any(metrics.values())
    metrics = learner.update(good, noise)
    assert metrics["skipped_steps"] == 0 and all(v.isfinite() for v in metrics.values())
    assert not same(before, numbers(learner))


def test_an_overflowing_gradient_behind_a_finite_loss_is_skipped():
    learner = make()
    batch, noise = stream(1)[0]
    before = numbers(learner)
    learner.phi.head.bias.register_hook(lambda grad: grad * torch.inf)
    assert learner.update(batch, noise)["skipped_steps"] == 1
    assert same(before, {k: v for k, v in numbers(learner).items() if k in before})
    assert not learner.actor_optimizer.state[learner.actor.mean.weight]["exp_avg"].any()


def test_adam_equals_torchs_in_double():
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((40, 33), (7,), ())]
    exact, plain = (
        [nn.Parameter(p.detach().clone().to(d)) for p in ours] for d in (torch.double, torch.float)
    )
    optimizers = [
        (ours, Adam(ours, 3e-4)),
        (exact, torch.optim.Adam(exact, 3e-4)),
        (plain, torch.optim.Adam(plain, 3e-4)),
    ]
    for _ in range(60):
        grads = [torch.randn(p.shape, generator=generator) for p in ours]
        for parameters, optimizer in optimizers:
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad.to(p.dtype)
            optimizer.step()
    for got, truth, rival in zip(ours, exact, plain, strict=True):
        ours_off, theirs_off = ((t.double() - truth).abs().max().item() for t in (got, rival))
        assert ours_off <= 2 * theirs_off + 2e-7
    saved = optimizers[0][1].state_dict()
    torch.optim.Adam(exact, 3e-4).load_state_dict(saved)  # and its state is torch's own


@pytest.mark.parametrize("bound", [0.1, 1e6])
def test_clipping_is_clip_grad_norm(bound):
    learner, batch_noise = make(max_grad_norm=bound), stream(1)[0]
    free = make()
    free.step(*batch_noise)
    learner.step(*batch_noise)
    for which in ("actor", "critic"):
        ours, theirs = (each.optimizers[which].gradients() for each in (learner, free))
        for mine, grad in zip(ours, _clipped(theirs, bound), strict=True):
            torch.testing.assert_close(mine, grad, rtol=1e-5, atol=1e-9)
    assert torch.equal(learner.log_alpha.grad, free.log_alpha.grad)
    if bound == 1e6:  # out of reach: the very same step
        assert same(numbers(learner), numbers(free))
    else:
        assert sum_of_squares(learner.critic_optimizer.gradients()).sqrt() == pytest.approx(bound, rel=1e-4)


def _clipped(grads: list[torch.Tensor], bound: float) -> list[torch.Tensor]:
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g.clone()
    nn.utils.clip_grad_norm_(parameters, bound)
    return [p.grad for p in parameters]


def test_warm_up_grows_step_by_step_and_skipped_steps_do_not_count():
    p = nn.Parameter(torch.zeros(1))
    optimizer = Adam([p], lr=1.0, warmup_steps=4)
    sizes = []
    for skip in (0, 0, 1, 0, 0, 0):
        before = p.item()
        p.grad = torch.ones(1)  # the same gradient always: Adam moves by its step size
        optimizer.step(skip=torch.tensor(float(skip)))
        sizes.append(before - p.item())
    assert sizes == pytest.approx([0.25, 0.5, 0, 0.75, 1, 1], rel=1e-5)


def test_slots_give_the_plain_loops_bits_and_read_their_means():
    """All of GraphSteps but CUDA's own capture: the step that it records runs here each time it is replayed."""
    recorded = []

    def capture(step):
        recorded.append(step)
        return step

    plain, slotted = Steps(make()), GraphSteps(make(), capture)
    batches = stream(12)
    batches[7][0].goal[0] = torch.inf
    for i, (batch, noise) in enumerate(batches):
        for steps in (plain, slotted):
            steps(batch, noise)
        assert len(recorded) == (i >= WARM_UP)
    assert same(numbers(plain.learner), numbers(slotted.learner))
    metrics = plain.read()
    assert metrics == slotted.read() and list(metrics) == list(METRICS)
    assert metrics["skipped_steps"] == 1
    fresh = make()
    kept = [fresh.update(*each)["critic_loss"].item() for i, each in enumerate(batches) if i != 7]
    assert metrics["critic_loss"] == pytest.approx(sum(kept) / 11, rel=1e-6)

    slotted.learner.load_state_tensors(numbers(make()))  # new tensors behind the optimisers: recorded again
    for batch, noise in batches[: WARM_UP + 1]:
        slotted(batch, noise)
    assert len(recorded) == 2
    assert set(slotted.read()) == set(METRICS)


def test_a_refused_capture_goes_on_from_python_and_says_why(caplog):
    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")

    refused, plain = GraphSteps(make(), refuse), Steps(make())
    with caplog.at_level(logging.WARNING, logger="deepres"):
        for each in stream(WARM_UP + 2):
            refused(*each)
            plain(*each)
    assert same(numbers(refused.learner), numbers(plain.learner))
    assert [r.getMessage() for r in caplog.records] == [
        "gradient steps are launched one by one: CUDA refused to capture one (operation not permitted when stream "
        "is capturing); cuda_graph=False leaves this out"
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("bound", [None, 0.1])
def test_a_captured_step_gives_the_plain_loops_bits(bound, caplog):
    device = torch.device("cuda")
    learners = [make(device=device, max_grad_norm=bound, warmup_steps=5) for _ in range(2)]
    plain, captured = Steps(learners[0]), gradient_steps(learners[1])
    assert type(captured) is GraphSteps
    batches = stream(12)
    batches[7][0].goal[0] = torch.inf
    with caplog.at_level(logging.WARNING, logger="deepres"):
        for _ in range(2):
            for batch, noise in zip(
                uploaded((b for b, _ in batches), device), (n for _, n in batches), strict=True
            ):
                plain(batch, noise.to(device))
                captured(batch, noise.to(device))
            assert captured.read() == plain.read()
            captured.learner.lr_scale = plain.learner.lr_scale = 0.5
    assert not caplog.records
    assert same(numbers(plain.learner), numbers(captured.learner))


def test_on_a_cpu_nothing_is_captured():
    assert type(gradient_steps(make())) is Steps


def test_uploading_keeps_the_order():
    batches = [batch for batch, _ in stream(4)]
    assert [b.goal.tolist() for b in uploaded(batches, torch.device("cpu"))] == [
        b.goal.tolist() for b in batches
    ]


def test_a_policys_copy_stays_behind():
    learner = make()
    (batch, noise), obs = stream(1)[0], torch.ones(5, STATE + GOAL)
    copied, before = learner.policy.copy(), learner.act(obs)
    learner.step(batch, noise)
    assert torch.equal(copied.act(obs), before) and not torch.equal(learner.act(obs), before)


def test_learning_rates_lowered_stay_lowered_in_a_checkpoint():
    learner, other = make(), make()
    learner.lr_scale = 0.25
    other.load_state_tensors(numbers(learner))
    (batch, noise), full = stream(1)[0], make()
    for each in (other, full):
        each.step(batch, noise)
    moved = (other.log_alpha / full.log_alpha).item()
    assert other.lr_scale == 0.25 and moved == pytest.approx(0.25, rel=1e-5)


def test_a_round_is_judged_by_its_skipped_steps():
    config = Config(gradient_steps=200, max_skipped=0.01)
    check_round({"critic_loss": 1.0, "skipped_steps": 2.0}, config, 7)
    with pytest.raises(
        Diverged, match=r"diverged in round 7: loss or gradient is not finite in 3 of 200 gradient steps"
    ) as diverged:
        check_round({"critic_loss": 1.0, "skipped_steps": 3.0}, config, 7)
    returns = Returns()
    for _ in range(MOST_RETURNS):
        returns.count(100, diverged.value)
    returns.count(200, diverged.value)  # a newer checkpoint: a new count
    for _ in range(MOST_RETURNS):
        returns.count(100, diverged.value)
    with pytest.raises(Diverged, match=r"gone back 5 times to 100 env steps: training diverged"):
        returns.count(100, diverged.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_grad_norm": 0.0}, "max_grad_norm must be a finite number above 0, got 0.0"),
        ({"rollback_lr_factor": 2}, "rollback_lr_factor must be a finite number above 0 and up to 1, got 2"),
        ({"max_skipped": 1}, "max_skipped must be a share from 0 to below 1, got 1"),
        ({"buffer_dtype": "int8"}, "buffer_dtype must be one of fp32, bf16, fp16, got 'int8'"),
        ({"on_divergence": "pray"}, "on_divergence must be one of stop, rollback, got 'pray'"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number >= 0, got -1"),
    ],
)
def test_config_refuses_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError) as error:
        Config(**changes)
    assert str(error.value) == sentence
