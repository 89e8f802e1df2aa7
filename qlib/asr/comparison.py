"""Two systems on the same clips: whether one of them is worse, and on how many clips.

Both are drawn with the same clips (a paired bootstrap), so what is hard for both cancels out: that shows
differences which two separate intervals hide.

A rate can stay while clips change: errors that appear on some are made up for by errors that go on others.
The no-regression rate sees them: the share of clips on which the other system makes no more errors than the
baseline. (Argmax calls it "quality of inference" in WhisperKit.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qlib.asr.bootstrap import ClipCounts, percentile_interval, resampled_rates
from qlib.asr.invented import InventedText
from qlib.asr.rare_words import RareWords
from qlib.asr.wer import WerResult
from qlib.errors import DataError, describe

Measured = WerResult | RareWords | InventedText


@dataclass(frozen=True)
class Comparison:
    """A measure of one system minus a baseline's, on the same clips. Intervals are of 95 %."""

    difference: float  # above 0: the other system is worse; of error rates, in percentage points
    interval: tuple[float, float]  # paired bootstrap over clips
    probability_worse: float  # share of the resamples in which the other system is worse
    utterances: int  # clips
    no_regression: float  # percent of clips on which the other system makes no more errors than the baseline
    no_regression_interval: tuple[float, float]  # bootstrap over clips
    substitutions: int  # those of the other system minus the baseline's
    deletions: int
    insertions: int
    measure: str = "WER"  # what is compared

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def __str__(self) -> str:
        (low, high), (least, most) = self.interval, self.no_regression_interval
        verdict = "significant" if self.significant else "not significant"
        return (
            f"{self.measure} difference {self.difference:+.2f} [{low:+.2f}, {high:+.2f}], {verdict}; "
            f"worse in {100 * self.probability_worse:.1f} % of the resamples of {self.utterances} "
            "utterances; "
            f"{self.substitutions:+d} substitutions, {self.deletions:+d} deletions, "
            f"{self.insertions:+d} insertions; "
            f"no more errors on {self.no_regression:.1f} % of the utterances [{least:.1f}, {most:.1f}]"
        )


def compare(baseline: Measured, other: Measured, *, seed: int = 0, resamples: int = 10_000) -> Comparison:
    """Compare two systems on the same clips by a paired bootstrap.

    Parameters
    ----------
    baseline, other : WerResult, RareWords or InventedText
        Two of one kind: of the same references in the same order, or of the same sounds.
    seed : int
        Of the bootstrap.
    resamples : int
        Of the bootstrap, 1 or more.

    Raises
    ------
    DataError
        The clips, or the rules by which errors are counted, differ, so that nothing is paired.
    """
    a, b = _paired(baseline, other)
    more = b.errors - a.errors
    held = (more <= 0).astype(np.int64)
    each = np.ones_like(held)
    drawn = resampled_rates(more, a.amounts, resamples, seed, a.per)
    substitutions, deletions, insertions = (y - x for x, y in zip(a.kinds, b.kinds, strict=True))
    return Comparison(
        difference=float(a.per * more.sum() / a.amounts.sum()),
        interval=percentile_interval(drawn),
        probability_worse=float((drawn > 0).mean()),
        utterances=len(more),
        no_regression=float(100 * held.mean()),
        no_regression_interval=percentile_interval(resampled_rates(held, each, resamples, seed)),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        measure=a.measure,
    )


def _paired(baseline: Measured, other: Measured) -> tuple[ClipCounts, ClipCounts]:
    """Return the counts of both, once they are known to be of the same clips and the same rule."""
    for each in (baseline, other):
        if not isinstance(each, Measured):
            raise DataError(
                f"compare: {describe(each)} is no WerResult. Pass those of evaluate_wer or score, "
                "or two of rare_words or invented_text. Two of perplexity: qlib.perplexity_ratio."
            )
    if type(baseline) is not type(other):
        raise DataError(
            f"compare: {describe(baseline)} and {describe(other)} measure different things. "
            "Pass two of one kind."
        )
    a, b = baseline.clip_counts, other.clip_counts
    if a.listed_sha256 != b.listed_sha256:
        raise DataError(
            f"compare: the results have different {a.listed} ({len(a.errors)} and {len(b.errors)} utterances "
            "scored). Score both systems on the same list in the same order."
        )
    if a.rule != b.rule:
        raise DataError(f"compare: scored by {a.rule} and by {b.rule}, which differ. Score both by one.")
    return a, b
