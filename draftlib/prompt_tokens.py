"""A checked prompt as tokens: the target's, by its chat template, and the drafter's own."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from draftlib.prompt import Read
from qlib.errors import DraftError, QlibError, list_names
from qlib.models.text import TextModel
from qlib.models.tokenizer import Tokenizer, need_tokenizer

log = logging.getLogger(__name__)


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
            "This tokenizer ends every text with %s: the answer begins after an ending. Pass tokens to "
            "avoid it: target.tokenizer.encode(prompt).",
            tokenizer.decode(end, skip_special=False),
        )
