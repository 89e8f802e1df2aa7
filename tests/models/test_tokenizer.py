"""The wrapper adds nothing, copies cheaply and explains itself; lost merges come back."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from packages import WHISPER_SPECIALS, byte_level_table

from qlib.errors import ModelError
from qlib.models.hub.formats.tokenizer_json import apply_merges, mend_merges
from qlib.models.tokenizer import Tokenizer

TABLE = byte_level_table()


def from_table(table: dict[str, Any]) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(table)))


TOKENIZER = from_table(TABLE)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_decoding_undoes_encoding(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, skip_special=False) == text
    assert all(0 <= number < TOKENIZER.vocab_size for number in ids)


def test_nothing_is_added_even_if_the_table_has_a_template() -> None:
    start, end = (TOKENIZER.token_id(f"<|{name}|>") for name in ("startoftranscript", "endoftext"))
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "s", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"s": {"id": "s", "ids": [start, end], "tokens": ["s", "e"]}},
    }
    assert from_table(TABLE | {"post_processor": template}).encode("the cat") == TOKENIZER.encode("the cat")


def test_special_tokens_are_skipped_or_spelled_out() -> None:
    ids = TOKENIZER.encode("<|startoftranscript|> the cat<|endoftext|>")
    assert ids[0] == TOKENIZER.token_id("<|startoftranscript|>")
    assert TOKENIZER.decode(ids) == " the cat"
    assert TOKENIZER.decode(ids, skip_special=False) == "<|startoftranscript|> the cat<|endoftext|>"
    assert TOKENIZER.special_ids == {TOKENIZER.token_id(token) for token in WHISPER_SPECIALS}


def test_added_words_are_not_special() -> None:
    added = [
        *TABLE["added_tokens"],
        TABLE["added_tokens"][0] | {"id": 290, "content": "dogcat", "special": False},
    ]
    tokenizer = from_table(TABLE | {"added_tokens": added})
    assert tokenizer.encode("dogcat") == [290]
    assert tokenizer.decode([290]) == "dogcat"
    assert tokenizer.special_ids == TOKENIZER.special_ids


def test_ids_beyond_the_table_decode_to_nothing() -> None:
    ids = TOKENIZER.encode(" the cat")
    assert TOKENIZER.decode([TOKENIZER.vocab_size + 7, *ids, 10**6]) == " the cat"
    assert TOKENIZER.decode([]) == ""


def test_copies_are_the_same_object_and_pickles_are_equal() -> None:
    assert copy.copy(TOKENIZER) is TOKENIZER
    assert copy.deepcopy({"tokenizer": TOKENIZER})["tokenizer"] is TOKENIZER
    again = pickle.loads(pickle.dumps(TOKENIZER))
    assert again.encode("that cat<|en|>") == TOKENIZER.encode("that cat<|en|>")
    assert (again.vocab_size, again.special_ids) == (TOKENIZER.vocab_size, TOKENIZER.special_ids)


def test_unknown_tokens_name_similar_ones() -> None:
    with pytest.raises(
        ModelError, match=r"no token '<\|notimestamp\|>' among its \d+\. Similar: <\|notimestamps\|>"
    ):
        TOKENIZER.token_id("<|notimestamp|>")
    with pytest.raises(ModelError, match=r"Special ones: .*and 6 more"):
        TOKENIZER.token_id("0123456789")


def test_it_says_what_it_is() -> None:
    assert repr(TOKENIZER) == "Tokenizer(290 tokens, 10 special)"
    assert json.loads(TOKENIZER.to_json()) == TABLE


def test_folders_without_a_usable_table(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged or of an unknown kind"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(TABLE))
    assert Tokenizer.from_folder(tmp_path).encode("the") == TOKENIZER.encode("the")


# --- lost merges


def without(*lost: int) -> dict[str, Any]:
    table: dict[str, Any] = copy.deepcopy(TABLE)
    table["model"]["merges"] = [
        merge for index, merge in enumerate(TABLE["model"]["merges"]) if index not in lost
    ]
    return table


@pytest.mark.parametrize("lost", [(), (0,), (5,), (0, 1, 2), (23,), tuple(range(24))])
def test_any_lost_merges_come_back_in_their_places(lost: tuple[int, ...]) -> None:
    table = without(*lost)
    mended = mend_merges(table)
    assert [list(pair) for pair in mended] == [list(TABLE["model"]["merges"][index]) for index in lost]
    assert table == TABLE


def test_a_lost_merge_changes_ids_until_it_is_mended() -> None:
    table = without(0)
    assert from_table(table).encode("the cat slept on stone stairs") != TOKENIZER.encode(
        "the cat slept on stone stairs"
    )
    mend_merges(table)
    assert from_table(table).encode("the cat slept on stone stairs") == TOKENIZER.encode(
        "the cat slept on stone stairs"
    )


def test_both_spellings_of_merges_are_kept() -> None:
    table = without(1)
    table["model"]["merges"] = [" ".join(merge) for merge in table["model"]["merges"]]
    assert mend_merges(table) == [tuple(TABLE["model"]["merges"][1])]
    assert table["model"]["merges"] == [" ".join(merge) for merge in TABLE["model"]["merges"]]


def test_an_entry_of_three_pieces_stays_as_it_is() -> None:
    table = copy.deepcopy(TABLE)
    table["model"]["vocab"]["xyz"] = 280
    assert mend_merges(table) == []
    assert table["model"]["merges"] == TABLE["model"]["merges"]


@pytest.mark.parametrize("model", [{"type": "Unigram"}, {"type": "BPE", "byte_fallback": True}])
def test_tables_of_other_kinds_are_left_alone(model: dict[str, Any]) -> None:
    table = {"model": model | {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []}}
    assert mend_merges(copy.deepcopy(table)) == []


@given(st.text("thecas ", min_size=1, max_size=12))
def test_merges_apply_as_the_tokenizers_package_applies_them(word: str) -> None:
    word = "Ġ" + word.replace(" ", "e")
    merges = [(left, right) for left, right in TABLE["model"]["merges"]]
    ids = TOKENIZER.encode(word.replace("Ġ", " "))
    vocabulary = TABLE["model"]["vocab"]
    assert [vocabulary[piece] for piece in apply_merges(word, merges)] == ids


@pytest.mark.weights
@pytest.mark.parametrize(("name", "unreachable"), [("whisper-tiny.en", 0), ("whisper-base", 6)])
def test_whisper_entries_return_to_themselves(
    checkpoint: Callable[[str], Path], name: str, unreachable: int
) -> None:
    """All but '' and five upper-case contractions, which the splitting rule never leaves whole."""
    tokenizer = Tokenizer.from_folder(checkpoint(name))
    assert len(tokenizer.encode(" the")) == 1
    texts = {number: tokenizer.decode([number]) for number in range(tokenizer.vocab_size)}
    whole = {number: text for number, text in texts.items() if "\ufffd" not in text}
    lost = [
        text
        for number, text in whole.items()
        if number not in tokenizer.special_ids and tokenizer.encode(text) != [number]
    ]
    assert len(lost) == unreachable
    assert set(lost) <= {"", "'S", "'T", "'M", "'RE", "'D"}
    assert tokenizer.decode([tokenizer.vocab_size, 51863]) == ""  # timestamps


# --- what a file keeps from training, and what it adds


def with_start(table: dict[str, Any], end: bool = False) -> dict[str, Any]:
    start, stop = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("s", "e"))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    ids = {name: TOKENIZER.token_id(f"<|{token}|>") for name, token in (("s", "en"), ("e", "endoftext"))}
    post = {
        "type": "TemplateProcessing",
        "single": [start, first, *([stop] if end else [])],
        "pair": [start, first, second],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ids},
    }
    return {**table, "post_processor": post}


def test_truncation_padding_and_dropout_are_switched_off(tmp_path: Path) -> None:
    raw = tokenizers.Tokenizer.from_str(json.dumps(TABLE))
    raw.enable_truncation(2)
    raw.enable_padding(length=40)
    table = json.loads(raw.to_str())
    table["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    tokenizer = Tokenizer.from_folder(tmp_path)
    for text in ("that cat slept on the stone stairs", "a"):
        assert tokenizer.encode(text) == TOKENIZER.encode(text) == tokenizer.encode(text, special=True)
    written = json.loads(tokenizer.to_json())
    assert (written["truncation"], written["padding"], written["model"]["dropout"]) == (None, None, None)


def test_the_start_token_is_added_where_asked_for() -> None:
    tokenizer = from_table(with_start(TABLE))
    start = TOKENIZER.token_id("<|en|>")
    plain = TOKENIZER.encode("the cat")
    assert tokenizer.encode("the cat") == plain
    assert tokenizer.encode("the cat", special=True) == [start, *plain]
    assert tokenizer.encode("", special=True) == [start]
    assert (tokenizer.start, tokenizer.end) == ((start,), ())
    assert (TOKENIZER.start, TOKENIZER.end) == ((), ())
    both = from_table(with_start(TABLE, end=True))
    assert (both.start, both.end) == ((start,), (TOKENIZER.token_id("<|endoftext|>"),))
    assert both.encode("the cat", special=True) == [start, *plain, *both.end]
    assert pickle.loads(pickle.dumps(tokenizer)).start == (start,)


def test_a_table_without_its_own_unknown_token() -> None:
    table = copy.deepcopy(TABLE)
    table["model"]["unk_token"] = "<nothing>"
    table["model"]["vocab"] = {"b": 0}
    table["model"]["merges"] = []
    with pytest.raises(ModelError, match="cannot read the text 'the': Unk token `<nothing>` not found"):
        from_table(table).encode("the")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (3, "is the int 3, not a str"),
        (None, "is None, not a str"),
        (b"the cat", r"is the bytes b'the cat', not a str\. Decode it first"),
        (["the", "cat"], r"is a list of 2 str, not a str\. Encode texts one by one"),
        ("ab\ud800c", r"half a character, '\\ud800', at position 2\. Read the file as UTF-8"),
    ],
)
def test_what_is_no_text(text: Any, words: str) -> None:
    for special in (False, True):
        with pytest.raises(ModelError, match=words):
            TOKENIZER.encode(text, special=special)
