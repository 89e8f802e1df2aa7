"""What `quantize` is given, looked at before any work: types first, then values.

Each function returns its argument as the rest of the library reads it, or says what it is, where it stands
and what to pass instead. What can mean only one thing is taken: one method for a list of one, one pattern
for a list of one, any iterable of calibration data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qlib.activation import FixedRange, PerTensor, PerToken, Rounding
from qlib.asr.utterance import Utterance
from qlib.errors import DataError, QuantError, as_whole, describe, list_names
from qlib.grid import Grid
from qlib.kept_columns import KeepColumns
from qlib.linear import FakeQuantLinear
from qlib.models.structure import Model
from qlib.models.text import TextModel

LISTS = (".jsonl", ".json", ".csv", ".tsv", ".txt")  # suffixes of files that hold many texts or recordings
OFFERS = ("groups", "stages", "tied", "require_unpacked")  # what is asked of a model


def as_model(model: object, what: str = "quantize") -> Model:
    """Return a model that describes itself to quantizers.

    Raises
    ------
    QuantError
        It is a name, a path, a result, a single layer, a model of another library, or no model at all.
    """
    missing = [name for name in OFFERS if not hasattr(model, name)]
    if isinstance(model, nn.Module) and not missing:
        return model  # type: ignore[return-value]
    found = describe(model)
    if isinstance(model, str | Path):
        raise QuantError(
            f"{what} got {found}, not a model. Load it first: {what}(qlib.load_model({str(model)!r}), ...)."
        )
    if isinstance(getattr(model, "model", None), Model):
        raise QuantError(f"{what} got {found}, which holds a model. Pass its model: {what}(it.model, ...).")
    if isinstance(model, FakeQuantLinear):
        raise QuantError(f"{what} got a layer that is quantized already. Pass a float model.")
    if isinstance(model, nn.Linear):
        raise QuantError(
            f"{what} got a single nn.Linear, not a model. For one layer: "
            "codes = qlib.RTN().quantize_layer(layer.weight, LayerStats(), grid), then "
            "qlib.FakeQuantLinear.from_linear(layer, codes, grid)."
        )
    if isinstance(model, nn.Module):
        raise QuantError(_foreign(model, missing, what))
    raise QuantError(f"{what} got {found}, not a model. Pass what qlib.load_model(folder_or_name) returns.")


def _foreign(model: nn.Module, missing: list[str], what: str) -> str:
    """Say what to do with a module that is no model of this library."""
    kind = type(model)
    start = (
        f"{what} got a {kind.__module__.split('.')[0]} {kind.__name__}, which has no {list_names(missing)}. "
    )
    if kind.__module__.startswith("transformers"):
        return start + "Save it by save_pretrained(folder) and pass qlib.load_model(folder)."
    return start + (
        "Pass what qlib.load_model returns. Round any other module layer by layer: "
        "codes = method.quantize_layer(layer.weight, stats, grid), then "
        "qlib.FakeQuantLinear.from_linear(layer, codes, grid). docs/any_module.md has the loop."
    )


def as_grids(weight: object) -> Grid | dict[str, Grid]:
    """Return the grid of all weights, or the grids of patterns of layers.

    Raises
    ------
    QuantError
        It is no `Grid` and no mapping of strings to grids; the message shows how to write the one that was
        meant.
    """
    if isinstance(weight, Grid):
        return weight
    if isinstance(weight, Mapping):
        return _as_mapping(weight)
    bits = as_whole(weight)
    remedy = f"Pass one Grid, such as qlib.Grid(bits=4, group=64), or {_MAPPING}."
    if bits is not None:
        remedy = f"Did you mean weight=qlib.Grid(bits={bits})?"
    elif weight is Grid:
        remedy = "It must be called: weight=qlib.Grid(bits=4, group=64)."
    raise QuantError(f"weight is {describe(weight)}, not a Grid. {remedy}")


_MAPPING = "a dict of patterns such as {'*': qlib.Grid(3, 64), 'fc2': qlib.Grid(8)}"


def _as_mapping(weight: Mapping[Any, Any]) -> dict[str, Grid]:
    """Return a mapping of patterns to grids."""
    if not weight:
        raise QuantError(f"weight is an empty {type(weight).__name__}. Pass one Grid, or {_MAPPING}.")
    for pattern, grid in weight.items():
        if not isinstance(pattern, str) or not isinstance(grid, Grid):
            raise QuantError(
                f"weight is {describe(weight)} and gives {describe(grid)} to {pattern!r}. Pass one Grid, or "
                f"{_MAPPING}."
            )
    return dict(weight)


def as_activation(activation: object) -> Rounding | dict[str, Rounding]:
    """Return how all inputs are rounded (None: not at all), or those of patterns of layers.

    Raises
    ------
    QuantError
        It is no rounding and no mapping of strings to roundings.
    """
    if not isinstance(activation, Mapping):
        return _as_rounding(activation, "activation")
    example = "a dict of patterns such as {'*': qlib.PerToken(8), 'fc2': None}"
    if not activation:
        raise QuantError(
            f"activation is an empty {type(activation).__name__}. Pass one rounding, or {example}."
        )
    for pattern in activation:
        if not isinstance(pattern, str):
            raise QuantError(f"activation has the pattern {pattern!r}, which is no string. Pass {example}.")
    return {pattern: _as_rounding(each, f"activation[{pattern!r}]") for pattern, each in activation.items()}


def _as_rounding(activation: object, where: str) -> Rounding:
    """Return how inputs are rounded; the message says `where` else it stands."""
    if activation is None or isinstance(activation, PerToken | PerTensor):
        return activation
    bits = activation.bits if isinstance(activation, Grid) else as_whole(activation)
    remedy = "Pass qlib.PerToken(bits=8), qlib.PerTensor(bits=8), or None to leave inputs in float."
    if bits is not None:
        remedy = f"Did you mean {where}=qlib.PerToken(bits={bits})?"
    elif isinstance(activation, type) and issubclass(activation, PerToken | PerTensor):
        remedy = f"It must be called: {where}=qlib.{activation.__name__}(bits=8)."
    elif isinstance(activation, FixedRange | KeepColumns):
        remedy = "That is the rounding of one layer; quantize makes them itself. " + remedy
    raise QuantError(f"{where} is {describe(activation)}, which rounds no inputs. {remedy}")


def as_patterns(skip: object) -> tuple[str, ...]:
    """Return patterns of layers that stay in float; a lone string is one of them.

    Raises
    ------
    QuantError
        They are not strings.
    """
    if isinstance(skip, str):
        return (skip,)
    if not isinstance(skip, Iterable) or isinstance(skip, Mapping | bytes | Tensor):
        raise QuantError(f"skip is {describe(skip)}, not a list of patterns. Pass skip=['fc2'], or nothing.")
    patterns = tuple(skip)
    for number, pattern in enumerate(patterns, 1):
        if not isinstance(pattern, str):
            raise QuantError(
                f"skip pattern {number} of {len(patterns)} is {describe(pattern)}, not a string. Pass names "
                "or patterns of layers, such as 'fc2' or 'model.encoder.*'."
            )
    return patterns


def as_calibration(calib: object, model: Model) -> list[Utterance] | list[str] | None:
    """Return calibration data as a list: recordings for a speech recognizer, texts for a text model.

    Raises
    ------
    DataError
        It is a single recording or text, an array, or something else that is no list, or one of its entries
        is of another kind; the message counts from 1.
    """
    if calib is None:
        return None
    text = isinstance(model, TextModel)
    if isinstance(calib, str | Path) and Path(calib).suffix in LISTS:
        name = repr(str(calib))
        read = f"Path({name}).read_text().splitlines()" if text else f"qlib.read_manifest({name})"
        raise DataError(f"calib is the path {name}. Pass what the file holds, as a list: calib={read}.")
    if isinstance(calib, str | bytes | Path | Utterance):
        raise DataError(
            f"calib is {describe(calib)}, one entry and not a list. Put it into a list: calib=[...]. "
            + _remedy(text, calib)
        )
    if not isinstance(calib, Iterable) or isinstance(calib, Mapping | Set | Tensor) or _is_table(calib):
        raise DataError(
            f"calib is {describe(calib)}, not a list of {'texts' if text else 'utterances'}. "
            + _remedy(text, calib)
        )
    entries: list[Any] = list(calib)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, str if text else Utterance):
            raise DataError(
                f"calibration entry {number} of {len(entries)} is {describe(entry)}. {_remedy(text, entry)}"
            )
    return entries


def _remedy(text: bool, entry: object) -> str:
    """Say what a model is calibrated with, given what stood there instead."""
    if text:
        return "A text model is calibrated with texts: pass calib=[...] of strings."
    start = "A speech recognizer is calibrated with recordings: pass calib=[...] of utterances"
    if isinstance(entry, str | Path):
        return f"{start}, qlib.Utterance(path, text), or qlib.read_manifest(path) for a list of them."
    return f"{start}, qlib.Utterance(path, text)."


def as_folder(work: object) -> Path | None:
    """Return the folder of finished blocks, or None.

    Raises
    ------
    QuantError
        It is no path, or an empty one.
    """
    if work is None:
        return None
    if not isinstance(work, str | Path) or not str(work).strip():
        raise QuantError(f"work is {describe(work)}, not a folder. Pass a path such as 'out/work', or None.")
    return Path(work)


def _is_table(values: object) -> bool:
    """Return whether this is an array, or a table that would give the names of its columns."""
    return hasattr(values, "dtype") or hasattr(values, "dtypes")
