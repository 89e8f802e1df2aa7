"""The text of an answer, token by token: whole characters only, and an end at a stop string or token.

A token may hold half a character, and a stop string may begin in one token and end in another. So text is
handed on as soon as no later token can change or remove it, and not before.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Literal

Finish = Literal["stop token", "stop string", "length"]


class Writer:
    """Takes tokens, gives text, and knows when it is enough.

    Parameters
    ----------
    pieces : sequence of (bytes or None)
        Bytes of each token; None, as for ids after the end, for tokens without text.
    stop_tokens : collection of int
        Tokens that end the answer; they belong to the tokens and not to the text.
    stop_strings : sequence of str
        Texts that end the answer, in front of them.
    limit : int
        Most tokens.
    on_text : callable, optional
        Gets the text, piece by piece, as it becomes certain.

    Attributes
    ----------
    tokens : list of int
        All tokens so far.
    text : str
        Their text; complete after `close`.
    finish : str or None
        Why the answer has ended: "stop token", "stop string" or "length".

    >>> writer = Writer([b"a", b"b", b"c"], (), ["bc"], 9)
    >>> [writer.add(token) for token in (0, 1, 2)], writer.close()
    ([None, None, 'stop string'], 'a')
    """

    def __init__(
        self,
        pieces: Sequence[bytes | None],
        stop_tokens: Collection[int],
        stop_strings: Sequence[str],
        limit: int,
        on_text: Callable[[str], None] | None = None,
    ):
        self.tokens: list[int] = []
        self.text = ""
        self.finish: Finish | None = None
        self._pieces, self._stop_tokens, self._stop_strings = pieces, frozenset(stop_tokens), stop_strings
        self._limit, self._on_text = limit, on_text
        self._longest = max((len(each) for each in stop_strings), default=0)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._sent = 0

    def add(self, token: int) -> Finish | None:
        """Take one token; return why the answer ends with it, or None."""
        self.tokens.append(token)
        if token in self._stop_tokens:
            self.finish = "stop token"
        else:
            self._write(self._characters.decode(piece_of(self._pieces, token)))
            if self.finish is None and len(self.tokens) == self._limit:
                self.finish = "length"
        return self.finish

    def close(self) -> str:
        """Hand on what was held back and return the text; half a character at its end becomes U+FFFD."""
        if self.finish != "stop string":
            self._write(self._characters.decode(b"", final=True))
        self._send(len(self.text))
        return self.text

    def _write(self, new: str) -> None:
        start = max(0, len(self.text) - self._longest + 1)
        self.text += new
        found = [at for each in self._stop_strings if (at := self.text.find(each, start)) >= 0]
        if found:
            self.text, self.finish = self.text[: min(found)], "stop string"
        self._send(len(self.text) - self._held())

    def _held(self) -> int:
        """Return the length of the longest end of the text that a stop string could begin with."""
        for length in range(min(self._longest, len(self.text)), 0, -1):
            if any(each.startswith(self.text[-length:]) for each in self._stop_strings):
                return length
        return 0

    def _send(self, end: int) -> None:
        if self._on_text is not None and end > self._sent:
            self._on_text(self.text[self._sent : end])
            self._sent = end


def piece_of(pieces: Sequence[bytes | None], token: int) -> bytes:
    """Return the bytes of a token; none for special tokens and ids beyond the table."""
    return (pieces[token] or b"") if 0 <= token < len(pieces) else b""
