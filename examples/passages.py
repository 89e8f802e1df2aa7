"""Short passages of books in the public domain: texts for language models."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).parent / "data" / "copying.jsonl"


def passages() -> tuple[list[str], list[str]]:
    """Return texts to calibrate with, and other texts to measure with."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    texts = [row["prompt"].split("\n\n", 1)[1] for row in rows if row["license"] == "public domain"]
    return texts[::2], texts[1::2]
