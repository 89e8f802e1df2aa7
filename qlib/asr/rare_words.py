"""Rare-word error rate: how many of the words that matter most, and occur least, went wrong.

Most words of a text are a few function words, which a language model guesses right; a quantized recognizer
loses names and technical terms first, and the word error rate hardly shows it.

    rate = (substitutions + deletions of rare reference words) / rare reference words

Insertions belong to no reference word, so they are not counted.

Rare is what is not among the `common` most frequent words of a corpus. Words that are equally frequent are
treated alike: with k the number of times that the first word after these ranks occurs, words that occur at
most k times are rare. A corpus with no more than `common` distinct words has no such word; k is then 1. The
corpus is all references that were scored, if no other is given, and the result names k.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qlib.asr.alignment import Alignment, kind_of
from qlib.asr.bootstrap import PERCENT, ClipCounts, Counts, percentile_interval, resampled_rates
from qlib.asr.normalizers import normalizer
from qlib.asr.signature import short
from qlib.asr.wer import WerResult
from qlib.errors import DataError, describe, whole_number


@dataclass(frozen=True)
class RareWords:
    """Error rate of rare reference words, in percent. Utterances without a rare word are left out."""

    wer: float  # substitutions and deletions over words
    interval: tuple[float, float]  # 95 %, bootstrap over utterances with a rare word
    substitutions: int
    deletions: int
    words: int  # rare reference words, each occurrence counted
    utterances: int  # with a rare word
    common: int  # as asked for: the most frequent words that do not count
    at_most: int  # a word that occurs so often in the corpus, or less, is rare
    distinct: int  # words of the corpus
    utterance_errors: tuple[int, ...] = field(repr=False)
    utterance_words: tuple[int, ...] = field(repr=False)
    references_sha256: str = field(repr=False)
    rule: str = field(repr=False)  # normalizer and corpus, for `compare`
    signature: str = ""

    @property
    def clip_counts(self) -> ClipCounts:
        """What `compare` reads."""
        return ClipCounts(
            measure="rare-word WER",
            errors=np.array(self.utterance_errors),
            amounts=np.array(self.utterance_words),
            per=PERCENT,
            kinds=(self.substitutions, self.deletions, 0),
            listed="references",
            listed_sha256=self.references_sha256,
            rule=self.rule,
        )

    def __str__(self) -> str:
        low, high = self.interval
        few = f", which has {self.distinct} distinct words only" if self.distinct <= self.common else ""
        return (
            f"rare-word WER {self.wer:.2f} % [{low:.2f}, {high:.2f}]: {self.substitutions} substitutions, "
            f"{self.deletions} deletions in {self.words} rare words of {self.utterances} utterances; "
            f"rare: outside the {self.common} most frequent of the corpus{few}, that is at most "
            f"{self.at_most} times in it\n{self.signature}"
        )


def rare_limit(counts: Collection[int], common: int) -> int:
    """Return how often a word may occur to be rare: as often as the first one after the `common` ranks.

    >>> rare_limit([9, 5, 2, 2, 1], 2), rare_limit([9, 5, 2, 2, 1], 3), rare_limit([9, 5], 2)
    (2, 2, 1)
    """
    ranked = sorted(counts, reverse=True)
    return ranked[common] if len(ranked) > common else 1


def rare_counts(alignments: Sequence[Alignment], occurrences: Counter[str], at_most: int) -> Counts:
    """Return hits, substitutions and deletions of rare reference words, [3, utterances].

    Parameters
    ----------
    alignments : sequence of list of (str, str)
        As `qlib.asr.alignment.align` returns them.
    occurrences : Counter
        How often each word occurs in the corpus; a word that is not in it is rare.
    at_most : int
        A word that occurs so often or less is rare.
    """
    rows = {"hit": 0, "substitution": 1, "deletion": 2}
    counts = np.zeros((len(rows), len(alignments)), dtype=np.int64)
    for i, alignment in enumerate(alignments):
        for said, written in alignment:
            if said and occurrences[said] <= at_most:
                counts[rows[kind_of((said, written))], i] += 1
    return counts


def rare_words(
    result: WerResult,
    *,
    common: int = 1000,
    corpus: Iterable[str] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> RareWords:
    """Measure how many rare words of the references were not recognized.

    Parameters
    ----------
    result : WerResult
        Of `evaluate_wer` or `score`, with its texts.
    common : int
        So many of the most frequent words of the corpus do not count, 1 or more.
    corpus : iterable of str, optional
        Texts in which words are counted, such as the transcripts of a training set; normalized here. If not
        given, the scored references.
    seed, resamples
        Of the bootstrap.

    Raises
    ------
    DataError
        The result has no texts or several normalizers, the corpus has no word, or no reference word is rare.
    """
    if not isinstance(result, WerResult):
        raise DataError(
            f"rare_words: {describe(result)} is no WerResult. Pass that of evaluate_wer or score."
        )
    common = whole_number(common, "rare_words: common", DataError, 1, remedy="1000 is usual.")
    alignments = result.alignments()
    texts = result.normalized_references if corpus is None else _normalized(corpus, result)
    occurrences = Counter(word for text in texts for word in text.split())
    at_most = rare_limit(occurrences.values(), common)
    counts = rare_counts(alignments, occurrences, at_most)
    counts = counts[:, counts.sum(axis=0) > 0]
    if not counts.size:
        raise DataError(
            f"rare_words: none of {result.words} reference words is rare: all occur more than {at_most} "
            f"times in the corpus of {len(occurrences)} distinct words. Lower common={common}, or score more."
        )
    _, substitutions, deletions = (int(n) for n in counts.sum(axis=1))
    words, errors = counts.sum(axis=0), counts[1:].sum(axis=0)
    digest = short(hashlib.sha256(repr(sorted(occurrences.items())).encode()).hexdigest())
    rare = f"rare-wer|common:{common}|rare:at-most-{at_most}|corpus:{digest}"
    _, _, settings = result.signature.partition("|")
    return RareWords(
        wer=float(PERCENT * errors.sum() / words.sum()),
        interval=percentile_interval(resampled_rates(errors, words, resamples, seed)),
        substitutions=substitutions,
        deletions=deletions,
        words=int(words.sum()),
        utterances=len(words),
        common=common,
        at_most=at_most,
        distinct=len(occurrences),
        utterance_errors=tuple(errors.tolist()),
        utterance_words=tuple(words.tolist()),
        references_sha256=result.references_sha256,
        rule=f"normalizer {result.normalizer}, rare at most {at_most} times in corpus {digest}",
        signature=f"{rare}|rare-seed:{seed}|rare-resamples:{resamples}|{settings}",
    )


def _normalized(corpus: Iterable[str], result: WerResult) -> list[str]:
    """Return the texts of a corpus in the form in which the references were compared."""
    texts = [corpus] if isinstance(corpus, str) else list(corpus)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise DataError(f"rare_words: text {number} of the corpus is {describe(text)}. Pass texts.")
    if " and " in result.normalizer:
        raise DataError(
            f"rare_words: the result has the normalizers {result.normalizer}, so it is unknown which of them "
            "the corpus needs. Score each language by itself."
        )
    normalize = normalizer(result.normalizer.split()[0])
    normalized = [normalize(text) for text in texts]
    if not any(text.split() for text in normalized):
        raise DataError(f"rare_words: the corpus of {len(texts)} texts has no word. Pass texts, or None.")
    return normalized
