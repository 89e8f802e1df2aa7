"""What methods check alike: types of settings, statistics that belong to a layer, a Hessian that is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from qlib.errors import QuantError, describe, real_number, settle, true_or_false, whole_number
from qlib.grid import Grid, check_tensor, check_weight
from qlib.methods.contracts import LayerStats


def check_types(
    settings: Any, reals: Sequence[str] = (), wholes: Sequence[str] = (), flags: Sequence[str] = ()
) -> None:
    """Refuse settings of another type, with the default as the remedy; NumPy's numbers become plain ones.

    A setting whose default is None may be None.
    """
    kind, defaults = type(settings).__name__, {each.name: each.default for each in fields(settings)}
    for names, take in ((reals, real_number), (wholes, _whole), (flags, true_or_false)):
        for name in names:
            value, remedy = getattr(settings, name), f"Use {name}={defaults[name]!r}."
            if value is not None or defaults[name] is not None:
                settle(settings, **{name: take(value, f"{name} in {kind}", QuantError, remedy)})


def _whole(value: object, name: str, error: type[QuantError], remedy: str) -> int:
    return whole_number(value, name, error, -(1 << 63), remedy=remedy)


def check_stats(stats: object, method: str) -> None:
    """Refuse statistics that are no `LayerStats`."""
    if not isinstance(stats, LayerStats):
        raise QuantError(
            f"{method} got {describe(stats)} for statistics. Pass LayerStats(tokens=..., hessian=...), or "
            "what calibration collects; the order is weight, stats, grid."
        )


def check_weights(weights: object, method: str) -> None:
    """Refuse what is no list of weights."""
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence) or isinstance(weights, str):
        hint = "[weight]" if isinstance(weights, Tensor) else "a list of tensors"
        raise QuantError(
            f"{method} got {describe(weights)}, not a list of weights. Pass {hint}: all weights that read "
            "this input share one scale."
        )
    if not weights:
        raise QuantError(f"{method} got no weight to scale. Pass the weights that read this input.")
    for weight in weights:
        check_weight(weight)


def check_learnable(weights: Mapping[str, Tensor], grid: Grid) -> None:
    """Refuse weights of 16 bits, in which small steps would be rounded away, and a group too large."""
    for name, weight in weights.items():
        if weight.dtype not in (torch.float32, torch.float64):
            raise QuantError(f"{name} is {weight.dtype}, too short to learn in. Use model.float().")
        grid.check(weight.shape[1], name)


def check_hessian(hessian: Tensor, columns: int) -> None:
    """Refuse a Hessian of another shape, with NaN or infinity, or not symmetric."""
    check_tensor(hessian, "the Hessian", "Pass hessian(inputs) of this layer's inputs.")
    if hessian.shape != (columns, columns):
        raise QuantError(
            f"a Hessian of shape {tuple(hessian.shape)} for {columns} inputs. Pass the sum of x x^T "
            "over the inputs of this very layer, as hessian(inputs) returns it."
        )
    if not hessian.sum().isfinite():  # one bad number spoils the sum
        bad = int((~hessian.isfinite()).sum())
        raise QuantError(
            f"{bad} of {hessian.numel()} entries of the Hessian are NaN or infinite. "
            "Look for a bad calibration sample, or for a model that overflows in its dtype."
        )
    check_symmetric_hessian(hessian)


def check_symmetric_hessian(hessian: Tensor) -> None:
    """Refuse a square matrix that is no sum of x x^T, such as as many inputs as there are features."""
    H = hessian.detach()
    if float((H - H.T).abs().max()) > 1e-3 * float(H.abs().max()):
        raise QuantError(
            f"a matrix {list(hessian.shape)} that is not symmetric is no Hessian. Are these the inputs "
            "themselves? Pass their sum of x x^T: hessian(inputs), or inputs.T @ inputs."
        )
