"""Batches on their way to the device that learns."""

from __future__ import annotations

import torch

from deepres.data.upload import uploaded
from helpers.learners import stream


def test_uploading_keeps_the_order():
    batches = [batch for batch, _ in stream(4)]
    assert [b.goal.tolist() for b in uploaded(batches, torch.device("cpu"))] == [
        b.goal.tolist() for b in batches
    ]
