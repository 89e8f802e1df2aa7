"""Noise by address: the hash against plain integers, its distribution, independence; draws in order."""

from __future__ import annotations

import math

import pytest
import torch

from draftlib.verification.draws import RandomDraws
from draftlib.verification.noise import GumbelNoise, gumbel, splitmix
from draftlib.verification.verify import choose
from qlib.errors import DraftError

LOW = (1 << 32) - 1
PINNED = [-0.537704, -0.127832, 0.933368, -0.71337]


def mix(x: int) -> int:
    """The hash on unsigned 32-bit integers, as its authors write it."""
    x ^= x >> 16
    x = x * 0x21F0AAAD & LOW
    x ^= x >> 15
    x = x * 0x735A2D97 & LOW
    return x ^ (x >> 15)


def gumbel_by_hand(seed: int, position: int, token: int, stream: int = 0) -> float:
    key = splitmix(splitmix(splitmix(seed % 2**64) ^ stream) ^ position)
    own = mix((token * 0x3C6EF35F + 0x1B873593) & LOW)
    bits = mix((own * ((key & 0x7FFFFFFF) | 1) + (key >> 32) + (1 << 31)) & LOW) & 0x7FFFFFFF
    return -math.log(-math.log1p(-(bits + 0.5) / 2**31))


@pytest.mark.parametrize(
    ("seed", "position", "stream"),
    [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 5, 0), (2**70 + 3, 999, 2)],
)
def test_noise_is_the_documented_function_of_its_address(seed: int, position: int, stream: int) -> None:
    row = gumbel(seed, position, 1003, stream)
    expected = torch.tensor([gumbel_by_hand(seed, position, token, stream) for token in range(1003)])
    assert row.dtype == torch.float32
    error = (row - expected).abs()
    assert float(error[expected > 0].max()) < 2e-6
    assert float(error.max()) < 0.01  # far on the losing side float32 is coarse


def test_the_numbers_are_pinned() -> None:
    """Texts of a seed must not change with a release."""
    assert gumbel(0, 0, 4).tolist() == pytest.approx(PINNED, abs=1e-6)


def test_a_smaller_vocabulary_is_the_beginning_of_a_larger_one() -> None:
    long = gumbel(3, 4, 5003)
    for count in (0, 1, 7, 8, 9, 64, 1000, 5002):
        assert torch.equal(gumbel(3, 4, count), long[:count])


def test_threads_do_not_matter() -> None:
    one = gumbel(5, 6, 200_000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(gumbel(5, 6, 200_000), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_another_device_gives_the_same_bits() -> None:
    assert torch.equal(gumbel(5, 6, 5000, device="cuda").cpu(), gumbel(5, 6, 5000))


def test_addresses_do_not_share_numbers() -> None:
    rows = [
        gumbel(seed, position, 2000, stream) for seed in (0, 1) for position in (0, 1) for stream in (0, 1)
    ]
    assert len(torch.cat(rows).unique()) > 0.999 * 16000


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def uniforms(noise: torch.Tensor) -> torch.Tensor:
    """Undo the Gumbel transform: uniform in (0, 1) if it was right."""
    return torch.exp(-torch.exp(-noise.double()))


@pytest.mark.parametrize("along", ["tokens", "positions", "seeds"])
def test_the_distribution_is_standard_gumbel_in_every_direction(along: str) -> None:
    if along == "tokens":
        noise = gumbel(11, 3, 40_000)
    elif along == "positions":
        noise = torch.cat([gumbel(11, position, 25) for position in range(800)])
    else:
        noise = torch.cat([gumbel(seed, 3, 25) for seed in range(800)])
    u = uniforms(noise)
    counts = torch.histc(u, bins=50, min=0, max=1)
    assert chi_square(counts, torch.full((50,), len(u) / 50).double()) < 95  # 49 degrees, p = 1e-4
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.04)


@pytest.mark.parametrize("shift", ["token", "position", "seed", "stream"])
def test_neighbours_are_independent(shift: str) -> None:
    n = 40_000
    one = gumbel(7, 7, n + 1)
    other = {
        "token": one[1:],
        "position": gumbel(7, 8, n),
        "seed": gumbel(8, 7, n),
        "stream": gumbel(7, 7, n, stream=1),
    }[shift]
    x, y = uniforms(one[:n]), uniforms(other)
    cells = (x * 8).long() * 8 + (y * 8).long()
    counts = torch.bincount(cells, minlength=64).double()
    assert chi_square(counts, torch.full((64,), n / 64).double()) < 115  # 63 degrees, p = 1e-4


def test_choosing_with_noise_draws_from_the_probabilities() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.049, 0.001])
    drawn = choose(p.log(), gumbel(1, 2, 5 * 40_000).view(-1, 5))
    counts = torch.bincount(drawn, minlength=5).double()
    assert chi_square(counts, 40_000 * p.double()) < 23.5  # 4 degrees, p = 1e-4


def test_the_extremes_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest bits of all."""
    extremes = torch.tensor([0, 0x7FFFFFFF, -1, -(1 << 31)], dtype=torch.int32)
    monkeypatch.setattr("draftlib.verification.noise._mix", lambda bits: extremes)
    assert gumbel(0, 0, 4).tolist() == pytest.approx([22.18, -2.81, -2.81, 22.18], abs=0.01)


def test_splitmix_is_a_bijection_on_small_numbers() -> None:
    assert splitmix(1234567) == 6457827717110365317  # the published first output of that seed
    assert len({splitmix(i) for i in range(10_000)}) == 10_000


def test_negative_addresses_are_refused() -> None:
    with pytest.raises(DraftError, match=r"position -1, 5 tokens.*Count positions from 0"):
        gumbel(0, -1, 5)


# --- rows


def test_rows_are_made_once_and_forgotten_from_the_front() -> None:
    noise = GumbelNoise(seed=2, count=10, keep=3)
    first = noise.row(0)
    assert noise.row(0) is first
    rows = noise.rows(0, 5)
    assert torch.equal(rows, torch.stack([gumbel(2, position, 10) for position in range(5)]))
    assert noise.row(0) is not first  # was forgotten, and is made again
    assert torch.equal(noise.row(0), first)
    assert noise.row(4) is noise.row(4)


# --- draws in order


def test_draws_repeat_with_their_seed() -> None:
    def numbers(seed: int) -> list[float]:
        draws = RandomDraws(seed)
        return [draws.uniform() for _ in range(20)]

    assert numbers(1) == numbers(1) != numbers(2)
    assert all(0 <= number < 1 for number in numbers(1))


def test_draws_follow_the_weights() -> None:
    draws, weights = RandomDraws(3), torch.tensor([3.0, 0.0, 1.0, 0.0])
    counts = torch.bincount(torch.tensor([draws.categorical(weights) for _ in range(2000)]), minlength=4)
    assert counts[1] == counts[3] == 0
    assert counts[0] / 2000 == pytest.approx(0.75, abs=0.04)
    assert sum(draws.bernoulli(0.25) for _ in range(2000)) == pytest.approx(500, abs=80)


def test_a_draw_at_the_very_end_hits_a_token_with_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = RandomDraws(0)
    monkeypatch.setattr(draws, "uniform", lambda: 1.0)
    assert draws.categorical(torch.tensor([1.0, 2.0, 0.0, 0.0])) == 1


def test_small_weights_behind_large_ones_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = RandomDraws(0)
    monkeypatch.setattr(draws, "uniform", lambda: 1 - 2.0**-40)
    assert draws.categorical(torch.tensor([1.0, 1e-9])) == 1


@pytest.mark.parametrize("weights", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(DraftError, match=r"cannot draw from 2 weights.*NaN, or a mask"):
        RandomDraws(0).categorical(torch.tensor(weights))
