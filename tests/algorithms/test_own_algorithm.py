"""An algorithm from outside the package: registered, trained, saved; and what the registry refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, make_dataclass

import pytest
import torch
from torch import Tensor

from deepres import Batch, Config, algorithms
from deepres.algorithms.base import Algorithm, Group, Losses, Pass
from deepres.algorithms.sac import SACOptions
from deepres.commands import configured
from deepres.config import GROUPS
from deepres.data.relabel import FutureGoals
from deepres.networks import GaussianPolicy, Networks
from deepres.options import check, helps, option
from helpers.learners import learner_of, numbers, same, small, stream


@dataclass(frozen=True)
class ToyOptions:
    """A value of one everywhere, and a policy that follows it at every second step."""

    toy_lr: float = option(1e-3, least=0)
    """Adam step size."""

    def __post_init__(self) -> None:
        check(self)


class Toy(Algorithm):
    Options = ToyOptions
    headline = ("value_loss",)
    passes = (Pass("value"), Pass("actor"), Pass("value", backward=False))

    def build(self, networks: Networks) -> dict[str, Group]:
        self.value = networks.value(self.sizes.state + self.sizes.goal)
        self.actor = networks.actor(self.sizes.state + self.sizes.goal, self.sizes.action)
        lr = self.options.toy_lr
        return {
            "value": Group(list(self.value.parameters()), lr),
            "actor": Group(list(self.actor.parameters()), lr, every=2),
        }

    @property
    def sampler(self) -> FutureGoals:
        return FutureGoals(0.9)

    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        obs = torch.cat([batch.state, batch.goal], dim=1)
        value = (self.value(obs) - 1).square().mean()
        yield {"value": value}, {"value_loss": value}
        mean, log_std = self.actor(obs)
        with torch.no_grad():
            follow = self.value(obs)  # as the first yield has left it
        actor = (mean - follow[:, None]).square().mean() + (log_std - batch.action).square().mean()
        yield {"actor": actor}, {"actor_loss": actor, "follow": follow.mean()}

    def after_step(self, skip: Tensor) -> None:
        self.skipped = skip

    def policy(self) -> GaussianPolicy:
        return GaussianPolicy(self.actor)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A registry of the test's own."""
    monkeypatch.setattr(algorithms, "_ALGORITHMS", dict(algorithms._ALGORITHMS))


@pytest.fixture
def toy():
    algorithms.register("toy", Toy)
    return learner_of(small("toy"))


def of(learner, network: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.parameters().items() if n.startswith(f"{network}.")}


def test_a_group_of_every_second_step_rests_in_between(toy):
    for count, each in enumerate(stream(5), start=1):
        value, actor = of(toy, "value"), of(toy, "actor")
        assert toy.update(*each)["skipped_steps"] == 0
        assert not same(value, of(toy, "value"))
        assert same(actor, of(toy, "actor")) == bool(count % 2)
    moments = toy.optimizers["actor"].state[toy.algorithm.actor.mean.bias]
    assert moments["step"] == 2  # of its own steps, for Adam's correction
    assert toy.metric_names == ("value_loss", "actor_loss", "follow", "skipped_steps")


def test_a_later_yield_reads_what_the_earlier_has_become(toy):
    batch, noise = stream(1)[0]
    obs = torch.cat([batch.state, batch.goal], dim=1)
    before = toy.algorithm.value(obs).mean()
    metrics = toy.update(batch, noise)
    assert metrics["follow"] == toy.algorithm.value(obs).mean() and metrics["follow"] != before
    # and its gradients are those of its own loss alone
    plain = learner_of(small("toy"))
    (first, _), (second, _) = list(plain.algorithm.losses(batch, noise))
    grads = torch.autograd.grad(first["value"], list(plain.algorithm.value.parameters()))
    for p, grad in zip(toy.algorithm.value.parameters(), grads, strict=True):
        assert torch.equal(p.grad, grad)
    total, metrics = plain.losses(batch, noise)
    assert total == first["value"] + second["actor"] and set(metrics) == {
        "value_loss",
        "actor_loss",
        "follow",
    }


def test_a_loss_that_is_not_finite_is_skipped_from_its_yield_on(toy):
    batch, noise = stream(1)[0]
    toy.step(batch, noise)  # the next one is the actor's turn
    for field, moved in (
        ("state", False),
        ("action", True),
        ("goal", False),
    ):  # the value does not read the action
        value, actor = of(toy, "value"), of(toy, "actor")
        bad = Batch(**{**batch.tensors(), field: torch.full_like(batch.tensors()[field], torch.nan)})
        metrics = toy.update(bad, noise)
        assert metrics.pop("skipped_steps") == 1 == toy.algorithm.skipped and not any(metrics.values())
        assert same(actor, of(toy, "actor")) and same(value, of(toy, "value")) != moved
    toy.step(batch, noise)  # a skipped step counts for whose turn it is: the actor rests in the fifth
    actor = of(toy, "actor")
    toy.step(batch, noise)
    assert toy.algorithm.skipped == 0 and not same(actor, of(toy, "actor"))


def test_whose_turn_it_is_is_saved(toy):
    other = learner_of(small("toy"), seed=7)
    first, second = stream(2)
    toy.step(*first)
    other.load_state_tensors(numbers(toy))
    for learner in (toy, other):
        actor = of(learner, "actor")
        learner.step(*second)
        assert not same(actor, of(learner, "actor"))
    assert same(numbers(toy), numbers(other))


def test_its_options_are_options_like_any(toy):
    config = Config("toy", env="reacher", toy_lr=0.5)
    assert config.algorithm == ToyOptions(0.5) and config == Config(ToyOptions(0.5), env="reacher")
    assert Config.from_dict(json.loads(config.to_json()), "here") == config
    assert helps(ToyOptions) == {"toy_lr": "Adam step size."} and algorithms.name_of(ToyOptions) == "toy"
    with pytest.raises(ValueError, match="toy_lr must be a finite number >= 0, got -1"):
        Config("toy", toy_lr=-1)
    with pytest.raises(
        ValueError, match="toy_lr does not apply to crl: it is an option of toy; leave it out"
    ):
        Config("crl", toy_lr=1.0)


def test_a_name_may_say_where_the_class_is():
    algorithms.register("later", f"{__name__}:Toy")
    assert "later" in algorithms.names() and algorithms.find("later") is Toy
    algorithms.register("later", Toy)  # the same one again
    algorithms.register("later", f"{__name__}:Toy")
    assert Config("later").algorithm == ToyOptions()


@pytest.mark.parametrize(
    ("name", "algorithm", "sentence"),
    [
        (
            "crl",
            Toy,
            "the algorithm 'crl' is there already (deepres.algorithms.crl:CRL); choose another name",
        ),
        ("two words", Toy, "an algorithm's name must be letters, digits and underscores, got 'two words'"),
        ("toy", "no_colon", "algorithm must be a class or 'package.module:Class', got 'no_colon'"),
    ],
)
def test_a_name_that_cannot_be_taken_is_refused(name, algorithm, sentence):
    before = algorithms.names()
    with pytest.raises(ValueError) as error:
        algorithms.register(name, algorithm)
    assert str(error.value) == sentence
    assert algorithms.names() == before


def test_a_class_that_lacks_parts_is_refused():
    class Half(Algorithm):
        Options = ToyOptions

        def policy(self) -> GaussianPolicy:
            raise NotImplementedError

    @dataclass
    class Loose:
        lr: float = option(1e-3)

    class Changes(Toy):
        Options = Loose

    for algorithm, sentence in (
        (Half, "(Half) lacks headline, passes, build, losses, sampler; see deepres.algorithms.base"),
        (Changes, "Options of algorithm 'mine' must be a frozen dataclass"),
        (ToyOptions, "must be a class of deepres.algorithms.base.Algorithm"),
        (7, "must be a class of deepres.algorithms.base.Algorithm, got 7"),
    ):
        with pytest.raises(TypeError) as error:
            algorithms.register("mine", algorithm)
        assert sentence in str(error.value)
    algorithms.register("mine", f"{__name__}:ToyOptions")  # judged when it is asked for
    with pytest.raises(TypeError, match="algorithm 'mine' must be a class of deepres"):
        Config("mine")


def of_options(options: type) -> type[Algorithm]:
    return type("Own", (Toy,), {"Options": options})


def with_option(name: str) -> type[Algorithm]:
    return of_options(make_dataclass("Own", [("mine", float, option(1.0, flag=name))], frozen=True))


def test_an_option_by_a_name_that_is_taken_is_refused():
    algorithms.register("clashing", with_option("depth"))
    sentence = "^option depth of clashing is one of the network's already; call it otherwise$"
    with pytest.raises(ValueError, match=sentence):
        Config("clashing")


@pytest.mark.parametrize("name", sorted(algorithms.RESERVED))
def test_an_option_called_as_a_word_of_the_commands_is_refused(name):
    sentence = (
        f"^option {name} of algorithm 'mine' is a word of Config or of the commands; call it otherwise$"
    )
    with pytest.raises(ValueError, match=sentence):
        algorithms.register("mine", with_option(name))


def test_every_word_of_the_commands_is_reserved():
    own = [
        one
        for one in vars(configured).values()
        if is_dataclass(one) and one.__module__ == configured.__name__
    ]
    words = {one.name for cls in own for one in fields(cls)} | {"import", "help"}
    of_config = {"algorithm", "self", *GROUPS, *algorithms.OLD_WORDS}
    assert {"run_dir", "grid", "memory_gb"} < words and words | of_config == algorithms.RESERVED


def test_an_option_without_a_default_is_refused():
    with pytest.raises(TypeError, match="option lr of algorithm 'mine' has no default; give it one"):
        algorithms.register("mine", of_options(make_dataclass("Own", [("lr", float)], frozen=True)))


def test_one_that_cannot_be_imported_is_told_when_it_is_asked_for_and_harms_no_other(tmp_path, monkeypatch):
    (tmp_path / "broken_at_import.py").write_text("raise KeyError('gone')")
    monkeypatch.syspath_prepend(tmp_path)
    algorithms.register("broken", "broken_at_import:Mine")
    algorithms.register("absent", "not_there_at_all:Mine")
    algorithms.register("lacking", f"{__name__}:Mine")
    for name, kind, sentence in (
        (
            "broken",
            ImportError,
            "broken_at_import cannot be imported \\(KeyError: 'gone'\\); mend the module",
        ),
        ("absent", ImportError, "not_there_at_all cannot be imported \\(ModuleNotFoundError"),
        ("lacking", ValueError, f"{__name__} has no 'Mine'; register the algorithm where it is"),
    ):
        with pytest.raises(kind, match=f"^algorithm '{name}' is registered as .*:Mine, and .*{sentence}"):
            Config(name)
    with pytest.raises(ValueError, match=r"hindsight does not apply to crl: it is an option of .*sac"):
        Config("crl", hindsight=0.5)
    assert Config(SACOptions()).algorithm_name == "sac"
    with pytest.raises(ValueError, match="ToyOptions is no algorithm's"):
        Config(ToyOptions())


def test_a_name_is_found_without_importing_the_others(tmp_path, monkeypatch):
    (tmp_path / "nobody_asked.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path)
    algorithms.register("asleep", "nobody_asked:Mine")
    algorithms.register("toy", f"{__name__}:Toy")
    assert algorithms.name_of(ToyOptions) == algorithms.name_of(Toy) == "toy"
    assert "nobody_asked" not in sys.modules and isinstance(algorithms._ALGORITHMS["asleep"], str)


def test_options_that_stand_apart_find_their_algorithm(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Nothing:
        """No options at all."""

    (tmp_path / "stands_apart.py").write_text(
        f"import {__name__}\nclass Mine({__name__}.Toy):\n    Options = {__name__}.Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "Nothing", Nothing, raising=False)
    algorithms.register("apart", "stands_apart:Mine")
    assert Config(Nothing()).algorithm_name == "apart"


def test_options_that_algorithms_share_do_not_say_which():
    algorithms.register("toy", Toy)
    algorithms.register("better_toy", of_options(ToyOptions))
    sentence = "^ToyOptions is that of better_toy, toy; pass the name, and the options one by one$"
    with pytest.raises(ValueError, match=sentence):
        Config(ToyOptions())
    config = Config("better_toy", toy_lr=0.5)
    assert config.replace(num_envs=4).algorithm_name == "better_toy"


def test_an_unknown_name_is_refused_with_the_near_one():
    names = ", ".join(algorithms.names())
    with pytest.raises(ValueError) as error:
        Config("crk")
    assert str(error.value) == (
        f"algorithm must be one of {names}, got 'crk'; did you mean crl? one of your own is registered first "
        "(deepres.algorithms.register, --import on the command line)"
    )
    with pytest.raises(ValueError, match="ToyOptions is no algorithm's; register the algorithm first"):
        Config(ToyOptions())
    with pytest.raises(ValueError, match=rf"algorithm must be one of {names}, got \['crl'\]"):
        algorithms.find(["crl"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name must be letters, digits and underscores, got 3"):
        algorithms.register(3, Toy)  # type: ignore[arg-type]


def test_a_buffer_is_saved_with_the_parameters(toy):
    """A running mean, say; one that is not persistent is made anew."""
    toy.algorithm.register_buffer("running", torch.tensor([1.0, 2.0]))
    toy.algorithm.register_buffer("made", torch.zeros(3), persistent=False)
    saved = {name: tensor.clone() for name, tensor in toy.state_tensors().items()}
    assert "parameters/running" in saved and "parameters/made" not in saved
    toy.algorithm.running.add_(5)
    toy.load_state_tensors(saved)
    assert toy.algorithm.running.tolist() == [1.0, 2.0]


def test_a_headline_that_is_no_metric_is_told():
    algorithms.register("mute", type("Mute", (Toy,), {"headline": ("loss",)}))
    with pytest.raises(
        ValueError, match=r"headline must name metrics .*\(value_loss, actor_loss, follow\), got 'loss'"
    ):
        learner_of(small("mute")).update(*stream(1)[0])
