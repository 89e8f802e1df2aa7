"""Grids of integer codes: where weights are rounded.

A grid keeps, for each group of neighbouring weights of a row, 2^b equally spaced values, and a weight
becomes the number (the code) of the nearest one:

    asymmetric  scale = (hi - lo) / (2^b - 1)          lo = min(w, 0), hi = max(w, 0) over the group
                zero  = round(-lo / scale)             codes 0 .. 2^b - 1
    symmetric   scale = max|w| / (2^(b-1) - 1)         codes -2^(b-1) .. 2^(b-1) - 1, no zero
    code  = clamp(round(w / scale) + zero)             value = scale (code - zero)

Why the range always reaches 0: then 0.0 has a code of its own, so padding, dead inputs and all-zero rows
survive exactly. Rounding is half to even. A group of zeros takes the range [-1, 1]: no division by 0.

>>> import torch
>>> weight = torch.tensor([[-1.0, 0.2, 0.9, 2.0]])
>>> grid = Grid(bits=2)
>>> params = fit_minmax(weight, grid)  # scale 1, zero point 1
>>> encode(weight, params, grid).tolist()
[[0, 1, 2, 3]]

Shapes: weight [rows, columns] = (out, in); scale and zero [rows, groups]; groups run along the columns.
Numbers: float32 whatever the weight's dtype, except that float64 stays float64.
Scales in fewer bits (`scale_bits`): in float32 a scale costs 32 bits a group, half a bit per weight at a
group of 64. `short_scales` rounds it to 16 bits, or to 2 .. 8 in two levels, before any code is chosen: a
value then carries one error, that of its code. Every fit ends there.
Left out: zero points in two levels. Whole ones take b bits anyway; those of `fit_float_zero` take 16.

Files, each of which imports only from those above it; inputs are rounded in `qlib/activation.py`:

    definition.py    Grid: bits, groups, lowest and highest code
    checks.py        what is no weight; the dtype of the arithmetic
    codes.py         value -> code -> value: begin here
    ranges.py        from the ends of a group's range to its scale and zero point
    short_scales.py  scales and zero points in the bits that the grid gives them
    fit.py           from a weight to its scales: min/max, least error, without reaching for 0
"""

from __future__ import annotations

from qlib.grid.checks import as_compute_dtype, check_tensor, check_weight, check_weight_on
from qlib.grid.codes import (
    QuantParams,
    RoundedScales,
    decode,
    encode,
    to_codes,
    to_codes_float_zero,
    to_values,
)
from qlib.grid.definition import Grid, check_bits, check_grid
from qlib.grid.fit import (
    CHUNK,
    SHRINKS,
    Fit,
    check_fit,
    fit_float_zero,
    fit_minmax,
    fit_mse,
    fit_scale,
    round_to_nearest,
)
from qlib.grid.ranges import in_groups, min_max_on, min_max_with_zero, scale_and_zero_point
from qlib.grid.short_scales import short_scales, short_zero, two_levels

__all__ = [
    "CHUNK",
    "SHRINKS",
    "Fit",
    "Grid",
    "QuantParams",
    "RoundedScales",
    "as_compute_dtype",
    "check_bits",
    "check_fit",
    "check_grid",
    "check_tensor",
    "check_weight",
    "check_weight_on",
    "decode",
    "encode",
    "fit_float_zero",
    "fit_minmax",
    "fit_mse",
    "fit_scale",
    "in_groups",
    "min_max_on",
    "min_max_with_zero",
    "round_to_nearest",
    "scale_and_zero_point",
    "short_scales",
    "short_zero",
    "to_codes",
    "to_codes_float_zero",
    "to_values",
    "two_levels",
]
