"""Rates over clips, and their intervals by drawing clips again and again (Bisani and Ney 2004, ICASSP)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qlib.errors import DataError

CONFIDENCE = (2.5, 97.5)  # percentiles: a 95 % interval


DRAWS_AT_ONCE = 1 << 20  # bounds the memory of a bootstrap to some 10 MB, however many utterances


Counts = npt.NDArray[np.int64]
PERCENT = 100.0


@dataclass(frozen=True, eq=False)
class ClipCounts:
    """What a measure is made of, clip by clip, so that two systems can be compared on the same clips.

    The rate is `per` times all errors over all amounts.
    """

    measure: str  # its name
    errors: Counts  # [clips]
    amounts: Counts  # [clips], above 0: reference words, or samples
    per: float  # errors are counted for so many of the amounts: 100 makes percent
    kinds: tuple[int, int, int]  # substitutions, deletions and insertions of all clips
    listed: str  # what the clips are: "references"
    listed_sha256: str  # of the list: equal for two systems on the same clips
    rule: str  # by which errors are counted: equal for two figures that may be compared


def errors_and_words(counts: Counts) -> tuple[Counts, Counts]:
    """Return errors and reference words of each utterance, from counts [4, utterances]."""
    hits, substitutions, deletions, insertions = counts
    return substitutions + deletions + insertions, hits + substitutions + deletions


def error_rate(counts: Counts) -> float:
    """Return the error rate of all utterances together, in percent."""
    errors, words = errors_and_words(counts)
    return float(PERCENT * errors.sum() / words.sum())


def resampled_rates(
    errors: Counts, amounts: Counts, resamples: int, seed: int, per: float = PERCENT
) -> npt.NDArray[np.float64]:
    """Return the rates of `resamples` lists of clips drawn with replacement, [resamples].

    Parameters
    ----------
    errors, amounts : array of int
        Of each clip, [clips]; amounts, such as reference words, are above 0.
    resamples : int
        Lists to draw, 1 or more.
    seed : int
        Of the draws: equal for equal numbers of clips, whatever is counted in them.
    per : float
        A rate counts the errors for so many of the amounts: in percent if not given.
    """
    if resamples < 1:
        raise DataError(f"bootstrap: resamples={resamples}. Use 1000 or more for a steady interval.")
    generator = np.random.default_rng(seed)
    clips = len(amounts)
    step = max(1, DRAWS_AT_ONCE // clips)
    rates = []
    for first in range(0, resamples, step):
        drawn = generator.integers(clips, size=(min(step, resamples - first), clips))
        rates.append(per * errors[drawn].sum(axis=1) / amounts[drawn].sum(axis=1))
    return np.concatenate(rates)


def percentile_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of resampled values."""
    low, high = np.percentile(values, CONFIDENCE)
    return float(low), float(high)
