"""The layers that networks are put together from: a stack in one call, and layers of E networks side by side.

Each starts as the published networks do (LeCun uniform weights, biases 0, LayerNorm 1 and 0), at `reset_parameters`
too; `device` and `dtype` are as in PyTorch's own modules.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.kernels import residual_stack
from deepres.kernels.arguments import check_tensors, whole_number
from deepres.kernels.autocast import autocasts
from deepres.kernels.dispatch import BACKENDS
from deepres.kernels.residual_stack.options import NAMES, StackOptions, checked_options

LAYER_NORM_EPS = 1e-6
Device = torch.device | str | None


def lecun_uniform_(tensor: Tensor, fan_in: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill with U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as the published networks start."""
    bound = 1 / math.sqrt(fan_in)
    return nn.init.uniform_(tensor, -bound, bound, generator=generator)


def start_dense_(weight: Tensor, average: bool, generator: torch.Generator | None = None) -> Tensor:
    """Fill weights [..., out, in] as a layer starts: LeCun uniform; with `average` U(-b, b), b^2 = 6 / (in + out)."""
    out_dim, in_dim = weight.shape[-2:]
    return lecun_uniform_(weight, (in_dim + out_dim) / 6 if average else in_dim, generator)


class Dense(nn.Linear):
    """nn.Linear that starts as the published networks do: weight LeCun uniform, bias 0. average: see start_dense_."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        average: bool = False,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        self.average = average
        in_dim, out_dim = whole_number("in_dim", in_dim), whole_number("out_dim", out_dim)
        super().__init__(in_dim, out_dim, device=device, dtype=dtype)
        if generator is not None:
            self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        start_dense_(self.weight, self.average, generator)
        nn.init.zeros_(self.bias)


class Linears(nn.Module):
    """E linear layers side by side: x [B, in] for all of them, or [E, B, in], -> [E, B, out].

    Parameters: weight [E, out, in] (LeCun uniform; average: see start_dense_), bias [E, out] (0).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        members: int,
        *,
        average: bool = False,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        in_dim, out_dim = whole_number("in_dim", in_dim), whole_number("out_dim", out_dim)
        members = _number_of_members(members)
        self.average = average
        self.weight = nn.Parameter(torch.empty(members, out_dim, in_dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(members, out_dim, device=device, dtype=dtype))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        start_dense_(self.weight, self.average, generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        members = zip(_rows_of_each(x, len(self.weight)), self.weight, self.bias, strict=True)
        return torch.stack([F.linear(rows, weight, bias) for rows, weight, bias in members])

    def extra_repr(self) -> str:
        members, out_dim, in_dim = self.weight.shape
        return f"in_features={in_dim}, out_features={out_dim}, members={members}"


class LayerNorms(nn.Module):
    """E LayerNorms side by side: x [E, B, W] -> [E, B, W]. Parameters: weight (1), bias (0) [E, W]."""

    def __init__(
        self, width: int, members: int, eps: float, *, device: Device = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(members, width, device=device, dtype=dtype))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        members = zip(x, self.weight, self.bias, strict=True)
        return torch.stack(
            [F.layer_norm(rows, rows.shape[-1:], scale, shift, self.eps) for rows, scale, shift in members]
        )

    def extra_repr(self) -> str:
        members, width = self.weight.shape
        return f"{width}, members={members}, eps={self.eps}"


class ResidualStack(nn.Module):
    """D layers of [Dense, LayerNorm, activation] with skips, in one call: x [..., W] -> y [..., W].

    Parameters: weight [D, W, W] (LeCun uniform; applied as `a @ weight[l]`), bias [D, W] (0), gamma [D, W] (1),
    beta [D, W] (0); gamma and beta are None if norm=False.
    members: E stacks side by side, x [E, ..., W], or [B, W] for all of them, -> y [E, ..., W]; each parameter then has
    E as its first dimension.
    options: keyword arguments of `deepres.residual_stack` (skip_every, activation, norm, precision, ...).
    Raises: TypeError or ValueError, at once, for an option that there is not or that does not fit.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        members: int | None = None,
        generator: torch.Generator | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        width, depth = whole_number("width", width), whole_number("depth", depth)
        self.options = _checked(depth, options)
        members = None if members is None else _number_of_members(members)
        layers = (depth, width) if members is None else (members, depth, width)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(*layers, width, **made))
        self.bias = nn.Parameter(torch.empty(layers, **made))
        norm = options.get("norm", True)  # without LayerNorm its scale and shift do not exist
        self.gamma = nn.Parameter(torch.empty(layers, **made)) if norm else None
        self.beta = nn.Parameter(torch.empty(layers, **made)) if norm else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start anew. generator: draws the weights, by default PyTorch's own."""
        lecun_uniform_(self.weight, self.width, generator)
        for parameter, value in ((self.bias, 0.0), (self.gamma, 1.0), (self.beta, 0.0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    @property
    def width(self) -> int:
        return self.weight.shape[-1]

    @property
    def depth(self) -> int:
        return self.weight.shape[-3]

    @property
    def skip_every(self) -> int:
        """Layers of a block, 0 without skips."""
        layers = self.options.get("skip_every")
        return StackOptions().skip_every if layers is None else int(layers)

    @property
    def members(self) -> int | None:
        """Stacks side by side, None if it is one alone."""
        return None if self.weight.ndim == 3 else self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and (x.ndim == 0 or x.shape[-1] != self.width):
            raise ValueError(f"x must have {self.width} features in its last dimension, got {list(x.shape)}")
        parameters = (self.weight, self.bias, self.gamma, self.beta)
        kept = 1 if self.members is None else 2
        if not isinstance(x, Tensor) or x.ndim in (2, kept + 1):
            return residual_stack(x, *parameters, **self.options)
        if x.ndim == 1:
            return residual_stack(x[None], *parameters, **self.options).squeeze(-2)
        return residual_stack(x.flatten(kept - 1, -2), *parameters, **self.options).view(x.shape)

    def extra_repr(self) -> str:
        sizes = {"depth": self.depth, "width": self.width}
        if self.members is not None:
            sizes["members"] = self.members
        return ", ".join(f"{k}={v!r}" for k, v in {**sizes, **self.options}.items())

    @classmethod
    def from_layers(cls, layers: Iterable[nn.Module], **options: Any) -> ResidualStack:
        """The stack of D nn.Linear(W, W), an nn.LayerNorm(W) after each or after none; copies of their numbers.

        nn.SiLU or nn.ReLU, after each or after none, is the stack's activation; where there is none, `activation` names
        it. options: as of the class; norm and eps are those of the layers.
        Raises: ValueError, naming the layer, for one that no stack has.
        """
        dense, norms, activation = _sorted(layers)
        if activation is not None and options.setdefault("activation", activation) != activation:
            raise ValueError(
                f"activation must be that of the layers, {activation!r}, got {options['activation']!r}; leave it out"
            )
        width, first = dense[0].in_features, dense[0].weight
        options["norm"] = bool(norms)
        if norms:
            options["eps"] = norms[0].eps
        stack = cls(width, len(dense), device=first.device, dtype=first.dtype, **options)
        with torch.no_grad():
            for l, linear in enumerate(dense):
                stack.weight[l].copy_(linear.weight.T)
                if linear.bias is not None:
                    stack.bias[l].copy_(linear.bias)
            for l, norm in enumerate(norms):
                for own, given in ((stack.gamma, norm.weight), (stack.beta, norm.bias)):
                    if own is not None and given is not None:
                        own[l].copy_(given)
        return stack

    def to_layers(self) -> list[nn.Module]:
        """[Linear, LayerNorm, Linear, LayerNorm, ...], without LayerNorms if norm=False: copies of the stack's numbers.

        Raises: ValueError for a group of stacks.
        """
        if self.members is not None:
            raise ValueError(f"to_layers is of one stack, got a group of {self.members}")
        made: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        layers: list[nn.Module] = []
        with torch.no_grad():
            for l in range(self.depth):
                linear = nn.Linear(self.width, self.width, **made)
                linear.weight.copy_(self.weight[l].T)
                linear.bias.copy_(self.bias[l])
                layers.append(linear)
                if self.gamma is not None and self.beta is not None:
                    norm = nn.LayerNorm(self.width, eps=self.options.get("eps", LAYER_NORM_EPS), **made)
                    norm.weight.copy_(self.gamma[l])
                    norm.bias.copy_(self.beta[l])
                    layers.append(norm)
        return layers


class PlainLayers(nn.Module):
    """L layers of [Dense, GELU, LayerNorm] without skips, OGBench's hidden layers (arXiv 2410.20092): x [B, in_dim] ->
    [B, W], in x's own precision by PyTorch's own operators.

        for each layer: x = norm(gelu(dense(x)))          GELU by its tanh form; without norm: gelu(dense(x))

    members: E of them side by side, x [B, in_dim] for all, or [E, B, in_dim], -> [E, B, W]. made: generator, device,
    dtype.
    """

    def __init__(
        self, in_dim: int, width: int, depth: int, *, norm: bool, members: int | None = None, **made: Any
    ):
        super().__init__()
        place = {name: value for name, value in made.items() if name != "generator"}
        sizes = [in_dim, *[width] * (depth - 1)]
        self.dense = nn.ModuleList(dense(n, width, members=members, average=True, **made) for n in sizes)
        self.norm = nn.ModuleList(layer_norm(width, members=members, **place) for _ in sizes if norm)
        self.depth, self.members = depth, members or 1

    def forward(self, x: Tensor) -> Tensor:
        require_columns(x, self.dense[0])
        for l, one in enumerate(self.dense):
            x = F.gelu(one(x), approximate="tanh")
            x = self.norm[l](x) if self.norm else x
        return x


class Network(nn.Module):
    """The base of networks made of the layers here: `reset_parameters` starts all of them anew, in their order."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start anew, as a new one does. generator: draws the weights, by default PyTorch's own."""
        for module in self.modules():
            if isinstance(module, Dense | Linears | ResidualStack):
                module.reset_parameters(generator)
            elif isinstance(module, nn.LayerNorm | LayerNorms):
                module.reset_parameters()


def dense(in_dim: int, out_dim: int, *, members: int | None = None, **made: Any) -> nn.Module:
    """One linear layer, or those of E members."""
    return Dense(in_dim, out_dim, **made) if members is None else Linears(in_dim, out_dim, members, **made)


def require_columns(x: Tensor, first: Any) -> None:
    """Raise TypeError or ValueError unless x is what `first`, the first layer of a network, takes: a tensor of as many
    columns, and of its dtype."""
    check_tensors(x=x)
    dtype, columns = first.weight.dtype, first.weight.shape[-1]
    rounded = x.is_floating_point() and x.dtype != torch.float64 and autocasts(x)
    if x.dtype != dtype and not rounded:
        raise TypeError(f"x must be {dtype}, as the network's weights, got {x.dtype}; pass x.to({dtype})")
    if x.ndim == 0 or x.shape[-1] != columns:
        raise ValueError(f"x must have {columns} columns, the network's in_dim, got shape {list(x.shape)}")


def layer_norm(width: int, *, members: int | None = None, **made: Any) -> nn.Module:
    """One LayerNorm, or those of E members."""
    if members is None:
        return nn.LayerNorm(width, eps=LAYER_NORM_EPS, **made)
    return LayerNorms(width, members, LAYER_NORM_EPS, **made)


def _checked(depth: int, options: dict[str, Any]) -> dict[str, Any]:
    """`options` once they are ones of `residual_stack` and fit; one sentence otherwise."""
    options = dict(options)
    if "checkpoint" in options and "recompute" not in options:
        warnings.warn("checkpoint= is called recompute= now", FutureWarning, stacklevel=3)
        options["recompute"] = options.pop("checkpoint")
    for name in options.keys() - NAMES:
        own = (*NAMES, "width", "depth", "members", "generator", "device", "dtype")
        near = get_close_matches(name, own, n=2, cutoff=0.7)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(NAMES)}"
        raise TypeError(f"a residual stack has no option {name!r}; {hint}")
    impls = ("auto", *BACKENDS["residual_stack"])
    if options.get("impl", "auto") not in impls:
        raise ValueError(f"impl must be one of {', '.join(impls)}, got {options['impl']!r}")
    checked_options(depth, **{name: value for name, value in options.items() if name != "impl"})
    return options


def _number_of_members(members: Any) -> int:
    return whole_number("members", members, "a number of networks >= 1")


def _sorted(layers: Iterable[nn.Module]) -> tuple[list[nn.Linear], list[nn.LayerNorm], str | None]:
    """The linear layers, the LayerNorms and the name of the activation, if there is one, once they make a stack."""
    dense: list[nn.Linear] = []
    norms: list[nn.LayerNorm] = []
    activations: list[str] = []
    before: nn.Module | None = None
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            width = dense[0].in_features if dense else layer.in_features
            if (layer.in_features, layer.out_features) != (width, width):
                raise ValueError(
                    f"layer {place} must be {width} x {width}, got {layer.in_features} x {layer.out_features}"
                )
            dense.append(layer)
        elif isinstance(layer, nn.LayerNorm):
            norms.append(layer)
            if not isinstance(before, nn.Linear) or layer.normalized_shape != (before.out_features,):
                raise ValueError(f"layer {place} must follow a Linear and be of its width, got {layer}")
            if layer.eps != norms[0].eps:
                raise ValueError(f"layer {place} must have the others' eps {norms[0].eps}, got {layer.eps}")
        elif isinstance(layer, nn.SiLU | nn.ReLU):
            activations.append("swish" if isinstance(layer, nn.SiLU) else "relu")
            if not isinstance(before, nn.Linear | nn.LayerNorm):
                raise ValueError(f"layer {place} must follow a Linear or its LayerNorm, got {layer}")
            if activations[-1] != activations[0]:
                raise ValueError(
                    f"layer {place} must be the others' activation, {activations[0]}, got {layer}"
                )
        else:
            raise ValueError(f"layer {place} must be a Linear, a LayerNorm, a SiLU or a ReLU, got {layer}")
        before = layer
    if not dense or any(len(others) not in (0, len(dense)) for others in (norms, activations)):
        raise ValueError(
            "layers must be Linears, each with a LayerNorm or none with one, and an activation likewise, "
            f"got {len(dense)}, {len(norms)} and {len(activations)}"
        )
    return dense, norms, activations[0] if activations else None


def _rows_of_each(x: Tensor, members: int) -> Sequence[Tensor]:
    """x [B, in] for all members, or [E, B, in], as E tensors [B, in]."""
    if x.ndim == 2:
        return [x] * members
    if x.ndim != 3 or len(x) != members:
        raise ValueError(
            f"x must have shape [B, in] for all {members} members, or [{members}, B, in], got {list(x.shape)}"
        )
    return x.unbind()
