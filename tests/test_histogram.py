"""Histograms: exact counts however the data is split; ranges against sorting and brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlib.errors import QuantError
from qlib.grid import SHRINKS, Grid
from qlib.histogram import BINS, Histogram, fixed_scale, round_fixed

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
special = st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, 1.0, -1.0, 2.0**14])
values32 = st.one_of(float32s, st.floats(-8, 8, width=32), special)


def normal(count: int = 5_000, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def filled(*parts: Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def state(histogram: Histogram) -> tuple[float, float, float, list[int], list[int]]:
    places = histogram.counts.nonzero().flatten()
    counts = histogram.counts[places].tolist()
    return histogram.low, histogram.high, histogram.width, places.tolist(), counts


class TestCounts:
    @given(st.lists(values32, min_size=1, max_size=30), st.data())
    @settings(max_examples=300, deadline=None)
    def test_neither_split_nor_order_shows(self, values: list[float], data: st.DataObject) -> None:
        whole = state(filled(torch.tensor(values)))
        order = data.draw(st.permutations(values))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
        ends = [0, *cuts, len(values)]
        parts = [torch.tensor(order[start:end]) for start, end in itertools.pairwise(ends)]
        assert state(filled(*parts)) == whole

    @given(st.lists(values32, min_size=1, max_size=30))
    @settings(max_examples=300, deadline=None)
    def test_every_value_lies_in_its_bin(self, values: list[float]) -> None:
        histogram = filled(torch.tensor(values))
        expected = torch.zeros(BINS, dtype=torch.int64)
        for value in values:  # float64 divides by a power of two without error
            expected[math.floor(value / histogram.width) + BINS // 2] += 1
        assert torch.equal(histogram.counts, expected)
        assert (histogram.low, histogram.high) == (min(values), max(values))
        assert histogram.total == len(values)

    @pytest.mark.parametrize(
        ("values", "limit"),
        [([0.75], 1.0), ([1.0], 2.0), ([-1.0, 0.1], 2.0), ([-3.0], 4.0), ([0.0], 2.0**-100)],
    )
    def test_limit_is_the_power_of_two_above(self, values: list[float], limit: float) -> None:
        histogram = filled(torch.tensor(values))
        assert histogram.width * BINS / 2 == limit
        assert (float(histogram.edges[0]), float(histogram.edges[-1])) == (-limit, limit)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype: torch.dtype) -> None:
        values = normal().to(dtype)
        histogram = filled(values.view(50, 100))
        assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
        assert state(histogram) == state(filled(values.double()))

    def test_inside_and_outside_of_inference_mode(self) -> None:
        histogram = Histogram()
        with torch.inference_mode():
            histogram.add(normal())
        histogram.add(normal())  # no doubling between the two
        assert state(histogram) == state(filled(normal(), normal()))

    def test_nothing_changes_nothing(self) -> None:
        histogram = filled(normal())
        before = state(histogram)
        histogram.add(torch.empty(0, 5))
        assert state(histogram) == before

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_is_refused_whole(self, bad: float) -> None:
        histogram = filled(normal())
        before = state(histogram)
        rows = torch.ones(4, 3)
        rows[1, 2] = rows[3, 0] = bad
        with pytest.raises(QuantError, match=r"2 of 12 values .* NaN or infinite.*recording"):
            histogram.add(rows)
        assert state(histogram) == before


class TestPercentile:
    @pytest.mark.parametrize("percentile", [99.99, 99.9, 99.0, 90.0, 51.0, 100.0])
    @pytest.mark.parametrize("count", [1, 7, 1_000, 5_000])
    def test_within_a_bin_of_the_quantile(self, percentile: float, count: int) -> None:
        values = normal(count)
        histogram = filled(values)
        low, high = histogram.percentile(percentile)
        share = percentile / 100
        nearest = [torch.quantile(values, share, interpolation=way).item() for way in ("lower", "higher")]
        assert nearest[0] <= high <= nearest[1] + histogram.width
        nearest = [torch.quantile(values, 1 - share, interpolation=way).item() for way in ("lower", "higher")]
        assert nearest[0] - histogram.width <= low <= nearest[1]

    @given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40), st.floats(50.5, 100))
    @settings(max_examples=200, deadline=None)
    def test_no_more_values_outside_than_said(self, values: list[float], percentile: float) -> None:
        low, high = filled(torch.tensor(values)).percentile(percentile)
        allowed = len(values) * (100 - percentile) / 100 + 1e-9
        assert sum(value < low for value in values) <= allowed
        assert sum(value > high for value in values) <= allowed
        assert min(values) <= low <= high <= max(values)

    def test_tenths_of_percents_are_exact(self) -> None:
        """100 - 99.9 is a little less than 0.1 in floating point; one of a thousand may still lie outside."""
        values = torch.arange(1000) / 1000
        low, high = filled(values).percentile(99.9)
        assert (values < low).sum() == (values > high).sum() == 1

    def test_all_is_the_full_range(self) -> None:
        histogram = filled(normal())
        assert (
            histogram.percentile(100) == histogram.minmax() == (float(normal().min()), float(normal().max()))
        )

    @pytest.mark.parametrize("percentile", [50, 0.5, 101, math.nan])
    def test_out_of_bounds(self, percentile: float) -> None:
        with pytest.raises(QuantError, match=r"percentile=.*not above 50"):
            filled(normal()).percentile(percentile)


def brute_force(values: Tensor, grid: Grid) -> tuple[list[float], list[tuple[float, float]]]:
    """Squared error of each share of the range, and the ranges, on the values themselves."""
    low, high = float(values.min()), float(values.max())
    ranges = [tuple(torch.tensor([low * share, high * share]).tolist()) for share in SHRINKS]
    errors = []
    for ends in ranges:
        rounded = round_fixed(values.double(), *fixed_scale(*ends, grid), grid)
        errors.append(float((rounded - values.double()).square().sum()))
    return errors, ranges


every_grid = pytest.mark.parametrize(
    "grid", [Grid(bits, None, symmetric) for bits in (2, 4, 8) for symmetric in (False, True)], ids=str
)


class TestSquaredError:
    @every_grid
    def test_equals_brute_force_on_centres_of_bins(self, grid: Grid) -> None:
        generator = torch.Generator().manual_seed(1)
        bins = (torch.randn(2_000, generator=generator) * 500).floor()
        bins[:2] = torch.tensor([6_000.0, -5_000.0])  # outliers: the range should shrink
        values = (bins + 0.5) * 2.0**-12  # 6000.5 bins of a limit of 2 with 2^13 bins on each side
        histogram = filled(values)
        assert histogram.width == 2.0**-12
        errors, ranges = brute_force(values, grid)
        found = histogram.mse(grid)
        assert found in ranges
        assert errors[ranges.index(found)] == pytest.approx(min(errors), rel=1e-9)
        if grid.bits == 2:
            assert found != histogram.minmax()

    @every_grid
    def test_close_to_brute_force_on_any_values(self, grid: Grid) -> None:
        values = normal() ** 3
        errors, ranges = brute_force(values, grid)
        found = filled(values).mse(grid)
        assert errors[ranges.index(found)] <= 1.01 * min(errors)

    def test_a_lone_outlier_is_clipped_to_the_last_share(self) -> None:
        values = torch.full((100_000,), 0.21)
        values[0] = 1.0
        low, high = filled(values).mse(Grid(2, symmetric=True))
        assert (low, high) == (pytest.approx(0.21 * 0.21), pytest.approx(0.21))

    def test_zeros(self) -> None:
        assert filled(torch.zeros(5)).mse(Grid(4)) == (0.0, 0.0)


def test_an_empty_histogram_has_no_range() -> None:
    for fit in (Histogram.minmax, lambda each: each.percentile(99), lambda each: each.mse(Grid(8))):
        with pytest.raises(QuantError, match=r"empty histogram.*no values"):
            fit(Histogram())
