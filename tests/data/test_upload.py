"""Batches on their way to the device that learns."""

from __future__ import annotations

import torch

from deepres.data.batch import Batch
from deepres.data.upload import uploaded
from helpers.learners import stream


def test_uploading_keeps_the_order():
    batches = [batch for batch, _ in stream(4)]
    assert [b.goal.tolist() for b in uploaded(batches, torch.device("cpu"))] == [
        b.goal.tolist() for b in batches
    ]


def test_what_a_sampler_adds_to_a_batch_travels_with_it():
    extra = {"lag": torch.arange(3), "valid": torch.ones(3)}
    batch = Batch(torch.zeros(3, 2), torch.ones(3, 1), torch.zeros(3, 2), extra=extra)
    assert sorted(batch.tensors()) == ["action", "extra/lag", "extra/valid", "goal", "state"]
    (sent,) = uploaded([batch], torch.device("cpu"))
    assert torch.equal(sent.extra["lag"], extra["lag"]) and sent.extra["lag"].dtype == torch.int64
    back = Batch.of(batch.tensors())
    assert back.extra.keys() == extra.keys() and back.reward is None
