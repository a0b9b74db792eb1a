"""What the tests of the ops share: memory that is poisoned, and no GPU tests without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are left out where there is no CUDA device; the GPU run has them."""
    if not torch.cuda.is_available():
        items[:] = [item for item in items if "gpu" not in item.keywords]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors and scratch buffers without contents start as NaN, so an element left unwritten shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoning(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoning(torch.Tensor.new_empty))
    extension = sys.modules.get("deepres._C")
    if extension is not None:
        extension.poison_memory(True)
    yield
    if extension is not None:
        extension.poison_memory(False)


def _poisoning(allocate):
    def poison(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    return poison
