"""The memory plan: beside what a process really takes, and what it says when something does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import deepres
from deepres import Sizes, algorithms
from deepres.commands.main import main
from deepres.config import Config
from deepres.kernels import backends
from deepres.training import memory_plan as memory
from helpers.tiny_runs import PROGRAMS, environ

HUMANOID = Sizes(state=268, action=17, goal=3, env_bytes=1_500)
DEEP = Config("crl", env="humanoid_u_maze", depth=1024, actor_depth=512)


TAKEN: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in algorithms.names()),
    ("crl", {"precision": "bf16"}),
    ("crl", {"recompute": "4"}),
    ("crl", {"horizon": 3, "survival_rows": True, "survival_bonus": 1.0}),
    ("crl", {"energy": "mrn", "form": "backward"}),
    ("crl", {"extraction": "awr", "random_actor_goals": 0.5}),
    ("crl", {"extraction": "ddpg_bc", "random_actor_goals": 0.5}),
    ("chrono", {"actor_reads": "old", "goal_sequence": 32}),
    ("qrl", {"distance": "mrn", "extraction": "awr"}),
]


@pytest.fixture(scope="module")
def taken(tmp_path_factory) -> Iterator[Callable[[int], dict[str, int]]]:
    """What gradient steps of one of TAKEN were planned to take, and took; one process measures all of them."""
    folder = tmp_path_factory.mktemp("configs")
    files = []
    for i, (algorithm, options) in enumerate(TAKEN):
        files.append(folder / f"{i}.json")
        alone = algorithm in ("gcbc", "gcsl")  # an actor and nothing else: small beside the libraries
        actor_depth = 256 if alone else 64
        config = Config(algorithm, depth=64, actor_depth=actor_depth, batch_size=128, device="cpu")
        files[-1].write_text(config.replace(**options).to_json())
    line = [sys.executable, str(PROGRAMS / "gradient_steps.py"), *map(str, files)]
    told: list[dict[str, int]] = []
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=folder, env=environ()) as process:

        def of(which: int) -> dict[str, int]:
            assert process.stdout is not None
            while len(told) <= which:
                told.append(json.loads(process.stdout.readline()))
            return told[which]

        yield of
        process.kill()


@pytest.mark.parametrize("which", range(len(TAKEN)), ids=[f"{name}-{options}" for name, options in TAKEN])
def test_the_plan_is_what_a_gradient_step_takes(taken, which):
    assert backends()["residual_stack"]["cpu"] == "available"
    before, planned, peak = taken(which).values()
    assert 0.9 <= planned / peak <= 1.1, taken(which)
    # the libraries' own share flatters: leave it out
    assert 0.8 <= (planned - before) / (peak - before) <= 1.2, taken(which)


def test_the_deepest_preset_fits_a_24_gb_card_and_a_smaller_buffer_8_gb():
    assert memory.remedy(DEEP, HUMANOID, 24 * 10**9, device="cuda") == ()
    plan = memory.require(DEEP, HUMANOID, 24 * 10**9, device="cuda")
    layers, numbers = 1024 * 2 + 512, 256 * 256 + 3 * 256
    assert plan.parts["weights"] == pytest.approx(4 * layers * numbers, rel=0.01)
    assert plan.parts["optimiser (Adam, two moments)"] == 2 * plan.parts["gradients"]
    assert plan.parts["replay buffer"] == 512 * 10_000 * (4 * (268 + 17) + 4)
    assert plan.parts["activations kept for backward"] >= 4 * 512 * 256 * (3 * 1024 + 512)
    changes = memory.remedy(DEEP, HUMANOID, 8 * 10**9, device="cuda")
    assert changes
    assert memory.plan(DEEP.replace(**dict(changes)), HUMANOID, device="cuda").peak <= 8 * 10**9


@pytest.mark.parametrize(("algorithm", "networks", "learned"), [("sac", 5, 3), ("gcbc", 1, 1)])
def test_each_algorithm_is_planned_as_what_it_is(algorithm, networks, learned):
    """SAC learns an actor and two critics beside slow copies of these; its ring keeps goals, next states, two flags."""
    plan = memory.plan(Config(algorithm, env="humanoid", depth=1024), HUMANOID, device="cuda")
    one = 4 * 1024 * (256 * 256 + 3 * 256)
    assert plan.parts["weights"] == pytest.approx(networks * one, rel=0.01)
    assert plan.parts["gradients"] == pytest.approx(learned * one, rel=0.01)
    assert plan.parts["optimiser (Adam, two moments)"] == 2 * plan.parts["gradients"]
    more = 4 * (3 + 268) + 2 if algorithm == "sac" else 0
    assert plan.parts["replay buffer"] == 512 * 10_000 * (4 * (268 + 17) + 4 + more)


def test_packed_weights_of_a_step_on_a_gpu_are_counted():
    """Both orders of every network's weights, or one stack's rounded operands where Triton packs none."""
    what, layers = "operands of products, rounded or packed", 1024 * 2 + 512

    def operands(**changes):
        return memory.plan(DEEP.replace(**changes), HUMANOID, device="cuda").parts[what]

    assert operands() == 2 * 4 * layers * 256**2 and operands(precision="bf16") == 2 * 2 * layers * 256**2
    assert operands(impl="triton") == 0 and operands(impl="triton", precision="bf16") == 2 * 1024 * 256**2
    assert (
        operands(depth=8192, actor_depth=512) == 2 * 4 * 512 * 256**2
    )  # past what is kept, packed in pieces


def test_what_does_not_fit_is_refused_with_a_remedy():
    with pytest.raises(MemoryError, match=r"needs 11\.\d GB and 8\.0 GB are there; pass --"):
        memory.require(DEEP, HUMANOID, 8 * 10**9, device="cuda")
    with pytest.raises(
        MemoryError,
        match=r"for replay buffer, 5\.9 GB: take fewer layers, environments or buffer steps, a smaller batch",
    ):
        memory.require(DEEP, HUMANOID, 10**9, device="cuda")


def test_each_choice_costs_what_it_should():
    def peak(**changes):
        return memory.plan(DEEP.replace(**changes), HUMANOID, device="cuda").peak

    assert peak(buffer_steps=5_000) == pytest.approx(peak() - 512 * 5_000 * (4 * 285 + 4))
    assert peak(recompute="4") < peak() and peak(precision="bf16") < peak() < peak(batch_size=1024)


def test_a_checkpoint_takes_memory_only_on_its_way_from_a_gpu():
    """A file is written from where its tensors stand, one after the other."""
    whole = memory.plan(DEEP, HUMANOID, device="cuda")
    trained = whole.parts["weights"] + whole.parts["optimiser (Adam, two moments)"]
    assert whole.host[memory.SAVING] == whole.parts["replay buffer"] > trained
    for changes in ({"save_buffer": False}, {"buffer_device": "cpu"}):
        assert memory.plan(DEEP.replace(**changes), HUMANOID, device="cuda").host[memory.SAVING] == trained
    assert memory.SAVING not in memory.plan(DEEP, HUMANOID, device="cpu").parts


def test_a_run_that_cannot_fit_allocates_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--env", "point_u_maze", "--num-envs", "100000", "--buffer-steps", "1000000"])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("deepres: this run of point_u_maze needs") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_train_called_from_python_is_refused_as_well(tmp_path):
    config = Config("crl", env="point_u_maze", num_envs=100_000, buffer_steps=1_000_000)
    with pytest.raises(
        MemoryError, match=r"needs 2\.8\d TB and .* are there; the most of it is for replay buffer, 2\.80 TB"
    ):
        deepres.train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_doctor_plans_for_another_card(capsys):
    main(["doctor", "--env", "point_u_maze", "--depth", "1024", "--memory-gb", "5"])
    report = capsys.readouterr().out
    for word in ("CUDA context", "what each choice costs", "does not fit", "to make it fit: --", "of 5.0 GB"):
        assert word in report


def test_choices_are_ones_that_a_run_can_take():
    """Every one alone makes a config; a run from data has no ring to shorten, a file's rows no other dtype."""
    long = Config("crl", unroll_length=2_000, buffer_steps=4_000, min_buffer_steps=100)
    offered = dict(memory.choices(long, "cuda"))
    assert offered["buffer_steps"] == 2_000 and offered["buffer_dtype"] == "bf16"
    for config in (
        long,
        Config("crl", data="runs/one"),
        Config("crl", data="one.npz"),
        Config("crl", trunk="plain"),
    ):
        for name, value in memory.choices(config, "cuda"):
            assert config.replace(**{name: value}).get(name) == value
    assert {"buffer_steps", "buffer_dtype"}.isdisjoint(
        dict(memory.choices(Config("crl", data="one.npz"), "cpu"))
    )
