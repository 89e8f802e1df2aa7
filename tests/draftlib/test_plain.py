"""Speculative decoding in fifty lines: the target's text, its exact distribution, and what breaks them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from drafting_toys import Distribution, every_way, table, total_variation
from torch import Tensor

from draftlib import SpeculativeDecoder, plain
from draftlib.plain import speculative_decode
from draftlib.verification.draws import RandomDraws
from qlib.models.tiny import tiny_llama

TARGET, DRAFT = tiny_llama(5).double().eval(), tiny_llama(1).double().eval()
PROMPT = [5, 6, 7, 8]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_decoder_writes_the_same_text(k: int) -> None:
    for draft in (DRAFT, TARGET):
        expected = SpeculativeDecoder(TARGET, draft, length=k).generate(PROMPT, max_new_tokens=24).tokens
        assert len(expected) == 24
        assert speculative_decode(TARGET, draft, PROMPT, k, 24) == list(expected)


def test_a_round_of_accepted_guesses_costs_one_pass() -> None:
    calls = []

    def counted(tokens: Tensor) -> Tensor:
        calls.append(tokens.shape[1])
        return TARGET(tokens)  # type: ignore[no-any-return]

    found = speculative_decode(counted, TARGET, PROMPT, 3, 12)
    assert found == speculative_decode(TARGET, DRAFT, PROMPT, 1, 12)
    assert calls == [4 + 3, 8 + 3, 12 + 3]


# --- sampling: every outcome of every random number


def model(seed: int, size: int = 3) -> Callable[[Tensor], Tensor]:
    """A table as a language model: [1, T] to [1, T, V]."""

    def logits(tokens: Tensor) -> Tensor:
        text = tokens[0].tolist()
        return torch.stack([table(seed, text[: i + 1], size) for i in range(len(text))])[None]

    return logits


def distribution_of_two_tokens(k: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Distribution, Distribution]:
    """The exact distributions of two tokens: written by both models, and by the target alone."""
    target, draft = model(0), model(1)

    def run(draws: RandomDraws) -> tuple[int, ...]:
        monkeypatch.setattr(plain, "happens", lambda probability, generator: draws.bernoulli(probability))
        monkeypatch.setattr(plain, "sample", lambda weights, generator: draws.categorical(weights))
        return tuple(speculative_decode(target, draft, [0], k, 2, temperature=0.7))

    found: Distribution = defaultdict(float)
    for probability, tokens in every_way(run):
        found[tokens] += probability
    alone: Distribution = {}
    first = (target(torch.tensor([[0]]))[0, -1] / 0.7).softmax(-1)
    for one in range(3):
        second = (target(torch.tensor([[0, one]]))[0, -1] / 0.7).softmax(-1)
        alone |= {(one, other): float(first[one] * second[other]) for other in range(3)}
    return found, alone


@pytest.mark.parametrize("k", [1, 2])
def test_sampled_text_has_the_distribution_of_the_target(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, alone = distribution_of_two_tokens(k, monkeypatch)
    assert total_variation(found, alone) < 1e-12


@pytest.mark.parametrize("wrong", [lambda p, q: p, lambda p, q: q, lambda p, q: (q - p).clamp(min=0)])
def test_another_residual_is_caught(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "residual", wrong)
    found, alone = distribution_of_two_tokens(1, monkeypatch)
    assert total_variation(found, alone) > 1e-2


def test_random_numbers_come_from_the_generator() -> None:
    def text(seed: int) -> list[int]:
        return speculative_decode(TARGET, DRAFT, PROMPT, 2, 12, 1.0, torch.Generator().manual_seed(seed))

    assert text(1) == text(1) != text(2)
    assert all(plain.happens(1.0, None) and not plain.happens(0.0, None) for _ in range(20))
    weights = torch.tensor([0.5, 0.0, 1.5])
    counts = torch.bincount(
        torch.tensor([plain.sample(weights, torch.Generator().manual_seed(seed)) for seed in range(400)])
    )
    assert counts[1] == 0 and counts[2] / 400 == pytest.approx(0.75, abs=0.06)
