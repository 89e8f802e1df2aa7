"""Role markers of chat checkpoints: what stands around a prompt so that the model answers it.

    <|im_start|>system
    You are a helpful assistant<|im_end|>
    <|im_start|>user
    What is gravity?<|im_end|>
    <|im_start|>assistant

Left out: other markers than these (ChatML), conversations of several turns, tools.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qlib.models.tokenizer import Tokenizer

_START, _END = "<|im_start|>", "<|im_end|>"
# A template spells the system text out between the markers; the newline may be escaped.
_SYSTEM = re.compile(r"<\|im_start\|>system(?:\n|\\n)([^<{}'\"]+)<\|im_end\|>")


@dataclass(frozen=True)
class ChatMarkers:
    """The markers of one checkpoint, and the system text that it was trained to see first."""

    system: str | None = None

    @classmethod
    def find(cls, tokenizer: Tokenizer | None, template: str | None = None) -> ChatMarkers | None:
        """Return the markers if the tokenizer has them as special tokens, else None.

        `template` is the checkpoint's own chat template, which may hold the usual system text.
        """
        if tokenizer is None or not tokenizer.has_special(_START, _END):
            return None
        match = _SYSTEM.search(template or "")
        return cls(match.group(1) if match else None)

    def prompt(self, user: str, system: str | None = None) -> str:
        """Return the text that a model continues with its answer to `user`.

        >>> print(ChatMarkers().prompt("What is gravity?"))
        <|im_start|>user
        What is gravity?<|im_end|>
        <|im_start|>assistant
        <BLANKLINE>
        """
        system = self.system if system is None else system
        turns = [("user", user)] if system is None else [("system", system), ("user", user)]
        text = "".join(f"{_START}{role}\n{content}{_END}\n" for role, content in turns)
        return f"{text}{_START}assistant\n"
