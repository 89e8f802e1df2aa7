"""Role markers: found or not, with the checkpoint's own system text or another."""

from __future__ import annotations

import pytest

from qlib.models.chat import ChatMarkers
from qlib.models.tiny import CHAT_SPECIALS, tiny_tokenizer

SMOL = """{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are SmolLM<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] }}"""
QWEN = r"""{{- '<|im_start|>system\n' }}{{- messages[0].content }}{{- '<|im_end|>\n' }}
{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}"""


@pytest.mark.parametrize(
    ("template", "system"),
    [
        (None, None),
        ("{{ messages }}", None),
        (SMOL, "You are SmolLM"),
        (QWEN, "You are Qwen."),
    ],
)
def test_system_text_comes_from_the_template(template: str | None, system: str | None) -> None:
    assert ChatMarkers.find(tiny_tokenizer(CHAT_SPECIALS), template) == ChatMarkers(system)


def test_no_markers_without_special_tokens() -> None:
    assert ChatMarkers.find(tiny_tokenizer(), SMOL) is None
    assert ChatMarkers.find(tiny_tokenizer((*CHAT_SPECIALS[:2],)), SMOL) is None
    assert ChatMarkers.find(None, SMOL) is None


def test_prompt_of_one_turn() -> None:
    user = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    kind, other = (f"<|im_start|>system\n{text}<|im_end|>\n" for text in ("Be kind", "Be brief"))
    assert ChatMarkers().prompt("Hi") == user
    assert ChatMarkers("Be kind").prompt("Hi") == kind + user
    assert ChatMarkers("Be kind").prompt("Hi", system="Be brief") == other + user


def test_markers_become_single_tokens() -> None:
    tokenizer = tiny_tokenizer(CHAT_SPECIALS)
    ids = tokenizer.encode(ChatMarkers().prompt("Hi"))
    assert [number for number in ids if number in tokenizer.special_ids] == [
        tokenizer.token_id(token) for token in ("<|im_start|>", "<|im_end|>", "<|im_start|>")
    ]
