"""The distribution of one layer's input in constant memory, and the ranges that are fitted to it.

    histogram = Histogram()
    for inputs in calibration: histogram.add(inputs)
    low, high = histogram.minmax()            or .percentile(99.99), or .mse(Grid(bits=8))

Bins are powers of two wide and begin at 0, so that a value's place is found by exact arithmetic, and bins of
half the width can be merged in pairs without error: the result is that of all values at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import SHRINKS, Grid, as_compute_dtype, min_max_with_zero, scale_and_zero_point

Range = tuple[float, float]

BINS = 1 << 14  # 64 bins to each step of an 8-bit grid of the same range
HALF = BINS // 2
# The limit is at least 2^-100: then no float32 becomes infinite when it is divided by a width.
SMALLEST_EXPONENT = -100
# For limits above 2^13, dividing by the width may round a very small float32 to 0: done in float64.
FLOAT32_EXPONENT = 13


class Histogram:
    """Counts the values of one layer's input, in bins over [-limit, limit).

    The limit is the smallest power of two above all |x| seen; when it doubles, bins are merged in pairs.
    Neither the order of the data nor its split into batches shows in the result.

    Attributes
    ----------
    low, high : float
        Exact smallest and largest value.
    counts : Tensor
        Values in each of the `BINS` bins, int64.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self._exponent = SMALLEST_EXPONENT  # the limit is 2^exponent

    @property
    def total(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(2 / BINS, self._exponent)

    @property
    def edges(self) -> Tensor:
        """Edges of the bins, [BINS + 1], float64; bin k holds edges[k] <= x < edges[k + 1]."""
        return torch.arange(-HALF, HALF + 1, dtype=torch.float64) * self.width

    def add(self, values: Tensor) -> None:
        """Count all values of a tensor of any shape and floating dtype.

        Raises
        ------
        QuantError
            NaN or infinity among them; nothing was counted.
        """
        if values.numel() == 0:
            return
        flat = as_compute_dtype(values.detach()).reshape(-1)
        low, high = float(flat.amin()), float(flat.amax())
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~flat.isfinite()).sum())
            raise QuantError(
                f"{bad} of {flat.numel()} values of a layer's input are NaN or infinite. Check the recording "
                "and the checkpoint, and whether a layer before it was quantized too coarsely."
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self._exponent > FLOAT32_EXPONENT:
            flat = flat.double()
        bins = (flat * (1 / self.width)).floor_().add_(HALF).to(torch.int32)
        # Not in place: what was made in inference mode cannot be changed outside of it.
        self.counts = self.counts + torch.bincount(bins, minlength=BINS).cpu()

    def _widen(self, size: float) -> None:
        """Double the limit until it is above a size."""
        exponent = math.frexp(size)[1] if size else SMALLEST_EXPONENT
        if exponent <= self._exponent:
            return
        shift = min(exponent - self._exponent, 62)
        merged = (torch.arange(-HALF, HALF) >> shift) + HALF  # the shift rounds down, as floor does
        self.counts = torch.zeros_like(self.counts).index_add(0, merged, self.counts)
        self._exponent = exponent

    def minmax(self) -> Range:
        """Return the smallest and largest value.

        Raises
        ------
        QuantError
            No value was added.
        """
        self._check_filled()
        return self.low, self.high

    def percentile(self, percentile: float) -> Range:
        """Return the range that at most 100 - percentile % of the values exceed at either end.

        It ends at edges of bins, so it is up to one bin wider than need be, but not wider than all values.

        Raises
        ------
        QuantError
            The percentile is not above 50 and at most 100, or no value was added.
        """
        check_percentile(percentile)
        self._check_filled()
        below = self.counts.cumsum(0)
        total = int(below[-1])
        allowed = int(total * (100 - percentile) / 100 + 1e-9)  # 1e-9: 100 - 99.9 is a little below 0.1
        first = int((below > allowed).nonzero()[0])
        last = int((total - below <= allowed).nonzero()[0])
        edges = self.edges
        return max(self.low, float(edges[first])), min(self.high, float(edges[last + 1]))

    def mse(self, grid: Grid) -> Range:
        """Return the range of least squared error: 100 %, 99 %, ... or 21 % of smallest and largest.

        Every value counts as the centre of its bin.

        Raises
        ------
        QuantError
            No value was added.
        """
        self._check_filled()
        filled = self.counts.nonzero().squeeze(1)
        centres = (self.edges[filled] + self.edges[filled + 1]) / 2
        weights = self.counts[filled].double()
        best, found = math.inf, (self.low, self.high)
        for share in SHRINKS:
            tried = float32(self.low * share), float32(self.high * share)
            scale, zero = fixed_scale(*tried, grid)
            error = float(round_fixed(centres, scale, zero, grid).sub_(centres).square_() @ weights)
            if error < best:
                best, found = error, tried
        return found

    def _check_filled(self) -> None:
        if self.low > self.high:
            raise QuantError(
                "A range cannot be fitted to an empty histogram: calibration saw no values at this layer. "
                "Check that the layer is used, and that the recordings are not empty."
            )


def float32(number: float) -> float:
    """Return the nearest float32 number."""
    return float(torch.tensor(number, dtype=torch.float32))


def fixed_scale(low: float, high: float, grid: Grid) -> tuple[float, int]:
    """Return scale (a float32 number) and zero of the range [low, high], extended to 0."""
    ends = torch.tensor([low, high, 0.0], dtype=torch.float32)
    scale, zero = scale_and_zero_point(*min_max_with_zero(ends), grid)
    return float(scale), 0 if zero is None else int(zero)


def round_fixed(values: Tensor, scale: float, zero: int, grid: Grid) -> Tensor:
    """Return the values rounded and clamped to a grid."""
    return torch.div(values, scale).round_().clamp_(grid.qmin - zero, grid.qmax - zero).mul_(scale)


def check_percentile(percentile: float) -> None:
    """Refuse what is not above 50 and at most 100."""
    if not 50 < percentile <= 100:
        raise QuantError(
            f"percentile={percentile} is not above 50 and at most 100. Use a share of the values in percent, "
            "such as percentile=99.99."
        )
