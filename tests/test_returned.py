"""What a method may not return: `quantize` refuses it before it goes into the model, `check_method` likewise.

Each case is a rounding to nearest that is changed in one thing, and the words that the message must hold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import qlib
from qlib.errors import CheckError, QuantError
from qlib.grid import Grid, fit_minmax
from qlib.methods.contracts import BlockTask, LayerStats, Needs
from qlib.methods.rtn import rtn
from qlib.models.tiny import tiny_llama
from qlib.quantized_weight import QuantizedWeight, SecondLevel
from qlib.testing import check_method

GROUPS = Grid(4, 8)
Change = Callable[[QuantizedWeight, Tensor, Grid], QuantizedWeight]


@dataclass(frozen=True)
class Changed:
    """Rounds to nearest, and changes the result."""

    change: Change
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs.NOTHING

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        return self.change(rtn(weight, grid), weight, grid)

    def settings(self) -> dict[str, Any]:
        return {}


def part(name: str, change: Callable[[Tensor], Any]) -> Change:
    """A change of one part, where there is one."""

    def changed(good: QuantizedWeight, weight: Tensor, grid: Grid) -> QuantizedWeight:
        value = getattr(good, name)
        return good if value is None else replace(good, **{name: change(value)})

    return changed


def with_columns(*numbers: int, **other: Any) -> Change:
    """Columns in float, done right but for what `other` says."""

    def changed(good: QuantizedWeight, weight: Tensor, grid: Grid) -> QuantizedWeight:
        columns = torch.tensor(numbers)
        inside = [number for number in numbers if number < weight.shape[1]]
        rest = [k for k in range(weight.shape[1]) if k not in inside]
        params = fit_minmax(weight[:, rest], grid)
        index = None
        if params.index is not None:
            index = torch.zeros(weight.shape[1], dtype=torch.int64)
            index[rest] = params.index
        codes = good.codes.index_fill(1, torch.tensor(inside, dtype=torch.int64), 0)
        values = weight[:, [min(number, weight.shape[1] - 1) for number in numbers]]
        right = QuantizedWeight(codes, params.scale, params.zero, index)
        return replace(right, **{"columns": columns, "column_values": values, **other})

    return changed


def with_outliers(places: Any, values: Any) -> Change:
    return lambda good, weight, grid: replace(good, outliers=places, outlier_values=values)


def of_second(**other: Any) -> Change:
    """Another second level."""

    def changed(good: QuantizedWeight, weight: Tensor, grid: Grid) -> QuantizedWeight:
        if good.second is None:
            return good
        level = good.second.scale
        return replace(
            good,
            second=SecondLevel(good.second.grid, replace(level, **{k: f(level) for k, f in other.items()})),
        )

    return changed


def keeps_groups(good: QuantizedWeight, weight: Tensor, grid: Grid) -> QuantizedWeight:
    """One column more than fills the last group stays in float, and the groups are those of all columns."""
    k = 1 + (weight.shape[1] - 1) % (grid.group or weight.shape[1])
    if grid.group is None:
        return good
    columns = torch.arange(k)
    return replace(
        good, codes=good.codes.index_fill(1, columns, 0), columns=columns, column_values=weight[:, :k]
    )


FLOATS = torch.tensor([1.0, 2.0])
META = torch.device("meta")
BROKEN: dict[str, tuple[Change, str]] = {
    # codes
    "codes are none": (part("codes", lambda c: None), r"codes that are None, for a weight"),
    "codes are a list": (part("codes", lambda c: c.tolist()), r"codes that are a list.*a tensor"),
    "codes int32": (part("codes", lambda c: c.int()), r"of int32.*codes\.to\(torch\.uint8\)"),
    "codes int8": (part("codes", lambda c: c.to(torch.int8)), r"of int8.*torch\.uint8"),
    "codes float": (part("codes", lambda c: c.float()), r"of float32.*torch\.uint8"),
    "codes flat": (part("codes", lambda c: c.flatten()), r"codes that are a Tensor \[\d+\] of uint8"),
    "codes too large": (part("codes", lambda c: c + 1), r"codes from \d to 16, but .* has 0 to 15"),
    "codes elsewhere": (part("codes", lambda c: c.to(META)), r"codes on meta, and the weight is on cpu"),
    # scales
    "scale is none": (part("scale", lambda s: None), r"scales that are None"),
    "scale is a number": (part("scale", lambda s: 0.5), r"scale that are the float 0\.5"),
    "scale whole": (part("scale", lambda s: s.long()), r"scales that are a Tensor .* of int64"),
    "scale flat": (part("scale", lambda s: s.flatten()), r"Return floats \[\d+, groups\]"),
    "scale transposed": (part("scale", lambda s: s.T), r"scales that are a Tensor"),
    "scale of more groups": (
        lambda good, w, g: replace(good, scale=good.scale.repeat(1, 2)),
        r"returned \d+ scales per row\. On .*\(0 stay in float\) have \d",
    ),
    "scale NaN": (part("scale", lambda s: s * torch.nan), r"for the scales, returned \d+ of \d+ numbers"),
    "scale infinite": (part("scale", lambda s: s / 0), r"NaN or infinite"),
    "scale overflows": (part("scale", lambda s: 0 * s + 3e38), r"values are not finite"),
    "scale elsewhere": (part("scale", lambda s: s.to(META)), r"scale on meta, and the weight is on cpu"),
    # zero points
    "zero missing": (part("zero", lambda z: None), r"no zero points for w4"),
    "zero on a symmetric grid": (
        lambda good, w, g: replace(good, zero=torch.zeros(good.scale.shape, dtype=torch.uint8))
        if g.symmetric else good,
        r"zero points for w4 g8 symmetric",
    ),
    "zero int64": (part("zero", lambda z: z.long()), r"zero points in torch\.int64.*torch\.uint8"),
    "zero int8": (part("zero", lambda z: z.to(torch.int8)), r"zero points in torch\.int8"),
    "zero bool": (part("zero", lambda z: z > 0), r"zero points in torch\.bool"),
    "zero float64": (part("zero", lambda z: z.double()), r"zero points in torch\.float64"),
    "zero too large": (part("zero", lambda z: z + 20), r"zero points from \d+ to \d+, but w4"),
    "zero negative": (part("zero", lambda z: z.int() - 20), r"zero points from -\d+ to -?\d+, but w4"),
    "zero NaN": (part("zero", lambda z: z / torch.tensor(0.0)), r"for the zero points, returned"),
    "zero of another shape": (part("zero", lambda z: z[:, :0]), r"zero points that are a Tensor"),
    "zero is a list": (part("zero", lambda z: z.tolist()), r"zero that are a list"),
    # groups
    "index missing": (part("index", lambda i: None), r"for the group of each column None"),
    "index int32": (part("index", lambda i: i.int()), r"of int32\. Return int64 numbers"),
    "index float": (part("index", lambda i: i.float()), r"of float32\. Return int64 numbers"),
    "index too large": (part("index", lambda i: i + 1), r"Return int64 numbers \[\d+\] from 0 to"),
    "index negative": (part("index", lambda i: i - 1), r"Return int64 numbers"),
    "index short": (part("index", lambda i: i[1:]), r"group of each column a Tensor \[\d+\]"),
    "index is a list": (part("index", lambda i: i.tolist()), r"index that are a list"),
    "index elsewhere": (part("index", lambda i: i.to(META)), r"index on meta"),
    # columns in float
    "columns descend": (with_columns(5, 1), r"columns are not ascending numbers from 0 to \d+"),
    "columns twice": (with_columns(1, 1), r"columns are not ascending"),
    "columns negative": (with_columns(-1), r"columns are not ascending"),
    "columns beyond the last": (with_columns(99), r"columns are not ascending numbers from 0"),
    "columns float": (with_columns(1, columns=FLOATS[:1]), r"columns is torch\.float32, not torch\.int64"),
    "columns int32": (with_columns(1, columns=torch.tensor([1]).int()), r"columns is torch\.int32"),
    "columns are a list": (with_columns(1, columns=[1]), r"columns that are a list of 1 int"),
    "columns are one number": (with_columns(1, columns=torch.tensor(1)), r"columns is \[\], not \[1\]"),
    "columns without values": (with_columns(1, column_values=None), r"columns and their values belong"),
    "values without columns": (
        lambda good, w, g: replace(good, column_values=w[:, :1]), r"columns and their values belong"
    ),
    "column values of another shape": (
        with_columns(1, column_values=torch.zeros(3)), r"values of columns is \[3\], not \[\d+, 1\]"
    ),
    "column values whole": (
        lambda good, w, g: with_columns(1, column_values=w[:, [1]].long())(good, w, g),
        r"values of columns is torch\.int64, not a float",
    ),
    "column values NaN": (
        lambda good, w, g: with_columns(1, column_values=w[:, [1]] * torch.nan)(good, w, g),
        r"values of columns holds \d+ NaN",
    ),
    "columns elsewhere": (with_columns(1, columns=torch.tensor([1], device=META)), r"columns on meta"),
    "codes in float columns": (
        lambda good, w, g: with_columns(1, codes=torch.ones_like(good.codes))(good, w, g),
        r"returned \d+ codes other than 0 in the 1 columns that stay in float.*codes\[:, columns\] = 0",
    ),
    "groups of all columns": (
        keeps_groups, r"\d+ scales per row\. On w. g8.*\(\d stay in float\) have \d\. Fit"
    ),
    # single weights in float
    "outliers descend": (
        with_outliers(torch.tensor([5, 1]), FLOATS), r"outliers are not ascending numbers from 0 to \d+"
    ),
    "outliers twice": (with_outliers(torch.tensor([5, 5]), FLOATS), r"outliers are not ascending"),
    "outliers beyond the last": (
        with_outliers(torch.tensor([5, 9999]), FLOATS), r"outliers are not ascending"
    ),
    "outliers negative": (with_outliers(torch.tensor([-3, 5]), FLOATS), r"outliers are not ascending"),
    "outliers int32": (with_outliers(torch.tensor([1, 5]).int(), FLOATS), r"outliers is torch\.int32"),
    "outliers in rows": (
        with_outliers(torch.tensor([[1, 5]]), FLOATS), r"outliers is \[1, 2\], not \[2\]"
    ),
    "outliers without values": (with_outliers(torch.tensor([1, 5]), None), r"outliers and their values"),
    "outlier values without places": (with_outliers(None, FLOATS), r"outliers and their values"),
    "too many outlier values": (
        with_outliers(torch.tensor([5]), FLOATS), r"values of outliers is \[2\], not \[1\]"
    ),
    "outlier values infinite": (
        with_outliers(torch.tensor([1, 5]), FLOATS / 0), r"values of outliers holds 2 NaN or infinite"
    ),
    # bits of scales
    "scales of 32 bits": (part("scale", lambda s: s * 1.2345), r"not in bfloat16"),
    "second level dropped": (
        lambda good, w, g: QuantizedWeight(good.codes, good.scale, good.zero, good.index),
        r"no codes of 4 bits.*QuantizedWeight\.of\(codes, params\)",
    ),
    "second level of another kind": (part("second", lambda s: s.scale), r"second level that is a Quant"),
    "second level of other scales": (
        lambda good, w, g: replace(good, scale=good.scale * 2), r"scale that is not what second\.decode"
    ),
    "second level of other groups": (
        of_second(codes=lambda level: level.codes[:, 1:]), r"scale_codes is \[\d, \d+\], not \[\d, \d+\]"
    ),
    "second level out of range": (
        of_second(codes=lambda level: level.codes + 16), r"scale_codes reach \d+, above 15"
    ),
    "second level without zeros": (of_second(zero=lambda level: None), r"scale_zero is missing"),
    # notes
    "notes are a text": (lambda good, w, g: replace(good, notes="dead"), r"notes that are the str 'dead'"),
    "notes are numbers": (lambda good, w, g: replace(good, notes=(1,)), r"notes that are a tuple of 1 int"),
    "notes are none": (lambda good, w, g: replace(good, notes=None), r"notes that are None"),
}  # fmt: skip
OTHER_GRIDS = {
    "zero on a symmetric grid": Grid(4, 8, symmetric=True),
    "scales of 32 bits": Grid(4, 8, scale_bits=16),
    **{case: Grid(4, 8, scale_bits=4) for case in BROKEN if case.startswith("second level")},
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_method_may_not_return(case: str) -> None:
    change, message = BROKEN[case]
    grid = OTHER_GRIDS.get(case, GROUPS)
    where = r"model\.layers\.0\.self_attn\.q_proj: mine\.quantize_layer[ ,].*returned"
    with pytest.raises(QuantError, match=f"^{where}.*") as error:
        qlib.quantize(tiny_llama(), [Changed(change)], weight=grid, progress=False)
    error.match(message)
    with pytest.raises(CheckError, match=rf"^mine\.quantize_layer on a weight \[12, 24\].*{message}"):
        check_method(Changed(change))


def by_columns(tensor: Tensor | None) -> Tensor | None:
    """The same numbers, the columns of which lie together in memory."""
    return None if tensor is None else tensor.T.contiguous().T


ODD: dict[str, tuple[Change, Grid]] = {
    "columns in float": (with_columns(1, 5), GROUPS),
    "no columns in float": (
        lambda good, w, g: replace(good, columns=w[0, :0].long(), column_values=w[:, :0]), GROUPS,
    ),
    "by columns, and values that all layers share": (
        lambda good, w, g: replace(
            good, codes=by_columns(good.codes), scale=by_columns(good.scale), zero=by_columns(good.zero),
            outliers=torch.tensor([1, 5]), outlier_values=FLOATS,
        ), GROUPS,
    ),
    "one scale for all": (part("scale", lambda s: s[:1].expand_as(s)), GROUPS),
    "a learned scale": (part("scale", lambda s: 2 * s.requires_grad_()), GROUPS),
    "negative scales": (part("scale", lambda s: -s), GROUPS),
    "scales of 0": (part("scale", lambda s: 0 * s), GROUPS),
    "scales in float16": (part("scale", lambda s: s.half()), GROUPS),
    "float zero points": (part("zero", lambda z: z + 0.25), GROUPS),
    "groups in any order": (part("index", lambda i: i.flip(0)), GROUPS),
    "an index of one group": (lambda g, w, _: replace(g, index=0 * torch.arange(w.shape[1])), Grid(4)),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_it_may_return_comes_back_from_disk(case: str, tmp_path: Path) -> None:
    """Odd, and allowed: the model can be copied, and the one that is read has outputs of the same bits."""
    change, grid = ODD[case]
    result = qlib.quantize(tiny_llama(), [Changed(change)], weight=grid, progress=False)
    again, tokens = qlib.load_quantized(result.save(tmp_path / "saved")), torch.tensor([[1, 2, 3, 4, 5]])
    expected = copy.deepcopy(result.model)(tokens)
    assert torch.equal(again(tokens), expected)


# --- what scales, clips and learns


@dataclass(frozen=True)
class Elsewhere:
    """Returns tensors on another device, from the call of this name."""

    call: str
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs.BLOCK

    def __getattr__(self, name: str) -> Any:
        if name != self.call:
            raise AttributeError(name)
        return {"scale_group": self._scale, "clip_layer": self._clip, "fit": self._learn}[name]

    def _scale(self, weights: list[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        return torch.ones(weights[0].shape[1], device=META)

    def _clip(self, weight: Tensor, stats: LayerStats, grid: Grid) -> Tensor:
        return weight.to(META)

    def _learn(self, task: BlockTask, grid: Grid) -> dict[str, Tensor]:
        return {name: value.to(META) for name, value in task.parameters.items()}


@pytest.mark.parametrize("call", ["scale_group", "clip_layer", "fit"])
def test_tensors_on_another_device_are_refused(call: str) -> None:
    message = rf"mine\.{call}.* on meta, and the weight is on cpu.*device=weight\.device"
    with pytest.raises(QuantError, match=rf"model\.layers\.0.*{message}"):
        qlib.quantize(tiny_llama(), [Elsewhere(call)], weight=GROUPS, calib=["the cat"], progress=False)
    with pytest.raises(CheckError, match=message):
        check_method(Elsewhere(call))
