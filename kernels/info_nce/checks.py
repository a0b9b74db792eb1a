"""The arguments of `info_nce`, checked and brought to one form; each error is one sentence."""

from __future__ import annotations

from difflib import get_close_matches

import torch
from torch import Tensor

from deepres.kernels.arguments import ABOVE_ZERO, check_number, check_tensors
from deepres.kernels.fused_op import watched
from deepres.kernels.info_nce.options import (
    ENERGIES,
    FORMS,
    REDUCTIONS,
    ROW_DIVISORS,
    InfoNCEMore,
    InfoNCEOperands,
    InfoNCEOptions,
)

# What other libraries call an option of ours, and how it is asked for here.
ELSEWHERE = {
    "weight": "row_weight=[B] weighs the rows",
    "label_smoothing": "pass targets=[B, M], smoothed",
    "mask": "row_weight=[B] takes a mask of rows, self_offset leaves each row's own copy out",
    "logit_scale": "it is scale= here",
    "logit_bias": "it is bias= here",
    "tau": "it is temperature= here",
}


def check_features(phi: Tensor, psi: Tensor) -> None:
    """phi and psi, after `widened`."""
    if phi.ndim != 2 or psi.ndim != 2 or phi.shape[1] != psi.shape[1]:
        raise ValueError(
            f"phi and psi must have shapes [B, d] and [M, d], got {list(phi.shape)} and {list(psi.shape)}"
        )
    if phi.shape[0] == 0 or phi.shape[1] == 0:
        raise ValueError(f"phi must hold at least one row and one feature, got {list(phi.shape)}")
    if phi.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"phi must be float32 (16 bits are widened; float64 for the reference), got {phi.dtype}; "
            "call phi.float()"
        )
    if psi.dtype != phi.dtype:
        raise TypeError(f"psi must have phi's dtype {phi.dtype}, got {psi.dtype}; cast one of them")
    if psi.device != phi.device:
        raise ValueError(f"psi must be on phi's device {phi.device}, got {psi.device}; move one of them")


def checked(
    phi: Tensor,
    psi: Tensor,
    logsumexp_penalty: float,
    energy: str,
    form: str,
    positive_offset: int,
    more: InfoNCEMore,
) -> tuple[InfoNCEOperands, InfoNCEOptions]:
    """What a call of the public function asks for, once everything about it fits."""
    for name in more:
        if name not in InfoNCEMore.__annotations__:
            raise TypeError(f"info_nce has no option {name!r}; {_remedy(name)}")
    if isinstance(logsumexp_penalty, Tensor):
        raise TypeError(
            "logsumexp_penalty must be a number, got a tensor, which would get no gradient; pass float(it)"
        )
    check_number("logsumexp_penalty", logsumexp_penalty, "a finite number >= 0", least=0)
    row_divisor, reduction = more.get("row_divisor", "batch"), more.get("reduction", "mean")
    for name, value, choices in (
        ("energy", energy, ENERGIES), ("form", form, FORMS), ("row_divisor", row_divisor, ROW_DIVISORS),
        ("reduction", reduction, REDUCTIONS),
    ):  # fmt: skip
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if energy == "mrn" and phi.shape[1] % 2:
        raise ValueError(
            f'energy="mrn" splits the features into two halves, got an odd number, {phi.shape[1]}; add one'
        )
    labels, targets = more.get("labels"), more.get("targets")
    tensors = {"labels": labels, "targets": targets, "row_weight": more.get("row_weight")}
    check_tensors(**{name: t for name, t in tensors.items() if t is not None})
    own_by_offset = labels is None and targets is None
    if not own_by_offset and (positive_offset != 0 or not isinstance(positive_offset, int)):
        raise ValueError(
            "positive_offset says which goals are the rows' own, and so do labels and targets; pass one"
        )
    if own_by_offset:
        _check_offset("positive_offset", positive_offset, phi, psi)
    elif psi.shape[0] == 0:
        raise ValueError("psi must hold at least one goal, got [0, d]")
    self_offset = more.get("self_offset")
    if self_offset is not None:
        _check_offset("self_offset", self_offset, phi, psi)
        if own_by_offset and self_offset == positive_offset:
            raise ValueError(
                f"self_offset={self_offset} leaves out the rows' own goals; pass labels or targets that name others"
            )
    operands = InfoNCEOperands(
        None if labels is None else _labels(labels, targets, self_offset, phi, psi),
        None if targets is None else _targets(targets, form, phi, psi),
        _row_weight(more.get("row_weight"), row_divisor, phi),
        _scale(more, phi),
        _number("bias", more.get("bias"), phi),
    )
    offset = -1 if self_offset is None else self_offset
    penalty = float(logsumexp_penalty)
    return operands, InfoNCEOptions(penalty, energy, form, positive_offset, offset, row_divisor, reduction)


def _remedy(name: str) -> str:
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    known = ["energy", "form", "impl", "logsumexp_penalty", "positive_offset", *InfoNCEMore.__annotations__]
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"


def _check_offset(name: str, offset: int, phi: Tensor, psi: Tensor) -> None:
    if isinstance(offset, bool) or not isinstance(offset, int | torch.SymInt):
        raise TypeError(f"{name} must be an int, got {offset!r}")
    if offset < 0:
        raise ValueError(f"{name} must be a row of psi, >= 0, got {offset}")
    if psi.shape[0] < offset + phi.shape[0]:
        raise ValueError(
            f"psi must hold a goal for every row of phi ({phi.shape[0]}, from {name}={offset} on), got "
            f"{psi.shape[0]}; pass at least one goal for each row, or labels=[B] that name the rows' goals"
        )


def _labels(
    labels: Tensor, targets: Tensor | None, self_offset: int | None, phi: Tensor, psi: Tensor
) -> Tensor:
    if targets is not None:
        raise ValueError("labels and targets both say which goals are the rows' own; pass one of them")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != phi.shape[:1]:
        raise TypeError(
            f"labels must be {phi.shape[0]} integers, one for each row, got {labels.dtype} {list(labels.shape)}"
        )
    _check_device("labels", labels, phi)
    labels = labels.long()
    plain = type(labels) is Tensor and not watched()  # what is recorded or mapped has no values to look at
    if plain and labels.device.type == "cpu":  # elsewhere a look at them would wait for the device
        check_labels(labels, psi.shape[0], -1 if self_offset is None else self_offset)
    return labels


def check_labels(labels: Tensor, goals: int, self_offset: int) -> None:
    """labels [B] on the CPU."""
    least, most = (v.item() for v in torch.aminmax(labels))
    if least < 0 or most >= goals:
        raise ValueError(f"labels must be rows of psi, 0 to {goals - 1}, got {least if least < 0 else most}")
    if self_offset >= 0 and (labels - self_offset == torch.arange(len(labels), device="cpu")).any():
        raise ValueError(f"labels must name other goals than those that self_offset={self_offset} leaves out")


def _targets(targets: Tensor, form: str, phi: Tensor, psi: Tensor) -> Tensor:
    if form not in ("forward", "binary"):
        raise ValueError(f'targets serve form="forward" and "binary", got {form!r}; pass one of them')
    if targets.shape != (phi.shape[0], psi.shape[0]):
        raise ValueError(
            f"targets must have shape [{phi.shape[0]}, {psi.shape[0]}], a row of phi by a goal, "
            f"got {list(targets.shape)}"
        )
    return _constant("targets", targets, phi)


def _row_weight(weight: Tensor | None, divisor: str, phi: Tensor) -> Tensor | None:
    if weight is None:
        if divisor == "sum":
            raise ValueError(
                'row_divisor="sum" divides by the sum of row_weight, got none; pass row_weight=[B]'
            )
        return None
    if weight.shape != phi.shape[:1]:
        raise ValueError(f"row_weight must have shape [{phi.shape[0]}], got {list(weight.shape)}")
    return _constant("row_weight", weight, phi)


def _constant(name: str, t: Tensor, phi: Tensor) -> Tensor:
    if t.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} is a constant of the loss, got one that requires a gradient; pass {name}.detach(), or weigh "
            'the rows of reduction="none"'
        )
    _check_device(name, t, phi)
    return t.to(phi.dtype)


def _scale(more: InfoNCEMore, phi: Tensor) -> Tensor | None:
    scale, temperature = more.get("scale"), more.get("temperature")
    if temperature is None:
        if not isinstance(scale, Tensor | None):
            check_number("scale", scale, "a finite number > 0", least=ABOVE_ZERO)
        return _number("scale", scale, phi)
    if scale is not None:
        raise ValueError("scale and temperature are each other's inverse; pass one of them")
    if isinstance(temperature, Tensor):
        raise TypeError(
            "temperature must be a number, got a tensor; pass scale=1 / temperature, which is differentiable"
        )
    check_number("temperature", temperature, "a finite number > 0", least=ABOVE_ZERO)
    inverse = 1 / float(temperature)
    if inverse > torch.finfo(phi.dtype).max:
        raise ValueError(
            f"temperature must be large enough for its inverse to be a finite {phi.dtype}, got {temperature!r:.40}"
        )
    return phi.new_full((), inverse)


def _number(name: str, value: Tensor | float | None, phi: Tensor) -> Tensor | None:
    """`value` as a tensor [] of phi's dtype."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        check_number(name, value)
        return phi.new_full((), value)
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{name} must be one number, a float or a tensor [], got {value.dtype} {list(value.shape)}"
        )
    _check_device(name, value, phi)
    return value.reshape(()).to(phi.dtype)


def _check_device(name: str, t: Tensor, phi: Tensor) -> None:
    if t.device != phi.device:
        raise ValueError(f"{name} must be on phi's device {phi.device}, got {t.device}; move one of them")
