"""Temperature, top-k, top-p: by hand, against a sort, ties, rows by themselves, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draftlib.verification.sampling import warp
from qlib.errors import DraftError


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def test_temperature_is_softmax_of_the_quotient() -> None:
    x = logits(4, 50)
    torch.testing.assert_close(warp(x, 0.7).exp(), (x / 0.7).softmax(-1))


def test_temperature_zero_keeps_the_first_of_the_largest() -> None:
    assert warp(torch.tensor([[1.0, 5.0, 5.0], [9.0, 0.0, 1.0]]), 0).exp().tolist() == [[0, 1, 0], [1, 0, 0]]


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert warp(torch.tensor([300.0, -300.0, 299.0]), 1e-38).exp().tolist() == [1, 0, 0]


def test_half_precision_is_computed_in_float32_and_double_stays() -> None:
    x = logits(100).bfloat16()
    assert torch.equal(warp(x, 0.8), warp(x.float(), 0.8))
    assert warp(logits(5).double()).dtype == torch.float64


def by_sorting(row: Tensor, top_k: int | None, top_p: float | None) -> set[int]:
    """Kept tokens, by the definition; no ties."""
    kept: set[int] = set()
    order = row.argsort(descending=True)[:top_k]
    p = row[order].double().softmax(-1)
    for token, before in zip(order.tolist(), (p.cumsum(0) - p).tolist(), strict=True):
        if top_p is None or before < top_p:
            kept.add(token)
    return kept


@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 7, 40, 100])
def test_kept_tokens_and_their_probabilities(top_k: int | None, top_p: float | None) -> None:
    x = logits(3, 40)
    for row, warped in zip(x, warp(x, 1.0, top_k, top_p), strict=True):
        kept = by_sorting(row, top_k, top_p)
        assert set(torch.isfinite(warped).nonzero().flatten().tolist()) == kept
        index = sorted(kept)
        torch.testing.assert_close(warped.exp()[index], row[index].softmax(-1), rtol=1e-5, atol=1e-6)


def test_a_flat_distribution_needs_more_than_the_first_sort() -> None:
    x = logits(5000) / 100
    kept = int(torch.isfinite(warp(x, top_p=0.9)).sum())
    assert 4000 < kept == pytest.approx(len(by_sorting(x, None, 0.9)), abs=1)


def test_equals_are_kept_or_dropped_together() -> None:
    x = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    for logprobs in (warp(x, top_k=2), warp(x, top_p=0.7)):
        assert torch.isfinite(logprobs).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    "settings",
    [(0.0, None, None), (0.8, None, None), (1.0, 50, None), (0.8, None, 0.9), (1.3, 20, 0.5)],
    ids=str,
)
def test_a_row_is_the_same_bits_in_any_company(settings: tuple[float, int | None, float | None]) -> None:
    x = logits(16, 4999)
    alone = torch.stack([warp(row, *settings) for row in x])
    for count in (1, 2, 3, 8, 16):
        assert torch.equal(warp(x[:count], *settings), alone[:count])


def test_masked_tokens_stay_out() -> None:
    x = torch.tensor([0.0, -torch.inf, 1.0])
    for logprobs in (warp(x), warp(x, 0), warp(x, top_k=3), warp(x, top_p=0.99)):
        assert logprobs[1] == -torch.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused(bad: float) -> None:
    with pytest.raises(DraftError, match=r"\[2, 3\].*not finite.*float32"):
        warp(torch.tensor([[0.0, 1.0, 2.0], [0.0, bad, 2.0]]))
    with pytest.raises(DraftError, match="not finite"):
        warp(torch.full((3,), -torch.inf), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1.*0 .*positive"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0: at least 1"),
        ({"top_p": 0.0}, "top_p=0.0.*above 0"),
        ({"top_p": 1.1}, "top_p=1.1.*at most 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(DraftError, match=message):
        warp(torch.zeros(3), **settings)  # type: ignore[arg-type]
