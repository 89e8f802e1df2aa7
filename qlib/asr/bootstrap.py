"""Intervals of error rates by drawing utterances again and again (Bisani and Ney 2004, ICASSP)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qlib.errors import DataError

CONFIDENCE = (2.5, 97.5)  # percentiles: a 95 % interval


DRAWS_AT_ONCE = 1 << 20  # bounds the memory of a bootstrap to some 10 MB, however many utterances


Counts = npt.NDArray[np.int64]


def errors_and_words(counts: Counts) -> tuple[Counts, Counts]:
    """Return errors and reference words of each utterance, from counts [4, utterances]."""
    hits, substitutions, deletions, insertions = counts
    return substitutions + deletions + insertions, hits + substitutions + deletions


def error_rate(counts: Counts) -> float:
    """Return the error rate of all utterances together, in percent."""
    errors, words = errors_and_words(counts)
    return float(100 * errors.sum() / words.sum())


def resampled_rates(errors: Counts, words: Counts, resamples: int, seed: int) -> npt.NDArray[np.float64]:
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


def percentile_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of resampled values."""
    low, high = np.percentile(values, CONFIDENCE)
    return float(low), float(high)
