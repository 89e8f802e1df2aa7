"""Moonshine's `tokenizer.bin`, and `tokenizer.json` made of it: BPE over characters, unknown ones by bytes.

Layout: one record for each id, in order: u8 length, then that many bytes. No header, no end mark.

    0, 1, 2    <unk>, <s>, </s>
    3 ... 258  the bytes 0x00 ... 0xff, which spell what no piece does
    259 ...    pieces in UTF-8, U+2581 for a space, the earlier the more frequent; <<ST_n>> are special

The file has no merges; they follow from the order of the pieces, as in tokenizers of the SentencePiece kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlib.errors import ModelError

FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + 256
SPACE = "\u2581"
_SPECIAL = re.compile(r"<<ST_\d+>>")


def read(path: str | Path) -> list[bytes]:
    """Return the records of a `tokenizer.bin`, in id order.

    Raises
    ------
    ModelError
        The file is missing, or ends inside a record.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error}.") from error
    records: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        if end > len(data):
            raise ModelError(
                f"{path} is damaged: record {len(records)} at byte {at} needs {data[at]} bytes, "
                f"{len(data) - at - 1} are left. Fetch or copy it again."
            )
        records.append(data[at + 1 : end])
        at = end
    return records


def tokenizer_json(records: Sequence[bytes]) -> dict[str, Any]:
    """Return the content of `tokenizer.json` for the records of a `tokenizer.bin`.

    Raises
    ------
    ModelError
        The first 259 records are not the three markers and the bytes, or a piece is not UTF-8 or appears
        twice.
    """
    expected = [b"<unk>", b"<s>", b"</s>", *(bytes([number]) for number in range(256))]
    if list(records[:FIRST_PIECE]) != expected:
        pairs = enumerate(zip(records, expected, strict=False))
        first_wrong = next((i for i, (found, right) in pairs if found != right), len(records))
        raise ModelError(
            f"This is not Moonshine's token table: record {first_wrong} of {len(records)} differs "
            "from <unk>, <s>, </s> and the bytes 0 to 255, with which it must begin."
        )
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    for number, record in enumerate(records[FIRST_PIECE:], FIRST_PIECE):
        try:
            tokens.append(record.decode())
        except UnicodeDecodeError as error:
            raise ModelError(
                f"Token {number} is not UTF-8: {record[:16]!r}. The table is damaged."
            ) from error
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for number, token in enumerate(tokens) if vocabulary[token] != number)
        raise ModelError(f"Token {twice!r} appears twice in the table. It is damaged: copy it again.")
    special = [number for number, token in enumerate(tokens) if number < 3 or _SPECIAL.fullmatch(token)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, tokens[number]) for number in special],
        "normalizer": {  # spaces become SPACE, and one is put in front
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {  # the way back: spaces, byte tokens, all joined, the first space removed
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges(vocabulary, set(special)),
        },
    }


def merges(vocabulary: dict[str, int], special: set[int]) -> list[list[str]]:
    """Return the merges of a table whose earlier pieces are the more frequent.

    Every way to put a piece together from two others is a merge; those of earlier pieces come first, and of
    one piece's, those of earlier left halves.

    >>> merges({"a": 300, "b": 301, "ab": 302, "aba": 303}, set())
    [['a', 'b'], ['ab', 'a']]
    """
    found = []
    for piece, number in vocabulary.items():
        if number < FIRST_PIECE or number in special:
            continue
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        ways = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        found += sorted(ways, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return [list(pair) for pair in found]


def _added(number: int, token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": True}
