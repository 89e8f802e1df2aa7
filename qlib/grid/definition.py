"""What a grid is: how many codes, which weights share a scale, and in how many bits scales are kept.

    codes  2^b of them: 0 .. 2^b - 1, or -2^(b-1) .. 2^(b-1) - 1 on a symmetric grid
    group  neighbouring columns of a row that share a scale; the last one may be narrower

A grid has settings and no numbers: scales and zero points are fitted to a weight (`qlib/grid/fit.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlib.errors import QuantError, as_whole, describe, settle, true_or_false


@dataclass(frozen=True)
class Grid:
    """How finely weights are rounded, and which of them share a scale.

    Parameters
    ----------
    bits : int
        Bits of one code, 2 to 8.
    group : int or None
        Number of neighbouring columns of a row that share a scale; the last group may be narrower.
        None: the whole row is one group ("per channel").
    symmetric : bool
        False: codes 0 .. 2^bits - 1 and an integer zero point. True: signed codes, no zero point.
    scale_bits : int
        Bits of a scale. 32: as it is fitted (64 for weights in float64). 16: bfloat16. 2 to 8: the scales of
        16 neighbouring rows are themselves codes, and share a scale and a zero point of 16 bits each.
        Below 32, zero points that are not whole (`fit_float_zero`) are float16.

    Raises
    ------
    QuantError
        Bits that are no whole number from 2 to 8, a group that is none from 1 on, a `symmetric` that is
        neither True nor False, or other `scale_bits`. NumPy's and torch's whole numbers are taken.

    Examples
    --------
    >>> print(Grid(bits=4, group=64))
    w4 g64 asymmetric
    """

    bits: int
    group: int | None = None
    symmetric: bool = False
    scale_bits: int = 32

    def __post_init__(self) -> None:
        remedy = "Use bits=8, 4, 3 or 2, and skip a layer that should stay in floating point."
        bits = check_bits(self.bits, "Grid", remedy)
        group = None if self.group is None else _check_group(self.group, bits)
        symmetric = true_or_false(
            self.symmetric, "symmetric in Grid", QuantError, "Use symmetric=True or symmetric=False."
        )
        scale_bits = _check_scale_bits(self.scale_bits)
        settle(self, bits=bits, group=group, symmetric=symmetric, scale_bits=scale_bits)

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return self.qmin + self.levels - 1

    @property
    def levels(self) -> int:
        """Number of codes, 2^bits."""
        return 1 << self.bits

    @property
    def code_dtype(self) -> torch.dtype:
        """Dtype of the codes: int8 when symmetric, else uint8."""
        return torch.int8 if self.symmetric else torch.uint8

    def slices(self, columns: int) -> list[slice]:
        """Return the column range of each group; the last may be narrower.

        >>> Grid(bits=4, group=128).slices(288)
        [slice(0, 128, None), slice(128, 256, None), slice(256, 288, None)]
        """
        width = self.group or columns
        return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]

    def group_index(self, columns: int) -> Tensor:
        """Return the group of each column, an int64 tensor [columns]."""
        return torch.arange(columns) // (self.group or columns)

    def check(self, columns: int, where: str) -> None:
        """Refuse a group that is larger than the layer.

        Parameters
        ----------
        columns : int
            Inputs of the layer.
        where : str
            Name of the layer, for the message.

        Raises
        ------
        QuantError
            `group` exceeds `columns`.
        """
        if self.group is not None and self.group > columns:
            raise QuantError(
                f"group={self.group} is larger than the {columns} columns of {where}. "
                f"Use group={columns} or less, or group=None for one scale per row."
            )

    def __str__(self) -> str:
        group = "per channel" if self.group is None else f"g{self.group}"
        name = f"w{self.bits} {group} {'symmetric' if self.symmetric else 'asymmetric'}"
        return name if self.scale_bits == 32 else f"{name}, {self.scale_bits}-bit scales"


def check_bits(bits: object, where: str, remedy: str) -> int:
    """Return a whole number of bits from 2 to 8 as an int; `where`, the class, is named in the error."""
    number = as_whole(bits)
    if number is None or not 2 <= number <= 8:
        shown = repr(bits) if number is None else number
        raise QuantError(f"bits={shown} in {where} is outside 2 to 8 (whole numbers). {remedy}")
    return number


def _check_group(group: object, bits: int) -> int:
    """Return a whole number of columns >= 1 as an int."""
    if isinstance(group, bool):
        raise QuantError(
            f"group={group} in Grid is no number of columns. Use group=64. "
            f"Did you mean Grid(bits={bits}, symmetric={group})?"
        )
    number = as_whole(group)
    if number is None or number < 1:
        raise QuantError(
            f"group={group if number is None else number!r} in Grid is not a number of columns >= 1. "
            "Use group=64, or group=None for one scale per row."
        )
    return number


def _check_scale_bits(scale_bits: object) -> int:
    """Return 32, 16 or 2 .. 8 as an int."""
    number = as_whole(scale_bits)
    if number is None or number not in (*range(2, 9), 16, 32):
        raise QuantError(
            f"scale_bits={scale_bits!r} in Grid is none of 32, 16 and 2 to 8. Use scale_bits=16, or "
            "scale_bits=4 for scales in two levels."
        )
    return number


def check_grid(grid: object) -> None:
    """Refuse what is not a `Grid`."""
    if isinstance(grid, Grid):
        return
    remedy = "Pass a Grid, such as Grid(bits=4, group=64)."
    if (bits := as_whole(grid)) is not None and 2 <= bits <= 8:
        remedy = f"Did you mean Grid(bits={bits})?"
    raise QuantError(f"the grid is {describe(grid)}. {remedy}")
