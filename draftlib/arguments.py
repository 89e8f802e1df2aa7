"""What callers hand in, checked before any work: first its type, then its value.

What can mean one thing only is accepted (a tensor of token ids, a NumPy number); all else is an error that
names the argument, what it is, and what belongs there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from draftlib.ngram_cache import NGramCache
from qlib.errors import DraftError, describe, did_you_mean
from qlib.models.text import TextModel

Prompt = str | Sequence[int]
OnText = Callable[[str], None]


def real_number(value: Any, name: str, remedy: str) -> float:
    """Return a number as a float; those of NumPy and tensors of one number are accepted, bool is not.

    >>> real_number(np.float32(0.5), "temperature", "")
    0.5
    """
    single = isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0
    number = value.item() if single else value
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, Real):
        raise DraftError(f"{name} is {describe(value)}, not a number. {remedy}")
    return float(number)


def text_model(model: Any, side: str) -> TextModel:
    """Return a text model with its tokenizer.

    Raises
    ------
    DraftError
        It is something else; the message says what to pass.
    """
    if isinstance(model, TextModel) and model.tokenizer is not None:
        return model
    kind = type(model).__name__
    load = "Load it with qlib.models.load_model from a folder that holds tokenizer.json."
    if isinstance(model, TextModel):
        raise DraftError(f"The {side} model ({kind}) has no tokenizer. {load}")
    if isinstance(model, (str, Path)):
        raise DraftError(
            f"The {side} model is {describe(model)}. Pass the model itself: "
            f"qlib.models.load_model({str(model)!r})."
        )
    if isinstance(getattr(model, "model", None), TextModel):  # what `qlib.quantize` returns
        raise DraftError(f"The {side} model is a {kind}. Pass the model in it: its attribute `model`.")
    raise DraftError(f"The {side} model ({kind}) is no text model with a tokenizer. {load}")


def ngram_cache(cache: Any) -> NGramCache | None:
    """Return a cache, or None for none.

    Raises
    ------
    DraftError
        It is something else; the message says what to pass.
    """
    if cache is None or isinstance(cache, NGramCache):
        return cache
    if isinstance(cache, (str, Path)):
        raise DraftError(
            f"cache is {describe(cache)}. Load what was saved: "
            f"decoder.cache = NGramCache.load({str(cache)!r}, decoder.vocabulary)."
        )
    raise DraftError(
        f"cache is {describe(cache)}, not an n-gram cache. Pass NGramCache(), or None to do without."
    )


def text_sink(on_text: Any) -> OnText | None:
    """Return a function that gets text, or None for none.

    Raises
    ------
    DraftError
        It cannot be called.
    """
    if on_text is None or callable(on_text):
        return on_text  # type: ignore[no-any-return]
    raise DraftError(
        f"on_text is {describe(on_text)}, not a function of one text. Pass one, for example "
        "on_text=lambda text: print(text, end='')."
    )


# --- prompts


def one_prompt(prompt: Any, name: str = "The prompt") -> Any:
    """Return a string as it is, token ids as a list of int, and chat messages as a list of them.

    Raises
    ------
    DraftError
        It is none of these, or it is several prompts.
    """
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, (np.ndarray, Tensor)):
        return _ids_of_array(prompt, name)
    if isinstance(prompt, bytes):
        raise DraftError(f"{name} is {describe(prompt)}. Decode it first: prompt.decode().")
    if isinstance(prompt, (Mapping, Set)) or not isinstance(prompt, Iterable):
        raise DraftError(
            f"{name} is {describe(prompt)}. Pass a string, a list of token ids, or a list of chat messages."
        )
    parts = list(prompt)
    if parts and all(isinstance(part, Mapping) for part in parts):
        return parts
    return [_token_id(part, place, parts, name) for place, part in enumerate(parts)]


def _token_id(part: Any, place: int, parts: list[Any], name: str) -> int:
    """Return one token id of a prompt."""
    if isinstance(part, (str, list, tuple)):
        raise DraftError(
            f"{name} is {describe(parts)}, which looks like several prompts. Use generate_many for them."
        )
    try:
        if isinstance(part, (bool, np.bool_)):
            raise TypeError
        return operator.index(part)
    except TypeError:
        raise DraftError(
            f"{name} is {describe(parts)}, and number {place} in it is {describe(part)}, not a token id. "
            "Token ids are whole numbers."
        ) from None


def _ids_of_array(prompt: Any, name: str) -> list[int]:
    """Return the token ids of a tensor or array, [T] or [1, T]."""
    row = prompt[0] if prompt.ndim == 2 and len(prompt) == 1 else prompt
    if row.ndim != 1:
        many = " Use generate_many for several prompts." if prompt.ndim == 2 else ""
        raise DraftError(f"{name} is {describe(prompt)}: token ids have one dimension.{many}")
    ids = row.tolist()
    if not all(type(token) is int for token in ids):
        raise DraftError(f"{name} is {describe(prompt)}: token ids are whole numbers.")
    return ids  # type: ignore[no-any-return]


def several_prompts(prompts: Any) -> Iterable[Any]:
    """Return an iterable of prompts; one prompt alone is refused.

    Raises
    ------
    DraftError
        It is no iterable of prompts. A list is looked through, an iterator as it is used up.
    """
    if isinstance(prompts, (str, bytes)):
        raise DraftError(
            f"generate_many answers several prompts, and got one, {describe(prompts)}. Use generate, or put "
            "it into a list."
        )
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise DraftError(
            f"generate_many answers several prompts, and got {describe(prompts)}. Pass a list of strings or "
            "of lists of token ids."
        )
    parts = prompts.tolist() if isinstance(prompts, (np.ndarray, Tensor)) else prompts
    if not isinstance(parts, Sequence):
        return parts
    if parts and all(isinstance(each, (int, np.integer, Mapping)) for each in parts):
        raise DraftError(
            f"generate_many answers several prompts, and got {describe(prompts)}, which is one. Use "
            "generate, or put it into a list."
        )
    return [one_prompt(prompt, f"Prompt {place}") for place, prompt in enumerate(parts)]


# --- names


_ELSEWHERE = {  # what other libraries call it
    "stream": "on_text",
    "streamer": "on_text",
    "callback": "on_text",
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "do_sample": "temperature",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "eos_token_id": "stop",
}


def known_options(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse the first option that is not known, and name the nearest one.

    Raises
    ------
    DraftError
        An option is unknown.
    """
    for name in given:
        if name in known:
            continue
        same = _ELSEWHERE.get(name, "")
        hint = f" Did you mean {same!r}?" if same in known else did_you_mean(name, known)
        raise DraftError(f"{where} has no option {name!r}.{hint} It has {', '.join(known)}.")
