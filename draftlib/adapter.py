"""What a decoder asks of whoever changes its drafter: `draftlib.learning.online.OnlineAdapter` is one.

Decoding works without learning, and does not import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from draftlib.round import Round
from draftlib.state import State
from qlib.errors import DraftError, describe

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


def check_adapter(adapter: Any) -> None:
    """Refuse what is neither an adapter nor None."""
    asked = ("bind", "observe", "state", "restore")
    if adapter is not None and (
        isinstance(adapter, type) or not all(callable(getattr(adapter, name, None)) for name in asked)
    ):
        raise DraftError(
            f"adapter is {describe(adapter)}. Pass an object with {', '.join(asked)}: OnlineAdapter()."
        )
