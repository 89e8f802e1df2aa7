"""Real models: the text stays the target's own while drafter, n-grams, sources and lengths change under it.

8 prompts of 48 tokens; `QUANTDRAFT_ROUNDS=100` takes so many prompts, of 96 tokens (`make lossless`).
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from storage_cases import ROUNDS

from draftlib import (
    AcceptanceHead,
    Confidence,
    CostAware,
    Entropy,
    FixedLength,
    NGramCache,
    OnlineAdapter,
    Options,
    SpeculativeDecoder,
)
from draftlib.drafting.length import Length
from draftlib.drafting.sources import ALL
from qlib.models.hub.load import load_model
from qlib.models.text import TextModel

pytestmark = [pytest.mark.weights, pytest.mark.slow]
EXAMPLES = Path(__file__).parents[2] / "examples"
COUNT, LONGEST = (ROUNDS, 96) if ROUNDS else (8, 48)
MOST_SOURCES = [(), ALL, *((name,) for name in ALL)]


def prompts(count: int) -> list[str]:
    """Return the prompts that ship with the examples, mixed with made-up ones of every kind."""
    lines = (EXAMPLES / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    shipped, dice = [json.loads(line)["prompt"] for line in lines], random.Random(0)
    kinds: list[Callable[[int], str]] = [
        lambda n: f"What is {dice.randrange(1000)} times {dice.randrange(1000)}? Show every step.",
        lambda n: (
            "Repeat this twice: " + " ".join(dice.choices(["red", "green", "Straße", "東京", "🙂"], k=9))
        ),
        lambda n: "".join(dice.choices("abcdefgh (){}=;\n", k=40)),
        lambda n: f"List {3 + n % 9} animals, each with a short reason why it is useful.",
        lambda n: f"Write a Python function that returns the {n}th prime number.",
    ]
    made_up = [kinds[n % len(kinds)](n) for n in range(count)]
    return [each for both in itertools.zip_longest(shipped, made_up) for each in both if each][:count]


@cache
def packed_target(folder: Path, dtype: torch.dtype) -> TextModel:
    model = load_model(folder, dtype=dtype)
    assert isinstance(model, TextModel)
    return model.pack(stable=True)


@cache
def alone(folder: Path, dtype: torch.dtype, temperature: float) -> list[tuple[int, ...]]:
    """What the target writes by itself, once for all tests."""
    decoder = SpeculativeDecoder(packed_target(folder, dtype))
    return [
        decoder.generate_target_only(prompt, **options(number, temperature)).tokens
        for number, prompt in enumerate(prompts(COUNT))
    ]


def options(number: int, temperature: float) -> Options:
    return {"max_new_tokens": LONGEST, "temperature": temperature, "seed": number}


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_text_is_the_targets_own_whatever_changes(
    checkpoint: Callable[[str], Path], dtype: torch.dtype, temperature: float, background: bool
) -> None:
    folder = checkpoint("smollm2-135m-instruct")
    drafter = load_model(EXAMPLES / "models" / "drafter-7m", dtype=dtype)
    assert isinstance(drafter, TextModel)
    rank = None if background else 32
    adapter = OnlineAdapter(
        update_every=2, update_tokens=32, lora_rank=rank, share=0.5, background=background
    )
    ngrams = NGramCache(max_entries=4)  # so few that many have to go
    decoder = SpeculativeDecoder(packed_target(folder, dtype), drafter, cache=ngrams, adapter=adapter)
    lengths: list[Length] = [CostAware(), FixedLength(5), Confidence(), Entropy(), AcceptanceHead()]
    changed = []
    for number, prompt in enumerate(prompts(COUNT)):
        decoder.length = lengths[number % len(lengths)]
        decoder.sources = MOST_SOURCES[number % len(MOST_SOURCES)]
        if number % 3 == 2:
            adapter.switch(f"adapter {number // 3 % 2}")
        found = decoder.generate(prompt, **options(number, temperature))
        if found.tokens != alone(folder, dtype, temperature)[number]:
            changed.append(number)
    adapter.wait()
    name = f"{dtype}, temperature {temperature}, {'background' if background else 'foreground'}"
    sys.stdout.write(f"{name}: {COUNT - len(changed)} of {COUNT} identical; {adapter}; {ngrams}\n")
    assert changed == []
    assert (
        adapter.updates >= COUNT // 8 and adapter.kept > 0 and ngrams.evicted > 0 and len(adapter.names) > 2
    )
