"""One round as the user sees it: what was proposed, what was accepted, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from draftlib.seconds import Seconds
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.writer import piece_of


@dataclass(frozen=True)
class Step:
    """One round: what was drafted, what it was translated to, what the target made of it.

    Attributes
    ----------
    number : int
        From 1.
    position : int
        Index in the target's text, prompt included, of the first token of this round.
    drafted : tuple of int
        Draft tokens.
    proposed : tuple of int
        Target tokens; the first `accepted` of them become part of the text.
    spans : tuple of (int, int)
        The draft tokens, from and up to, that each proposed token stands for; (0, 0) where a source guessed.
    accepted : int
        How many proposed tokens are accepted.
    tokens : tuple of int
        Target tokens added to the answer: the accepted ones and, unless these end it, the target's own.
    learned : int
        How many n-grams were found for the cache.
    seconds : Seconds
        Time of this round; that of the prompt is in the first one.
    vocabulary : VocabularyMap
        Of the pair.
    source : str
        Who proposed: "draft", the name of a source, or "" for nobody.
    """

    number: int
    position: int
    drafted: tuple[int, ...]
    proposed: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    accepted: int
    tokens: tuple[int, ...]
    learned: int
    seconds: Seconds
    vocabulary: VocabularyMap = field(repr=False, compare=False)
    source: str = "draft"

    def merged(self, index: int) -> bool:
        """Return whether a proposed token stands for several draft tokens."""
        start, stop = self.spans[index]
        return stop - start > 1

    @property
    def hits(self) -> int:
        """Accepted tokens that stand for several draft tokens."""
        return sum(self.merged(i) for i in range(self.accepted))

    def __str__(self) -> str:
        """Return draft tokens -> their translation, `[merged]` => accepted tokens | the target's own."""
        draft, target = self.vocabulary.draft_bytes, self.vocabulary.target_bytes
        drafted = " ".join(_show(draft, token) for token in self.drafted)
        proposed = " ".join(
            f"[{_show(target, token)}]" if self.merged(i) else _show(target, token)
            for i, token in enumerate(self.proposed)
        )
        added = [_show(target, token) for token in self.tokens]
        kept, own = " ".join(added[: self.accepted]), " ".join(added[self.accepted :])
        drafted = f"({self.source})" if self.source not in ("draft", "") else drafted
        return f"round {self.number}: {drafted or '-'} -> {proposed or '-'} => {kept or '-'} | {own or '-'}"


def _show(pieces: tuple[bytes | None, ...], token: int) -> str:
    piece = piece_of(pieces, token)
    return repr(piece.decode(errors="replace")) if piece else f"<{token}>"
