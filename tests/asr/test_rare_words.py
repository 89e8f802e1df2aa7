"""Rare words: which words are rare, and which of them went wrong, against counting one by one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib.asr.alignment import Alignment, align, kind_of, marked, word_errors
from qlib.asr.comparison import compare
from qlib.asr.rare_words import rare_counts, rare_limit, rare_words
from qlib.asr.wer import score
from qlib.errors import DataError

WORDS = ["alpha", "bravo", "delta", "lima"]  # the normalizer leaves these alone
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
spoken = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
corpora = st.dictionaries(st.sampled_from(WORDS), st.integers(1, 4))


def all_alignments(said: list[str], written: list[str]) -> list[Alignment]:
    """Every alignment there is: at each place a pair, a deletion or an insertion."""
    if not said and not written:
        return [[]]
    found: list[Alignment] = []
    if said and written:
        found += [[(said[0], written[0]), *rest] for rest in all_alignments(said[1:], written[1:])]
    if said:
        found += [[(said[0], ""), *rest] for rest in all_alignments(said[1:], written)]
    if written:
        found += [[("", written[0]), *rest] for rest in all_alignments(said, written[1:])]
    return found


def errors_of(alignment: Alignment) -> int:
    return sum(said != written for said, written in alignment)


# --- alignments


def test_an_alignment_by_hand() -> None:
    (alignment,) = align(["alpha bravo delta lima"], ["bravo delta kilo lima"])
    assert alignment == [
        ("alpha", ""),
        ("bravo", "bravo"),
        ("delta", "delta"),
        ("", "kilo"),
        ("lima", "lima"),
    ]
    assert [kind_of(pair) for pair in alignment] == ["deletion", "hit", "hit", "insertion", "hit"]
    assert marked(alignment) == "[-alpha-] bravo delta {+kilo+} lima"
    assert [each.position for each in word_errors("a", alignment)] == [0, 3]


@settings(max_examples=60, deadline=None)
@given(spoken, texts)
def test_an_alignment_has_both_texts_and_the_fewest_errors(said: str, written: str) -> None:
    (found,) = align([said], [written])
    every = all_alignments(said.split(), written.split())
    assert found in every
    assert errors_of(found) == min(map(errors_of, every))


# --- what is rare


@pytest.mark.parametrize(
    ("counts", "common", "limit"),
    [
        ([5, 4, 3, 1, 1], 3, 1),
        ([5, 4, 3, 1, 1], 2, 3),
        ([5, 4, 4, 4, 1], 2, 4),  # three words are as frequent as each other: none of them is common
        ([5, 4], 2, 1),  # not one word after the ranks
        ([5, 4], 1000, 1),
        ([], 3, 1),
    ],
)
def test_the_limit_is_the_count_of_the_first_word_behind_the_ranks(
    counts: list[int], common: int, limit: int
) -> None:
    assert rare_limit(counts, common) == limit
    assert rare_limit(counts[::-1], common) == limit


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 12))
def test_at_most_so_many_words_are_common(counts: list[int], common: int) -> None:
    limit = rare_limit(counts, common)
    frequent = sum(count > limit for count in counts)
    assert frequent <= common or len(counts) <= common
    if len(counts) > common:
        assert frequent < len(counts), "some are rare"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(spoken, texts), min_size=1, max_size=4), corpora, st.integers(1, 3))
def test_counts_equal_counting_one_by_one(
    pairs: list[tuple[str, str]], corpus: dict[str, int], at_most: int
) -> None:
    alignments = align(*zip(*pairs, strict=True))
    found = rare_counts(alignments, Counter(corpus), at_most)
    for column, alignment in zip(found.T, alignments, strict=True):
        kinds = [kind_of(pair) for pair in alignment if pair[0] and corpus.get(pair[0], 0) <= at_most]
        assert column.tolist() == [kinds.count(kind) for kind in ("hit", "substitution", "deletion")]
    every = rare_counts(alignments, Counter(corpus), 9)
    assert every.sum() == sum(len(said.split()) for said, _ in pairs), "with a high limit: all words"


@settings(max_examples=40, deadline=None)
@given(spoken, texts)
def test_errors_lie_between_those_of_the_best_alignments(said: str, written: str) -> None:
    """jiwer chooses among alignments with equally few errors: its count is that of one of them."""
    every = all_alignments(said.split(), written.split())
    least = min(map(errors_of, every))
    best = [each for each in every if errors_of(each) == least]
    possible = {int(rare_counts([each], Counter(alpha=9), 1)[1:].sum()) for each in best}
    (mine,) = align([said], [written])
    assert int(rare_counts([mine], Counter(alpha=9), 1)[1:].sum()) in possible


# --- the measure


SAID = ["the heron saw the heron", "the lake", "a quail and the lake"]
HEARD = ["the herring saw the heron", "a lake", "a whale and lake"]


def test_a_worked_example() -> None:
    # the 4, heron 2, lake 2, and once each: saw, a, quail, and. So once is rare after rank 3.
    result = rare_words(score(SAID, HEARD), common=3)
    assert (result.at_most, result.distinct, result.words) == (1, 7, 4)
    assert (result.substitutions, result.deletions, result.wer) == (1, 0, 25)
    assert result.utterance_words == (1, 3), "the second utterance has no rare word"
    # Behind rank 1 stand heron and lake, twice each: they are rare too.
    wider = rare_words(score(SAID, HEARD), common=1)
    assert (wider.at_most, wider.words, wider.substitutions, wider.wer) == (2, 8, 2, 25)


def test_a_corpus_decides() -> None:
    result = score(SAID, HEARD)
    corpus = ["The LAKE, the lake!", "a quail", "a quail", "Saw saw and and the", "kilo"]
    seen = rare_words(result, common=6, corpus=corpus)
    assert (seen.at_most, seen.words, seen.substitutions) == (1, 2, 1), "heron is not in the corpus"
    assert seen.wer == 50


def test_few_distinct_words_are_said_to_be_few() -> None:
    text = str(rare_words(score(SAID, HEARD)))
    assert text.startswith("rare-word WER 25.00 % [")
    assert "1 substitutions, 0 deletions in 4 rare words of 2 utterances" in text
    assert "outside the 1000 most frequent of the corpus, which has 7 distinct words only" in text
    assert "at most 1 times" in text
    assert "only" not in str(rare_words(score(SAID, HEARD), common=3)).partition("\n")[0]


def test_common_words_do_not_matter() -> None:
    fine, broken = score(SAID, SAID), score(SAID, [text.replace("the", "this") for text in SAID])
    assert broken.wer > 0
    assert rare_words(broken).wer == rare_words(fine).wer == 0


def test_the_interval_is_that_of_all_resamples() -> None:
    said = ["alpha bravo", "delta lima kilo", "oscar", "papa quebec romeo sierra"]
    result = rare_words(
        score(said, ["alpha", "delta lima", "tango", "papa quebec romeo sierra"]), resamples=50_000
    )
    errors, words = (1, 1, 1, 0), (2, 3, 1, 4)
    rates = [
        100 * sum(errors[i] for i in drawn) / sum(words[i] for i in drawn)
        for drawn in itertools.product(range(4), repeat=4)
    ]
    assert result.interval == pytest.approx(np.percentile(rates, [2.5, 97.5]), abs=1)


def test_two_systems_are_compared_on_rare_words() -> None:
    baseline, other = rare_words(score(SAID, SAID)), rare_words(score(SAID, HEARD))
    comparison = compare(baseline, other)
    assert (comparison.difference, comparison.substitutions, comparison.insertions) == (25, 1, 0)
    assert (comparison.utterances, comparison.no_regression) == (2, 50)
    assert str(comparison).startswith("rare-word WER difference +25.00")
    with pytest.raises(DataError, match=r"rare at most 2 times in corpus .* differ"):
        compare(baseline, rare_words(score(SAID, HEARD), common=1))


def test_its_signature_tells_corpus_and_rank() -> None:
    result = score(SAID, HEARD)
    line = rare_words(result).signature
    assert line.startswith("rare-wer|common:1000|rare:at-most-1|corpus:") and line.endswith(
        result.signature.removeprefix("wer")
    )
    assert rare_words(result).signature == line
    assert rare_words(result, common=3).signature != line
    assert rare_words(result, corpus=["heron"]).signature != line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rare_words("alpha"), r"the str 'alpha' is no WerResult"),
        (lambda: rare_words(score(SAID, HEARD), common=0), r"common=0 is not 1 or more"),
        (lambda: rare_words(score(["the the"], ["the"])), r"none of 2 reference words is rare.*Lower common"),
        (
            lambda: rare_words(replace(score(SAID, HEARD), ids=())),
            r"has no texts.*Score the transcripts again",
        ),
        (lambda: rare_words(score(SAID, HEARD), corpus=[]), r"corpus of 0 texts has no word"),
        (lambda: rare_words(score(SAID, HEARD), corpus=["a", 3]), r"text 2 of the corpus is the int 3"),
        (
            lambda: rare_words(score(["alpha", "ja"], ["alpha", "ja"], languages=["en", "de"]), corpus=["a"]),
            r"normalizers whisper-english .* and whisper-basic.*by itself",
        ),
    ],
)
def test_errors(make: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()  # type: ignore[operator]
