"""Intervals of error rates by drawing utterances again and again (Bisani and Ney 2004, ICASSP)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qlib.errors import DataError

CONFIDENCE = (2.5, 97.5)  # percentiles: a 95 % interval


DRAWS_AT_ONCE = 1 << 20  # bounds the memory of a bootstrap to some 10 MB, however many utterances


Counts = npt.NDArray[np.int64]


def _errors_and_words(counts: Counts) -> tuple[Counts, Counts]:
    hits, substitutions, deletions, insertions = counts
    return substitutions + deletions + insertions, hits + substitutions + deletions


def _rate(counts: Counts) -> float:
    errors, words = _errors_and_words(counts)
    return float(100 * errors.sum() / words.sum())


def _resampled(errors: Counts, words: Counts, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the rates (percent) of `resamples` lists of utterances drawn with replacement, [resamples]."""
    if resamples < 1:
        raise DataError(f"bootstrap: resamples={resamples}. Use 1000 or more for a steady interval.")
    generator = np.random.default_rng(seed)
    utterances = len(words)
    step = max(1, DRAWS_AT_ONCE // utterances)
    rates = []
    for first in range(0, resamples, step):
        drawn = generator.integers(utterances, size=(min(step, resamples - first), utterances))
        rates.append(100 * errors[drawn].sum(axis=1) / words[drawn].sum(axis=1))
    return np.concatenate(rates)


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, CONFIDENCE)
    return float(low), float(high)
