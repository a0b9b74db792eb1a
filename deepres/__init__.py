"""deepres: very deep residual networks for self-supervised reinforcement learning.

    import deepres
    y = deepres.residual_stack(x, weight, bias, gamma, beta)        # every layer of a deep network in one call
    loss, lse = deepres.info_nce(phi, psi)                          # the contrastive loss
    result = deepres.train(deepres.Config(env="point_u_maze"))      # contrastive RL, from scratch to checkpoint

Importing this needs PyTorch alone; what else is needed is asked for where it is used.
"""

from deepres._version import __version__
from deepres.checkpoint import CheckpointError
from deepres.config import Config
from deepres.evaluate import Evaluation
from deepres.kernels import backends, info_nce, residual_stack
from deepres.learner import Batch, Learner
from deepres.networks import Actor, Encoder, ResidualStack
from deepres.run import load_run
from deepres.stability import TrainingError
from deepres.training import Result, train

__all__ = [
    "Actor",
    "Batch",
    "CheckpointError",
    "Config",
    "Encoder",
    "Evaluation",
    "Learner",
    "ResidualStack",
    "Result",
    "TrainingError",
    "__version__",
    "backends",
    "info_nce",
    "load_run",
    "residual_stack",
    "train",
]
