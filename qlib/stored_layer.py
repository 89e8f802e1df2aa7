"""One quantized layer on disk: packed tensors, and an entry of a manifest that says what they are.

`pack_layer` and `unpack_layer` undo each other bit for bit. What is read is checked: a layer whose parts
do not fit together is an error that says which, never a layer that computes something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlib.activation import Activation, KeepColumns, describe, restore
from qlib.errors import ModelError, QlibError, QuantError, list_names
from qlib.grid import Grid
from qlib.linear import FakeQuantLinear
from qlib.packing import from_unsigned, pack, to_unsigned, unpack
from qlib.quantized_weight import TENSORS, QuantizedWeight, SecondLevel, short_integers

DAMAGE = (LookupError, TypeError, AttributeError, ValueError, RuntimeError, QlibError)
"""What reading a damaged entry may raise."""


@dataclass(frozen=True)
class Entry:
    """What a manifest says of one layer, checked for itself: keys, kinds and bounds of all values."""

    grid: Grid
    activation: Activation | None
    shape: tuple[int, int]
    second: Grid | None
    tensors: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Entry:
        """Return the entry that `describe` wrote.

        Raises
        ------
        ModelError
            A value is missing, of another kind or out of bounds.
        """
        try:
            rows, columns = written["shape"]
            second = written["second"]
            entry = cls(
                Grid(**written["grid"]),
                restore(written["activation"]),
                (rows, columns),
                None if second is None else Grid(**second),
                tuple(written["tensors"]),
                tuple(written["notes"]),
            )
        except DAMAGE as error:
            raise ModelError(f"its entry is damaged ({type(error).__name__}: {error})") from error
        # What was read must be written the same way again: no other kind of number, no key that does nothing.
        plain = entry.describe()
        if wrong := [
            key for key in plain if _text(plain[key]) != _text(written[key]) or not _kinds(plain[key])
        ]:
            raise ModelError(f"its entry is damaged: check {list_names(wrong, 9)}")
        entry.check()
        return entry

    def describe(self) -> dict[str, Any]:
        """Return the entry as plain data that JSON keeps exactly."""
        return {
            "grid": asdict(self.grid),
            "activation": describe(self.activation),
            "shape": list(self.shape),
            "second": None if self.second is None else asdict(self.second),
            "tensors": list(self.tensors),
            "notes": list(self.notes),
        }

    def check(self) -> None:
        """Raise a ModelError where shape, names or notes are none."""
        if not all(type(size) is int and size >= 1 for size in self.shape):
            raise ModelError(f"its shape {list(self.shape)} is not two sizes above 0")
        known = {*TENSORS, "bias", *(f"{part}_{name}" for part in ("scale", "zero") for name in TENSORS)}
        if strange := [str(each) for each in self.tensors if each not in known]:
            raise ModelError(f"it has no tensors of the names {list_names(strange)}")
        if not all(isinstance(note, str) for note in self.notes):
            raise ModelError(f"its notes {list(self.notes)} are no texts")


KINDS: dict[str, tuple[type, ...]] = {
    **{"bits": (int,), "group": (int, type(None)), "symmetric": (bool,), "dynamic": (bool,)},
    **{"low": (float,), "high": (float,), "percentile": (int, float)},
}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _kinds(value: Any) -> bool:
    """Return whether the settings in plain data are of their kinds: 1 is not True."""
    if not isinstance(value, dict):
        return True
    return all(type(each) in KINDS.get(key, (type(each),)) and _kinds(each) for key, each in value.items())


def check_consistent(weight: QuantizedWeight, grid: Grid, shape: tuple[int, int]) -> None:
    """Refuse a weight whose parts do not fit together, or that holds NaN or infinity.

    Raises
    ------
    QuantError
        The message names the part, what it is and what it should be.
    """
    rows, columns = shape
    kept = 0 if weight.columns is None else len(weight.columns)
    groups = len(grid.slices(columns - kept)) if columns > kept else 1
    _expect("codes", weight.codes, shape, grid.code_dtype)
    _expect("scale", weight.scale, (rows, groups), None)
    if (weight.zero is None) != grid.symmetric:
        have = "no zero point" if weight.zero is None else "a zero point"
        raise QuantError(f"{have} on the grid {grid}: only asymmetric grids have one")
    if weight.zero is not None:
        whole = not weight.zero.is_floating_point()
        _expect("zero", weight.zero, (rows, groups), torch.uint8 if whole else weight.scale.dtype)
        if whole and int(weight.zero.max()) > grid.qmax:
            raise QuantError(
                f"the zero point {int(weight.zero.max())} is above {grid.qmax}, the highest code"
            )
    _check_index("index", weight.index, columns, groups)
    _check_places("columns", weight.columns, weight.column_values, (rows, kept), columns)
    count = 0 if weight.outliers is None else len(weight.outliers)
    _check_places("outliers", weight.outliers, weight.outlier_values, (count,), rows * columns)
    if weight.second is not None:
        for part, level in (("scale", weight.second.scale), ("zero", weight.second.zero)):
            blocks = len(weight.second.grid.slices(rows))
            _expect(f"{part}_codes", level.codes, (groups, rows), weight.second.grid.code_dtype)
            _expect(f"{part}_scale", level.scale, (groups, blocks), None)
            if level.zero is None:
                raise QuantError(f"{part}_zero is missing")
            _expect(f"{part}_zero", level.zero, (groups, blocks), None)
            _check_index(f"{part}_index", level.index, rows, blocks)


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    """Refuse another shape, another dtype (None: any float), NaN and infinity."""
    if tuple(tensor.shape) != shape:
        raise QuantError(f"{name} is {list(tensor.shape)}, not {list(shape)}")
    if tensor.dtype != dtype if dtype is not None else not tensor.is_floating_point():
        raise QuantError(f"{name} is {tensor.dtype}, not {dtype or 'a float'}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise QuantError(f"{name} holds {int((~tensor.isfinite()).sum())} NaN or infinite numbers")


def _check_index(name: str, index: Tensor | None, columns: int, groups: int) -> None:
    """Refuse an index that does not name a group for each column."""
    if index is None and groups > 1:
        raise QuantError(f"{name} is missing, though there are {groups} groups")
    if index is not None:
        _expect(name, index, (columns,), torch.int64)
        if int(index.min()) < 0 or int(index.max()) >= groups:
            raise QuantError(f"{name} names groups {int(index.min())} to {int(index.max())} of {groups}")


def _check_places(
    name: str, places: Tensor | None, values: Tensor | None, shape: tuple[int, ...], limit: int
) -> None:
    """Refuse places that are not ascending and below a limit, or that are not as many as their values."""
    if (places is None) != (values is None):
        raise QuantError(f"{name} and their values belong together, and one of them is missing")
    if places is None or values is None:
        return
    _expect(name, places, shape[-1:], torch.int64)
    _expect(f"values of {name}", values, shape, None if values.is_floating_point() else torch.float16)
    inside = not len(places) or (int(places[0]) >= 0 and int(places[-1]) < limit)
    if not inside or not bool((places.diff() > 0).all()):
        raise QuantError(f"{name} are not ascending numbers from 0 to {limit - 1}")


def pack_layer(name: str, layer: FakeQuantLinear) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a layer as it stands on disk: its tensors by full name, on the CPU, and the manifest's entry.

    Raises
    ------
    QuantError
        The layer could not be read back; the message names it and the part.
    """
    try:
        tensors = pack_weight(layer)
    except QuantError as error:
        raise QuantError(
            f"{name} cannot be saved: {error}. Quantize this layer again, or skip it."
        ) from error
    if layer.bias is not None:
        tensors["bias"] = to_16_bits(layer.bias.detach())
    entry = Entry(
        layer.grid,
        layer.activation,
        (layer.out_features, layer.in_features),
        layer.second,
        tuple(tensors),
        tuple(layer.notes),
    )
    return {f"{name}.{part}": value.cpu() for part, value in tensors.items()}, entry.describe()


def unpack_layer(
    stored: Mapping[str, Tensor], written: Mapping[str, Any], like: nn.Module, dtype: torch.dtype
) -> FakeQuantLinear:
    """Return the layer of which `pack_layer` gave the tensors, here without the name, and the entry.

    Parameters
    ----------
    stored : mapping
        Tensors of the layer.
    written : mapping
        The entry.
    like : Module
        The linear layer in whose place it comes: same shape, and a bias if that has one.
    dtype : torch.dtype
        Dtype of the decoded weight.

    Raises
    ------
    ModelError
        Something does not fit; the message says what, and not which layer.
    """
    entry = Entry.read(written)
    if not isinstance(like, nn.Linear):
        raise ModelError(f"in this architecture it is a {type(like).__name__}, not a linear layer")
    if entry.shape != tuple(like.weight.shape):
        raise ModelError(f"its shape is {list(entry.shape)}, in this architecture {list(like.weight.shape)}")
    bias = stored.get("bias")
    if (bias is None) != (like.bias is None):
        raise ModelError(f"it has {'no' if bias is None else 'a'} bias, unlike in this architecture")
    try:
        weight = unpack_weight(stored, written)
        check_consistent(weight, entry.grid, entry.shape)
        if bias is not None:
            _expect("bias", bias, entry.shape[:1], None)
        _check_kept_columns(entry.activation, weight.columns)
    except DAMAGE as error:
        raise ModelError(str(error)) from error
    bias = None if bias is None else bias.to(dtype)
    return FakeQuantLinear(weight, entry.grid, bias, entry.activation, dtype)


def _check_kept_columns(activation: Activation | None, columns: Tensor | None) -> None:
    """Refuse an input rounding that keeps other columns in float than the weight does."""
    if isinstance(activation, KeepColumns):
        kept = [] if columns is None else columns.tolist()
        if activation.columns.tolist() != kept:
            raise ModelError(
                f"its input keeps the columns {activation.columns.tolist()} in float, its weight {kept}"
            )


def pack_weight(layer: FakeQuantLinear) -> dict[str, Tensor]:
    """Return what a layer's weight takes on disk, by the names of `QuantizedWeight.tensors`.

    Codes and whole zeros are packed. What can be computed is left out: the codes of columns that stay in
    float, the group of each column where groups are neighbours, and scales and zeros of which a second level
    is kept. Positions of outliers are stored as gaps, 16 bits each where they fit.

    Raises
    ------
    QuantError
        The weight could not be read back: see `check_consistent`.
    """
    weight, grid = layer.quantized, layer.grid
    check_consistent(weight, grid, (layer.out_features, layer.in_features))
    tensors = {name: value.contiguous() for name, value in weight.tensors().items()}
    codes = weight.codes
    if weight.columns is not None:
        codes = codes[:, _rounded_columns(weight.columns, codes.shape[1])]
    tensors["codes"] = pack(to_unsigned(codes, grid), grid.bits)
    if weight.zero is not None and not weight.zero.is_floating_point():
        tensors["zero"] = pack(weight.zero, grid.bits)
    if weight.index is not None and torch.equal(weight.index.cpu(), grid.group_index(layer.in_features)):
        del tensors["index"]
    if weight.outliers is not None:
        tensors["outliers"] = weight.outliers.diff(prepend=weight.outliers.new_zeros(1))
    for name in {"index", "outliers", "columns"} & tensors.keys():
        tensors[name] = short_integers(tensors[name])
    if weight.second is not None:
        del tensors["scale"], tensors["zero"]
        for part, level in (("scale", weight.second.scale), ("zero", weight.second.zero)):
            tensors[f"{part}_codes"] = pack(level.codes, weight.second.grid.bits)
            tensors.pop(f"{part}_index", None)
    return tensors


def unpack_weight(stored: Mapping[str, Tensor], written: Mapping[str, Any]) -> QuantizedWeight:
    """Undo `pack_weight`; `written` is the layer's entry in the manifest."""
    grid, (rows, columns) = Grid(**written["grid"]), written["shape"]
    second = None if written.get("second") is None else Grid(**written["second"])
    tensors = {name: value for name, value in stored.items() if name != "bias"}
    for name in {"index", "outliers", "columns"} & tensors.keys():
        tensors[name] = tensors[name].long()
    if "outliers" in tensors:
        tensors["outliers"] = tensors["outliers"].cumsum(0)
    kept = tensors.get("columns", torch.empty(0, dtype=torch.long))
    codes = unpack(tensors["codes"], grid.bits, (rows, columns - len(kept)))
    tensors["codes"] = torch.zeros(rows, columns, dtype=grid.code_dtype)
    tensors["codes"][:, _rounded_columns(kept, columns)] = from_unsigned(codes, grid)
    if second is not None:
        tensors = _unpack_second_level(tensors, second, rows, len(grid.slices(columns)))
    if (zero := tensors.get("zero")) is not None and zero.dtype == torch.uint8:
        tensors["zero"] = unpack(zero, grid.bits, tensors["scale"].shape)
    if "index" not in tensors and tensors["scale"].shape[1] > 1:
        tensors["index"] = grid.group_index(columns)
    return QuantizedWeight.from_tensors(tensors, second, tuple(written["notes"]))


def _unpack_second_level(
    tensors: dict[str, Tensor], second: Grid, rows: int, groups: int
) -> dict[str, Tensor]:
    """Return the tensors with the codes of scales and zeros unpacked, and scales and zeros themselves."""
    blocks, found = len(second.slices(rows)), dict(tensors)
    for part in ("scale", "zero"):
        for each in ("scale", "zero"):
            _expect(f"{part}_{each}", tensors[f"{part}_{each}"], (groups, blocks), None)
        found[f"{part}_codes"] = unpack(tensors[f"{part}_codes"], second.bits, (groups, rows))
        if blocks > 1:
            found[f"{part}_index"] = second.group_index(rows)
    found["scale"], found["zero"] = SecondLevel.from_tensors(found, second).decode()
    return found


def _rounded_columns(columns: Tensor, count: int) -> Tensor:
    """Return a mask [count] of the columns that do not stay in float, given those that do."""
    mask = torch.ones(count, dtype=torch.bool, device=columns.device)
    mask[columns] = False
    return mask


def to_16_bits(tensor: Tensor) -> Tensor:
    """Return a float tensor in 16 bits if that changes no value, else as it is."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            short = tensor.to(dtype)
            if torch.equal(short.to(tensor.dtype), tensor):
                return short
    return tensor
