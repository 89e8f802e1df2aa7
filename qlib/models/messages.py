"""A conversation as a list of messages, checked: each has a role and a content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlib.errors import (
    ModelError,
    QlibError,
    describe,
    did_you_mean,
    list_names,
)

ROLES = ("system", "user", "assistant", "tool", "developer")


_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names of one thing; templates read the first


Message = Mapping[str, str | None]


def read_messages(messages: Any, error: type[QlibError] = ModelError) -> list[dict[str, str]]:
    """Return a conversation, checked and copied; entries that are None are left out.

    Parameters
    ----------
    messages : sequence of mapping
        Each with the keys "role" and "content", both texts.
    error : type of QlibError
        What to raise.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise error(
            f"A conversation is a list of messages, not {describe(messages)}. "
            'Pass [{"role": "user", "content": "..."}].'
        )
    if not messages:
        raise error('The conversation is empty. Pass at least one message: {"role": "user", "content": ...}.')
    count = len(messages)
    return [_message(each, f"Message {i} of {count}", error) for i, each in enumerate(messages, 1)]


def _message(message: Any, where: str, error: type[QlibError]) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise error(f'{where} is {describe(message)}. Pass {{"role": "user", "content": "..."}}.')
    for key in ("role", "content"):
        if key not in message:
            near = did_you_mean(key, [each for each in message if isinstance(each, str)])
            raise error(
                f"{where} has no {key!r}; its keys are {list_names(map(repr, message)) or 'none'}.{near} "
                f"Each message has a role ({list_names(ROLES, 9)}) and a content."
            )
    for key, value in message.items():
        if not isinstance(value, str) and (value is not None or key in ("role", "content")):
            raise error(
                f"{where}: {key!r} is {describe(value)}, not text. Pass a str; parts that are pictures or "
                "calls of tools are not supported."
            )
    if message["role"] not in ROLES:
        raise error(
            f"{where}: the role {message['role']!r} is unknown.{did_you_mean(message['role'], ROLES)} "
            f"Roles: {list_names(ROLES, 9)}."
        )
    # str() of a subclass's plain text: a template must not reach the methods of foreign objects.
    return {str(key): str.__str__(value) for key, value in message.items() if value is not None}


def with_thoughts(message: dict[str, str]) -> dict[str, str]:
    """Return a message whose reasoning, if it has one, stands under the names that templates read."""
    found = next((message[name] for name in _THOUGHTS if name in message), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}
