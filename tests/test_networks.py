"""How the networks start."""

from __future__ import annotations

import pytest
import torch

from deepres import Actor, Encoder


def test_networks_start_as_published():
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(10, 64, width=64, depth=8, generator=generator)
    stack = encoder.trunk.stack
    assert len(list(stack.parameters())) == 4
    for weight, fan_in in ((stack.weight, 64), (encoder.trunk.stem.weight, 10), (encoder.head.weight, 64)):
        bound = fan_in**-0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not stack.bias.any() and not stack.beta.any() and (stack.gamma == 1).all()
    actor = Actor(10, 3, width=64, depth=8, generator=generator)
    mean, log_std = actor(100 * torch.randn(50, 10, generator=generator))
    assert mean.shape == log_std.shape == (50, 3)
    assert log_std.min() >= -5 and log_std.max() <= 2
