"""A quantized weight as stored tensors: codes in packed bits, positions as gaps, float16 where exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qlib.grid import Grid
from qlib.linear import FakeQuantWeight
from qlib.packing import from_unsigned, pack, to_unsigned, unpack
from qlib.quantized_weight import QuantizedWeight, SecondLevel, short_integers
from qlib.stored_checks import check_consistent, expect_tensor, groups_of

SHORT = {"scale", "zero", "scale_scale", "scale_zero", "zero_scale", "zero_zero"}
"""Floats that a grid may store in 16 bits."""


def pack_weight(layer: FakeQuantWeight) -> dict[str, Tensor]:
    """Return what a layer's weight takes on disk, by the names of `QuantizedWeight.tensors`.

    Codes and whole zeros are packed, and scales take 16 bits where the grid says so. What can be computed is
    left out: the codes of columns that stay in float, the group of each column where groups are neighbours,
    and scales and zeros of which a second level is kept. Positions of outliers are stored as gaps, in 8,
    16 or 32 bits, whichever holds the largest.

    Raises
    ------
    QuantError
        The weight could not be read back: see `check_consistent`.
    """
    weight, grid = layer.quantized, layer.grid
    rows, columns = layer.codes.shape
    check_consistent(weight, grid, (rows, columns))
    tensors = {name: value.contiguous() for name, value in weight.tensors().items()}
    codes = weight.codes
    if weight.columns is not None:
        codes = codes[:, _rounded_columns(weight.columns, codes.shape[1])]
    tensors["codes"] = pack(to_unsigned(codes, grid), grid.bits)
    tensors |= _short_floats(weight, grid)
    if weight.zero is not None and not weight.zero.is_floating_point():
        tensors["zero"] = pack(weight.zero, grid.bits)
    if weight.index is not None and torch.equal(weight.index.cpu(), grid.group_index(columns)):
        del tensors["index"]
    if weight.outliers is not None:
        tensors["outliers"] = weight.outliers.diff(prepend=weight.outliers.new_zeros(1))
    for name in {"index", "outliers", "columns"} & tensors.keys():
        tensors[name] = short_integers(tensors[name])
    if weight.second is not None:
        for part, level in weight.second.levels().items():
            del tensors[part]
            tensors |= _short_floats(level, weight.second.grid, f"{part}_")
            tensors[f"{part}_codes"] = pack(level.codes, weight.second.grid.bits)
            tensors.pop(f"{part}_index", None)
    return tensors


def _short_floats(weight: QuantizedWeight, grid: Grid, prefix: str = "") -> dict[str, Tensor]:
    """Return scales and float zeros as they are stored where the grid gives them 16 bits."""
    if grid.scale_bits == 32:
        return {}
    short = {f"{prefix}scale": weight.scale.to(torch.bfloat16).contiguous()}
    if weight.zero is not None and weight.zero.is_floating_point():
        short[f"{prefix}zero"] = weight.zero.half().contiguous()
    return short


def unpack_weight(
    stored: Mapping[str, Tensor], written: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> QuantizedWeight:
    """Undo `pack_weight`; `written` is the layer's entry in the manifest, `dtype` that of the decoded weight.

    Scales of 16 bits are read as float32, or float64 if the weight is: decoding computes in that.
    """
    grid, (rows, columns) = Grid(**complete(written["grid"])), written["shape"]
    second = None if written.get("second") is None else Grid(**complete(written["second"]))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {name: value for name, value in stored.items() if name != "bias"}
    for name in SHORT & tensors.keys():
        of = grid if name in ("scale", "zero") or second is None else second
        if of.scale_bits < 32 and tensors[name].is_floating_point():
            tensors[name] = tensors[name].to(compute)
    for name in {"index", "outliers", "columns"} & tensors.keys():
        tensors[name] = tensors[name].long()
    if "outliers" in tensors:
        tensors["outliers"] = tensors["outliers"].cumsum(0)
    kept = tensors.get("columns", torch.empty(0, dtype=torch.long))
    codes = unpack(tensors["codes"], grid.bits, (rows, columns - len(kept)))
    tensors["codes"] = torch.zeros(rows, columns, dtype=grid.code_dtype)
    tensors["codes"][:, _rounded_columns(kept, columns)] = from_unsigned(codes, grid)
    if second is not None:
        tensors = _unpack_second_level(
            tensors, second, rows, groups_of(tensors.get("columns"), grid, columns)
        )
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
    for part in ("scale", "zero") if "zero_codes" in tensors else ("scale",):
        for each in ("scale", "zero"):
            expect_tensor(f"{part}_{each}", tensors[f"{part}_{each}"], (groups, blocks), None)
        found[f"{part}_codes"] = unpack(tensors[f"{part}_codes"], second.bits, (groups, rows))
        if blocks > 1:
            found[f"{part}_index"] = second.group_index(rows)
    found["scale"], zero = SecondLevel.from_tensors(found, second).decode()
    return found if zero is None else found | {"zero": zero}


def complete(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the grid of a manifest as it is written today: up to version 3 all scales had 32 bits."""
    return {"scale_bits": 32, **written}


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
