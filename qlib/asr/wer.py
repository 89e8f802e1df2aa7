"""Word error rate with everything that is needed to compare two of them.

WER = (substitutions + deletions + insertions) / reference words, over the whole corpus: all errors over all
words, not the mean of the utterances' rates. The text normalizer alone moves it by a point or more, so its
name and version belong to the number, as does an interval.

The protocol is that of the open ASR leaderboard (July 2025): references and hypotheses through Whisper's
English normalizer; utterances whose normalized reference is empty, or is the marker "ignore time segment in
scoring", are dropped (and counted). Alignments are jiwer's.

Intervals: bootstrap over utterances (Bisani and Ney 2004, ICASSP). An utterance is drawn with all its errors
and all its words, because errors within one are not independent. `compare` draws the same utterances for both
systems, so what is hard for both cancels out: it sees differences that two separate intervals would hide.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import jiwer
import numpy as np
import numpy.typing as npt

from qlib.errors import DataError, require_extra

IGNORED = "ignore time segment in scoring"  # a marker of some corpora, not speech
CONFIDENCE = (2.5, 97.5)  # percentiles: a 95 % interval
DRAWS_AT_ONCE = 1 << 20  # bounds the memory of a bootstrap to some 10 MB, however many utterances

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Normalizer:
    """A text normalizer with the name and version that make a word error rate comparable."""

    name: str
    version: str
    function: Callable[[str], str] = field(repr=False)

    def __call__(self, text: str) -> str:
        """Return `text` in the form that is scored: words between single spaces."""
        return self.function(text)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def normalizer(name: str = "whisper-english") -> Normalizer:
    """Return a text normalizer by name.

    Parameters
    ----------
    name : str
        ``"whisper-english"``: lower case, no punctuation, no fillers, numbers as digits, contractions spelled
        out, British spelling made American, anything in brackets removed.

    Raises
    ------
    DataError
        Unknown name.
    MissingExtraError
        The ``asr`` extra is not installed.
    """
    if name != "whisper-english":
        raise DataError(f"normalizer {name!r} is unknown. Use 'whisper-english'.")
    # Imported here: it brings packages that only scoring needs.
    english = require_extra("whisper_normalizer.english", "asr", "The word error rate")
    return Normalizer(name, version("whisper_normalizer"), english.EnglishTextNormalizer())


@dataclass(frozen=True)
class WerResult:
    """Word error rate of one system on one list of utterances. Rates are in percent."""

    wer: float  # of the normalized text, all errors over all reference words
    wer_raw: float  # of the text as it is: case and punctuation count
    interval: tuple[float, float]  # 95 %, bootstrap over utterances, of `wer`
    substitutions: int
    deletions: int
    insertions: int
    hits: int  # reference words that were recognized
    words: int  # reference words
    utterances: int  # that were scored
    dropped: int  # utterances without a word to score
    length_ratio: float  # hypothesis words per reference word: well above 1 where a model hallucinates
    normalizer: str  # name and version
    utterance_errors: tuple[int, ...] = field(repr=False)  # of each scored utterance
    utterance_words: tuple[int, ...] = field(repr=False)  # reference words of each scored utterance
    references_sha256: str = field(repr=False)  # of all references, so that `compare` knows its pairs

    def __str__(self) -> str:
        low, high = self.interval
        dropped = f" ({self.dropped} dropped)" if self.dropped else ""
        return (
            f"WER {self.wer:.2f} % [{low:.2f}, {high:.2f}], raw {self.wer_raw:.2f} %: "
            f"{self.substitutions} substitutions, {self.deletions} deletions, {self.insertions} insertions "
            f"in {self.words} words of {self.utterances} utterances{dropped}, "
            f"length ratio {self.length_ratio:.2f}, normalizer {self.normalizer}"
        )


@dataclass(frozen=True)
class Comparison:
    """Word error rate of one system minus a baseline's, on the same utterances, in percentage points."""

    difference: float  # above 0: the other system is worse than the baseline
    interval: tuple[float, float]  # 95 %, paired bootstrap over utterances
    probability_worse: float  # share of the resamples in which the other system is worse
    utterances: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def __str__(self) -> str:
        low, high = self.interval
        verdict = "significant" if self.significant else "not significant"
        return (
            f"WER difference {self.difference:+.2f} [{low:+.2f}, {high:+.2f}], {verdict}; worse in "
            f"{100 * self.probability_worse:.1f} % of the resamples of {self.utterances} utterances"
        )


def score(
    references: Sequence[str], hypotheses: Sequence[str], *, seed: int = 0, resamples: int = 1000
) -> WerResult:
    """Score transcripts against what was said.

    Parameters
    ----------
    references : sequence of str
        What was said, one text per utterance, not normalized.
    hypotheses : sequence of str
        What the system wrote, in the same order.
    seed : int
        Of the bootstrap.
    resamples : int
        Of the bootstrap, 1 or more.

    Raises
    ------
    DataError
        Lists of different lengths, an entry that is not text, or not one reference with a word to score.
    MissingExtraError
        The ``asr`` extra is not installed.
    """
    _check_texts(references, hypotheses)
    normalize = normalizer()
    pairs = [(normalize(r), normalize(h)) for r, h in zip(references, hypotheses, strict=True)]
    kept = [i for i, (reference, _) in enumerate(pairs) if reference.strip() not in ("", IGNORED)]
    if not kept:
        raise DataError(
            f"all {len(references)} references are empty after normalization: there is no word to score. "
            "Check that the manifest's transcripts are what was said."
        )
    aligned = _align([pairs[i] for i in kept])
    raw = _align([(references[i], hypotheses[i]) for i in kept])
    hits, substitutions, deletions, insertions = (int(n) for n in aligned.sum(axis=1))
    errors, words = _errors_and_words(aligned)
    return WerResult(
        wer=_rate(aligned),
        wer_raw=_rate(raw),
        interval=_interval(_resampled(errors, words, resamples, seed)),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        hits=hits,
        words=int(words.sum()),
        utterances=len(kept),
        dropped=len(references) - len(kept),
        length_ratio=(hits + substitutions + insertions) / int(words.sum()),
        normalizer=str(normalize),
        utterance_errors=tuple(errors.tolist()),
        utterance_words=tuple(words.tolist()),
        references_sha256=hashlib.sha256(json.dumps(list(references)).encode()).hexdigest(),
    )


def compare(baseline: WerResult, other: WerResult, *, seed: int = 0, resamples: int = 10_000) -> Comparison:
    """Compare two systems on the same utterances by a paired bootstrap.

    Parameters
    ----------
    baseline, other : WerResult
        Results of `score` with the same references in the same order.
    seed : int
        Of the bootstrap.
    resamples : int
        Of the bootstrap, 1 or more.

    Raises
    ------
    DataError
        The references or the normalizers differ, so that nothing is paired.
    """
    if baseline.references_sha256 != other.references_sha256:
        raise DataError(
            f"compare: the results have different references ({baseline.utterances} and {other.utterances} "
            "utterances scored). Score both systems on the same list in the same order."
        )
    if baseline.normalizer != other.normalizer:
        raise DataError(
            f"compare: normalizers {baseline.normalizer} and {other.normalizer} differ. Score both with one."
        )
    words = np.array(baseline.utterance_words)
    more = np.array(other.utterance_errors) - np.array(baseline.utterance_errors)
    drawn = _resampled(more, words, resamples, seed)
    return Comparison(
        difference=float(100 * more.sum() / words.sum()),
        interval=_interval(drawn),
        probability_worse=float((drawn > 0).mean()),
        utterances=len(words),
    )


def _check_texts(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise DataError(
            f"{len(references)} references, {len(hypotheses)} hypotheses. Pass one hypothesis per reference."
        )
    for kind, texts in (("reference", references), ("hypothesis", hypotheses)):
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{kind} {i} is {text!r}, not text. Pass an empty string for silence.")


def _align(pairs: Sequence[tuple[str, str]]) -> Counts:
    """Return hits, substitutions, deletions and insertions of each pair, [4, utterances]."""
    # jiwer splits at single spaces only; transcripts may hold tabs and line ends.
    references, hypotheses = ([" ".join(text.split()) for text in side] for side in zip(*pairs, strict=True))
    kinds = {"equal": 0, "substitute": 1, "delete": 2, "insert": 3}
    counts = np.zeros((4, len(pairs)), dtype=np.int64)
    for i, chunks in enumerate(jiwer.process_words(references, hypotheses).alignments):
        for chunk in chunks:
            side = "hyp" if chunk.type == "insert" else "ref"
            length = getattr(chunk, f"{side}_end_idx") - getattr(chunk, f"{side}_start_idx")
            counts[kinds[chunk.type], i] += length
    return counts


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
