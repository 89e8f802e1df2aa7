"""What a decoder asks of whoever changes its drafter: `draftlib.learning.online.OnlineAdapter` is one.

Decoding works without learning, and does not import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from draftlib.round import Round
from draftlib.state import State

if TYPE_CHECKING:
    from draftlib.decoder import SpeculativeDecoder


class Adapter(Protocol):
    """Changes the drafter of a decoder between rounds."""

    def bind(self, decoder: SpeculativeDecoder) -> None:
        """Take the decoder's drafter over. Raises DraftError where it cannot be trained."""
        ...

    def observe(self, round: Round) -> None:
        """Take notice of a finished round; `SpeculativeDecoder.replace_draft` changes the drafter."""
        ...

    def state(self) -> State:
        """Return all that was learned."""
        ...

    def restore(self, state: State) -> None:
        """Take back what `state` gave. Raises DraftError where it belongs to another drafter."""
        ...
