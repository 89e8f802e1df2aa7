"""The prompts that ship with the examples: the commands of README read them."""

from __future__ import annotations

from pathlib import Path

from draftlib.__main__ import read_prompts

FILE = Path(__file__).parents[1] / "examples" / "data" / "prompts.jsonl"


def test_twenty_different_prompts() -> None:
    prompts = list(read_prompts(FILE, limit=100))
    assert len(prompts) == len(set(prompts)) == 20
    assert all(prompt.strip() for prompt in prompts)
