"""A recorded round cut to a shorter draft is the round that a shorter draft would have been."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_rounds import round_of

EXAMPLES = Path(__file__).parents[1] / "examples"
SPANS = [(0, 1), (1, 3), (3, 4)]  # the second target token takes two draft tokens


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("shorter_drafts").cut


@pytest.mark.parametrize(
    ("k", "proposed", "accepted"),
    [(1, 1, 1), (2, 1, 1), (3, 2, 2), (4, 3, 2)],  # with two draft tokens the merged one is not complete
)
def test_tokens_and_times_of_a_shorter_draft(cut: Any, k: int, proposed: int, accepted: int) -> None:
    whole = replace(
        round_of(SPANS, 2, torch.zeros(4, 5)), tokens=(0, 1, 9)
    )  # 2 accepted, then the target's own
    found = cut(whole, k, step=0.1, row=0.03)
    assert found.proposed == (0, 1, 2)[:proposed]
    assert found.accepted == accepted
    assert found.tokens == (0, 1, 9)[: accepted + 1]
    assert found.verdict.token == found.tokens[-1]
    assert len(found.draft.tokens) == len(found.draft.confidences) == len(found.draft.hidden) == k
    assert found.seconds.draft == pytest.approx(0.1 * k)
    assert found.seconds.target == pytest.approx(1 + 0.03 * proposed)


def test_a_round_without_a_rejection_keeps_its_own_token_last(cut: Any) -> None:
    whole = replace(round_of([(0, 1), (1, 2)], 2, torch.zeros(2, 5)), tokens=(0, 1, 7))
    assert cut(whole, 2, 0.1, 0.03).tokens == (0, 1, 7)
    assert cut(whole, 1, 0.1, 0.03).tokens == (0, 1)  # what was drafted second, the target writes by itself
