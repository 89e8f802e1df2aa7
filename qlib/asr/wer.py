"""Word error rate with everything that is needed to compare two of them.

WER = (substitutions + deletions + insertions) / reference words, over the whole corpus: all errors over all
words, not the mean of the utterances' rates. The text normalizer alone moves it by a point or more, so its
name and version belong to the number, as does an interval.

The protocol is that of the open ASR leaderboard (July 2025): references and hypotheses through Whisper's
English normalizer; utterances whose normalized reference is empty, or is the marker "ignore time segment in
scoring", are dropped (and counted). Alignments are jiwer's. Other languages go through Whisper's basic
normalizer, as in its paper; those written without spaces between words are counted in characters.

One rule is our own: each broken byte in a hypothesis (U+FFFD) counts as a word. Normalizers remove it as they
remove punctuation, so a model that writes nothing else would be one that writes nothing.

Intervals: bootstrap over utterances (Bisani and Ney 2004, ICASSP). An utterance is drawn with all its errors
and all its words, because errors within one are not independent. `compare` draws the same utterances for both
systems, so what is hard for both cancels out: it sees differences that two separate intervals would hide.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jiwer
import numpy as np

from qlib.asr.bootstrap import Counts, error_rate, errors_and_words, percentile_interval, resampled_rates
from qlib.asr.normalizers import as_written, normalizers_of
from qlib.errors import DataError, describe, whole_number

IGNORED = "ignore time segment in scoring"  # a marker of some corpora, not speech


KINDS: dict[str, Literal["substitution", "deletion", "insertion"]] = {
    "substitute": "substitution",
    "delete": "deletion",
    "insert": "insertion",
}


@dataclass(frozen=True)
class WordError:
    """One error: a word (or character) that was not recognized, or one that nobody said."""

    utterance: str  # id
    kind: Literal["substitution", "deletion", "insertion"]
    reference: str  # what was said, normalized; empty for an insertion
    hypothesis: str  # what was written instead; empty for a deletion
    position: int  # in the normalized reference, from 0; of an insertion, that of the word behind it


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
    unit: str = "words"  # "characters" for languages without spaces, "words and characters" for a mixed list
    dropped_words: int = 0  # written where nothing was said: made up, and not in any rate
    ids: tuple[str, ...] = field(default=(), repr=False, compare=False)  # of the scored utterances
    references: tuple[str, ...] = field(default=(), repr=False)  # of the scored utterances, as they are
    hypotheses: tuple[str, ...] = field(default=(), repr=False)
    normalized_references: tuple[str, ...] = field(default=(), repr=False)  # what is compared
    normalized_hypotheses: tuple[str, ...] = field(default=(), repr=False)

    def errors(self) -> list[WordError]:
        """Return which words went wrong, in the order of the utterances.

        Raises
        ------
        DataError
            The result was stored without its texts.
        """
        found = []
        for name, reference, hypothesis, chunks in self._aligned():
            for chunk in chunks:
                if chunk.type != "equal":
                    pairs = _pairs(chunk, reference, hypothesis)
                    found += [WordError(name, KINDS[chunk.type], *each) for each in pairs]
        return found

    def marked(self, limit: int | None = 10) -> str:
        """Return the texts with errors, the most errors first, one a line: ``[-said-]{+written+}``.

        Parameters
        ----------
        limit : int, optional
            Show so many utterances at most; None for all.
        """
        if limit is not None:
            limit = whole_number(limit, "limit", DataError, 1, remedy="Use None for all utterances.")
        lines = [
            f"{name}, {errors} of {words}: {_marked(reference, hypothesis, chunks)}"
            for errors, words, (name, reference, hypothesis, chunks) in zip(
                self.utterance_errors, self.utterance_words, self._aligned(), strict=True
            )
        ]
        worst = sorted(range(len(lines)), key=lambda i: -self.utterance_errors[i])
        wrong = [lines[i] for i in worst if self.utterance_errors[i]]
        more = [f"({len(wrong) - limit} more)"] if limit is not None and len(wrong) > limit else []
        return "\n".join([*wrong[:limit], *more]) or "no errors"

    def _aligned(self) -> Iterator[tuple[str, list[str], list[str], list[Any]]]:
        """Yield id, words said, words written and the aligned pieces of each scored utterance."""
        if len(self.ids) != self.utterances:
            raise DataError(
                "This result has no texts: it was stored without them. Score the transcripts again."
            )
        pairs = list(zip(self.normalized_references, self.normalized_hypotheses, strict=True))
        for name, (reference, hypothesis), chunks in zip(self.ids, pairs, _alignments(pairs), strict=True):
            yield name, reference.split(), hypothesis.split(), chunks

    def __str__(self) -> str:
        low, high = self.interval
        dropped = f" ({self.dropped} dropped)" if self.dropped else ""
        made_up = f", {self.dropped_words} words where nothing was said" if self.dropped_words else ""
        rate = "CER" if self.unit == "characters" else "WER"
        return (
            f"{rate} {self.wer:.2f} % [{low:.2f}, {high:.2f}], raw {self.wer_raw:.2f} %: "
            f"{self.substitutions} substitutions, {self.deletions} deletions, {self.insertions} insertions "
            f"in {self.words} {self.unit} of {self.utterances} utterances{dropped}, "
            f"length ratio {self.length_ratio:.2f}{made_up}, normalizer {self.normalizer}"
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
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    languages: str | Sequence[str] = "en",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> WerResult:
    """Score transcripts against what was said.

    Parameters
    ----------
    references : sequence of str
        What was said, one text per utterance, not normalized.
    hypotheses : sequence of str
        What the system wrote, in the same order.
    languages : str or sequence of str
        Of all utterances, or of each: a code or an English name. English is scored by Whisper's English
        normalizer, others by its basic one, and Chinese, Japanese, Thai, Lao, Burmese and Cantonese by
        characters. The result names its normalizers and its unit.
    ids : sequence of str, optional
        Names of the utterances for `WerResult.errors`; their numbers from 1 if not given.
    seed : int
        Of the bootstrap.
    resamples : int
        Of the bootstrap, 1 or more.

    Raises
    ------
    DataError
        Lists of different lengths, an entry that is not text, an unknown language, or not one reference with
        a word to score.
    MissingExtraError
        The ``asr`` extra is not installed.
    """
    references, hypotheses = _checked_texts(references, hypotheses)
    normalizers = normalizers_of(languages, len(references))
    named = [str(i) for i in range(1, len(references) + 1)] if ids is None else list(ids)
    if len(named) != len(references):
        raise DataError(f"{len(named)} ids, {len(references)} references. Pass one id per reference.")
    pairs = [
        (normalize(r), normalize.hypothesis(h))
        for normalize, r, h in zip(normalizers, references, hypotheses, strict=True)
    ]
    kept = [i for i, (reference, _) in enumerate(pairs) if not _is_empty(reference)]
    if not kept:
        raise DataError(
            f"all {len(references)} references are empty after normalization: there is no word to score. "
            "Check that the manifest's transcripts are what was said."
        )
    aligned = _align([pairs[i] for i in kept])
    raw = _align([as_written(normalizers[i], references[i], hypotheses[i]) for i in kept])
    hits, substitutions, deletions, insertions = (int(n) for n in aligned.sum(axis=1))
    errors, words = errors_and_words(aligned)
    return WerResult(
        wer=error_rate(aligned),
        wer_raw=error_rate(raw),
        interval=percentile_interval(resampled_rates(errors, words, resamples, seed)),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        hits=hits,
        words=int(words.sum()),
        utterances=len(kept),
        dropped=len(references) - len(kept),
        length_ratio=(hits + substitutions + insertions) / int(words.sum()),
        normalizer=" and ".join(dict.fromkeys(str(normalizers[i]) for i in kept)),
        utterance_errors=tuple(errors.tolist()),
        utterance_words=tuple(words.tolist()),
        references_sha256=hashlib.sha256(json.dumps(references).encode()).hexdigest(),
        unit=" and ".join(sorted({normalizers[i].unit for i in kept}, reverse=True)),
        dropped_words=sum(len(hypothesis.split()) for reference, hypothesis in pairs if _is_empty(reference)),
        ids=tuple(named[i] for i in kept),
        references=tuple(references[i] for i in kept),
        hypotheses=tuple(hypotheses[i] for i in kept),
        normalized_references=tuple(pairs[i][0].strip() for i in kept),
        normalized_hypotheses=tuple(pairs[i][1].strip() for i in kept),
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
    for each in (baseline, other):
        if not isinstance(each, WerResult):
            raise DataError(
                f"compare: {describe(each)} is no WerResult. Pass those of evaluate_wer or score."
            )
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
    drawn = resampled_rates(more, words, resamples, seed)
    return Comparison(
        difference=float(100 * more.sum() / words.sum()),
        interval=percentile_interval(drawn),
        probability_worse=float((drawn > 0).mean()),
        utterances=len(words),
    )


def _checked_texts(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[list[str], list[str]]:
    for kind, texts in (("references", references), ("hypotheses", hypotheses)):
        if isinstance(texts, str):
            raise DataError(f"score: {kind} is {describe(texts)}, not a list. Put a single text into a list.")
    references, hypotheses = list(references), list(hypotheses)
    if len(references) != len(hypotheses):
        raise DataError(
            f"{len(references)} references, {len(hypotheses)} hypotheses. Pass one hypothesis per reference."
        )
    for kind, texts in (("reference", references), ("hypothesis", hypotheses)):
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{kind} {i} is {text!r}, not text. Pass an empty string for silence.")
    return references, hypotheses


def _is_empty(reference: str) -> bool:
    """Return whether a normalized reference has nothing to score."""
    return reference.strip() in ("", IGNORED)


def _alignments(pairs: Sequence[tuple[str, str]]) -> list[list[Any]]:
    """Return jiwer's aligned pieces of each pair."""
    # jiwer splits at single spaces only; transcripts may hold tabs and line ends.
    references, hypotheses = ([" ".join(text.split()) for text in side] for side in zip(*pairs, strict=True))
    found: list[list[Any]] = jiwer.process_words(references, hypotheses).alignments
    return found


def _align(pairs: Sequence[tuple[str, str]]) -> Counts:
    """Return hits, substitutions, deletions and insertions of each pair, [4, utterances]."""
    kinds = {"equal": 0, "substitute": 1, "delete": 2, "insert": 3}
    counts = np.zeros((4, len(pairs)), dtype=np.int64)
    for i, chunks in enumerate(_alignments(pairs)):
        for chunk in chunks:
            side = "hyp" if chunk.type == "insert" else "ref"
            length = getattr(chunk, f"{side}_end_idx") - getattr(chunk, f"{side}_start_idx")
            counts[kinds[chunk.type], i] += length
    return counts


def _pairs(chunk: Any, reference: list[str], hypothesis: list[str]) -> Iterator[tuple[str, str, int]]:
    """Yield word said, word written and position of each error of an aligned piece."""
    said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
    written = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
    for i in range(max(len(said), len(written))):
        place = chunk.ref_start_idx + min(i, len(said))
        yield said[i] if said else "", written[i] if written else "", place


def _marked(reference: list[str], hypothesis: list[str], chunks: Sequence[Any]) -> str:
    parts = []
    for chunk in chunks:
        said = " ".join(reference[chunk.ref_start_idx : chunk.ref_end_idx])
        written = " ".join(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx])
        if chunk.type == "equal":
            parts.append(said)
        else:
            parts.append((f"[-{said}-]" if said else "") + (f"{{+{written}+}}" if written else ""))
    return " ".join(parts)
