"""Bytes of tokens against the tokenizers' own decoding, pairs that work and pairs that cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.spelling import Speller
from draftlib.vocabulary.token_bytes import token_bytes
from qlib.errors import DraftError
from qlib.models import Tokenizer
from qlib.models.tiny import CHAT_SPECIALS, tiny_byte_tokenizer, tiny_tokenizer

LEVEL, PIECES = tiny_tokenizer(CHAT_SPECIALS), tiny_byte_tokenizer()
BOTH = pytest.mark.parametrize("tokenizer", [LEVEL, PIECES], ids=["byte-level", "sentencepiece"])


def bytes_of(tokenizer: Tokenizer) -> list[bytes | None]:
    return token_bytes(json.loads(tokenizer.to_json()))


TABLES = {id(tokenizer): bytes_of(tokenizer) for tokenizer in (LEVEL, PIECES)}
SPELLERS = {id(tokenizer): Speller(TABLES[id(tokenizer)], tokenizer) for tokenizer in (LEVEL, PIECES)}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
REAL = ["drafter-7m", "smollm2-135m-instruct", "whisper-base", "moonshine-tiny"]


def spelled(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    table = TABLES.get(id(tokenizer)) or bytes_of(tokenizer)
    return b"".join(table[number] or b"?" for number in ids)


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_json()) | parts)))


# --- bytes of tokens


@settings(deadline=None)
@given(text=TEXT.filter(lambda text: "<" not in text))
@BOTH
def test_bytes_of_an_encoded_text_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    front = " " if tokenizer is PIECES and text else ""  # this kind reads every text after a space
    assert spelled(tokenizer, tokenizer.encode(text)) == (front + text).encode()


@BOTH
def test_special_tokens_have_no_bytes(tokenizer: Tokenizer) -> None:
    table = bytes_of(tokenizer)
    assert len(table) == tokenizer.vocab_size
    assert {number for number, piece in enumerate(table) if piece is None} == tokenizer.special_ids


def test_pieces_of_both_kinds() -> None:
    byte_level, pieces = bytes_of(LEVEL), bytes_of(PIECES)
    assert byte_level[LEVEL.token_id("\u0120t")] == b" t"
    assert byte_level[LEVEL.token_id("\u010a")] == b"\n"
    assert byte_level[LEVEL.token_id("\u00c3")] == b"\xc3"  # the byte, not the letter
    assert pieces[PIECES.token_id("\u2581the")] == b" the"
    assert pieces[PIECES.token_id("<0x0A>")] == b"\n"
    assert pieces[PIECES.token_id("<0xC3>")] == b"\xc3"


def test_without_byte_fallback_a_byte_piece_is_text() -> None:
    raw = tokenizers.Tokenizer(
        models.Unigram([("<unk>", 0.0), ("<0x41>", -1.0), ("\u2581a", -2.0)], unk_id=0)
    )
    raw.decoder = decoders.Metaspace()
    assert bytes_of(Tokenizer(raw)) == [None, b"<0x41>", b" a"]


def test_gaps_and_unknown_tokens_have_no_bytes() -> None:
    raw = tokenizers.Tokenizer(models.BPE({"a": 0, "[unk]": 3, "": 4}, [], unk_token="[unk]"))
    raw.decoder = decoders.ByteLevel()
    assert bytes_of(Tokenizer(raw)) == [b"a", None, None, None, None]


def test_added_words_are_text() -> None:
    raw = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens(["\u00e9 b\u0100", "ab"])
    table = bytes_of(Tokenizer(raw))
    assert table == [b"a", *(raw.decode([number]).encode() for number in (1, 2))]
    assert table[1:] == ["\u00e9 b\u0100".encode(), b"ab"]


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "WordPiece"),
        ({"decoder": None}, "None"),
        ({"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}, "BPEDecoder"),
        ({"decoder": {"type": "Replace", "pattern": {"Regex": "x+"}, "content": " "}}, "Replace"),
    ],
)
def test_unreadable_tokenizers_are_refused(parts: dict[str, Any], named: str) -> None:
    with pytest.raises(
        DraftError, match=f"bytes of this tokenizer's tokens are unknown.*BPE.*{named}.*choose"
    ):
        bytes_of(changed(LEVEL, **parts))


def test_word_ends_are_refused() -> None:
    raw = tokenizers.Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    raw.decoder = decoders.ByteLevel()
    with pytest.raises(DraftError, match="unknown"):
        bytes_of(Tokenizer(raw))


# --- spelling


@settings(deadline=None)
@given(data=st.one_of(st.binary(), TEXT.map(str.encode)))
@BOTH
def test_every_string_of_bytes_is_spelled_as_it_is(tokenizer: Tokenizer, data: bytes) -> None:
    tokens, stops = SPELLERS[id(tokenizer)].spell(data)
    assert spelled(tokenizer, tokens) == data
    assert [len(spelled(tokenizer, tokens[: i + 1])) for i in range(len(tokens))] == stops


@settings(deadline=None)
@given(data=st.binary(), cut=st.integers(0, 20))
def test_longest_tokens_without_a_tokenizer(data: bytes, cut: int) -> None:
    pieces = [bytes([byte]) for byte in range(256)] + [data[i : i + 3] for i in range(min(cut, len(data)))]
    tokens, stops = Speller(pieces).spell(data)
    at = 0
    for token, stop in zip(tokens, stops, strict=True):
        best = max((piece for piece in pieces if piece and data.startswith(piece, at)), key=len)
        assert pieces[token] == best
        at = stop
    assert at == len(data)


def test_a_word_is_spelled_by_the_tokenizers_merges_and_gets_no_space() -> None:
    assert Speller(bytes_of(PIECES), PIECES).spell(b"the the")[0] == [
        PIECES.token_id(piece) for piece in ("t", "he", "\u2581the")
    ]
    with_space = changed(
        LEVEL,
        pre_tokenizer={
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
    )
    assert Speller(bytes_of(LEVEL), with_space).spell(b"t t")[0] == LEVEL.encode("t t")


def test_nothing_is_put_in_front_by_nested_parts() -> None:
    raw = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581", -1.0), ("a", -2.0)], unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits()])
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("a"), normalizers.NFC()])
    raw.decoder = decoders.Metaspace()
    tokenizer = Tokenizer(raw)
    assert tokenizer.encode("a") == [1, 2, 2]
    assert Speller(bytes_of(tokenizer), tokenizer).spell(b"a a")[0] == [2, 1, 2]


def test_text_that_looks_like_a_special_token_stays_text() -> None:
    tokens, _ = Speller(bytes_of(LEVEL), LEVEL).spell(b"a<|im_end|>b")
    assert not LEVEL.special_ids & set(tokens)
    assert spelled(LEVEL, tokens) == b"a<|im_end|>b"


def test_a_normalising_tokenizer_does_not_normalise() -> None:
    lower = changed(LEVEL, normalizer={"type": "Lowercase"})
    tokens, _ = Speller(bytes_of(lower), lower).spell(b"The t")
    assert spelled(lower, tokens) == b"The t"


def test_bytes_that_no_token_has_are_left_out() -> None:
    speller = Speller([b"a", b"bc"])
    assert speller.spell(b"axbcb") == ([0, 1], [1, 4])
    assert speller.missing(b"cab") == b"bc"


# --- maps


def test_direct_tokens_agree_with_a_search_by_bytes() -> None:
    pair = VocabularyMap.of(LEVEL, PIECES)
    for draft, target in enumerate(pair.direct.tolist()):
        piece = pair.draft_bytes[draft]
        same = [number for number, other in enumerate(pair.target_bytes) if other == piece]
        assert target == (pair.special_to_target.get(draft, -1) if piece is None else max(same, default=-1))
        assert pair.target_of(draft) == target
    assert pair.direct.dtype == torch.int64
    assert pair.direct.shape == (LEVEL.vocab_size,)
    # A letter of the table, not the byte that stands in for letters outside it.
    assert pair.target_of(LEVEL.token_id("a")) == PIECES.token_id("a")
    assert pair.target_of(LEVEL.token_id("b")) == PIECES.token_id("<0x62>")
    assert pair.target_of(LEVEL.vocab_size) == pair.target_of(-1) == -1


def test_special_tokens_go_by_role() -> None:
    pair = VocabularyMap.of(LEVEL, PIECES)
    text, start, turn = (LEVEL.token_id(name) for name in CHAT_SPECIALS)
    end = PIECES.token_id("</s>")
    assert pair.special_to_target == {text: end, turn: end}  # one ending for both
    assert pair.special_to_draft == {end: text}
    assert pair.roles == {"end of text": (text, end)}
    assert pair.ends == {text, turn}
    assert pair.target_of(start) == -1
    back = VocabularyMap.of(PIECES, LEVEL)
    assert back.special_to_target == {end: text}
    assert back.special_to_draft == {text: end, turn: end}


def test_special_tokens_of_the_same_name_are_mapped() -> None:
    one, other = (tiny_tokenizer((*names, "<|x|>", "</s>")) for names in ((), ("<pad>",)))
    pair = VocabularyMap.of(one, other)
    assert pair.special_to_target == {one.token_id(name): other.token_id(name) for name in ("<|x|>", "</s>")}


def test_a_tokenizer_and_itself() -> None:
    pair = VocabularyMap.of(LEVEL, LEVEL)
    assert pair.coverage == 1.0
    assert pair.direct.tolist() == list(range(LEVEL.vocab_size))
    assert "259 of 259 draft tokens (100.0%)" in str(pair)
    assert "end of text, start of turn, end of turn" in str(pair)


def test_coverage_counts_tokens_with_bytes() -> None:
    pair = VocabularyMap.from_bytes([b"a", b"b", b"ab", None], [b"ab", b"a", None], {3: 2}, ends=[3])
    assert pair.direct.tolist() == [1, -1, 0, 2]
    assert pair.coverage == pytest.approx(2 / 3)
    assert "2 of 3 draft tokens (66.7%)" in str(pair)
    assert "2 of 2 target tokens (100.0%)" in str(pair)


def test_a_fingerprint_is_of_both_tables_and_the_special_tokens() -> None:
    base = ([b"a", None], [b"a", None, None])
    prints = [
        VocabularyMap.from_bytes(*base, {1: 1}).fingerprint,
        VocabularyMap.from_bytes(*base, {1: 2}).fingerprint,
        VocabularyMap.from_bytes([b"b", None], base[1], {1: 1}).fingerprint,
        VocabularyMap.from_bytes(base[0], [b"b", None, None], {1: 1}).fingerprint,
    ]
    assert len(set(prints)) == 4
    assert VocabularyMap.from_bytes(*base, {1: 1}).fingerprint == prints[0]


@pytest.mark.parametrize("side", ["draft", "target"])
def test_a_tokenizer_without_an_ending_is_refused(side: str) -> None:
    pair = [LEVEL, LEVEL]
    pair[side == "target"] = tiny_tokenizer(("<|x|>",))
    with pytest.raises(
        DraftError, match=rf"The {side} tokenizer has no special token that ends.*1 .*<\|x\|>.*</s>"
    ):
        VocabularyMap.of(*pair)


def small(pieces: list[str]) -> Tokenizer:
    raw = tokenizers.Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(raw)


def test_pairs_without_a_common_token_are_refused() -> None:
    with pytest.raises(
        DraftError, match="None of the drafter's 2 tokens has the bytes of one of the target's 3"
    ):
        VocabularyMap.of(small(["a"]), small(["b", "c"]))


def test_a_drafter_that_cannot_spell_plain_text_is_refused() -> None:
    letters = [x for x in sorted(pre_tokenizers.ByteLevel.alphabet()) if x not in "xy"]
    with pytest.raises(DraftError, match=r"cannot spell plain text.*lacks 2, among them b'xy'"):
        VocabularyMap.of(small(letters), LEVEL)


# --- real tokenizers


@pytest.mark.weights
@pytest.mark.parametrize("name", REAL)
def test_real_tokens_decode_to_their_bytes(name: str, checkpoint: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer.from_folder(checkpoint(name))
    table = bytes_of(tokenizer)
    before = tokenizer.encode("a")[-1:]  # a decoder may strip a space at the beginning of a text
    texts = tokenizer._backend.decode_batch(
        [[*before, number] for number, piece in enumerate(table) if piece], skip_special_tokens=False
    )
    found = [piece.decode(errors="replace") for piece in table if piece]
    assert [text[1:] for text in texts] == found


@pytest.mark.weights
@pytest.mark.parametrize(
    ("draft", "target", "coverage"),
    [
        ("drafter-7m", "smollm2-135m-instruct", 0.931),
        ("drafter-7m", "whisper-base", 0.876),
        ("drafter-7m", "moonshine-tiny", 0.801),
    ],
)
def test_real_coverage(
    draft: str,
    target: str,
    coverage: float,
    checkpoint: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = VocabularyMap.of(*(Tokenizer.from_folder(checkpoint(name)) for name in (draft, target)))
    with capsys.disabled():
        print(f"\n{draft} -> {target}: {pair}")  # noqa: T201
    assert pair.coverage == pytest.approx(coverage, abs=0.001)
    assert "end of text" in pair.roles
