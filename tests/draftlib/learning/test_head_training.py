"""Algorithms 3 and 4 in a decoder: the head learns from what the drafter of now would see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from draftlib import AcceptanceHead, FixedLength, HeadTraining, NGramCache, OnlineAdapter, SpeculativeDecoder
from draftlib.learning.labels import Examples, examples_of
from draftlib.round import Round
from qlib.errors import DraftError
from qlib.models.tiny import tiny_llama

PROMPTS = ["the heat at a", "a hat", "at the", "eat the hat", "heat", "a tea"]


def learner(**settings: Any) -> OnlineAdapter:
    usual = {"update_every": None, "learning_rate": 1e-2, "share": math.inf, "lora_rank": None}
    return OnlineAdapter(**{**usual, **settings})


def decoder(adapter: HeadTraining, **settings: Any) -> SpeculativeDecoder:
    models = [tiny_llama(seed, max_position_embeddings=96) for seed in (5, 1)]
    settings = {"length": AcceptanceHead(train_every=0), "cache": NGramCache(), **settings}
    return SpeculativeDecoder(*models, adapter=adapter, sources=(), **settings)


class Rounds:
    """Remembers rounds."""

    def __init__(self) -> None:
        self.found: list[Round] = []

    def observe(self, round: Round) -> None:
        self.found.append(round)


def sorted_rows(examples: Examples) -> torch.Tensor:
    rows = torch.cat([examples.hidden, examples.confidences[:, None], examples.labels[:, None]], 1)
    return rows[rows[:, 0].argsort()]


def test_read_again_a_round_gives_what_the_drafter_gave() -> None:
    adapter = HeadTraining(learner(), every=99)
    one, rounds = decoder(adapter), Rounds()
    one.observers.append(rounds)
    one.generate("the heat at a", max_new_tokens=24, temperature=1.0)
    given = [found for each in rounds.found if (found := examples_of(each)) is not None]
    expected = Examples(*(torch.cat(parts) for parts in zip(*given, strict=True)))
    found = adapter.examples(adapter._requests)
    assert len(found.labels) > 10 and set(found.labels.tolist()) == {0.0, 1.0}
    assert torch.allclose(sorted_rows(found), sorted_rows(expected), atol=1e-4)


@pytest.mark.parametrize("schedule", ["joint", "interleaved"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafter_and_head_learn_and_the_text_stays(schedule: Any, temperature: float) -> None:
    adapter = HeadTraining(learner(), schedule, every=2, batch=2)
    one = decoder(adapter)
    trained: list[int] = []
    head = one.length
    assert isinstance(head, AcceptanceHead)
    train = head.train
    head.train = lambda examples=None: (trained.append(adapter.adapter.updates), train(examples))[1]  # type: ignore[method-assign]
    for number, prompt in enumerate(PROMPTS):
        plain = one.generate_target_only(prompt, max_new_tokens=16, temperature=temperature, seed=number)
        found = one.generate(prompt, max_new_tokens=16, temperature=temperature, seed=number)
        assert found.tokens == plain.tokens
    assert adapter.adapter.updates == 3
    assert trained == {"joint": [1, 2, 3], "interleaved": [1, 2]}[schedule]
    again = HeadTraining(learner())
    decoder(again).adapter.restore(adapter.state())  # type: ignore[union-attr]
    assert again.adapter.updates == 3


def test_frozen_nothing_is_learned() -> None:
    adapter = HeadTraining(learner(), every=1)
    adapter.adapter.frozen = True
    one = decoder(adapter)
    one.generate("a tea", max_new_tokens=16)
    assert adapter.adapter.updates == 0 and adapter._requests == []


def test_what_cannot_be_trained_together() -> None:
    with pytest.raises(DraftError, match="update_every=None"):
        HeadTraining(OnlineAdapter())
    with pytest.raises(DraftError, match="schedule='both' is unknown"):
        HeadTraining(learner(), "both")  # type: ignore[arg-type]
    for length in (FixedLength(3), AcceptanceHead()):
        with pytest.raises(DraftError, match=r"AcceptanceHead\(train_every=0\)"):
            decoder(HeadTraining(learner()), length=length)
