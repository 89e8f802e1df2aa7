"""Translation both ways: what it gives against slow searches, and that it never changes text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache
from draftlib.vocabulary.reverse import ReverseTranslator
from draftlib.vocabulary.translate import Translation, translate
from qlib.errors import DraftError
from qlib.models import Tokenizer
from qlib.models.tiny import CHAT_SPECIALS, tiny_byte_tokenizer, tiny_tokenizer

LEVEL, PIECES = tiny_tokenizer(CHAT_SPECIALS), tiny_byte_tokenizer()
PAIRS = [VocabularyMap.of(LEVEL, PIECES), VocabularyMap.of(PIECES, LEVEL), VocabularyMap.of(LEVEL, LEVEL)]
EITHER = pytest.mark.parametrize("pair", PAIRS, ids=["level-pieces", "pieces-level", "level-level"])
TEXT = st.text(st.one_of(st.sampled_from(" the\n"), st.characters(exclude_categories=["Cs"])), max_size=30)

# Snow flake: draft tokens S f l a k e and an ending; "z" has no target token.
WORDS = [b"Snow", b"f", b"la", b"ke", b"is", b"st", b"amps", b"z", None]
SAID = [b"Snow", b"flake", b"is", b"stamps", b"f", b"la", b"flakeis", None, None]
SNOW = VocabularyMap.from_bytes(WORDS, SAID, {8: 7}, ends=[8])


def draft_text(pair: VocabularyMap, tokens: Sequence[int]) -> bytes:
    return b"".join(pair.draft_bytes[token] or b"" for token in tokens)


def target_text(pair: VocabularyMap, tokens: Sequence[int]) -> bytes:
    return b"".join(pair.target_bytes[token] or b"" for token in tokens)


def used(found: Translation) -> int:
    """How many draft tokens were translated."""
    return found.stops[-1] if found.stops else 0


def snow_cache(*entries: tuple[tuple[int, ...], int]) -> NGramCache:
    cache = NGramCache()
    cache.bind(SNOW)
    for key, target in entries:
        cache.add(key, target)
    cache.commit()
    return cache


# --- draft to target


def test_worked_example() -> None:
    found = translate([0, 1, 2, 3, 4], SNOW, snow_cache(((1, 2, 3), 1)))
    assert found == Translation((0, 1, 2), (0, 1, 4), (1, 4, 5))
    longer = translate([0, 1, 2, 3, 4], SNOW, snow_cache(((1, 2, 3), 1), ((1, 2, 3, 4), 6)))
    assert longer == Translation((0, 6), (0, 1), (1, 5))


def test_stops_before_what_has_no_counterpart() -> None:
    assert translate([0, 1, 2, 3, 4], SNOW) == Translation((0, 4, 5), (0, 1, 2), (1, 2, 3))
    assert translate([7, 0], SNOW, snow_cache()) == Translation((), (), ())
    assert translate([0, 7, 0], SNOW).stops == (1,)
    assert translate([0, 99], SNOW).stops == (1,)
    assert translate([], SNOW).stops == ()


def test_stops_behind_an_ending_which_no_n_gram_crosses() -> None:
    assert translate([0, 8, 0], SNOW, snow_cache(((1, 2, 3), 1))) == Translation((0, 7), (0, 1), (1, 2))
    assert translate([1, 8, 2, 3], SNOW, snow_cache(((1, 2, 3), 1))).tokens == (4, 7)
    silent = VocabularyMap.from_bytes(WORDS, SAID, {8: 7})
    assert translate([0, 8, 0], silent).tokens == (0, 7, 0)


def test_a_special_token_without_its_like_ends_a_translation() -> None:
    start = LEVEL.token_id("<|im_start|>")
    assert translate([start], PAIRS[0]).tokens == ()
    assert translate([start], PAIRS[2]).tokens == (start,)


LETTERS = VocabularyMap.from_bytes(
    [b"a", b"b", b"c", None],
    [b"a", b"b", b"ab", b"ba", b"abc", b"abab", b"bcb", b"cc", None],
    {3: 8},
    ends=[3],
)
ENTRIES = [((0, 1), 2), ((1, 0), 3), ((0, 1, 2), 4), ((0, 1, 0, 1), 5), ((1, 2, 1), 6), ((2, 2), 7)]


def slow_translate(draft: list[int], entries: list[tuple[tuple[int, ...], int]]) -> Translation:
    tokens, starts, stops = [], [], []
    at = 0
    while at < len(draft):
        fits = [(key, target) for key, target in entries if tuple(draft[at : at + len(key)]) == key]
        direct = [((draft[at],), target) for target in LETTERS.direct.tolist()[draft[at] : draft[at] + 1]]
        key, target = max(fits + direct, key=lambda each: len(each[0]))
        if target < 0:
            break
        tokens.append(target)
        starts.append(at)
        at += len(key)
        stops.append(at)
        if key == (3,):
            break
    return Translation(tuple(tokens), tuple(starts), tuple(stops))


@given(draft=st.lists(st.integers(0, 3), max_size=12), entries=st.sets(st.sampled_from(ENTRIES)))
@settings(deadline=None)
def test_translation_against_a_scan(draft: list[int], entries: set[tuple[tuple[int, ...], int]]) -> None:
    cache = NGramCache()
    cache.bind(LETTERS)
    for entry in entries:
        cache.add(*entry)
    cache.commit()
    found = translate(draft, LETTERS, cache)
    assert found == slow_translate(draft, list(entries))
    assert target_text(LETTERS, found.tokens) == draft_text(LETTERS, draft[: used(found)])
    assert list(found.starts) == [0, *found.stops][: len(found.stops)]


@given(text=TEXT, more=TEXT)
@EITHER
@settings(deadline=None)
def test_translation_never_changes_text(pair: VocabularyMap, text: str, more: str) -> None:
    cache = NGramCache()
    cache.warm_start(pair)
    draft = pair.speller.spell((text + more + text).encode())[0]
    found = translate(draft, pair, cache)
    assert target_text(pair, found.tokens) == draft_text(pair, draft[: used(found)])
    # Every byte is a token on both sides, so nothing can stop it here.
    assert used(found) == len(draft)


# --- target to draft


def target_tokens(pair: VocabularyMap) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, len(pair.target_bytes) - 1), max_size=20)


@given(data=st.data())
@EITHER
@settings(deadline=None)
def test_back_translation_never_changes_text(pair: VocabularyMap, data: st.DataObject) -> None:
    """Any target tokens in any portions, half characters and special tokens among them."""
    reverse = ReverseTranslator(pair, prefix=[1])
    said: list[int] = []
    for _ in range(data.draw(st.integers(0, 5))):
        portion = data.draw(target_tokens(pair))
        before = list(reverse.tokens)
        pairs = reverse.append(portion)
        said += portion
        assert draft_text(pair, reverse.tokens[1:]) == target_text(pair, said)
        assert reverse.tokens[0] == 1
        assert reverse.common_prefix(before) >= min(len(before), 1)
        for key, token in pairs:
            assert token in portion
            assert len(key) > 1
            assert draft_text(pair, key) == pair.target_bytes[token]
    kept = [token for token in reverse.tokens[1:] if pair.draft_bytes[token] is None]
    specials = [pair.special_to_draft.get(token) for token in said if pair.target_bytes[token] is None]
    assert kept == [token for token in specials if token is not None]


@given(text=st.text(st.sampled_from(" theéa\n<|>"), max_size=40), portion=st.integers(1, 4))
@settings(deadline=None)
def test_words_are_spelled_as_the_drafter_spells_them(text: str, portion: int) -> None:
    """Byte by byte or all at once: the drafter's own tokens of the whole text."""
    pair = PAIRS[0]
    said = [PIECES.token_id(f"<0x{byte:02X}>") for byte in text.encode()]
    reverse = ReverseTranslator(pair)
    for at in range(0, len(said), portion):
        reverse.append(said[at : at + portion])
    assert reverse.tokens == pair.speller.spell(text.encode())[0]


def test_only_the_last_word_changes() -> None:
    reverse = ReverseTranslator(PAIRS[0])
    reverse.append([PIECES.token_id(piece) for piece in ("\u2581t", "\u2581a", "h")])
    before = list(reverse.tokens)
    assert before == LEVEL.encode(" t ah")
    reverse.append([PIECES.token_id("e")])
    assert reverse.tokens == LEVEL.encode(" t ahe")
    assert reverse.tokens != [*before, *LEVEL.encode("e")]
    assert reverse.common_prefix(before) == 2


def test_text_without_spaces_is_spelled_anew_only_near_its_end() -> None:
    pair, e = PAIRS[2], LEVEL.token_id("e")
    reverse = ReverseTranslator(pair)
    for length in range(1, 200):
        before = list(reverse.tokens)
        reverse.append([e])
        assert reverse.common_prefix(before) == len(before)
        assert len(reverse.tokens) == length
        assert len(reverse._tail) <= 16


def test_several_draft_tokens_of_one_target_token_are_reported() -> None:
    reverse = ReverseTranslator(SNOW)
    assert reverse.append([0, 1, 3]) == [((1, 2, 3), 1), ((5, 6), 3)]
    assert reverse.tokens == [0, 1, 2, 3, 5, 6]
    assert reverse.append([2]) == []
    # A draft token across two target tokens aligns with neither.
    across = VocabularyMap.from_bytes([b"ab", b"cd", b"e", b"f"], [b"abc", b"d", b"ef"])
    assert ReverseTranslator(across).append([0, 1, 2]) == [((2, 3), 2)]


def test_a_target_token_is_aligned_behind_an_unfinished_word() -> None:
    reverse = ReverseTranslator(SNOW)
    reverse.append([0])
    assert reverse.append([1]) == [((1, 2, 3), 1)]
    assert reverse.append([3]) == [((5, 6), 3)]
    assert reverse.tokens == [0, 1, 2, 3, 5, 6]


def test_drafted_spellings_are_kept() -> None:
    letters = LEVEL.encode("t"), LEVEL.encode("h"), LEVEL.encode("e")
    drafted = [token for letter in letters for token in letter]  # not how the tokenizer spells it: t, he
    reverse = ReverseTranslator(PAIRS[0])
    reverse.append([PIECES.token_id("\u2581a")])
    said = [PIECES.token_id(piece) for piece in ("t", "he", "a")]
    assert reverse.append(said, spelling=drafted) == [((drafted[1], drafted[2]), PIECES.token_id("he"))]
    assert reverse.tokens == [*LEVEL.encode(" a"), *drafted, *LEVEL.encode("a")]
    reverse.append([PIECES.token_id("h")])
    assert reverse.tokens == [*LEVEL.encode(" a"), *drafted, *LEVEL.encode("a"), *LEVEL.encode("h")]


def test_an_accepted_ending_is_kept() -> None:
    reverse = ReverseTranslator(PAIRS[0], prefix=[5])
    ends, end = [LEVEL.token_id("e"), LEVEL.token_id("<|im_end|>")], PIECES.token_id("</s>")
    reverse.append([PIECES.token_id("e"), end, PIECES.token_id("a")], spelling=ends)
    assert reverse.tokens == [5, *ends, LEVEL.token_id("a")]
    # Not drafted, it is the drafter's end of text.
    reverse.append([end])
    assert reverse.tokens[-1] == LEVEL.token_id("<|endoftext|>")


@given(data=st.data())
@settings(deadline=None)
def test_rounds_keep_the_text_and_the_drafted_tokens(data: st.DataObject) -> None:
    """Draft, translate, accept some, correct one: as a decoder does it, with a cache that fills."""
    pair, cache = PAIRS[0], NGramCache()
    cache.bind(pair)
    reverse = ReverseTranslator(pair)
    text_tokens = st.sampled_from([number for number, piece in enumerate(pair.target_bytes) if piece])
    said: list[int] = []
    for _ in range(data.draw(st.integers(1, 6))):
        before = list(reverse.tokens)
        drafted = pair.speller.spell(data.draw(TEXT).encode())[0][:6]
        proposed = translate(drafted, pair, cache)
        accepted = data.draw(st.integers(0, len(proposed.tokens)))
        new = [*proposed.tokens[:accepted], data.draw(text_tokens)]
        kept = drafted[: proposed.stops[accepted - 1]] if accepted else []
        for entry in reverse.append(new, kept):
            cache.add(*entry)
        cache.commit()
        said += new
        assert draft_text(pair, reverse.tokens) == target_text(pair, said)
        if kept:
            assert reverse.common_prefix(before + drafted) >= len(before) + len(kept)


@pytest.mark.parametrize("spelling", [[0, 1], [1], [0, 1, 2, 3, 4], [8], [0, 8], [0, 99], [7]])
def test_a_spelling_of_something_else_is_refused(spelling: list[int]) -> None:
    with pytest.raises(
        DraftError, match=rf"\[{spelling[0]}.*does not stand for the first.*\[0, 1\].*accepted"
    ):
        ReverseTranslator(SNOW).append([0, 1], spelling)


@pytest.mark.parametrize("token", [-1, 9])
def test_unknown_target_tokens_are_refused(token: int) -> None:
    with pytest.raises(DraftError, match=f"Target token {token} is not in the vocabulary of 9.*target's"):
        ReverseTranslator(SNOW).append([0, token])


@given(
    st.lists(st.integers(0, 2), max_size=8),
    st.lists(st.integers(0, 2), max_size=8),
    st.sampled_from([0, 256, 600]),
)
@settings(deadline=None)
def test_common_prefix_against_a_scan(one: list[int], other: list[int], shared: int) -> None:
    front = list(range(shared))
    expected = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    expected = min(len(one), len(other)) if expected is None else expected
    assert ReverseTranslator(SNOW, front + one).common_prefix(front + other) == shared + expected


def test_bytes_that_the_drafter_lacks_are_left_out() -> None:
    pair = VocabularyMap.from_bytes([b"a", b"b", b" "], [b"axb", b"ab", b"x", b" b"])
    reverse = ReverseTranslator(pair)
    assert reverse.append([0, 1, 2]) == [((0, 1), 1)]
    assert reverse.append([3, 3]) == [((2, 1), 3)]
    assert reverse.tokens == [0, 1, 0, 1, 2, 1, 2, 1]


# --- real tokenizers


@pytest.mark.weights
@pytest.mark.parametrize("draft", ["drafter-7m", "whisper-base", "moonshine-tiny"])
def test_real_texts(draft: str, checkpoint: Callable[[str], Path]) -> None:
    tokenizers = [Tokenizer.from_folder(checkpoint(name)) for name in (draft, "smollm2-135m-instruct")]
    pair = VocabularyMap.of(*tokenizers)
    cache = NGramCache()
    cache.bind(pair)
    readme = Path(__file__).parents[3] / "README.md"
    text = (
        readme.read_text(encoding="utf-8")[:3000]
        + " Grüße, 東京 \U0001f600\U0001f468\u200d\U0001f469!\n\n\tx"
    )
    said = tokenizers[1].encode(text)
    reverse = ReverseTranslator(pair)
    for token in said:
        for entry in reverse.append([token]):
            cache.add(*entry)
        cache.commit()
    assert draft_text(pair, reverse.tokens) == text.encode()
    assert len(cache) > 20
    if draft == "drafter-7m":  # the same rules for words on both sides: the spelling of the whole text
        assert reverse.tokens == tokenizers[0].encode(text)
    without, found = translate(reverse.tokens, pair), translate(reverse.tokens, pair, cache)
    # It gets further, or as far (one draft token may be two target tokens) in fewer tokens.
    assert (used(found), -len(found.tokens)) > (used(without), -len(without.tokens))
    assert target_text(pair, found.tokens) == draft_text(pair, reverse.tokens[: used(found)])
