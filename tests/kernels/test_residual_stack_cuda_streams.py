"""The CUDA residual stack over several calls and streams: weights packed once, sums over rows beside the chain."""

from __future__ import annotations

import pytest
import torch

import deepres
from deepres.kernels import packing, streams
from deepres.kernels.residual_stack import cuda
from deepres.training.optimizer import Adam
from helpers import cuda_on_host, fake_streams

DEPTH, WIDTH, BATCH = 8, 64, 7
# Which arguments of a kernel it writes.
WRITES = {
    "pack": [1],
    "forward": [5, 6, 7, 8],
    "dgrad": [8, 9, 10, 11, 12],
    "wgrad": [2],
    "reduce": [1, 2, 3],
}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """impl="cuda" on the host, bf16: the names of the kernels that were launched; each is told to a recorder."""
    names: list[str] = []
    run = cuda_on_host.HostProgram.launch

    def launch(self, kernel, grid, threads, shared, *arguments):
        short = kernel.removeprefix("residual_stack_")
        names.append(short)
        run(self, kernel, grid, threads, shared, *arguments)
        if launch.recorder is not None:
            tensors = [(i, t) for i, t in enumerate(arguments) if isinstance(t, torch.Tensor)]
            written = [t for i, t in tensors if i in WRITES[short]]
            launch.recorder.launch(short, [t for i, t in tensors if i not in WRITES[short]], written)

    launch.recorder = None
    names_and_patch = (names, monkeypatch, launch)
    with cuda_on_host.served(monkeypatch):
        monkeypatch.setattr(cuda_on_host.HostProgram, "launch", launch)
        yield names_and_patch


def leaves() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    weight = normal(DEPTH, WIDTH, WIDTH) / WIDTH**0.5
    made = [normal(BATCH, WIDTH), weight, *(0.1 * normal(DEPTH, WIDTH) for _ in range(3))]
    return [t.requires_grad_() for t in made]


def stack(tensors: list[torch.Tensor], **options) -> torch.Tensor:
    return deepres.residual_stack(*tensors, impl="cuda", precision="bf16", **options)


def test_weights_are_packed_once_each_way(launched) -> None:
    names, _, _ = launched
    x, *parameters = leaves()
    frozen = [p.detach() for p in parameters]
    apart = [stack([x, *parameters]), stack([x, *frozen])]
    apart += torch.autograd.grad(sum(y.square().sum() for y in apart), [x, *parameters])
    assert names.count("pack") == 4
    names.clear()
    with packing.packed_once():
        together = [stack([x, *parameters]), stack([x, *frozen])]
        together += torch.autograd.grad(sum(y.square().sum() for y in together), [x, *parameters])
    assert names.count("pack") == 2
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


def test_changed_weights_are_packed_again(launched) -> None:
    names, _, _ = launched
    x, *parameters = leaves()
    optimizer = Adam(parameters, lr=0.1)
    with packing.packed_once():
        before = stack([x, *parameters])
        before.square().sum().backward()
        optimizer.step()
        names.clear()
        after = stack([x, *parameters])
        with torch.no_grad():
            parameters[0].add_(0.1)
            again = stack([x, *parameters])
    assert names.count("pack") == 3  # the first of them for backward too
    assert torch.equal(again, stack([x, *parameters]))
    assert not torch.equal(before, after)


def test_nothing_is_kept_outside_or_too_large(launched) -> None:
    names, patch, _ = launched
    tensors = [t.detach() for t in leaves()]
    for _ in range(2):
        with packing.packed_once():
            stack(tensors)
    assert names.count("pack") == 2 and not packing._kept.found
    patch.setattr(cuda, "PACKED_BYTES", 1)
    with packing.packed_once():
        stack(tensors), stack(tensors)
    assert names.count("pack") == 4


@pytest.mark.parametrize("recompute", ["none", 1])
@pytest.mark.parametrize("once", [False, True], ids=["each call", "packed once"])
def test_every_kernel_waits_for_what_it_reads(once, recompute, launched) -> None:
    """Three stretches, so that scratch is used again, on the stream of a caller that is not the main one."""
    names, patch, launch = launched
    plain = run(recompute)
    patch.setattr(cuda, "SCRATCH_BYTES", 1)
    streams._of_stream.clear()
    names.clear()
    with fake_streams.recorded(patch) as recorder:
        launch.recorder = recorder
        if once:
            with packing.packed_once():
                cut = run(recompute)
        else:
            cut = run(recompute)
    assert not recorder.faults
    assert names.count("wgrad") == names.count("reduce") == DEPTH // 4 and len(recorder.used) == 2
    if recompute == "none":
        assert all(torch.equal(a, b) for a, b in zip(plain, cut, strict=True))


@pytest.mark.parametrize("packed", ["once", "in pieces"])
def test_a_capture_joins_no_stream_that_it_has_not_forked(packed, launched) -> None:
    """As CRL's step asks phi for the input's gradient alone, once its warm-up has summed weight gradients."""
    _, patch, launch = launched
    if packed == "in pieces":
        patch.setattr(cuda, "PACKED_BYTES", 1)
    streams._of_stream.clear()
    with fake_streams.recorded(patch) as recorder:
        launch.recorder = recorder
        with packing.packed_once():
            run("none")
        recorder.begin_capture()
        with packing.packed_once():
            x, *parameters = leaves()
            y = stack([x, *(p.detach() for p in parameters)])
            torch.autograd.grad(y.square().sum(), x)
    assert not recorder.faults


def test_a_graph_has_its_own_packed_weights(launched) -> None:
    """What was packed outside a capture, or in another one, serves in none but by a context that began in it."""
    names, patch, launch = launched
    streams._of_stream.clear()
    with fake_streams.recorded(patch) as recorder:
        launch.recorder = recorder
        x, *parameters = leaves()
        parameters = [p.detach() for p in parameters]
        with packing.packed_once():
            stack([x, *parameters])
            once = names.count("pack")
            stack([x, *parameters])
            assert names.count("pack") == once > 0
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            stack([x, *parameters]), stack([x, *parameters])
            assert names.count("pack") == 3 * once
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        names.clear()
        with packing.packed_once():
            stack([x, *parameters]), stack([x, *parameters])
        assert names.count("pack") == once


def run(recompute) -> list[torch.Tensor]:
    tensors = leaves()
    y = stack(tensors, recompute=recompute)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), tensors)]


@pytest.mark.parametrize("left_out", ["join", "wait", "fork"])
def test_a_wait_that_is_left_out_is_found(left_out, launched) -> None:
    _, patch, launch = launched
    patch.setattr(cuda, "SCRATCH_BYTES", 1)
    streams._of_stream.clear()
    if left_out == "join":
        patch.setattr(streams.SecondStream, "join", lambda *_: None)
    elif left_out == "wait":
        patch.setattr(streams.SecondStream, "wait", lambda *_: None)
    with fake_streams.recorded(patch) as recorder:
        launch.recorder = recorder
        if left_out == "fork":
            patch.setattr(fake_streams.FakeStream, "wait_stream", lambda *_: None)
        tensors = [torch.cat([t, t]) if t.ndim > 1 and len(t) == DEPTH else t for t in leaves()]  # 16 layers
        y = stack(tensors)
        grads = torch.autograd.grad(y.square().sum(), tensors)
        torch.stack([g.sum() for g in grads])
    assert recorder.faults
