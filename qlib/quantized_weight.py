"""What is left of a weight: integer codes, the numbers that turn them into values, and what stays in float.

Shapes: codes [rows, columns] = (out, in); scale and zero [rows, groups]; see `qlib/grid.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlib.grid import Grid, QuantParams, decode


@dataclass(frozen=True, repr=False)
class QuantizedWeight:
    """What is left of a weight: integer codes, and the few numbers that turn them into values.

    Parameters
    ----------
    codes : Tensor
        [rows, columns], uint8 (asymmetric) or int8 (symmetric).
    scale, zero, index : Tensor
        As in `QuantParams`.
    notes : tuple of str
        What the user should know about this layer: what damping did, inputs that were never used.
    columns, column_values : Tensor or None
        Input columns that stay in float: their numbers [k], int64, and values [rows, k]. Their codes do not
        count and are 0.
    outliers, outlier_values : Tensor or None
        Single weights that stay in float: positions row * columns + column, ascending [n], int64, and
        values [n]. Their codes do not count.
    second : SecondLevel or None
        The smaller numbers that `scale` and `zero` were decoded from, if they were rounded too.
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

    def __repr__(self) -> str:
        """Return one line: shape, bits, groups, what stays in float, and bits per weight."""
        rows, columns = self.codes.shape
        groups, bits = self.scale.shape[1], _bits_of(self.codes)
        parts = [f"{rows} x {columns}", f"{bits} bits", "one group" if groups == 1 else f"{groups} groups"]
        if self.columns is not None:
            parts.append(f"{len(self.columns)} columns in float")
        if self.outliers is not None:
            parts.append(f"{len(self.outliers)} outliers in float")
        return f"QuantizedWeight({', '.join(parts)}, about {self._bits():.2f} bits per weight)"

    def _bits(self) -> float:
        """Return the bits per weight of codes, scales, zeros and what stays in float, without the index."""
        bits, numbers = _bits_of(self.codes), self.tensors()
        if self.second is not None:  # scale and zero are made from the numbers of the second level
            del numbers["scale"], numbers["zero"]
        stored = bits * numbers.pop("codes").numel()
        numbers.pop("index", None)
        for each in numbers.values():  # whole zeros take as many bits as codes
            stored += (bits if each.dtype == torch.uint8 else 8 * each.itemsize) * each.numel()
        return stored / self.codes.numel()

    def decode(self) -> Tensor:
        """Return the values, [rows, columns], in the scale's dtype; the same bits on every call."""
        values = decode(self.codes, QuantParams(self.scale, self.zero, self.index))
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
            for part, level in (("scale", self.second.scale), ("zero", self.second.zero)):
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


def _bits_of(codes: Tensor) -> int:
    """Return the fewest bits, from 2 on, that hold all codes."""
    low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    return max(2, high.bit_length() if low >= 0 else max(high.bit_length(), (-low - 1).bit_length()) + 1)


TENSORS = ("codes", "scale", "zero", "index", "columns", "column_values", "outliers", "outlier_values")


@dataclass(frozen=True)
class SecondLevel:
    """Scales and zeros that were rounded themselves: the transposed matrices [groups, rows] on a grid.

    A group of that grid is a number of neighbouring rows whose scales (or zeros) share a scale of their own.
    """

    grid: Grid
    scale: QuantizedWeight
    zero: QuantizedWeight

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], grid: Grid) -> SecondLevel:
        """Return the level whose tensors have these names: ``scale_codes``, ``zero_scale`` ..."""
        scale, zero = (
            {name: tensors[f"{part}_{name}"] for name in TENSORS if f"{part}_{name}" in tensors}
            for part in ("scale", "zero")
        )
        return cls(grid, QuantizedWeight.from_tensors(scale), QuantizedWeight.from_tensors(zero))

    def decode(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero [rows, groups] of the first level."""
        return self.scale.decode().T.contiguous(), self.zero.decode().T.contiguous()
