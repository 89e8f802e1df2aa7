"""QUIK: the few inputs that are far larger than the rest stay in float, in the weight and in the activation.

Paper: Ashkboos et al. 2023, arXiv 2310.09259, section 3.
Problem: that of GPTQ, where activations are rounded as well. A few input channels of a language model are
    100 times larger than the others, always the same ones; a token's grid that has to reach them leaves the
    others a handful of values.
Rule: the k inputs with the largest |x| during calibration are not rounded at all. GPTQ visits the other
    columns in ascending order of max |x| (from left to right if k = 0); the k float columns come last, take
    part in the compensation of everyone's errors, and make none of their own. Ranges are fitted to the
    rounded columns only.
Why it works: without those k inputs the activations fill their grid evenly; and the columns that could do
    most harm end up with what is left of the other columns' errors removed from them, exactly.
Shapes: W [outputs, inputs], H [inputs, inputs], absmax [inputs], the float columns [outputs, k].
Needs: the Hessian and the range. Changes: this weight only. The activation grid of the layer must leave out
    the same columns: that is the business of the layer that reads `QuantizedWeight.columns`.
Left out: the 8 bits that the paper gives to the second MLP layer (a matter of the grid for that layer), and
    its 2:4 sparsity. The float columns are stored in float16, 16 bits each instead of b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from qlib.errors import QuantError, settle
from qlib.grid import Fit, Grid, check_fit, to_codes, to_values
from qlib.methods.checks import (
    check_absmax,
    check_damping,
    check_layer,
    check_layer_stats,
    check_whole,
    with_token_note,
)
from qlib.methods.compensate import Compensated, Scale, assemble, fit_groups
from qlib.methods.contracts import LayerStats, Needs
from qlib.quantized_weight import QuantizedWeight

SHARE = 16  # one input in so many stays in float, unless told otherwise: 256 of 4096 in the paper


def quik(
    weight: Tensor,
    stats: LayerStats,
    grid: Grid,
    *,
    columns: int | None = None,
    damping: float = 0.01,
    fit: Fit = "minmax",
) -> QuantizedWeight:
    """Round a weight, except for the columns that meet the largest inputs.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs], any floating dtype.
    stats : LayerStats
        With H, the sum of x x^T over the inputs of this layer, and their range: `statistics(inputs)`.
    grid : Grid
        Bits, group and symmetry of the rounded columns; the paper's weights are symmetric. Groups are formed
        over those columns in the order of the visit, so the result carries their index.
    columns : int or None
        Number k of columns that stay in float; None: inputs // 16, the paper's share. With 0 this is GPTQ
        from left to right.
    damping : float
        The share of the mean of diag(H) that is added to it; makes up for too few tokens.
    fit : {"minmax", "mse"}
        How the range of a group is chosen.

    Returns
    -------
    QuantizedWeight
        `columns` are the float columns, ascending, `column_values` their compensated values in float16; their
        codes are 0.

    Raises
    ------
    QuantError
        NaN weights, statistics of another shape or not finite, no column left to round, a setting out of
        range.

    Examples
    --------
    The third input is 100 times larger. Its weight stays as it is, and the range is fitted to the others.

    >>> from qlib.methods.hessian import statistics
    >>> weight, inputs = torch.tensor([[1.0, -0.4, 30.0]]), torch.tensor([1.0, 1.0, 100.0]).diag()
    >>> result = quik(weight, statistics(inputs), Grid(bits=2, symmetric=True), columns=1)
    >>> result.decode().tolist(), result.columns.tolist()
    ([[1.0, 0.0, 30.0]], [2])
    """
    columns, damping = _checked(columns, damping, fit)
    H, absmax = check_layer_stats(stats, weight, Needs.HESSIAN | Needs.RANGE, "QUIK")
    H = check_layer(weight, H, grid)
    check_absmax(absmax, len(H))
    k = _float_columns(columns, len(H))
    rounded = len(H) - k
    # 1. The columns of the k largest inputs come last, the others in ascending order of max |x|. That order
    #    is there to leave those k to the end. Where none stays in float, the end has nothing to make up for
    #    them with, and the ascending order doubles the error and more: then from left to right.
    order = absmax.to(H.device).argsort(stable=True) if k else torch.arange(len(H), device=H.device)
    compensated = Compensated(weight, H, order, damping)
    codes, one_group = torch.zeros_like(compensated.weight), replace(grid, group=None)  # [columns, rows]
    codes_of = codes.unbind()
    scales: list[Scale] = []
    for group in compensated.groups(grid.slices(rounded)):
        # 2. GPTQ over the rounded columns: fit a group to its columns as they are now,
        scales += fit_groups(group.weight, one_group, fit)
        scale, zero, _ = scales[-1]
        for j, w in group:
            # round one column, and let all columns to come, the float ones too, make up for its error.
            to_codes(w, scale, zero, grid, out=codes_of[j])
            compensated.set(j, to_values(codes_of[j], scale, zero))
    index = torch.cat([grid.group_index(rounded), torch.zeros(k, dtype=torch.int64)]).to(H.device)
    result = assemble(codes, scales, index, grid, order, compensated.notes)
    if k == 0:
        return result
    # 3. The float columns, moved by all errors; they make none of their own.
    places, by_place = order[rounded:].sort()
    values = _as_float16(compensated.rest(rounded)[by_place].T)
    return replace(result, columns=places, column_values=values.contiguous())


@dataclass(frozen=True)
class QUIK:
    """Settings of QUIK; see `quik`."""

    columns: int | None = None  # that stay in float; the paper's: inputs // 16
    damping: float = 0.01  # the paper's
    fit: Fit = "minmax"

    name: ClassVar[str] = "quik"
    paper: ClassVar[str] = "Ashkboos et al. 2023, arXiv 2310.09259"
    needs: ClassVar[Needs] = Needs.HESSIAN | Needs.RANGE

    def __post_init__(self) -> None:
        columns, damping = _checked(self.columns, self.damping, self.fit)
        settle(self, columns=columns, damping=damping)

    def count(self, inputs: int) -> int:
        """Return how many of a layer's columns stay in float.

        Raises
        ------
        QuantError
            All of them.
        """
        return _float_columns(self.columns, inputs)

    def check_weights(self, weights: Mapping[str, Tensor], grid: Grid) -> None:
        """Refuse more columns in float than some layer has, naming the layer."""
        for name, weight in weights.items():
            try:
                self.count(weight.shape[1])
            except QuantError as error:
                raise QuantError(f"{name}: {error}") from error

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round one layer by its Hessian and range; `notes` also say when there were too few tokens.

        Raises
        ------
        QuantError
            The statistics lack the Hessian or the range, and all that `quik` refuses.
        """
        result = quik(weight, stats, grid, columns=self.columns, damping=self.damping, fit=self.fit)
        return with_token_note(result, stats.tokens)


def _checked(columns: int | None, damping: float, fit: Fit) -> tuple[int | None, float]:
    """Return columns and damping as plain numbers, or refuse a setting."""
    if columns is not None:
        columns = check_whole(columns, "columns", "QUIK", None)
        if columns < 0:
            raise QuantError(f"columns={columns} in QUIK is not a number >= 0. Use columns=None.")
    check_fit(fit)
    return columns, check_damping(damping, "QUIK", 0.01)


def _float_columns(columns: int | None, inputs: int) -> int:
    """Return how many columns of a layer stay in float, or refuse all of them."""
    k = inputs // SHARE if columns is None else columns
    if k >= inputs:
        raise QuantError(
            f"columns={k} in QUIK keeps all {inputs} inputs of the layer in float. "
            f"Use columns={inputs // SHARE} (or any number below {inputs}), or skip this layer."
        )
    return k


def _as_float16(values: Tensor) -> Tensor:
    """Return float columns as they are stored, or refuse what float16 cannot hold."""
    short = values.half()
    if not short.isfinite().all():
        raise QuantError(
            f"a weight of {values.abs().max():.3g} in a column that stays in float16, which ends at 65504. "
            "Use columns=0 for this layer."
        )
    return short
