"""What a caller may ask of one answer, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

import torch
from torch import Tensor

from draftlib.arguments import known_options
from draftlib.verification.sampling import warp
from qlib.errors import DraftError, real_number, settle, true_or_false, whole_number


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
        Same seed, same text; 0 or more, 0 if not given.
    stop : str, int, or a sequence of both, optional
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
    stop: str | int | Sequence[str | int] | None
    raw: bool


@dataclass(frozen=True)
class Settings:
    """`Options` with their defaults, checked.

    Raises
    ------
    DraftError
        A value is of the wrong type or out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: str | int | Sequence[str | int] | None = ()
    raw: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str, others: Sequence[str] = ()) -> Settings:
        """Return the settings that keyword arguments ask for.

        Parameters
        ----------
        options : Mapping
            Keyword arguments.
        where : str
            Name of the function that got them, for messages.
        others : sequence of str
            Names of its other options, for messages.

        Raises
        ------
        DraftError
            An option is unknown, of the wrong type or out of its range.
        """
        known_options(options, [*(each.name for each in fields(cls)), *others], where)
        return cls(**options)

    def __post_init__(self) -> None:
        checked = {
            "max_new_tokens": whole_number(
                self.max_new_tokens, "max_new_tokens", DraftError, 1, remedy="An answer has at least 1 token."
            ),
            "temperature": float(
                real_number(
                    self.temperature, "temperature", DraftError, "0 is greedy; above 0 tokens are drawn."
                )
            ),
            "seed": whole_number(self.seed, "seed", DraftError, 0, remedy="Any such number will do."),
            "stop": _stops(self.stop),
        }
        if self.top_k is not None:
            remedy = "At least 1 token must be kept. None keeps all."
            checked["top_k"] = whole_number(self.top_k, "top_k", DraftError, 1, remedy=remedy)
        if self.top_p is not None:
            remedy = "It is a probability. None keeps all tokens."
            checked["top_p"] = float(real_number(self.top_p, "top_p", DraftError, remedy))
        checked["raw"] = true_or_false(self.raw, "raw", DraftError, "Pass True (no chat template) or False.")
        settle(self, **checked)
        self.law(torch.zeros(1))  # refuses what cannot be sampled from

    @property
    def stops(self) -> tuple[str | int, ...]:
        """Stop strings and stop tokens."""
        return self.stop  # type: ignore[return-value]  # made one by the check

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


def _stops(stop: Any) -> tuple[str | int, ...]:
    """Return stop strings and stop tokens, checked."""
    if stop is None:
        return ()
    alone = isinstance(stop, (str, bytes, Mapping)) or not isinstance(stop, Iterable)
    if not alone and getattr(stop, "ndim", 1) == 0:
        alone = True  # a tensor or an array of one number can be iterated only by its type
    return tuple(_stop(each) for each in ([stop] if alone else stop))


def _stop(stop: Any) -> str | int:
    """Return one stop string or stop token, checked."""
    if isinstance(stop, str):
        if not stop:
            raise DraftError("stop: an empty string stands everywhere. Leave it out.")
        return str(stop)
    decode = " Decode bytes first: stop.decode()." if isinstance(stop, bytes) else ""
    return whole_number(
        stop, "stop", DraftError, 0, remedy=f"What stops an answer is a string or a token id.{decode}"
    )
