"""Bytes to a tokenizer's own tokens, in the middle of a text, and never other bytes than were asked for.

A tokenizer reads text from its beginning: many put a space in front, some normalise, all take `</s>` in a
text for a special token, and none takes half a character. Here a piece of any text is spelled as it stands.
The tokenizer's own merges decide wherever they give the right bytes, the longest fitting tokens elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tokenizers

from qlib.models import Tokenizer


class Speller:
    """Spells bytes with the tokens of one tokenizer.

    Parameters
    ----------
    pieces : sequence of (bytes or None)
        Bytes of each token; None for tokens that stand for no text.
    tokenizer : Tokenizer, optional
        Whose merges to follow; without it the longest token that fits is taken, from left to right.
    """

    def __init__(self, pieces: Sequence[bytes | None], tokenizer: Tokenizer | None = None):
        self._pieces = pieces
        # Of two tokens with the same bytes the later one is what a tokenizer writes: single bytes of the
        # fallback kind stand in front of the letters, added words after everything.
        self._ids = {piece: number for number, piece in enumerate(pieces) if piece}
        self._longest = max((len(piece) for piece in self._ids), default=0)
        self._backend = None if tokenizer is None else _reader_of_continuations(tokenizer)

    def spell(self, data: bytes) -> tuple[list[int], list[int]]:
        """Return tokens whose bytes are `data`, and where each of them ends.

        Parameters
        ----------
        data : bytes
            Any bytes; incomplete characters are spelled by bytes.

        Returns
        -------
        tokens, stops : list of int
            Token `i` stands for the bytes up to `stops[i]`. A byte that no token has is left out of
            `tokens`, and the tokens after it start one byte later.
        """
        tokens: list[int] = []
        stops: list[int] = []
        at = 0
        while at < len(data):
            text_end, end = _first_text(data, at) if self._backend else (at, len(data))
            for token in self._by_merges(data[at:text_end]):
                at += len(self._pieces[token] or b"")
                tokens.append(token)
                stops.append(at)
            self._spell_longest(data, at, end, tokens, stops)
            at = end
        return tokens, stops

    def missing(self, needed: bytes) -> bytes:
        """Return those of the needed bytes that no single-byte token has."""
        return bytes(byte for byte in sorted(set(needed)) if bytes([byte]) not in self._ids)

    def _by_merges(self, text: bytes) -> list[int]:
        """Return the tokenizer's own tokens of whole characters, or none if they say something else."""
        if self._backend is None or not text:
            return []
        found = self._backend.encode(text.decode(), add_special_tokens=False).ids
        pieces = [self._pieces[token] or b"" for token in found]
        return found if all(pieces) and b"".join(pieces) == text else []

    def _spell_longest(self, data: bytes, at: int, end: int, tokens: list[int], stops: list[int]) -> None:
        while at < end:
            for length in range(min(self._longest, end - at), 0, -1):
                number = self._ids.get(data[at : at + length])
                if number is not None:
                    at += length
                    tokens.append(number)
                    stops.append(at)
                    break
            else:
                at += 1


def _first_text(data: bytes, at: int) -> tuple[int, int]:
    """Return where the whole characters from `at` on end, and where the broken bytes after do."""
    try:
        data[at:].decode()
    except UnicodeDecodeError as error:
        return at + error.start, at + error.end
    return len(data), len(data)


def _reader_of_continuations(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Return a copy that puts nothing in front of a text and takes no text for a special token."""
    table = json.loads(tokenizer.to_json())
    table.update(
        truncation=None,
        padding=None,
        post_processor=None,
        normalizer=_without_space_in_front(table["normalizer"], "normalizers"),
        pre_tokenizer=_without_space_in_front(table["pre_tokenizer"], "pretokenizers"),
    )
    backend = tokenizers.Tokenizer.from_str(json.dumps(table))
    backend.encode_special_tokens = True
    return backend


def _without_space_in_front(part: dict[str, Any] | None, parts: str) -> dict[str, Any] | None:
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        kept = [_without_space_in_front(each, parts) for each in part[parts]]
        return {**part, parts: [each for each in kept if each is not None]}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if part["type"] == "ByteLevel" else part
