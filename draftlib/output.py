"""What a decoder returns: the text, its tokens, why it ended, and how drafting went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from draftlib.metrics import Stats
from draftlib.writer import Finish

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Output:
    """One answer.

    Attributes
    ----------
    text : str
        Without special tokens and stop strings.
    tokens : tuple of int
        Target tokens, the ending one included.
    stats : Stats
        Rounds, acceptance, times.
    finish : str
        "stop token", "stop string", or "length" where the tokens or the target's positions ran out.
    """

    text: str
    tokens: tuple[int, ...]
    stats: Stats
    finish: Finish

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        calls = f"{self.stats.tokens_per_target_call:.2f} a target call"
        return f"<Output: {len(self.tokens)} tokens, {calls}, ended by {self.finish}: {text!r}>"
