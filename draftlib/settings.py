"""What a caller may ask of one answer, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from draftlib.sampling import warp
from qlib.errors import DraftError


class Options(TypedDict, total=False):
    """Keyword arguments of `generate`, `steps`, `generate_target_only` and `generate_many`.

    Attributes
    ----------
    max_new_tokens : int
        Most tokens of the answer, 128 if not given. It also ends where the target has no positions left.
    temperature : float
        0, the default, is greedy: always the target's most probable token. Above 0 it is drawn.
    top_k : int
        Draw from the k most probable tokens only.
    top_p : float
        Draw from the most probable tokens that together have this probability.
    seed : int
        Same seed, same text, 0 if not given.
    stop : str, int, or a sequence of both
        Texts and token ids that end the answer, besides the target's own ending. The text stops in front of
        them.
    raw : bool
        Continue the prompt as plain text, without the checkpoint's chat template around it.
    """

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    stop: str | int | Sequence[str | int]
    raw: bool


@dataclass(frozen=True)
class Settings:
    """`Options` with their defaults, checked.

    Raises
    ------
    DraftError
        A value is out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: str | int | Sequence[str | int] = ()
    raw: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise DraftError(f"max_new_tokens={self.max_new_tokens}: an answer has at least 1 token.")
        if "" in self.stops:
            raise DraftError("stop: an empty string stands everywhere. Leave it out.")
        self.law(torch.zeros(1))  # refuses what cannot be sampled from

    @property
    def stops(self) -> tuple[str | int, ...]:
        """Stop strings and stop tokens."""
        return (self.stop,) if isinstance(self.stop, (str, int)) else tuple(self.stop)

    @property
    def stop_strings(self) -> list[str]:
        """The strings among the stops."""
        return [each for each in self.stops if isinstance(each, str)]

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens among the stops."""
        return [each for each in self.stops if isinstance(each, int)]

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def law(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities [..., V] to draw from; greedy decoding needs only the logits."""
        logprobs = warp(logits, self.temperature, self.top_k, self.top_p)
        return logits if self.greedy else logprobs
