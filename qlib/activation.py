"""Rounding of what a layer reads; how weights are rounded is in `qlib/grid`.

    PerToken                 each token on a grid of its own, fitted when it arrives: no calibration
    PerTensor(dynamic=True)  one grid for the whole input of a call, fitted when it arrives
    PerTensor()              one grid for all inputs: calibrated on a `Histogram`, then a `FixedRange`
    KeepColumns              all columns but a few by one of the above, those few in float (QUIK)

All of them round to the grids of `qlib/grid`: value = scale * clamp(round(x / scale), lowest, highest),
where lowest and highest are the range of the codes less the zero point. That is one pass less over the data
than adding and subtracting the zero, and the same numbers.

>>> PerToken(bits=2)(torch.tensor([[-1.0, 0.2, 0.9, 2.0], [0.0, 0.0, 0.0, 0.0]])).tolist()
[[-1.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]]

Every range reaches 0, so 0.0 stays 0.0. Results keep the input's dtype; the arithmetic is float32 (float64
stays float64). Inputs are not checked: a NaN stays NaN. No gradient passes; who needs one adds
``x + (activation(x) - x).detach()``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from qlib.errors import QuantError, did_you_mean, real_number, settle, true_or_false
from qlib.grid import Grid, as_compute_dtype, check_bits, min_max_with_zero
from qlib.histogram import Histogram as Histogram
from qlib.histogram import check_percentile, fixed_scale, float32, round_fixed

RangeFit = Literal["minmax", "percentile", "mse"]

PERCENTILE = 99.99


class Activation(Protocol):
    """Rounds the input of a layer; reports show it as `str(activation)`."""

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Return the rounded inputs [..., features], same shape and dtype."""
        ...

    def __str__(self) -> str: ...


# --- fitted when the input arrives


@dataclass(frozen=True)
class PerToken:
    """Rounds each token on a grid fitted to that token alone ("dynamic": no calibration).

    The result of a token depends on no other: not on the batch, its order or its padding. A NaN or infinity
    makes its whole token NaN.

    Parameters
    ----------
    bits : int
        Bits of one code, 2 to 8.
    symmetric : bool
        As in `Grid`.

    Raises
    ------
    QuantError
        Bits outside 2 to 8.
    """

    bits: int = 8
    symmetric: bool = False

    def __post_init__(self) -> None:
        settle(self, **_checked(self.bits, self.symmetric, "PerToken"))

    @cached_property
    def grid(self) -> Grid:
        """The grid of one token."""
        return Grid(self.bits, None, self.symmetric)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the rounded inputs, same shape and dtype; the last axis of [..., features] is one token."""
        if inputs.numel() == 0:
            return inputs
        values = as_compute_dtype(inputs.detach())
        return _in_dtype(_round(values, *min_max_with_zero(values), self.grid), inputs.dtype)

    def __str__(self) -> str:
        return f"a{self.bits} per token {_symmetry(self.symmetric)}"


@dataclass(frozen=True)
class PerTensor:
    """One grid for all values of a layer's input: static (calibrated once) or dynamic (at each call).

    Parameters
    ----------
    bits : int
        Bits of one code, 2 to 8.
    symmetric : bool
        As in `Grid`.
    dynamic : bool
        True: the grid is fitted to the whole input of each call, so the result of an utterance depends on
        what else stands in its batch. False: `calibrated` makes a `FixedRange` of this.
    fit : {"minmax", "percentile", "mse"}
        How a static range is found: all values seen; without the outermost ones; or the share of the full
        range with the least squared error.
    percentile : float
        For fit="percentile": above 50, at most 100. At either end, at most 100 - percentile % of the
        calibration values lie outside of the range.

    Raises
    ------
    QuantError
        Bits, fit or percentile out of bounds, or a setting that could have no effect.
    """

    bits: int = 8
    symmetric: bool = False
    dynamic: bool = False
    fit: RangeFit = "minmax"
    percentile: float = PERCENTILE

    def __post_init__(self) -> None:
        settle(self, **_checked(self.bits, self.symmetric, "PerTensor"))
        remedy = "Use dynamic=True or dynamic=False."
        settle(self, dynamic=true_or_false(self.dynamic, "dynamic in PerTensor", QuantError, remedy))
        if not isinstance(self.fit, str) or self.fit not in get_args(RangeFit):
            raise QuantError(
                f"fit={self.fit!r} in PerTensor is unknown. Use fit='minmax', 'percentile' or 'mse'."
                f"{did_you_mean(str(self.fit), get_args(RangeFit))}"
            )
        if self.dynamic and self.fit != "minmax":
            raise QuantError(
                f"fit={self.fit!r} in PerTensor looks at calibration data, but dynamic=True uses none. "
                "Use dynamic=False, or fit='minmax'."
            )
        remedy = "Use a share of the values in percent, such as percentile=99.99."
        settle(self, percentile=real_number(self.percentile, "percentile in PerTensor", QuantError, remedy))
        check_percentile(self.percentile)
        if self.fit != "percentile" and self.percentile != PERCENTILE:
            raise QuantError(
                f"percentile={self.percentile} in PerTensor has no effect with fit={self.fit!r}. "
                "Use fit='percentile', or leave percentile out."
            )

    @cached_property
    def grid(self) -> Grid:
        """The grid of the whole input."""
        return Grid(self.bits, None, self.symmetric)

    def calibrated(self, histogram: Histogram) -> FixedRange:
        """Return the rounding of one layer's input, its range fitted to what calibration saw there.

        Parameters
        ----------
        histogram : Histogram
            All values of that input. For `KeepColumns`: those of the columns that are rounded.

        Raises
        ------
        QuantError
            This is a dynamic spec, or the histogram is empty.
        """
        if self.dynamic:
            raise QuantError(
                f"{self} is fitted at each call and cannot be calibrated. Use it as it is, or "
                "PerTensor(dynamic=False)."
            )
        if self.fit == "percentile":
            return FixedRange(self, *histogram.percentile(self.percentile))
        return FixedRange(self, *(histogram.mse(self.grid) if self.fit == "mse" else histogram.minmax()))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs [..., features] rounded on one grid, same shape and dtype (dynamic only).

        Raises
        ------
        QuantError
            This is a static spec: it has no range before `calibrated`.
        """
        if not self.dynamic:
            raise QuantError(
                f"{self} has no range yet. Use the result of its calibrated(histogram), or dynamic=True."
            )
        if inputs.numel() == 0:
            return inputs
        values = as_compute_dtype(inputs.detach())
        return _in_dtype(_round(values, *min_max_with_zero(values.reshape(-1)), self.grid), inputs.dtype)

    def __str__(self) -> str:
        fit = f"percentile {self.percentile:g}" if self.fit == "percentile" else self.fit
        kind = "dynamic" if self.dynamic else f"static ({fit})"
        return f"a{self.bits} per tensor {kind} {_symmetry(self.symmetric)}"


Rounding = PerToken | PerTensor | None
"""How the user asks for inputs to be rounded; None leaves them in float."""


def _round(values: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """Return the values rounded on grids fitted to the ranges [low, high] (which broadcast) that hold them.

    The same numbers as fit, encode and decode of `qlib/grid`, in half the passes: since nothing lies
    outside, a single bound has to be watched. Where a range is so short that its scale is no normal number,
    0.0 included, the smallest normal scale stands in.
    """
    span = torch.maximum(-low, high) if grid.symmetric else high - low
    # Between two large numbers of different signs there may lie more than the dtype holds: divided first.
    scale = torch.where(span.isinf(), high / grid.qmax - low / grid.qmax, span / grid.qmax)
    scale.clamp_(min=torch.finfo(values.dtype).tiny)
    steps = torch.div(values, scale).round_()
    if not grid.symmetric:  # low and high may both round away from 0, to one code too many
        steps.clamp_(max=torch.div(low, scale).round_().add_(grid.qmax))
    return steps.mul_(scale)


def _in_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values in the dtype of the inputs, clamped to its largest number: rounding may go beyond."""
    end = torch.finfo(dtype).max
    return values.clamp_(-end, end).to(dtype)


def _checked(bits: object, symmetric: object, name: str) -> dict[str, Any]:
    """Return bits and symmetry as int and bool; the error names the class."""
    remedy = f"Use {name}(bits=8), or activation=None to leave inputs in float."
    hint = "Use symmetric=True or symmetric=False; an activation has no groups."
    return {
        "bits": check_bits(bits, name, remedy),
        "symmetric": true_or_false(symmetric, f"symmetric in {name}", QuantError, hint),
    }


def _symmetry(symmetric: bool) -> str:
    return "symmetric" if symmetric else "asymmetric"


# --- calibrated


class FixedRange(nn.Module):
    """Rounds all inputs on one grid with a calibrated range, and counts the values that lie outside of it.

    Parameters
    ----------
    spec : PerTensor
        Bits, symmetry, and how the range was found.
    low, high : float
        The calibrated range; extended to 0, and for a symmetric grid to the same size on both sides.

    Attributes
    ----------
    scale : float
        Distance between two values, a float32 number. Not a tensor: `.half()` must not shorten it.
    zero : int
        Code of 0.0.
    seen, exceeded : int
        Values rounded since `reset`, and those of them that were clamped, because they lay outside of
        [low, high] (or were NaN). Plain numbers: they count in inference mode too, are copied with the model,
        and are not saved.

    Raises
    ------
    QuantError
        The spec is dynamic, or the range is not two finite numbers low <= high.
    """

    def __init__(self, spec: PerTensor, low: float, high: float) -> None:
        super().__init__()
        self.spec = spec
        if spec.dynamic or not low <= high or not math.isfinite(float32(high - low)):
            raise QuantError(
                f"the range {low} to {high} for {spec} cannot be used. Use a static PerTensor and two finite "
                "numbers, the smaller first, whose difference float32 holds, as "
                "PerTensor(...).calibrated(histogram) does."
            )
        low, high = min(low, 0.0), max(high, 0.0)
        if spec.symmetric:
            low, high = min(low, -high), max(-low, high)
        self.low, self.high = low, high
        self.scale, self.zero = fixed_scale(low, high, spec.grid)
        self.reset()

    def reset(self) -> None:
        """Forget what was counted, for example after calibration."""
        self.seen, self.exceeded = 0, 0

    @property
    def exceeded_share(self) -> float:
        """Share of the values seen that lay outside of the range; 0 before the first."""
        return self.exceeded / self.seen if self.seen else 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the rounded inputs [..., features], same shape and dtype."""
        if inputs.numel() == 0:
            return inputs
        values = as_compute_dtype(inputs.detach())
        self.seen += values.numel()
        # Two reductions take a fifth of the time of looking at each value, which not every call needs.
        if not (self.low <= float(values.amin()) and float(values.amax()) <= self.high):
            self.exceeded += int((values.clamp(self.low, self.high) != values).count_nonzero())
        return _in_dtype(round_fixed(values, self.scale, self.zero, self.spec.grid), inputs.dtype)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{self.spec}, {self.low:.6g} to {self.high:.6g}"

    def __str__(self) -> str:
        return str(self.spec)
