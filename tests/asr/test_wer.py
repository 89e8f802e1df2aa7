"""Word error rates: counts against a plain Levenshtein table, intervals against enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib.asr.alignment import WordError
from qlib.asr.comparison import compare
from qlib.asr.normalizers import normalizer
from qlib.asr.wer import WerResult, score
from qlib.errors import DataError, MissingExtraError

WORDS = ["alpha", "bravo", "delta", "lima"]  # the normalizer leaves these alone
texts = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
spoken = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join)


def levenshtein(reference: list[str], hypothesis: list[str]) -> int:
    """The textbook recurrence, one case a line."""
    if not reference or not hypothesis:
        return len(reference) + len(hypothesis)
    if reference[-1] == hypothesis[-1]:
        return levenshtein(reference[:-1], hypothesis[:-1])
    return 1 + min(
        levenshtein(reference[:-1], hypothesis),
        levenshtein(reference, hypothesis[:-1]),
        levenshtein(reference[:-1], hypothesis[:-1]),
    )


def result(errors: list[int], words: list[int]) -> WerResult:
    """Score utterances with the given numbers of deleted words."""
    references = [" ".join(["alpha"] * n) for n in words]
    return score(references, [" ".join(["alpha"] * (n - e)) for e, n in zip(errors, words, strict=True)])


# --- score


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(spoken, texts), min_size=1, max_size=4))
def test_counts_equal_a_levenshtein_table(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = zip(*pairs, strict=True)
    wer = score(references, hypotheses, resamples=1)
    expected = tuple(levenshtein(r.split(), h.split()) for r, h in pairs)
    assert wer.utterance_errors == expected
    assert wer.utterance_words == tuple(len(r.split()) for r in references)
    assert wer.substitutions + wer.deletions + wer.insertions == sum(expected)
    assert wer.hits + wer.substitutions + wer.deletions == wer.words == sum(wer.utterance_words)
    assert wer.hits + wer.substitutions + wer.insertions == sum(len(h.split()) for h in hypotheses)
    assert wer.wer == pytest.approx(100 * sum(expected) / wer.words)
    assert wer.wer_raw == pytest.approx(wer.wer)


def test_a_worked_example() -> None:
    # 1 substitution in 4 words; 1 deletion in 3; 2 insertions in 1.
    wer = score(
        ["alpha bravo delta lima", "alpha bravo delta", "lima"],
        ["alpha lima delta lima", "alpha delta", "lima lima lima"],
    )
    assert (wer.substitutions, wer.deletions, wer.insertions, wer.hits) == (1, 1, 2, 6)
    assert (wer.words, wer.utterances, wer.dropped) == (8, 3, 0)
    assert wer.utterance_errors == (1, 1, 2)
    assert wer.wer == 50
    assert wer.length_ratio == 9 / 8


def test_the_corpus_rate_is_not_the_mean_of_rates() -> None:
    assert result([1, 0], [1, 9]).wer == 10  # the mean of 100 % and 0 % would be 50 %


def test_raw_text_counts_case_and_punctuation() -> None:
    wer = score(["Mr. Smith's twenty one dogs"], ["mister smith is 21 dogs"])
    assert wer.wer == 0
    assert wer.wer_raw == 80  # 5 words, "dogs" alone is the same


def test_tabs_and_line_ends_separate_words() -> None:
    wer = score(["alpha\tbravo\n delta"], ["alpha bravo  delta"])
    assert (wer.wer, wer.wer_raw) == (0, 0)


def test_utterances_without_a_word_are_dropped() -> None:
    references = ["alpha", "", "[noise]", "Ignore time segment in scoring", "  ", "bravo"]
    wer = score(references, ["alpha", "delta", "delta", "delta", "delta", ""])
    assert (wer.utterances, wer.dropped, wer.words) == (2, 4, 2)
    assert (wer.insertions, wer.deletions) == (0, 1)
    assert wer.utterance_errors == (0, 1)


def test_the_normalizer_is_named_with_its_version() -> None:
    assert result([0], [1]).normalizer == str(normalizer())
    assert str(normalizer()).split()[0] == "whisper-english"
    assert str(normalizer()).split()[1][0].isdigit()


@pytest.mark.parametrize("references", [[], [""], ["[noise]", "ignore time segment in scoring"]])
def test_no_word_to_score_is_refused(references: list[str]) -> None:
    with pytest.raises(DataError, match=f"all {len(references)} references are empty.*manifest"):
        score(references, ["alpha"] * len(references))


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="2 references, 1 hypotheses"):
        score(["alpha", "bravo"], ["alpha"])


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [(["a", None], ["a", "b"], "reference 1 is None"), (["a"], [3], "hypothesis 0 is 3, not text")],
)
def test_what_is_no_text_is_refused(references: list, hypotheses: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(references, hypotheses)


def test_an_unknown_normalizer_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"'klingon' is unknown. Use 'whisper-english', 'whisper-basic' or 'whisper-basic-chara",
    ):
        normalizer("klingon")


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    with pytest.raises(MissingExtraError, match=r"word error rate.*quantdraft\[asr\]"):
        score(["alpha"], ["alpha"])


def test_a_result_reads_as_one_line() -> None:
    text = str(score(["alpha bravo", ""], ["Alpha", "x"]))
    assert text.startswith("WER 50.00 % [50.00, 50.00], raw 100.00 %: 0 substitutions, 1 deletions, 0 insert")
    assert "2 words of 1 utterances (1 dropped)" in text
    assert "whisper-english" in text
    assert "dropped" not in str(result([0], [1]))


def test_a_result_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result([0], [1]).wer = 1.0  # type: ignore[misc]


# --- languages


PORTUGUESE = ("ele comprou um carro e um livro", "ele comprou carro e livro")


def test_other_languages_keep_their_words() -> None:
    said, heard = ([text] for text in PORTUGUESE)
    assert score(said, heard).wer < 1e-9, "English: the fillers um and e are removed"
    for name in ("pt", "Portuguese", "pt-BR"):
        wer = score(said, heard, languages=name)
        assert wer.wer == pytest.approx(200 / 7)
        assert (wer.deletions, wer.unit) == (2, "words")
        assert wer.normalizer.startswith("whisper-basic ")


@pytest.mark.parametrize(
    ("code", "said", "heard", "errors", "characters"),
    [
        ("zh", "今天天气很好。", "今天天汽很好", 1, 6),
        ("ja", "これはペンです", "これペンです", 1, 7),
        ("yue", "你好", "你 好", 0, 2),
    ],
)
def test_languages_without_spaces_are_counted_in_characters(
    code: str, said: str, heard: str, errors: int, characters: int
) -> None:
    rate = score([said], [heard], languages=code)
    assert (sum(rate.utterance_errors), rate.words, rate.unit) == (errors, characters, "characters")
    assert rate.wer == pytest.approx(100 * errors / characters)
    assert str(rate).startswith("CER") and f"in {characters} characters" in str(rate)
    assert rate.normalizer.startswith("whisper-basic-characters ")


def test_texts_are_normalized_as_by_whispers_authors() -> None:
    basic = pytest.importorskip("transformers.models.whisper.english_normalizer").BasicTextNormalizer
    for text in (
        "Já são 3½ h, (risos) não é?",
        "ÄÖÜ, Straße <x>",
        "«Да», — сказал он.",
        "今日は、良い天気。",
    ):
        assert normalizer("whisper-basic")(text) == basic()(text)
        assert normalizer("whisper-basic-characters")(text).split() == basic(split_letters=True)(text).split()


def test_a_mixed_list_is_scored_each_by_its_own() -> None:
    said, heard = ["uh alpha bravo", PORTUGUESE[0], "今天"], ["alpha bravo", PORTUGUESE[1], "今"]
    wer = score(said, heard, languages=["english", "pt", "zh"])
    assert (wer.utterance_errors, wer.utterance_words) == ((0, 2, 1), (2, 7, 2))
    assert wer.unit == "words and characters"
    names = [part.split()[0] for part in wer.normalizer.split(" and ")]
    assert names == ["whisper-english", "whisper-basic", "whisper-basic-characters"]
    with pytest.raises(DataError, match=r"normalizer .* and by normalizer .* differ"):
        compare(wer, score(said, heard))


# --- broken bytes, and words where nothing was said


def test_broken_bytes_are_words_that_nobody_said() -> None:
    row = "\N{REPLACEMENT CHARACTER}" * 5
    for heard in (f"alpha bravo {row}", f"alpha{row} bravo", " ".join(row) + " alpha bravo"):
        wer = score(["alpha bravo"], [heard])
        assert (wer.insertions, wer.hits, wer.length_ratio) == (5, 2, 3.5)
    assert [each.hypothesis for each in wer.errors()] == list(row), "shown as they are"
    assert score(["今天"], [f"今天{row}"], languages="zh").insertions == 5
    silence = score(["alpha", ""], ["alpha", row])
    assert (silence.wer, silence.dropped_words) == (0, 5)
    assert "length ratio 1.00, 5 words where nothing was said, normalizer" in str(silence)


# --- which words


def test_errors_are_named_word_by_word() -> None:
    wer = score(
        ["Alpha bravo, delta lima!", "alpha", "", "bravo delta"],
        ["alpha LIMA lima", "alpha", "x", "alpha bravo delta delta"],
        ids=["a", "b", "c", "d"],
    )
    assert wer.errors() == [
        WordError("a", "substitution", "bravo", "lima", 1),
        WordError("a", "deletion", "delta", "", 2),
        WordError("d", "insertion", "", "alpha", 0),
        WordError("d", "insertion", "", "delta", 1),
    ]
    kinds = [each.kind for each in wer.errors()]
    assert [kinds.count(k) for k in ("substitution", "deletion", "insertion")] == [
        wer.substitutions, wer.deletions, wer.insertions,
    ]  # fmt: skip
    assert wer.ids == ("a", "b", "d")
    assert wer.references == ("Alpha bravo, delta lima!", "alpha", "bravo delta")
    assert wer.hypotheses[0] == "alpha LIMA lima"
    assert wer.normalized_references[0] == "alpha bravo delta lima"
    assert wer.normalized_hypotheses[0] == "alpha lima lima"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(spoken, texts), min_size=1, max_size=4))
def test_the_errors_are_those_that_are_counted(pairs: list[tuple[str, str]]) -> None:
    wer = score(*zip(*pairs, strict=True), resamples=1)
    for name, errors, reference in zip(wer.ids, wer.utterance_errors, wer.normalized_references, strict=True):
        mine = [each for each in wer.errors() if each.utterance == name]
        assert len(mine) == errors
        words = reference.split()
        assert all(words[each.position] == each.reference for each in mine if each.reference)


def test_texts_with_their_errors_marked() -> None:
    wer = score(
        ["alpha bravo delta lima", "alpha", "bravo delta"],
        ["alpha lima delta", "alpha", "bravo lima alpha delta lima"],
        ids=["a", "b", "c"],
    )
    first, second = wer.marked().split("\n")
    assert first == "c, 3 of 2: bravo {+lima alpha+} delta {+lima+}"
    assert second == "a, 2 of 4: alpha [-bravo-]{+lima+} delta [-lima-]"
    assert wer.marked(1) == f"{first}\n(1 more)"
    assert wer.marked(None) == f"{first}\n{second}"
    assert score(["alpha"], ["alpha"]).marked() == "no errors"
    with pytest.raises(DataError, match="limit=0"):
        wer.marked(0)


def test_a_result_survives_json() -> None:
    wer = score(["alpha bravo", "delta"], ["alpha", "lima"], ids=["a", "b"])
    stored = json.loads(json.dumps(dataclasses.asdict(wer)))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    assert WerResult(**values) == wer
    assert WerResult(**values).errors() == wer.errors()
    texts = ("ids", "references", "hypotheses", "normalized_references", "normalized_hypotheses")
    old = WerResult(**{k: v for k, v in values.items() if k not in (*texts, "unit", "dropped_words")})
    assert compare(old, wer).difference == 0
    with pytest.raises(DataError, match="stored without them"):
        old.errors()


def test_names_of_utterances_do_not_make_results_differ() -> None:
    assert score(["alpha"], ["alpha"], ids=["a"]) == score(["alpha"], ["alpha"])


# --- the signature


def test_a_signature_names_every_setting() -> None:
    wer = score(["alpha bravo", "", "delta"], ["alpha", "x", "lima"], seed=3, resamples=50, decoding="greedy")
    name, package_version = str(normalizer()).split()
    start = f"wer|norm:{name}|whisper-normalizer:{package_version}|jiwer:{version('jiwer')}|dec:greedy"
    middle = f"|clips:2|words:3|refs:{wer.references_sha256[:8]}|seed:3|resamples:50|qlib:"
    assert wer.signature.startswith(start + middle)
    assert str(wer).endswith(f"\n{wer.signature}")
    assert json.loads(json.dumps(dataclasses.asdict(wer)))["signature"] == wer.signature


def test_equal_settings_have_equal_signatures_whatever_was_heard() -> None:
    one = score(["alpha", "bravo"], ["alpha", "bravo"])
    assert one.signature == score(["alpha", "bravo"], ["lima", ""]).signature
    others = [
        score(["alpha", "lima"], ["alpha", "bravo"]),
        score(["alpha", "bravo"], ["alpha", "bravo"], seed=1),
        score(["alpha", "bravo"], ["alpha", "bravo"], resamples=10),
        score(["alpha", "bravo"], ["alpha", "bravo"], decoding="beam 5"),
        score(["alpha", "bravo"], ["alpha", "bravo"], languages="de"),
        score(["alpha", "bravo"], ["alpha", "bravo"], languages=["de", "en"]),
    ]
    assert len({each.signature for each in [one, *others]}) == 7
    assert "norm:whisper-basic+whisper-english|" in others[-1].signature


# --- intervals


def enumerated(errors: list[int], words: list[int]) -> np.ndarray:
    """Rates of all n^n equally likely resamples."""
    every = itertools.product(range(len(words)), repeat=len(words))
    return np.array([100 * sum(errors[i] for i in d) / sum(words[i] for i in d) for d in every])


def test_the_interval_is_that_of_all_resamples() -> None:
    errors, words = [0, 1, 2, 4, 0], [3, 4, 5, 6, 1]
    exact = np.percentile(enumerated(errors, words), [2.5, 97.5])
    references = [" ".join(["alpha"] * n) for n in words]
    hypotheses = [" ".join(["alpha"] * (n - e)) for e, n in zip(errors, words, strict=True)]
    wer = score(references, hypotheses, resamples=200_000)
    assert wer.interval == pytest.approx(exact, abs=1.0)


def test_equal_rates_have_no_spread() -> None:
    assert result([1, 1, 1], [4, 4, 4]).interval == (25, 25)


def test_one_of_two_utterances_wrong_spans_everything() -> None:
    # Both drawn twice with probability 1/4 each: 0 % and 100 % lie inside the 95 %.
    assert result([5, 0], [5, 5]).interval == (0, 100)


def test_the_interval_narrows_with_the_square_root_of_utterances() -> None:
    small, large = (result([1, 0] * n, [4, 4] * n).interval for n in (10, 160))
    assert (small[1] - small[0]) / (large[1] - large[0]) == pytest.approx(4, rel=0.2)
    # Binomial: 95 % is 1.96 standard errors either way.
    assert large[1] - large[0] == pytest.approx(2 * 1.96 * 12.5 / 320**0.5, rel=0.15)


def test_the_seed_decides() -> None:
    words = list(range(3, 43))
    references = [" ".join(["alpha"] * n) for n in words]
    hypotheses = [" ".join(["alpha"] * (n - n % 3)) for n in words]
    first, again, other = (score(references, hypotheses, seed=seed).interval for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_chunks_of_draws_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline, other = result([0] * 8, list(range(1, 9))), result([1, 0, 2, 0, 1, 0, 0, 3], list(range(1, 9)))
    whole = compare(baseline, other, resamples=3)
    monkeypatch.setattr("qlib.asr.bootstrap.DRAWS_AT_ONCE", 16)  # two rows at once: 2 + 1
    assert compare(baseline, other, resamples=3) == whole


def test_no_resample_is_refused() -> None:
    with pytest.raises(DataError, match="resamples=0"):
        score(["alpha"], ["alpha"], resamples=0)
