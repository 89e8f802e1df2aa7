"""Which layers of a model are quantized, which grid each of them takes, and how its input is rounded.

A pattern covers the modules whose path ends with it, and all that lies inside of them: ``fc2`` covers every
fc2, ``encoder_attn`` all of cross-attention. ``*`` stands for any characters and ``?`` for one.

Token tables (`Model.tables`) stay in float unless they are named: by another pattern of ``weight`` than the
bare ``*``. A table that is embedding and head at once may be named as either.
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
from qlib.linear import FakeQuantWeight
from qlib.models.structure import Model

T = TypeVar("T")
Layer = nn.Linear | nn.Embedding


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern covers a module path, or a module that contains it, from any dot on."""
    return fnmatch(f".{name}.", f"*.{pattern}.*")


def choose_layers(
    model: Model, skip: Sequence[str], weight: Grid | Mapping[str, Grid] | None = None
) -> tuple[dict[str, Layer], tuple[tuple[str, str], ...]]:
    """Return the layers to quantize by name, and all other modules with weights, each with a reason.

    Token tables are among the layers, behind all others, where `weight` names them.

    Raises
    ------
    QuantError
        The model is quantized already, a pattern matches no module, no layer is left, or a table is given two
        grids by its two names.
    """
    model.require_unpacked("quantized")
    modules = {name: module for name, module in model.named_modules() if name}
    if done := [name for name, module in modules.items() if isinstance(module, FakeQuantWeight)]:
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
    tables = {
        layer: model.tables[layer]
        for layer in table_grids(model, weight)
        if not any(matches(name, pattern) for name in model.tables[layer] for pattern in skip)
    }
    rounded = {*known, *(name for names in tables.values() for name in names)}
    reasons = {
        name: _reason_to_skip(model, name, module, skip, name in rounded)
        for name, module in modules.items()
        if list(module.parameters(recurse=False))
    }
    layers: dict[str, Layer] = {
        name: module
        for name in (*known, *tables)
        if not reasons[name] and isinstance(module := modules[name], Layer)
    }
    if not layers:
        raise QuantError(
            f"No layer is left to quantize: skip={list(skip)} covers all {len(known)}. Skip fewer."
        )
    return layers, tuple((name, reason) for name, reason in reasons.items() if reason)


def _reason_to_skip(model: Model, name: str, module: nn.Module, skip: Sequence[str], rounded: bool) -> str:
    """Return why a module with weights stays in float, or nothing."""
    table = any(name in names for names in model.tables.values())
    if rounded and table:
        return ""
    if f"{name}.weight" in model.tied:
        return "shares its weight with the token embedding"
    if not table and not isinstance(module, nn.Linear):
        return f"{type(module).__name__}, not a linear layer"
    if any(matches(name, pattern) for pattern in skip):
        return "skipped as asked"
    if rounded:
        return ""
    return "token table, which weight does not name" if table else "stands outside the blocks"


def _layers_are(known: Sequence[str], pattern: str) -> str:
    """Name the layers of a model, and the one that a pattern may have meant."""
    names = {part for name in known for part in (name, name.split(".")[-1])}
    return f"Layers are named {list_names(known)}.{did_you_mean(pattern, names)}"


@dataclass(frozen=True)
class _Argument:
    """What messages say of an argument of `quantize` that may be a mapping of patterns."""

    name: str
    gives: str  # to a layer
    covers: str  # nothing, where a pattern is wrong
    remedy: str  # where it gives nothing to some layers


_WEIGHT = _Argument(
    "weight",
    "grid",
    "no linear layer and no token table",
    "Put '*': qlib.Grid(...) in front for all others, or leave these layers in float by skip=[...].",
)
_ACTIVATION = _Argument(
    "activation",
    "rounding",
    "no linear layer",
    "Put '*': None in front to leave the inputs of all others in float.",
)


def table_grids(model: Model, weight: Grid | Mapping[str, Grid] | None) -> dict[str, Grid]:
    """Return the grid of each token table that `weight` names, by the layer that holds the table.

    Raises
    ------
    QuantError
        The two names of a table are given two grids.
    """
    if weight is None or isinstance(weight, Grid):
        return {}
    patterns = [pattern for pattern in weight if pattern != "*"]
    found: dict[str, Grid] = {}
    for layer, names in model.tables.items():
        grids = {name: weight[each[-1]] for name in names if (each := _covering(name, patterns))}
        if len(set(grids.values())) > 1:
            given = " and ".join(f"{grid} to {name}" for name, grid in grids.items())
            raise QuantError(
                f"weight gives {given}, and these are one table, as embedding and as head. Give both names "
                "the same grid."
            )
        if grids:
            found[layer] = next(iter(grids.values()))
    return found


def _covering(name: str, patterns: Iterable[str]) -> list[str]:
    """Return the patterns that cover a layer; its full name alone where that is one of them."""
    patterns = list(patterns)
    return [name] if name in patterns else [each for each in patterns if matches(name, each)]


def choose_grids(model: Model, layers: Iterable[str], weight: Grid | Mapping[str, Grid]) -> dict[str, Grid]:
    """Return the grid of each layer, from one grid for all or from a mapping of patterns.

    A full name beats all patterns. Of several patterns that cover a layer, the last one in the mapping wins.

    Raises
    ------
    QuantError
        A pattern covers no linear layer, all layers of a pattern go to a wider one after it, or a layer has
        no grid.
    """
    if isinstance(weight, Grid):
        return dict.fromkeys(layers, weight)
    tables = table_grids(model, weight)
    names = [name for names in model.tables.values() for name in names]
    return _choose([*_linears(model), *names], list(layers), weight, _WEIGHT, tables)


def choose_roundings(
    model: Model, layers: Iterable[str], activation: Rounding | Mapping[str, Rounding]
) -> dict[str, Rounding]:
    """Return how the input of each layer is rounded; rules and errors as in `choose_grids`.

    An embedding has no input to round.
    """
    linears = set(_linears(model))
    without = {name: None for name in layers if name not in linears}
    multiplied = [name for name in layers if name in linears]
    if not isinstance(activation, Mapping):
        return {**dict.fromkeys(multiplied, activation), **without}
    return {**_choose(list(linears), multiplied, activation, _ACTIVATION, {}), **without}


def _linears(model: Model) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _choose(
    paths: Sequence[str],
    layers: Sequence[str],
    given: Mapping[str, T],
    argument: _Argument,
    tables: Mapping[str, T],
) -> dict[str, T]:
    """Return what a mapping of patterns gives to each layer; `paths` can be covered, `tables` are settled."""
    name, gives = argument.name, argument.gives
    for pattern in given:
        if not any(matches(path, pattern) for path in paths):
            raise QuantError(
                f"{name} gives a {gives} to {pattern!r}, which matches {argument.covers}. "
                f"{_layers_are([*layers, *(path for path in paths if path not in layers)], pattern)}"
            )
    outside = [layer for layer in layers if layer not in tables]
    _check_order([pattern for pattern in given if pattern not in layers], outside, argument)
    found = {
        layer: tables[layer] if layer in tables else given[covering[-1]]
        for layer in layers
        if layer in tables or (covering := _covering(layer, given))
    }
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
                    f"covers all its layers, and the last pattern wins. Put {pattern!r} after {other!r}."
                )


def by_grid(grids: Mapping[str, Grid]) -> dict[Grid, list[str]]:
    """Return the layers of each grid."""
    found: dict[Grid, list[str]] = {}
    for name, grid in grids.items():
        found.setdefault(grid, []).append(name)
    return found


def check_layers(layers: Mapping[str, Layer], grids: Mapping[str, Grid]) -> None:
    """Refuse grids and weights that some layer cannot be rounded with, naming every such layer.

    Raises
    ------
    QuantError
        A group is larger than its layer, or a weight is not finite.
    """
    for grid, names in by_grid(grids).items():
        columns = {name: layers[name].weight.shape[1] for name in names}
        narrow = [name for name in names if columns[name] < (grid.group or 1)]
        if narrow:
            grid.check(min(columns[name] for name in narrow), list_names(narrow))
    for name, layer in layers.items():
        try:
            check_weight(layer.weight)
        except QuantError as error:
            raise QuantError(f"{name}: {error}") from error
