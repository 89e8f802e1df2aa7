"""Miniature decoders whose drafter learns, for tests of learning and of what is saved of it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from draftlib import FixedLength, NGramCache, OnlineAdapter, SpeculativeDecoder
from qlib.models.tiny import tiny_llama

PROMPTS = ["the heat at a", "a hat", "at the", "eat the hat", "heat", "a tea", "the the", "that"]


def target(seed: int = 5) -> Any:
    return tiny_llama(seed, max_position_embeddings=96)


def draft(seed: int = 1) -> Any:
    return tiny_llama(seed, max_position_embeddings=96)


def decoder(adapter: OnlineAdapter | None = None, **settings: Any) -> SpeculativeDecoder:
    settings = {"length": FixedLength(4), "cache": NGramCache(), **settings}
    return SpeculativeDecoder(target(), draft(), adapter=adapter, **settings)


def learner(**settings: Any) -> OnlineAdapter:
    usual = {"learning_rate": 1e-2, "update_every": 2, "share": math.inf, "lora_rank": None}
    return OnlineAdapter(**{**usual, **settings})


def answer(one: SpeculativeDecoder, rounds: int = 1, **options: Any) -> list[tuple[int, ...]]:
    return [
        one.generate(prompt, max_new_tokens=24, seed=seed, **options).tokens
        for seed in range(rounds)
        for prompt in PROMPTS
    ]


def weights(one: OnlineAdapter) -> list[Tensor]:
    return [each.detach().clone() for each in one._trainee.trained]
