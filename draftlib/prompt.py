"""From what a user hands in to the tokens that the two models continue.

    str        a user's words: put into the chat template; with raw=True text to be continued
    messages   a conversation, for the chat template
    tokens     of the target, continued as they stand

Raw text gets what the tokenizer puts in front of it by itself, as `tokenizer(text)` of transformers does; a
rendered chat has its start token already. In both, a special token that is spelled out becomes that token, as
in transformers: text from strangers can end a turn that way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

from qlib.errors import DraftError, QlibError, as_whole, describe, list_names
from qlib.models.chat import Message, read_messages
from qlib.models.text import TextModel
from qlib.models.tokenizer import Tokenizer, need_tokenizer

log = logging.getLogger(__name__)

Prompt = str | Sequence[int] | Sequence[Message]
Read = str | list[int] | list[dict[str, str]]  # a prompt that was checked
_KINDS = 'Pass a str, tokens of the target, or messages: [{"role": "user", "content": "..."}].'


def read_prompt(prompt: Any, name: str = "The prompt") -> Read:
    """Return a prompt as text, messages or token ids, checked; arrays of one row become lists.

    Raises
    ------
    DraftError
        It is empty, or of another kind.
    """
    if hasattr(prompt, "tolist") and hasattr(prompt, "shape"):
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


def target_tokens(model: TextModel, prompt: Read, raw: bool) -> list[int]:
    """Return the tokens of a prompt from `read_prompt` that the target continues.

    Raises
    ------
    DraftError
        A conversation, and a model without a chat template, or ``raw=True``. Tokens that are not in the
        target's vocabulary, or more of them than it has positions.
    ModelError
        The chat template does not take the conversation.
    """
    tokens = _encode(model, prompt, raw)
    size, positions = model.config.vocab_size, model.config.max_position_embeddings
    if wrong := [str(token) for token in tokens if not 0 <= token < size]:
        raise DraftError(
            f"Prompt tokens {list_names(wrong)} are not in the target's vocabulary of {size}. Encode the "
            "prompt with the target's tokenizer, or pass it as a string."
        )
    if len(tokens) > positions:
        raise DraftError(
            f"The prompt has {len(tokens)} tokens and the target {positions} positions. Shorten it."
        )
    return tokens


def _encode(model: TextModel, prompt: Read, raw: bool) -> list[int]:
    tokenizer = need_tokenizer(model.tokenizer)
    chat = None if raw else model.chat
    messages = _messages(prompt)
    if messages is not None and chat is not None:
        return tokenizer.encode(chat.render(messages))
    if isinstance(prompt, str):
        if not raw:
            log.warning(
                "The target has no chat template: the prompt is continued as it stands. Pass raw=True to say "
                "that this is meant."
            )
        tokens = tokenizer.encode(prompt, special=True)
        _warn_of_specials(tokenizer, tokens)
        return tokens
    if messages is not None:
        raise DraftError(
            "The prompt is a conversation, and raw=True continues plain text. Leave raw out, or pass a str."
            if raw
            else "The prompt is a conversation, and the target has no chat template. Take a model that was "
            "trained for chats, or put chat_template.jinja into its folder; or pass plain text as a str."
        )
    return [token for token in prompt if isinstance(token, int)]


def draft_tokens(
    model: TextModel,
    target: TextModel,
    prompt: Read,
    tokens: Sequence[int],
    raw: bool,
) -> tuple[list[int], list[int]]:
    """Return the drafter's own beginning of the text, and the target tokens that it reads translated.

    Parameters
    ----------
    model, target : TextModel
        Drafter and target.
    prompt, tokens
        From `read_prompt` and `target_tokens`.
    raw : bool
        No chat template.
    """
    tokenizer = need_tokenizer(model.tokenizer)
    messages = None if raw or target.chat is None else _messages(prompt)
    if messages is not None and model.chat is not None:
        try:
            return tokenizer.encode(model.chat.render(messages)), []
        except QlibError as error:  # the answer does not depend on what the drafter reads
            log.info("The drafter reads the target's prompt: %s", error)
    start = need_tokenizer(target.tokenizer).start
    count = len(start) if start and tuple(tokens[: len(start)]) == start else 0
    return list(tokenizer.start), list(tokens[count:])


def _messages(prompt: Read) -> list[dict[str, str]] | None:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    found = [each for each in prompt if isinstance(each, dict)]
    return found or None


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


def _warn_of_specials(tokenizer: Tokenizer, tokens: Sequence[int]) -> None:
    """Log what is done as asked and is seldom meant."""
    start, end = tokenizer.start, tokenizer.end
    if start and tuple(tokens[len(start) : 2 * len(start)]) == start:
        log.warning(
            "The prompt begins with the start token, and the tokenizer puts one more in front. Take it out "
            "of the text."
        )
    if end:
        log.warning(
            "This tokenizer ends every text with %s: the answer begins behind an ending. Pass tokens to "
            "avoid it: target.tokenizer.encode(prompt).",
            tokenizer.decode(end, skip_special=False),
        )
