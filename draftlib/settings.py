"""What a caller may ask of one answer, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from draftlib.arguments import known_options
from draftlib.verification.sampling import warp
from qlib.errors import DraftError, real_number, true_or_false, whole_number


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


DEFAULTS: Options = {
    "max_new_tokens": 128,
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    "seed": 0,
    "stop": (),
    "raw": False,
}


@dataclass(frozen=True)
class Settings:
    """Options, complete and checked, and what follows from them.

    Attributes
    ----------
    options : Options
        All of them.
    stop_strings, stop_tokens : tuple
        The two kinds of `stop`.
    """

    options: Options
    stop_strings: tuple[str, ...]
    stop_tokens: tuple[int, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str, others: Sequence[str] = ()) -> Settings:
        """Return the settings that keyword arguments ask for.

        Parameters
        ----------
        given : Mapping
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
        known_options(given, [*DEFAULTS, *others], where)
        options = _checked({**DEFAULTS, **given})
        stops = options["stop"]
        assert isinstance(stops, tuple)
        strings = tuple(each for each in stops if isinstance(each, str))
        settings = cls(options, strings, tuple(each for each in stops if isinstance(each, int)))
        settings.logprobs(torch.zeros(1))  # refuses what cannot be sampled from
        return settings

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.options["temperature"] == 0

    def logprobs(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities [..., V] to draw from: logits after temperature, top-k and top-p."""
        options = self.options
        return warp(logits, options["temperature"], options["top_k"], options["top_p"])


def _checked(options: dict[str, Any]) -> Options:
    """Return options of the right types, `stop` as a tuple."""
    count, temperature, seed = options["max_new_tokens"], options["temperature"], options["seed"]
    top_k, top_p = options["top_k"], options["top_p"]
    remedy = "An answer has at least 1 token."
    count = whole_number(count, "max_new_tokens", DraftError, 1, remedy=remedy)
    remedy = "0 is greedy; above 0 tokens are drawn."
    temperature = float(real_number(temperature, "temperature", DraftError, remedy))
    seed = whole_number(seed, "seed", DraftError, 0, remedy="Any such number will do.")
    stop = _stops(options["stop"])
    if top_k is not None:
        remedy = "At least 1 token must be kept. None keeps all."
        top_k = whole_number(top_k, "top_k", DraftError, 1, remedy=remedy)
    if top_p is not None:
        top_p = float(real_number(top_p, "top_p", DraftError, "It is a probability. None keeps all tokens."))
    raw = true_or_false(options["raw"], "raw", DraftError, "Pass True (no chat template) or False.")
    return Options(
        max_new_tokens=count, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop, raw=raw
    )


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
