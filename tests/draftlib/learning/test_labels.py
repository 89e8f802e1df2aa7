"""Labels of draft tokens: merged, rejected, left over; the loss against a loop, its minimum and extremes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learning_rounds import Spans, round_of, singles

from draftlib.learning.labels import examples_of, labels_of, weighted_bce
from draftlib.round import Round
from qlib.errors import DraftError


@pytest.mark.parametrize(
    ("k", "spans", "accepted", "expected"),
    [
        (3, singles(3), 3, [1, 1, 1]),
        (3, singles(3), 1, [1, 0, None]),
        (3, singles(3), 0, [0, None, None]),
        # "Snow" "f" "la" "ke" "is" became Snow, flake, is
        (5, [(0, 1), (1, 4), (4, 5)], 3, [1, 1, 1, 1, 1]),
        (5, [(0, 1), (1, 4), (4, 5)], 2, [1, 1, 1, 1, 0]),
        (5, [(0, 1), (1, 4), (4, 5)], 1, [1, 0, 0, 0, None]),
        # Nothing translates the last one.
        (3, singles(2), 2, [1, 1, 0]),
        (3, singles(2), 1, [1, 0, None]),
        (1, [], 0, [0]),
        # Two are left over: no room for them, or an n-gram that did not come.
        (4, singles(2), 2, [1, 1, None, None]),
    ],
)
def test_by_hand(k: int, spans: Spans, accepted: int, expected: list[float | None]) -> None:
    assert labels_of(round_of(spans, accepted, torch.zeros(k, 2))) == expected


@given(st.lists(st.integers(1, 3), max_size=5), st.integers(0, 3), st.data())
def test_against_a_search_for_each_token(sizes: list[int], left: int, data: st.DataObject) -> None:
    accepted = data.draw(st.integers(0, len(sizes)))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    spans = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    k = sum(sizes) + left
    found = labels_of(round_of(spans, accepted, torch.zeros(k, 2)))
    assert len(found) == k
    for i, label in enumerate(found):
        inside = [j for j, (start, stop) in enumerate(spans) if start <= i < stop]
        if inside:
            assert label == (1 if inside[0] < accepted else 0 if inside[0] == accepted else None)
        else:
            assert label == (0 if left == 1 and accepted == len(spans) else None)


def test_a_token_that_the_answer_did_not_take_was_accepted_nevertheless() -> None:
    ended = replace(
        round_of(singles(3), 3, torch.zeros(3, 2)), tokens=(0,)
    )  # the answer ended with the first
    assert ended.accepted == 1
    assert labels_of(ended) == [1, 1, 1]


def test_only_tokens_with_a_label_become_examples() -> None:
    with torch.inference_mode():
        hidden = torch.arange(8.0, dtype=torch.float64).reshape(4, 2)
        found = round_of(singles(4), 1, hidden, [0.9, 0.8, 0.7, 0.6])
    examples = examples_of(found)
    assert examples is not None
    assert examples.hidden.tolist() == [[0, 1], [2, 3]]
    assert examples.confidences.tolist() == pytest.approx([0.9, 0.8])
    assert examples.labels.tolist() == [1, 0]
    assert examples.hidden.dtype == torch.float32
    assert not any(each.is_inference() for each in examples)


def test_without_a_draft_or_its_states_there_are_none() -> None:
    assert examples_of(Round(1, (), ())) is None
    found = round_of(singles(2), 1, torch.zeros(2, 2))
    assert found.draft is not None
    assert examples_of(replace(found, draft=replace(found.draft, hidden=()))) is None
    assert labels_of(Round(1, (), ())) == []


# --- the loss


@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0.1, 10))
def test_the_loss_against_a_loop(pairs: list[tuple[float, float]], reject: float) -> None:
    total = mass = 0.0
    for logit, y in pairs:
        accepted = 1 / (1 + math.exp(-logit))
        total += -y * math.log(accepted) - reject * (1 - y) * math.log(1 - accepted)
        mass += y + reject * (1 - y)
    logits, labels = torch.tensor(pairs, dtype=torch.float64).T
    assert float(weighted_bce(logits, labels, reject)) == pytest.approx(total / mass, rel=1e-9)


def test_its_gradient_by_finite_differences() -> None:
    logits = torch.tensor([0.3, -2.0, 4.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda each: weighted_bce(each, labels), logits)


def test_where_it_is_least() -> None:
    """Four of five such tokens are accepted, and a rejection weighs 6: P = 0.8 / (0.8 + 6 * 0.2) = 0.4."""
    labels, grid = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), torch.linspace(0.01, 0.99, 99)
    losses = torch.stack([weighted_bce(p.logit().expand(5), labels, 6.0) for p in grid])
    assert float(grid[losses.argmin()]) == pytest.approx(0.4, abs=1e-6)


def test_it_stays_finite() -> None:
    logits = torch.tensor([1000.0, -1000.0], requires_grad=True)
    loss = weighted_bce(logits, torch.tensor([0.0, 1.0]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(1000)
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_no_label_is_an_error() -> None:
    with pytest.raises(DraftError, match=r"no draft token has a label.*Wait"):
        weighted_bce(torch.empty(0), torch.empty(0))
