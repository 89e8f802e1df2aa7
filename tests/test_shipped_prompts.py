"""The prompts that ship with the examples: the commands of README read them."""

from __future__ import annotations

import json
from pathlib import Path

from draftlib.__main__ import read_prompts

DATA = Path(__file__).parents[1] / "examples" / "data"
FILE = DATA / "prompts.jsonl"


def test_twenty_different_prompts() -> None:
    prompts = list(read_prompts(FILE, limit=100))
    assert len(prompts) == len(set(prompts)) == 20
    assert all(prompt.strip() for prompt in prompts)


def test_forty_prompts_that_hold_what_the_answer_repeats() -> None:
    lines = (DATA / "copying.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["prompt"] for row in rows}) == len(rows) == 40
    assert {row["license"] for row in rows} == {"public domain", "Apache-2.0"}
    assert all(row["source"] for row in rows)
    assert all(len(row["prompt"].split("\n\n", 1)[1]) > 80 for row in rows)
