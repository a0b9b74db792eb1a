"""What runs on a GPU's side streams: nothing is read before it was waited for. Streams are stand-ins on the CPU."""

from __future__ import annotations

import pytest
import torch

from deepres.kernels.streams import SecondStream
from helpers import fake_streams, learners

CPU = torch.device("cpu")


def faults(patch: pytest.MonkeyPatch, algorithm: str, **options: object) -> fake_streams.Recorder:
    """The losses of a small learner of `algorithm`, recorded."""
    learner = learners.learner_of(learners.small(algorithm, depth=4, width=8, batch_size=8, **options))
    batch, noise = learners.batch_for(learner)
    with fake_streams.recorded(patch) as recorder:
        for losses, metrics in learner.algorithm.losses(batch, noise):
            torch.stack([*losses.values(), *metrics.values()]).sum()  # all are read on the main stream
    return recorder


@pytest.mark.parametrize("algorithm", ["crl", "sac"])
def test_every_read_waits_for_what_it_reads(algorithm, monkeypatch) -> None:
    recorder = faults(monkeypatch, algorithm)
    assert not recorder.faults
    assert len(recorder.used) == {"crl": 3, "sac": 2}[algorithm]


def test_crl_runs_three_networks_at_once(monkeypatch) -> None:
    """Each first operation of a side stream knows of nothing that the others do: the start alone comes before it."""
    waited: list[dict] = []
    begin = fake_streams.Recorder.__torch_dispatch__

    def dispatch(self, *args, **kwargs):
        if self.current not in self.used:
            waited.append({s: n for s, n in self.current.seen.items() if s in self.used})
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(fake_streams.Recorder, "__torch_dispatch__", dispatch)
    faults(monkeypatch, "crl")
    assert waited == [{}, {}]


@pytest.mark.parametrize("left_out", ["join", "beside", "kept"])
def test_a_wait_that_is_left_out_is_found(left_out, monkeypatch) -> None:
    if left_out == "join":
        monkeypatch.setattr(SecondStream, "join", lambda *_: None)
    elif left_out == "kept":
        join = SecondStream.join
        monkeypatch.setattr(SecondStream, "join", lambda self, device, *_: join(self, device))
    else:
        monkeypatch.setattr(fake_streams.FakeStream, "wait_stream", lambda *_: None)
    assert faults(monkeypatch, "crl").faults


def test_without_streams_a_part_runs_in_its_turn() -> None:
    side = SecondStream()
    order = []
    mark = side.mark(CPU)
    with side.beside(CPU, after=mark):
        order.append("beside")
    order.append("after")
    side.join(CPU)
    assert mark is None and order == ["beside", "after"] and side.reads(torch.ones(2)).sum() == 2
