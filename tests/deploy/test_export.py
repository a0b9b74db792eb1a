"""A policy as a file for programs that know nothing of deepres: it acts the same there, and says what it is for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

import deepres
from deepres import CheckpointError, Policy, Sizes, envs
from deepres.commands.main import main
from deepres.deploy import files
from deepres.deploy.plain import PlainNetwork
from deepres.deploy.runtime import open_session
from deepres.envs import registry
from deepres.testing import assert_no_worse
from helpers.own_environments import Reach
from helpers.policies import TASK, doubled, observations, untrained
from helpers.tiny_runs import TINY, contents

SHAPES = [
    (4, 4),
    (64, 4),
    (4, 0),
    (64, 0),
    (64, 8),
    (4, 8),
]  # depth, skip_every; the last has plain layers alone


@pytest.mark.parametrize(("depth", "skip_every"), SHAPES)
@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize("norm", [True, False])
def test_a_file_acts_as_the_policy(tmp_path, depth, skip_every, activation, norm):
    policy = untrained(
        depth=depth, actor_depth=None, skip_every=skip_every, activation=activation, norm=norm, width=24
    )
    read = Policy.load(policy.export(tmp_path / "policy.onnx"))
    obs = observations(policy, 1000)
    network = PlainNetwork(policy.network)
    assert_no_worse("actions", read.act(obs), network(obs), doubled(network)(obs.double()))
    if (
        skip_every or depth < 64
    ):  # deep ones without skips magnify rounding itself: PyTorch is as far from float64
        assert (read.act(obs) - policy.act(obs)).abs().max() <= 1e-5
    assert (read.sizes, read.env_steps, read.config.network) == (TASK, 120, policy.config.network)


ALGORITHMS = [
    ("td3", {}),
    ("gcsl", {}),
    ("gcbc", {"horizon_input": True}),
    ("crl", {"horizon": 3}),
    ("gcivl", {}),
]


@pytest.mark.parametrize(("algorithm", "options"), ALGORITHMS)
def test_every_kind_of_policy(tmp_path, algorithm, options):
    policy = untrained(algorithm, **options)
    obs, file = observations(policy, 100), tmp_path / "policy.onnx"
    read = Policy.load(policy.export(file))
    assert read.network.clocked == policy.network.clocked
    torch.testing.assert_close(read.act(obs), policy.act(obs), atol=1e-5, rtol=0)
    torch.testing.assert_close(read.plan(obs), policy.plan(obs), atol=1e-5, rtol=0)
    assert read.act(obs[:0]).shape == (0, 2)


@pytest.mark.parametrize("options", [{}, {"skip_every": 0, "activation": "relu"}, {"norm": False}])
def test_a_program_of_torch_export_acts_as_the_policy(tmp_path, options):
    policy = untrained(**options)
    file, extra = policy.export(tmp_path / "policy.pt2"), {"env": "", "depth": ""}
    program = torch.export.load(file, extra_files=extra)
    assert (extra["env"], extra["depth"]) == ("point_u_maze", "4")
    for count in (1, 1000):
        obs = observations(policy, count)
        torch.testing.assert_close(program.module()(obs), policy.act(obs), atol=1e-5, rtol=0)
    assert "deepres" not in str(program.graph)  # no operator of ours


ALONE = """
import json, sys
class Without:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("deepres", "torch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("policy.onnx", providers=["CPUExecutionProvider"])
action, = session.run(["action"], {"obs": np.load("obs.npy")})
np.save("action.npy", action)
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""


def test_it_opens_where_nothing_of_ours_is(tmp_path):
    policy = untrained()
    policy.export(tmp_path / "policy.onnx")
    obs = observations(policy, 7)
    np.save(tmp_path / "obs.npy", obs.numpy())
    told = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), policy.act(obs).numpy(), atol=1e-5)
    said = json.loads(told.stdout)
    assert said.pop("deepres")
    assert said == {
        "deepres_version": deepres.__version__, "algorithm": "crl", "env": "point_u_maze",
        "eval_env": "point_u_maze", "state_dim": "4", "goal_dim": "2", "action_dim": "2", "horizon": "1",
        "clocked": "False", "depth": "4", "width": "32", "env_steps": "120", "goal_slice": "0:2",
        "dt": str(policy.environments(1).dt),
    }  # fmt: skip


def test_bounds_of_an_environments_own_actions_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    envs.register("own_reach", gymnasium=Reach)  # a Box of [-2, 2] x [0, 1]
    policy = untrained(env="own_reach", sizes=Sizes(state=3, action=2, goal=2, env_bytes=100))
    said = open_session(policy.export(tmp_path / "policy.onnx")).get_modelmeta().custom_metadata_map
    low, high = (np.array(json.loads(said[name])) for name in ("action_low", "action_high"))
    env = Reach()
    assert env.action_space == Box(low.astype(np.float32), high.astype(np.float32))


def test_the_graph_is_standard_and_checks(tmp_path):
    import onnx

    model = onnx.load(untrained("crl", horizon=3).export(tmp_path / "policy.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)] and model.ir_version == 8
    assert not any(node.domain for node in model.graph.node)


def test_weights_above_the_limit_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ONE_FILE_BYTES", 1000)
    policy, obs = untrained(), torch.randn(9, 6)
    file = policy.export(tmp_path / "there" / "policy.onnx")
    assert {path.name for path in file.parent.iterdir()} == {"policy.onnx", "policy.onnx.data"}
    torch.testing.assert_close(Policy.load(file).act(obs), policy.act(obs), atol=1e-5, rtol=0)


def test_what_needs_the_network_says_so(tmp_path):
    read = Policy.load(untrained().export(tmp_path / "policy.onnx"))
    for use in (read.save, read.export):
        with pytest.raises(ValueError, match=r"network is not there .*; load the run that it came from"):
            use(tmp_path / "again.onnx")
    with pytest.raises(ValueError, match=r"acts by its mean alone and takes no noise; load its run"):
        read.act(torch.zeros(3, 6), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"obs must have shape \[N, 6\]"):
        read.act(torch.zeros(3, 5))
    with pytest.raises(TypeError, match="obs must be a torch tensor, got ndarray"):
        read.act(np.zeros((3, 6)))
    with pytest.raises(ValueError, match="activation belongs to what was learned"):
        Policy.load(tmp_path / "policy.onnx", activation="relu")
    with pytest.raises(ValueError, match="format must be one of onnx, pt2, got 'bin'"):
        untrained().export(tmp_path / "policy.bin")


def test_files_of_others_are_one_sentence(tmp_path):
    import onnx

    file = untrained().export(tmp_path / "policy.onnx")
    model = onnx.load(file)
    del model.metadata_props[:]
    for wrong in (b"", b"thesis", file.read_bytes()[:3000], model.SerializeToString()):
        file.write_bytes(wrong)
        with pytest.raises(
            CheckpointError, match=r"policy.onnx is not a policy that deepres exported .*; pass"
        ):
            Policy.load(file)
    with pytest.raises(
        FileNotFoundError, match=r"absent\.onnx is not there; pass a file of `deepres export`"
    ):
        Policy.load(tmp_path / "absent.onnx")


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_full_disk_keeps_what_was_there(small_disk, format):
    policy, file = untrained(width=520), small_disk / f"policy.{format}"  # more than 4 MB of weights
    file.write_text("the one before")
    with pytest.raises(OSError, match=r"cannot write the policy to .*; export it to another place"):
        policy.export(file)
    assert list(contents(small_disk).values()) == [b"the one before"]


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    policy = untrained()
    old = policy.export(tmp_path / "old.onnx")
    for absent in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=r"needs onnx \(.*pip install 'deepres\[export\]'"):
        policy.export(tmp_path / "new.onnx")
    with pytest.raises(ImportError, match=r"needs onnxruntime \(.*pip install 'deepres\[export\]'"):
        Policy.load(old)
    assert list(tmp_path.iterdir()) == [old]


def test_a_run_is_exported_and_evaluated(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    deepres.train(TINY.replace(total_steps=80), run, progress=False)
    monkeypatch.chdir(tmp_path)
    main(["export", str(run)])
    main(["export", str(run), "--out", "elsewhere.pt2"])
    assert capsys.readouterr().out.split() == ["run.onnx", "elsewhere.pt2"]
    trained, read = Policy.load(run), Policy.load(Path("run.onnx"))
    obs = torch.randn(50, 6)
    torch.testing.assert_close(read.act(obs), trained.act(obs), atol=1e-5, rtol=0)
    assert trained.evaluation and read.evaluation == trained.evaluation
    figures, _ = read.evaluate(seed=1)
    assert figures.success_any == trained.evaluate(seed=1)[0].success_any
