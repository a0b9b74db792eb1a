"""Which parameters an optimiser decays, and which of them are matrices (for Muon), where layers are stacked.

    optimizer = torch.optim.AdamW(parameter_groups(net, weight_decay=0.1), lr=3e-4)

    muon = LayerMuon(matrices(net.stack), lr=0.02)                    # the layers' weights
    others = torch.optim.AdamW(..., lr=3e-4)                          # everything else

By their number of dimensions alone, a stack's bias, gamma and beta [D, W] would pass for matrices, and its weight
[D, W, W] for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deepres.modules import LayerNorms


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights of products: each nn.Linear's, each stack's [D, W, W], and those of groups, [E, ...]."""
    weights = (getattr(part, "weight", None) for part in module.modules() if not isinstance(part, LayerNorms))
    return list(dict.fromkeys(w for w in weights if isinstance(w, nn.Parameter) and w.ndim >= 2))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: `matrices` with `weight_decay`, and biases, gamma, beta and LayerNorms with none.

    Every parameter of `module` that wants a gradient is in one of them; a group without parameters is left out.
    """
    decayed = [p for p in matrices(module) if p.requires_grad]
    known = {id(p) for p in decayed}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class LayerMuon(torch.optim.Muon):
    """torch.optim.Muon, which takes matrices, over stacked ones: each [.., out, in] is orthogonalised by itself.

    parameters: of two dimensions or more; they must keep their memory (`load_state_dict` does, `.to(device)` does not).
    options: torch.optim.Muon's.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any):
        self.stacked = list(parameters)
        self.layers = [[nn.Parameter(layer) for layer in _each(p.detach())] for p in self.stacked]
        super().__init__([layer for layers in self.layers for layer in layers], **options)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of the stacked parameters, where backward adds to."""
        for p in self.stacked:
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.zero_()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every layer that has a gradient.

        Raises: RuntimeError for a parameter that lies elsewhere than when the optimiser was made.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p, layers in zip(self.stacked, self.layers, strict=True):
            if p.data_ptr() != layers[0].data_ptr():
                raise RuntimeError(
                    "a parameter was moved after LayerMuon was made; make it after .to(device)"
                )
            grads = [None] * len(layers) if p.grad is None else _each(p.grad)
            for layer, gradient in zip(layers, grads, strict=True):
                layer.grad = gradient
        super().step()
        return loss


def _each(stacked: Tensor) -> list[Tensor]:
    """The matrices [out, in] of a tensor [..., out, in], in its memory."""
    return list(stacked.view(-1, *stacked.shape[-2:]).unbind())
