"""Rounded inputs of a whole model: values outside of their ranges, and what is stored of each rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from qlib.activation import Activation, FixedRange, PerTensor, PerToken
from qlib.errors import ModelError, QuantError
from qlib.histogram import Histogram as Histogram
from qlib.kept_columns import KeepColumns


def exceeded(model: nn.Module) -> dict[str, float]:
    """Return the layers whose static range was exceeded, and the share of values, the largest first.

    Parameters
    ----------
    model : Module
        Layers with a `FixedRange` (or `KeepColumns` around one) as their `activation`.
    """
    found = {}
    for name, layer in model.named_modules():
        activation = getattr(layer, "activation", None)
        while isinstance(activation, KeepColumns):
            activation = activation.inner
        if isinstance(activation, FixedRange) and activation.exceeded:
            found[name] = activation.exceeded_share
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def reset_counts(model: nn.Module) -> None:
    """Let every `FixedRange` of a model count from 0 again, for example before a test."""
    for module in model.modules():
        if isinstance(module, FixedRange):
            module.reset()


def describe(activation: Activation | None) -> dict[str, Any] | None:
    """Return an activation as plain data that JSON keeps exactly; `restore` undoes it. None stays None.

    Raises
    ------
    QuantError
        It is none of this module's.
    """
    if activation is None:
        return None
    if isinstance(activation, PerToken):
        return {"kind": "per token", **asdict(activation)}
    if isinstance(activation, PerTensor):
        return {"kind": "per tensor", **asdict(activation)}
    if isinstance(activation, FixedRange):
        spec = asdict(activation.spec)
        return {"kind": "fixed range", "spec": spec, "low": activation.low, "high": activation.high}
    if isinstance(activation, KeepColumns):
        columns = activation.columns.tolist()
        return {"kind": "keep columns", "inner": describe(activation.inner), "columns": columns}
    raise QuantError(
        f"the activation {activation} ({type(activation).__name__}) cannot be written as JSON. Use PerToken, "
        "PerTensor, or KeepColumns around one of them."
    )


def restore(about: Mapping[str, Any] | None) -> Activation | None:
    """Rebuild an activation (how a layer's input is rounded) from the data that `describe` returned.

    Raises
    ------
    ModelError
        The data is not from `describe`: an unknown kind, or settings that are missing or too many.
    QuantError
        A setting is out of bounds.
    """
    if about is None:
        return None
    settings = dict(about)
    kind = settings.pop("kind", None)
    try:
        if kind == "per token":
            return PerToken(**settings)
        if kind == "per tensor":
            return PerTensor(**settings)
        if kind == "fixed range":
            return FixedRange(PerTensor(**settings.pop("spec")), **settings)
        if kind == "keep columns" and (inner := restore(settings.pop("inner"))) is not None:
            return KeepColumns(inner, **settings)
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"the activation {dict(about)} lacks a setting or has an unknown one ({error}). Copy or make the "
            "checkpoint again."
        ) from error
    raise ModelError(
        f"the activation {dict(about)} is of no known kind. Copy or make the checkpoint again, or use the "
        "version of this library that wrote it."
    )
