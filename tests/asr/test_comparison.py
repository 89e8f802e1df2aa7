"""Comparisons of two systems: intervals against enumeration, the no-regression rate against counting."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib.asr.comparison import Comparison, compare
from qlib.asr.rare_words import rare_words
from qlib.asr.wer import WerResult, score
from qlib.errors import DataError


def result(errors: list[int], words: list[int]) -> WerResult:
    """Score utterances with the given numbers of deleted words."""
    references = [" ".join(["alpha"] * n) for n in words]
    return score(references, [" ".join(["alpha"] * (n - e)) for e, n in zip(errors, words, strict=True)])


def enumerated(errors: list[int], words: list[int]) -> np.ndarray:
    """Rates of all n^n equally likely resamples."""
    every = itertools.product(range(len(words)), repeat=len(words))
    return np.array([100 * sum(errors[i] for i in d) / sum(words[i] for i in d) for d in every])


def test_pairing_sees_what_two_intervals_hide() -> None:
    # Utterances differ a lot, the systems by one word in every fourth: always in the same direction.
    errors = [0, 2, 4, 6] * 10
    baseline = result(errors, [10] * 40)
    other = result([e + (i % 4 == 0) for i, e in enumerate(errors)], [10] * 40)
    assert other.interval[0] < baseline.wer  # unpaired: they overlap
    comparison = compare(baseline, other)
    assert comparison.difference == pytest.approx(2.5)
    assert comparison.interval[0] > 0
    assert comparison.significant
    assert comparison.probability_worse > 0.999


def test_the_other_way_round_changes_the_sign() -> None:
    baseline, other = result([0, 1, 0], [4, 5, 6]), result([2, 1, 1], [4, 5, 6])
    there, back = compare(baseline, other), compare(other, baseline)
    assert back.difference == -there.difference
    assert back.interval == (-there.interval[1], -there.interval[0])
    assert back.probability_worse == 0


def test_the_interval_of_a_difference_is_that_of_all_resamples() -> None:
    words, better, worse = [3, 4, 5, 6, 2], [0, 1, 2, 4, 1], [1, 0, 4, 4, 2]
    exact = enumerated([w - b for w, b in zip(worse, better, strict=True)], words)
    comparison = compare(result(better, words), result(worse, words), resamples=200_000)
    assert comparison.interval == pytest.approx(np.percentile(exact, [2.5, 97.5]), abs=1.0)
    assert comparison.probability_worse == pytest.approx((exact > 0).mean(), abs=0.01)
    assert comparison.utterances == 5


def test_a_system_does_not_differ_from_itself() -> None:
    wer = result([0, 3, 1], [4, 4, 4])
    comparison = compare(wer, wer)
    assert (comparison.difference, comparison.interval, comparison.probability_worse) == (0, (0, 0), 0)
    assert not comparison.significant


@pytest.mark.parametrize(
    ("interval", "significant"), [((0.1, 2), True), ((-2, -0.1), True), ((-1, 2), False), ((0, 1), False)]
)
def test_significant_is_an_interval_without_zero(interval: tuple[float, float], significant: bool) -> None:
    comparison = Comparison(1.0, interval, 0.9, 10, 50, (40, 60), 1, 0, 0)
    assert comparison.significant is significant
    assert ("not significant" in str(comparison)) is not significant


def test_a_comparison_reads_as_one_line() -> None:
    text = str(Comparison(1.234, (-0.5, 3.0), 0.875, 40, 92.5, (82.5, 97.5), 3, -1, 0))
    assert text == (
        "WER difference +1.23 [-0.50, +3.00], not significant; "
        "worse in 87.5 % of the resamples of 40 utterances; "
        "+3 substitutions, -1 deletions, +0 insertions; "
        "no more errors on 92.5 % of the utterances [82.5, 97.5]"
    )


@pytest.mark.parametrize("references", [["bravo", "alpha"], ["alpha", "bravo", ""], ["alpha", "Bravo"]])
def test_other_references_are_refused(references: list[str]) -> None:
    baseline = score(["alpha", "bravo"], ["alpha", "bravo"])
    with pytest.raises(DataError, match=r"different references.*same list in the same order"):
        compare(baseline, score(references, references))


def test_another_normalizer_is_refused() -> None:
    wer = result([0], [1])
    with pytest.raises(DataError, match=r"whisper-english 9\.9, which differ"):
        compare(wer, dataclasses.replace(wer, normalizer="whisper-english 9.9"))


# --- the no-regression rate


def test_a_regression_is_a_clip_with_more_errors() -> None:
    # Fewer errors, as many, more, more, as many: three clips of five did not regress; two words more in all.
    comparison = compare(result([2, 1, 0, 1, 0], [5] * 5), result([0, 1, 2, 3, 0], [5] * 5))
    assert comparison.no_regression == 60
    assert comparison.difference == 8
    assert (comparison.substitutions, comparison.deletions, comparison.insertions) == (0, 2, 0)


def test_clips_that_change_places_are_seen_though_the_rate_stays() -> None:
    comparison = compare(result([1, 0] * 20, [5] * 40), result([0, 1] * 20, [5] * 40))
    assert (comparison.difference, comparison.no_regression) == (0, 50)
    assert 30 < comparison.no_regression_interval[0] < 45 < 55 < comparison.no_regression_interval[1] < 70


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
def test_the_no_regression_rate_equals_counting(pairs: list[tuple[int, int]]) -> None:
    before, after = zip(*pairs, strict=True)
    baseline, other = (result(list(errors), [5] * len(pairs)) for errors in (before, after))
    comparison = compare(baseline, other, resamples=200)
    assert comparison.no_regression == pytest.approx(100 * sum(a <= b for b, a in pairs) / len(pairs))
    low, high = comparison.no_regression_interval
    assert 0 <= low <= high <= 100
    assert compare(baseline, baseline, resamples=20).no_regression_interval == (100, 100)


def test_its_interval_is_the_binomial_one() -> None:
    # The number of clips of a resample that did not regress is binomial: n = 40, p = 0.75, deviation 2.74.
    comparison = compare(result([0] * 40, [5] * 40), result([1, 0, 0, 0] * 10, [5] * 40))
    assert comparison.no_regression == 75
    assert comparison.no_regression_interval == pytest.approx((60, 87.5), abs=2.5)


def test_counts_are_those_of_the_other_minus_the_baseline() -> None:
    said = ["alpha bravo delta", "lima"]
    comparison = compare(
        score(said, ["alpha bravo", "alpha"]),  # a deletion, a substitution
        score(said, ["alpha lima delta x", "lima lima"]),  # a substitution, two insertions
    )
    assert (comparison.substitutions, comparison.deletions, comparison.insertions) == (0, -1, 2)


def test_two_measures_are_not_compared() -> None:
    wer = score(["alpha bravo", "delta"], ["alpha", "delta"])
    with pytest.raises(DataError, match=r"measure different things.*one kind"):
        compare(wer, rare_words(wer))  # type: ignore[type-var]
