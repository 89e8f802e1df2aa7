"""Which layers of a model are quantized, which grid each of them takes, and how its input is rounded.

A pattern covers the modules whose path ends with it, and all that lies inside of them: ``fc2`` covers every
fc2, ``encoder_attn`` all of cross-attention. ``*`` stands for any characters and ``?`` for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TypeVar

from torch import nn

from qlib.activation import Rounding
from qlib.errors import QuantError, did_you_mean, list_names
from qlib.grid import Grid, check_weight
from qlib.linear import FakeQuantLinear
from qlib.models.structure import Model

T = TypeVar("T")


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern covers a module path, or a module that contains it, from any dot on."""
    return fnmatch(f".{name}.", f"*.{pattern}.*")


def choose_layers(
    model: Model, skip: Sequence[str]
) -> tuple[dict[str, nn.Linear], tuple[tuple[str, str], ...]]:
    """Return the layers to quantize by name, and all other modules with weights, each with a reason.

    Raises
    ------
    QuantError
        The model is quantized already, a pattern matches no module, or no layer is left.
    """
    model.require_unpacked("quantized")
    modules = {name: module for name, module in model.named_modules() if name}
    if done := [name for name, module in modules.items() if isinstance(module, FakeQuantLinear)]:
        raise QuantError(f"The model is quantized already: {list_names(done)}. Quantize the float model.")
    blocks = [block for stage in model.stages() for block in stage.blocks]
    known = [
        layer
        for group in model.groups()
        for layer in group.layers
        if layer.startswith(tuple(f"{block}." for block in blocks))
    ]
    for pattern in skip:
        if not any(matches(name, pattern) for name in modules):
            raise QuantError(f"skip pattern {pattern!r} matches no module. {_layers_are(known, pattern)}")
    reasons = {
        name: _reason_to_skip(model, name, module, skip, name in known)
        for name, module in modules.items()
        if list(module.parameters(recurse=False))
    }
    layers = {
        name: module for name in known if not reasons[name] and isinstance(module := modules[name], nn.Linear)
    }
    if not layers:
        raise QuantError(
            f"No layer is left to quantize: skip={list(skip)} covers all {len(known)}. Skip fewer."
        )
    return layers, tuple((name, reason) for name, reason in reasons.items() if reason)


def _reason_to_skip(model: Model, name: str, module: nn.Module, skip: Sequence[str], inside: bool) -> str:
    """Return why a module with weights stays in float, or nothing."""
    if f"{name}.weight" in model.tied:
        return "shares its weight with the token embedding"
    if not isinstance(module, nn.Linear):
        return f"{type(module).__name__}, not a linear layer"
    if any(matches(name, pattern) for pattern in skip):
        return "skipped as asked"
    return "" if inside else "stands outside the blocks"


def _layers_are(known: Sequence[str], pattern: str) -> str:
    """Name the layers of a model, and the one that a pattern may have meant."""
    names = {part for name in known for part in (name, name.split(".")[-1])}
    return f"Layers are named {list_names(known)}.{did_you_mean(pattern, names)}"


@dataclass(frozen=True)
class _Argument:
    """What messages say of an argument of `quantize` that may be a mapping of patterns."""

    name: str
    gives: str  # to a layer
    remedy: str  # where it gives nothing to some layers


_WEIGHT = _Argument(
    "weight",
    "grid",
    "Put '*': qlib.Grid(...) in front for all others, or leave these layers in float by skip=[...].",
)
_ACTIVATION = _Argument(
    "activation", "rounding", "Put '*': None in front to leave the inputs of all others in float."
)


def choose_grids(model: Model, layers: Iterable[str], weight: Grid | Mapping[str, Grid]) -> dict[str, Grid]:
    """Return the grid of each layer, from one grid for all or from a mapping of patterns.

    A full name beats all patterns. Of several patterns that cover a layer, the last one in the mapping wins.

    Raises
    ------
    QuantError
        A pattern covers no linear layer, all layers of a pattern go to a wider one behind it, or a layer has
        no grid.
    """
    if isinstance(weight, Grid):
        return dict.fromkeys(layers, weight)
    return _choose(model, list(layers), weight, _WEIGHT)


def choose_roundings(
    model: Model, layers: Iterable[str], activation: Rounding | Mapping[str, Rounding]
) -> dict[str, Rounding]:
    """Return how the input of each layer is rounded; rules and errors as in `choose_grids`."""
    if not isinstance(activation, Mapping):
        return dict.fromkeys(layers, activation)
    return _choose(model, list(layers), activation, _ACTIVATION)


def _choose(model: Model, layers: Sequence[str], given: Mapping[str, T], argument: _Argument) -> dict[str, T]:
    """Return what a mapping of patterns gives to each layer."""
    name, gives = argument.name, argument.gives
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in given:
        if not any(matches(path, pattern) for path in linears):
            raise QuantError(
                f"{name} gives a {gives} to {pattern!r}, which matches no linear layer. "
                f"{_layers_are(layers, pattern)}"
            )
    patterns = [pattern for pattern in given if pattern not in layers]
    _check_order(patterns, layers, argument)
    found: dict[str, T] = {}
    for layer in layers:
        covering = [layer] if layer in given else [each for each in patterns if matches(layer, each)]
        if covering:
            found[layer] = given[covering[-1]]
    if missing := [layer for layer in layers if layer not in found]:
        raise QuantError(
            f"{name} gives no {gives} to {len(missing)} of {len(layers)} layers: {list_names(missing)}. "
            f"{argument.remedy}"
        )
    return found


def _check_order(patterns: Sequence[str], layers: Sequence[str], argument: _Argument) -> None:
    """Refuse a pattern without effect: one that stands in front of a wider one."""
    covered = [{name for name in layers if matches(name, pattern)} for pattern in patterns]
    for number, (pattern, own) in enumerate(zip(patterns, covered, strict=True)):
        for other, wider in zip(patterns[number + 1 :], covered[number + 1 :], strict=True):
            if own and own < wider:
                raise QuantError(
                    f"{argument.name} gives a {argument.gives} to {pattern!r}, but the later {other!r} "
                    f"covers all its layers, and the last pattern wins. Put {pattern!r} behind {other!r}."
                )


def by_grid(grids: Mapping[str, Grid]) -> dict[Grid, list[str]]:
    """Return the layers of each grid."""
    found: dict[Grid, list[str]] = {}
    for name, grid in grids.items():
        found.setdefault(grid, []).append(name)
    return found


def check_layers(layers: Mapping[str, nn.Linear], grids: Mapping[str, Grid]) -> None:
    """Refuse grids and weights that some layer cannot be rounded with, naming every such layer.

    Raises
    ------
    QuantError
        A group is larger than its layer, or a weight is not finite.
    """
    for grid, names in by_grid(grids).items():
        narrow = {n: layers[n].in_features for n in names if layers[n].in_features < (grid.group or 1)}
        if narrow:
            grid.check(min(narrow.values()), list_names(narrow))
    for name, layer in layers.items():
        try:
            check_weight(layer.weight)
        except QuantError as error:
            raise QuantError(f"{name}: {error}") from error
