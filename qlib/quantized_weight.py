"""A quantized weight: integer codes, their scales and zero points, and what stays in float.

Shapes: codes [rows, columns] = (out, in); scale and zero [rows, groups]; see `qlib/grid/codes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import Grid, QuantParams, RoundedScales, decode


@dataclass(frozen=True, repr=False)
class QuantizedWeight:
    """A quantized weight: integer codes, and the scales and zero points that turn them into values.

    Parameters
    ----------
    codes : Tensor
        [rows, columns], uint8 (asymmetric) or int8 (symmetric).
    scale, zero, index : Tensor
        As in `qlib.grid.QuantParams`.
    notes : tuple of str
        What the user should know about this layer, such as inputs that were always 0.
    columns, column_values : Tensor or None
        Input columns that stay in float: their numbers [k], int64, and values [rows, k]. Their codes do not
        count and are 0.
    outliers, outlier_values : Tensor or None
        Single weights that stay in float: positions row * columns + column, ascending [n], int64, and
        values [n]. Their codes do not count.
    second : SecondLevel or None
        Codes, scales and zero points that `scale`, or `scale` and `zero`, were decoded from, if these were
        rounded too.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    index: Tensor | None = None
    notes: tuple[str, ...] = ()
    columns: Tensor | None = None
    column_values: Tensor | None = None
    outliers: Tensor | None = None
    outlier_values: Tensor | None = None
    second: SecondLevel | None = None

    @classmethod
    def of(cls, codes: Tensor, params: QuantParams, notes: tuple[str, ...] = ()) -> QuantizedWeight:
        """Return the weight of these codes, which were chosen with these scales."""
        second = None if params.second is None else SecondLevel.of(params.second)
        return cls(codes, params.scale, params.zero, params.index, notes, second=second)

    def __repr__(self) -> str:
        """Return one line: shape, bits, groups, what stays in float, and bits per weight."""
        rows, columns = self.codes.shape
        groups, bits = self.scale.shape[1], _bits_of(self.codes)
        parts = [f"{rows} x {columns}", f"{bits} bits", "one group" if groups == 1 else f"{groups} groups"]
        if self.columns is not None:
            parts.append(f"{len(self.columns)} columns in float")
        if self.outliers is not None:
            parts.append(f"{len(self.outliers)} outliers in float")
        scale_bits = 16 if _fits(self.scale, torch.bfloat16) else 32
        per_weight = self._bits_without_index(bits, scale_bits) / self.codes.numel()
        return f"QuantizedWeight({', '.join(parts)}, about {per_weight:.2f} bits per weight)"

    def bits(self, grid: Grid) -> int:
        """Return how many bits this weight takes in a checkpoint, to the last one; its layer's bias is extra.

        Codes and whole zero points take the grid's bits each, filled up to whole bytes; scales take the
        grid's `scale_bits`; what is computed when a checkpoint is read takes none: see
        `qlib.stored_weight.pack_weight`.
        """
        columns = self.codes.shape[1]
        regular = self.index is None or torch.equal(self.index.cpu(), grid.group_index(columns))
        of_index = 0 if regular else _short_bits(self.index)
        return self._bits_without_index(grid.bits, grid.scale_bits) + of_index

    def _bits_without_index(self, bits: int, scale_bits: int) -> int:
        """Return the bits in a checkpoint of all but the group of each column; `bits` is that of one code."""
        rows, columns = self.codes.shape
        kept = 0 if self.columns is None else len(self.columns)
        total = _packed_bits(rows * (columns - kept), bits)
        total += (
            _short_bits(self.columns) + _float_bits(self.column_values) + _float_bits(self.outlier_values)
        )
        if self.outliers is not None:  # stored as the distances from one to the next
            total += _short_bits(self.outliers.diff(prepend=self.outliers.new_zeros(1)))
        total += self._scale_bits(scale_bits)
        if self.zero is None or (self.second is not None and self.second.zero is not None):
            return total
        if self.zero.is_floating_point():
            return total + _float_bits(self.zero, scale_bits)
        return total + _packed_bits(self.zero.numel(), bits)

    def _scale_bits(self, scale_bits: int) -> int:
        """Return the bits of the scales, or of the levels from which scales and zero points are decoded."""
        if self.second is None:
            return _float_bits(self.scale, scale_bits)
        total = 0
        for level in self.second.levels().values():
            total += _packed_bits(level.codes.numel(), self.second.grid.bits)
            for values in (level.scale, level.zero):
                total += _float_bits(values, self.second.grid.scale_bits)
        return total

    def decode(self) -> Tensor:
        """Return the values, [rows, columns], in the scale's dtype; the same bits on every call."""
        # Along rows, however the codes lie in memory: so outliers are found, and a layer that is read back
        # multiplies in the same order.
        values = decode(self.codes, QuantParams(self.scale, self.zero, self.index)).contiguous()
        if self.columns is not None and self.column_values is not None:
            values[:, self.columns] = self.column_values.to(values.dtype)
        if self.outliers is not None and self.outlier_values is not None:
            values.view(-1)[self.outliers] = self.outlier_values.to(values.dtype)
        return values

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name; those of the second level as ``scale_codes``, ``zero_scale`` ..."""
        own = {name: getattr(self, name) for name in TENSORS}
        found = {name: value for name, value in own.items() if value is not None}
        if self.second is not None:
            for part, level in self.second.levels().items():
                found |= {f"{part}_{name}": value for name, value in level.tensors().items()}
        return found

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], second: Grid | None = None, notes: tuple[str, ...] = ()
    ) -> QuantizedWeight:
        """Undo `tensors`; `second` is the grid of the second level, if there is one."""
        own: dict[str, Any] = {name: tensors[name] for name in TENSORS if name in tensors}
        if second is not None:
            own["second"] = SecondLevel.from_tensors(tensors, second)
        return cls(notes=notes, **own)


def check_scale_bits(weight: QuantizedWeight, grid: Grid) -> None:
    """Refuse scales and float zeros that do not have the bits that the grid gives them.

    Raises
    ------
    QuantError
        Scales that are no bfloat16, float zeros that are no float16, or scales that should be codes of
        `scale_bits` and are none.
    """
    if grid.scale_bits == 32:
        return
    second = weight.second
    remedy = (
        "Fit scales by qlib.grid.fit_scale or fit_float_zero, which round them, and return "
        "QuantizedWeight.of(codes, params), which passes all of a fit on; or use scale_bits=32."
    )
    if grid.scale_bits < 16 and (second is None or second.grid.bits != grid.scale_bits):
        raise QuantError(
            f"the scales are no codes of {grid.scale_bits} bits, as on the grid {grid}. {remedy}"
        )
    if second is None and not _fits(weight.scale, torch.bfloat16):
        raise QuantError(f"the scales are not in bfloat16, as on the grid {grid}. {remedy}")
    zero = weight.zero if second is None or second.zero is None else None
    if zero is not None and zero.is_floating_point() and not _fits(zero, torch.float16):
        raise QuantError(f"the zero points are not in float16, as on the grid {grid}. {remedy}")


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a shorter dtype holds exactly these values."""
    return torch.equal(values.to(dtype).to(values.dtype), values)


def _bits_of(codes: Tensor) -> int:
    """Return the fewest bits, from 2 on, that hold all codes."""
    low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    return max(2, high.bit_length() if low >= 0 else max(high.bit_length(), (-low - 1).bit_length()) + 1)


def _packed_bits(count: int, bits: int) -> int:
    """Return the bits of packed codes: without gaps, up to the end of a byte."""
    return 8 * (-(-count * bits // 8))


def _float_bits(values: Tensor | None, scale_bits: int = 32) -> int:
    """Return the bits of floats, which on a grid with fewer than 32 bits for a scale are stored in 16."""
    if values is None:
        return 0
    return 8 * values.nbytes if scale_bits == 32 else 16 * values.numel()


def _short_bits(values: Tensor | None) -> int:
    return 0 if values is None else 8 * short_integers(values).nbytes


def short_integers(values: Tensor) -> Tensor:
    """Return whole numbers >= 0 in the shortest dtype that holds them: 8, 16 or 32 bits."""
    largest = int(values.max()) if values.numel() else 0
    return values.to(torch.uint8 if largest < 1 << 8 else torch.uint16 if largest < 1 << 16 else torch.int32)


TENSORS = ("codes", "scale", "zero", "index", "columns", "column_values", "outliers", "outlier_values")


@dataclass(frozen=True)
class SecondLevel:
    """Scales and zero points that were rounded themselves: the transposed matrices [groups, rows] on a grid.

    A group of that grid is a number of neighbouring rows whose scales (or zero points) share a scale. `zero`
    is None where zero points are whole numbers, or there are none.
    """

    grid: Grid
    scale: QuantizedWeight
    zero: QuantizedWeight | None = None

    @classmethod
    def of(cls, rounded: RoundedScales) -> SecondLevel:
        """Return the level of scales that a fit rounded."""
        return cls(rounded.grid, QuantizedWeight.of(rounded.codes, rounded.params))

    def levels(self) -> dict[str, QuantizedWeight]:
        """Return what was rounded, by name: ``scale``, and ``zero`` if that was."""
        return {"scale": self.scale} | ({} if self.zero is None else {"zero": self.zero})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], grid: Grid) -> SecondLevel:
        """Return the level whose tensors have these names: ``scale_codes``, ``zero_scale`` ..."""
        levels = {
            part: QuantizedWeight.from_tensors(
                {name: tensors[f"{part}_{name}"] for name in TENSORS if f"{part}_{name}" in tensors}
            )
            for part in ("scale", "zero")
            if f"{part}_codes" in tensors
        }
        return cls(grid, levels["scale"], levels.get("zero"))

    def decode(self) -> tuple[Tensor, Tensor | None]:
        """Return scale and zero [rows, groups] of the first level; no zero where that was not rounded."""
        zero = None if self.zero is None else self.zero.decode().T.contiguous()
        return self.scale.decode().T.contiguous(), zero
