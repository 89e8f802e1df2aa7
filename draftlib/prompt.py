"""From what a user hands in to the tokens that the two models continue.

    str        a user's words: put into the chat template; with raw=True text to be continued
    messages   a conversation, for the chat template
    tokens     of the target, continued as they stand

Raw text gets what the tokenizer puts in front of it by itself, as `tokenizer(text)` of transformers does; a
rendered chat has its start token already. In both, a special token that is spelled out becomes that token, as
in transformers: text from strangers can end a turn that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

from qlib.errors import DraftError, as_whole, describe
from qlib.models.messages import Message, read_messages

Prompt = str | Sequence[int] | Sequence[Message]
Read = str | list[int] | list[dict[str, str]]  # a prompt that was checked
_KINDS = 'Pass a str, tokens of the target, or messages: [{"role": "user", "content": "..."}].'


def read_prompt(prompt: Any, name: str = "The prompt") -> Read:
    """Check a prompt and return it as text, messages or token ids; an array may have one row.

    Raises
    ------
    DraftError
        It is empty, or of another kind.
    """
    if hasattr(prompt, "tolist") and hasattr(prompt, "shape"):  # of NumPy or torch
        prompt = _from_array(prompt, name)
    if isinstance(prompt, Iterator):
        prompt = list(prompt)
    _check_kind(prompt, name)
    if not len(prompt):
        raise DraftError(f"{name} is empty: there is nothing to continue. Pass at least one character.")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt[0], Mapping):
        return read_messages(prompt, DraftError)
    if isinstance(prompt[0], str | list | tuple):
        raise DraftError(
            f"{name} is {describe(prompt)}, which looks like several prompts. Answer them one after "
            "another with generate_many(prompts), or pass one of them."
        )
    return [_token(each, i, name) for i, each in enumerate(prompt)]


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
    parts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if not isinstance(parts, Sequence):
        return parts
    if parts and all(isinstance(each, (Integral, Mapping)) for each in parts):
        raise DraftError(
            f"generate_many answers several prompts, and got {describe(prompts)}, which is one. Use "
            "generate, or put it into a list."
        )
    return [read_prompt(prompt, f"Prompt {place}") for place, prompt in enumerate(parts)]


def _from_array(prompt: Any, name: str) -> Any:
    """Return the values of an array or tensor, which may have a first dimension of one row."""
    values = prompt.tolist()
    if isinstance(values, list) and len(prompt.shape) == 2 and len(values) == 1:
        values = values[0]
    if not isinstance(values, list) or any(isinstance(each, list | float | str) for each in values):
        many = " Use generate_many for several prompts." if len(prompt.shape) == 2 else ""
        raise DraftError(f"{name} is {describe(prompt)}. Token ids are one row of whole numbers.{many}")
    return values


def _token(value: Any, at: int, name: str) -> int:
    token = as_whole(value)
    if token is None:
        raise DraftError(f"{name}: element {at} is {describe(value)}, not a token id. {_KINDS}")
    return token


def _check_kind(prompt: Any, name: str) -> None:
    if isinstance(prompt, Mapping):
        remedy = _KINDS
        if "role" in prompt:
            remedy = "It is a single message; pass a list of messages: [message]."
        elif "input_ids" in prompt:
            remedy = 'Pass its tokens alone: prompt["input_ids"].'
        raise DraftError(f"{name} is {describe(prompt)}. {remedy}")
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sequence):
        remedy = "Decode it first: prompt.decode()." if isinstance(prompt, bytes) else _KINDS
        raise DraftError(f"{name} is {describe(prompt)}. {remedy}")
