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
and all its words, because errors within one are not independent. Two systems are compared in `comparison.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from qlib.asr.alignment import Alignment, WordError, align, count_kinds, marked, word_errors
from qlib.asr.bootstrap import (
    PERCENT,
    ClipCounts,
    Counts,
    error_rate,
    errors_and_words,
    percentile_interval,
    resampled_rates,
)
from qlib.asr.normalizers import as_written, normalizers_of
from qlib.asr.signature import short, signature
from qlib.errors import DataError, describe, whole_number

IGNORED = "ignore time segment in scoring"  # a marker of some corpora, not speech


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
    signature: str = field(
        default="", compare=False
    )  # the settings behind the figure: equal ones, equal line

    def errors(self) -> list[WordError]:
        """Return which words went wrong, in the order of the utterances.

        Raises
        ------
        DataError
            The result was stored without its texts.
        """
        return [
            error
            for name, alignment in zip(self.ids, self.alignments(), strict=True)
            for error in word_errors(name, alignment)
        ]

    def record(self) -> dict[str, Any]:
        """Return rates and counts, also of each utterance, as plain data, without the texts."""
        texts = ("references", "hypotheses", "normalized_references", "normalized_hypotheses")
        return {key: value for key, value in asdict(self).items() if key not in texts}

    def rates(self) -> dict[str, Any]:
        """Return what concerns all utterances together: `record` without the figures of single ones."""
        each = ("utterance_errors", "utterance_words", "ids")
        return {key: value for key, value in self.record().items() if key not in each}

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
            f"{name}, {errors} of {words}: {marked(alignment)}"
            for name, errors, words, alignment in zip(
                self.ids, self.utterance_errors, self.utterance_words, self.alignments(), strict=True
            )
        ]
        worst = sorted(range(len(lines)), key=lambda i: -self.utterance_errors[i])
        wrong = [lines[i] for i in worst if self.utterance_errors[i]]
        more = [f"({len(wrong) - limit} more)"] if limit is not None and len(wrong) > limit else []
        return "\n".join([*wrong[:limit], *more]) or "no errors"

    def alignments(self) -> list[Alignment]:
        """Return of each scored utterance which word was written for which.

        Raises
        ------
        DataError
            The result was stored without its texts.
        """
        if len(self.ids) != self.utterances:
            raise DataError(
                "This result has no texts: it was stored without them. Score the transcripts again."
            )
        return align(self.normalized_references, self.normalized_hypotheses)

    @property
    def measure(self) -> str:
        """WER, or CER where characters are counted."""
        return "CER" if self.unit == "characters" else "WER"

    @property
    def clip_counts(self) -> ClipCounts:
        """What `compare` reads."""
        return ClipCounts(
            measure=self.measure,
            errors=np.array(self.utterance_errors),
            amounts=np.array(self.utterance_words),
            per=PERCENT,
            kinds=(self.substitutions, self.deletions, self.insertions),
            listed="references",
            listed_sha256=self.references_sha256,
            rule=f"normalizer {self.normalizer}",
        )

    def __str__(self) -> str:
        low, high = self.interval
        dropped = f" ({self.dropped} dropped)" if self.dropped else ""
        made_up = f", {self.dropped_words} words where nothing was said" if self.dropped_words else ""
        line = f"\n{self.signature}" if self.signature else ""  # results stored by older versions have none
        return (
            f"{self.measure} {self.wer:.2f} % [{low:.2f}, {high:.2f}], raw {self.wer_raw:.2f} %: "
            f"{self.substitutions} substitutions, {self.deletions} deletions, {self.insertions} insertions "
            f"in {self.words} {self.unit} of {self.utterances} utterances{dropped}, "
            f"length ratio {self.length_ratio:.2f}{made_up}, normalizer {self.normalizer}{line}"
        )


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    languages: str | Sequence[str] = "en",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    decoding: str = "unknown",
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
    decoding : str
        How the hypotheses were searched for, such as ``"greedy"``: a word for the signature.

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
        raise _nothing_to_score(len(references))
    aligned = _count([pairs[i] for i in kept])
    raw = _count([as_written(normalizers[i], references[i], hypotheses[i]) for i in kept])
    hits, substitutions, deletions, insertions = (int(n) for n in aligned.sum(axis=1))
    errors, words = errors_and_words(aligned)
    sha256 = hashlib.sha256(json.dumps(references).encode()).hexdigest()
    used = list(dict.fromkeys(normalizers[i] for i in kept))
    settings = {
        "norm": "+".join(each.name for each in used),
        **scorer_versions(),
        "dec": decoding,
        "clips": len(kept),
        "words": int(words.sum()),
        "refs": short(sha256),
        "seed": seed,
        "resamples": resamples,
    }
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
        normalizer=" and ".join(map(str, used)),
        utterance_errors=tuple(errors.tolist()),
        utterance_words=tuple(words.tolist()),
        references_sha256=sha256,
        unit=" and ".join(sorted({normalizers[i].unit for i in kept}, reverse=True)),
        dropped_words=sum(len(hypothesis.split()) for reference, hypothesis in pairs if _is_empty(reference)),
        ids=tuple(named[i] for i in kept),
        references=tuple(references[i] for i in kept),
        hypotheses=tuple(hypotheses[i] for i in kept),
        normalized_references=tuple(pairs[i][0].strip() for i in kept),
        normalized_hypotheses=tuple(pairs[i][1].strip() for i in kept),
        signature=signature("wer", settings),
    )


def check_scorable(references: Sequence[str], languages: str | Sequence[str] = "en") -> None:
    """Refuse references without a single word to score, before somebody transcribes for hours.

    Raises
    ------
    DataError
        All references are empty after normalization, or a language is unknown.
    MissingExtraError
        The ``asr`` extra is not installed.
    """
    pairs = zip(normalizers_of(languages, len(references)), references, strict=True)
    if all(_is_empty(normalize(reference)) for normalize, reference in pairs):
        raise _nothing_to_score(len(references))


def scorer_versions() -> dict[str, str]:
    """Return the versions of the packages that normalize and align, as signatures have them."""
    return {name: version(name) for name in ("whisper-normalizer", "jiwer")}


def _nothing_to_score(count: int) -> DataError:
    return DataError(
        f"all {count} references are empty after normalization: there is no word to score. "
        "Check that the manifest's transcripts are what was said."
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


def _count(pairs: Sequence[tuple[str, str]]) -> Counts:
    """Return hits, substitutions, deletions and insertions of each pair of texts, [4, utterances]."""
    references, hypotheses = zip(*pairs, strict=True)
    return count_kinds(align(references, hypotheses))
