"""The bytes that each token of a tokenizer stands for, read from its `tokenizer.json`.

Token strings cannot be compared: a newline is U+010A in one tokenizer and `<0x0A>` in another, a space
U+0120 or U+2581, and the letter U+00C3 of one is the byte C3 of another. Bytes can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from qlib.errors import DraftError, list_names

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SILENT = {"Fuse", "Strip"}  # decoder steps that look at a whole text, not at a token


def token_bytes(table: Mapping[str, Any]) -> list[bytes | None]:
    """Return the bytes that each token stands for in the middle of a text.

    Parameters
    ----------
    table : Mapping
        `tokenizer.json`, parsed. Byte-level (GPT-2's alphabet) or of the SentencePiece kind, with or without
        byte fallback.

    Returns
    -------
    list of (bytes or None)
        By token id. None for special and unknown tokens and for ids without a token. Incomplete characters
        stay as they are: a token may hold half of one.

    Raises
    ------
    DraftError
        The tokenizer writes text in a way that gives a token no bytes of its own (WordPiece, for example).
    """
    model = table["model"]
    decoder = table["decoder"] or {"type": "None"}
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    _check_readable(model, steps)
    vocabulary = model["vocab"]
    if not isinstance(vocabulary, dict):  # Unigram: pieces with their scores
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    tokens = {number: piece for piece, number in vocabulary.items()}
    tokens |= {token["id"]: token["content"] for token in table["added_tokens"]}
    silent = {token["id"] for token in table["added_tokens"] if token["special"]}
    silent |= {vocabulary.get(model.get("unk_token")), model.get("unk_id")}
    spelled: list[bytes | None] = [None] * (max(tokens, default=-1) + 1)
    for number, piece in tokens.items():
        if number not in silent and piece:
            spelled[number] = _piece_bytes(piece, steps)
    return spelled


def _check_readable(model: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> None:
    kinds = [step["type"] for step in steps]
    known = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", *_SILENT}
    marks = [model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")]
    plain = all("String" in step["pattern"] for step in steps if step["type"] == "Replace")
    if (
        not {*kinds} <= known
        or not {*kinds} & {"ByteLevel", "Metaspace", "Replace"}
        or any(marks)
        or not plain
    ):
        raise DraftError(
            f"The bytes of this tokenizer's tokens are unknown: {model['type']} with decoder "
            f"{list_names(kinds, 9)}. Byte-level tokenizers and those of the SentencePiece kind can be used; "
            "choose a checkpoint with one of these."
        )


def _piece_bytes(piece: str, steps: Sequence[Mapping[str, Any]]) -> bytes:
    for step in steps:
        if step["type"] == "ByteLevel":
            alphabet = _byte_of_letter()
            # An added word is spelled out, perhaps with letters that stand for no byte.
            return bytes(alphabet[x] for x in piece) if all(x in alphabet for x in piece) else piece.encode()
        if step["type"] == "Metaspace":
            piece = piece.replace(step["replacement"], " ")
        elif step["type"] == "Replace":
            piece = piece.replace(step["pattern"]["String"], step["content"])
        elif step["type"] == "ByteFallback" and (match := _BYTE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
    return piece.encode()


@cache
def _byte_of_letter() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes are themselves, the others U+0100, U+0101, ... in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
