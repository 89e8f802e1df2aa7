"""Moonshine's token table: records, merges, round trips of text, and damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from qlib.errors import ModelError
from qlib.models.hub.formats.tokenizer_bin import merges, read, tokenizer_json
from qlib.models.tiny import tiny_byte_tokenizer
from qlib.models.tokenizer import Tokenizer

HEAD = [b"<unk>", b"<s>", b"</s>", *(bytes([number]) for number in range(256))]


def packed(records: list[bytes]) -> bytes:
    return b"".join(bytes([len(record)]) + record for record in records)


def test_records_in_order_empty_ones_too(tmp_path: Path) -> None:
    records = [*HEAD, "\u2581the".encode(), b"", b"x" * 255]
    (tmp_path / "t.bin").write_bytes(packed(records))
    assert read(tmp_path / "t.bin") == records
    table = tokenizer_json(records)
    assert table["model"]["vocab"]["\u2581the"] == 259 and table["model"]["vocab"][""] == 260


def test_a_cut_record_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(packed([b"ab", b"cdef"])[:-1])
    with pytest.raises(ModelError, match=r"t\.bin is damaged: record 1 at byte 3 needs 4 bytes, 3 are left"):
        read(tmp_path / "t.bin")
    with pytest.raises(ModelError, match=r"Cannot read .*no\.bin"):
        read(tmp_path / "no.bin")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([*HEAD[:10], b"?", *HEAD[11:]], "record 10 of 259 differs"),
        (HEAD[:100], "record 100 of 100 differs"),
        ([*HEAD, b"\xff\xfe"], "Token 259 is not UTF-8"),
        ([*HEAD, b"a", b"a"], "Token 'a' appears twice"),
    ],
)
def test_tables_that_are_not_moonshines(records: list[bytes], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tokenizer_json(records)


def test_merges_follow_the_order_of_the_pieces() -> None:
    vocabulary = {"a": 300, "b": 301, "aba": 302, "ab": 303, "ba": 304, "<<ST_1>>": 305, "abx": 306}
    assert merges(vocabulary, {305}) == [["a", "ba"], ["ab", "a"], ["a", "b"], ["b", "a"]]


def test_pieces_are_found_and_the_rest_goes_by_bytes() -> None:
    tokenizer = tiny_byte_tokenizer()
    spell = tokenizer._backend.id_to_token
    assert [spell(i) for i in tokenizer.encode("the heä")] == [
        "\u2581the",
        "\u2581",
        "he",
        "<0xC3>",
        "<0xA4>",
    ]
    assert tokenizer.special_ids == {0, 1, 2, tokenizer.token_id("<<ST_0>>")}
    assert tokenizer.decode([1, tokenizer.token_id("\u2581the"), 2]) == "the"


@given(st.text())
def test_text_survives(text: str) -> None:
    tokenizer = tiny_byte_tokenizer()
    if not any(special in text for special in ("<unk>", "<s>", "</s>", "<<ST_0>>")) and "\u2581" not in text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_table_is_one_that_the_backend_reads_again() -> None:
    table = tokenizer_json([*HEAD, b"a", b"b", b"ab"])
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(table)))
    assert json.loads(tokenizer.to_json())["model"]["merges"] == [["a", "b"]]
