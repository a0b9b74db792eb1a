"""deepres: very deep residual networks for self-supervised reinforcement learning.

    import deepres
    y = deepres.residual_stack(x, weight, bias, gamma, beta)        # every layer of a deep network in one call
    loss, lse = deepres.info_nce(x, goals)                          # the contrastive loss
    result = deepres.train(deepres.Config("crl", env="point_u_maze"))  # from scratch to checkpoint
    policy = deepres.Policy.load(result.run_dir)                    # what it learned, alone

Importing this needs PyTorch alone; what else is needed is asked for where it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepres import algorithms, envs
from deepres._version import __version__
from deepres.config import Config
from deepres.data.batch import Batch, Sizes
from deepres.data.collect import collect
from deepres.data.replay import ReplayBuffer
from deepres.kernels import backends, hazard_nll, hazard_value, info_nce, residual_stack
from deepres.networks import Actor, Encoder, ResidualStack
from deepres.policy import Policy
from deepres.runs.checkpoint import CheckpointError
from deepres.training.evaluate import Evaluation, evaluate
from deepres.training.learner import Learner
from deepres.training.loop import Result, load_run, train
from deepres.training.stability import TrainingError

_LATER = {"bridge": "deepres.data.bridge", "testing": "deepres.testing"}

if not TYPE_CHECKING:  # else every name would be one of this module's

    def __getattr__(name: str) -> Any:
        """deepres.bridge (tensors to JAX and back) and deepres.testing, imported when asked for."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(_LATER[name])

    def __dir__() -> list[str]:
        return sorted(globals().keys() | _LATER.keys())


__all__ = [
    "Actor",
    "Batch",
    "CheckpointError",
    "Config",
    "Encoder",
    "Evaluation",
    "Learner",
    "Policy",
    "ReplayBuffer",
    "ResidualStack",
    "Result",
    "Sizes",
    "TrainingError",
    "__version__",
    "algorithms",
    "backends",
    "collect",
    "envs",
    "evaluate",
    "hazard_nll",
    "hazard_value",
    "info_nce",
    "load_run",
    "residual_stack",
    "train",
]
