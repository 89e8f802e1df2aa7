"""Rotary positions: what they are for, their tables, their scalings."""

from __future__ import annotations

import copy

import pytest
import torch

from qlib.models.rotary import Rope, Rotary, rotate

CPU = torch.device("cpu")


def test_scores_depend_on_the_distance_alone() -> None:
    rotary = Rotary(Rope(100.0), 8)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary.tables(0, 40, torch.float64, CPU)

    def score(at: int, back: int) -> float:
        turned = (rotate(x, cos[[p]], sin[[p]]) for x, p in ((q, at), (k, at - back)))
        first, second = turned
        return float((first * second).sum())

    assert score(10, 3) == pytest.approx(score(39, 3), abs=1e-5)
    assert score(10, 3) != pytest.approx(score(10, 4), abs=1e-3)


def test_tables_are_slices_of_one_and_grow() -> None:
    rotary = Rotary(Rope(), 4)
    early = rotary.tables(0, 10, torch.float32, CPU)
    late = rotary.tables(300, 310, torch.float32, CPU)
    assert early[0].shape == late[0].shape == (10, 1, 4)
    angles = torch.arange(300.0, 310.0)[:, None] * Rope().frequencies(4)
    assert torch.equal(late[0][:, 0, :2], angles.cos()) and torch.equal(late[0][:, 0, 2:], angles.cos())
    assert torch.equal(late[1][:, 0, :2], -angles.sin()) and torch.equal(late[1][:, 0, 2:], angles.sin())
    again = rotary.tables(300, 301, torch.float32, CPU)
    assert again[0].data_ptr() == late[0].data_ptr(), "not computed again"
    assert torch.equal(rotary.tables(0, 10, torch.float32, CPU)[1], early[1])
    full = len(rotary._cos)
    assert len(rotary.tables(full - 1, full, torch.float32, CPU)[0]) == 1 and len(rotary._cos) == full
    assert len(rotary.tables(full, full + 1, torch.float32, CPU)[0]) == 1, "the first position beyond"


def test_tables_follow_the_dtype() -> None:
    rotary = Rotary(Rope(), 4)
    single = rotary.tables(0, 5, torch.float32, CPU)[0]
    assert torch.equal(rotary.tables(0, 5, torch.bfloat16, CPU)[0], single.bfloat16())
    assert torch.equal(rotary.tables(0, 5, torch.float64, CPU)[0], single.double())
    assert copy.deepcopy(rotary).tables(0, 5, torch.float64, CPU)[0].dtype == torch.float64


def test_building_on_the_meta_device_leaves_real_tables() -> None:
    with torch.device("meta"):
        rotary = Rotary(Rope(), 4)
    assert rotary.tables(0, 5, torch.float32, CPU)[0].device == CPU


def test_linear_scaling_stretches_positions() -> None:
    plain, scaled = Rope(100.0).frequencies(8), Rope(100.0, "linear", factor=4.0).frequencies(8)
    assert torch.equal(scaled, plain / 4)


def test_llama3_scaling_keeps_fast_and_divides_slow_frequencies() -> None:
    rope = Rope(10000.0, "llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=1000)
    ratio = Rope(10000.0).frequencies(64) / rope.frequencies(64)
    turns = 1000 * Rope(10000.0).frequencies(64) / (2 * torch.pi)
    assert torch.equal(ratio[turns > 4], torch.ones(int((turns > 4).sum())))
    torch.testing.assert_close(ratio[turns < 1], torch.full((int((turns < 1).sum()),), 8.0))
    between = ratio[(turns > 1) & (turns < 4)]
    assert len(between) > 3 and (between > 1).all() and (between < 8).all() and (between.diff() > 0).all()


@pytest.mark.parametrize(
    ("scaling", "theta", "expected"),
    [
        (None, 5e5, Rope(5e5)),
        ({"type": "linear", "factor": 2.0}, 1e4, Rope(1e4, "linear", 2.0)),
        ({"rope_type": "default", "rope_theta": 7.0}, 1e4, Rope(7.0)),
        ({"rope_type": "default", "factor": 2.0}, 1e4, Rope(1e4)),
    ],
)
def test_both_forms_of_the_setting(scaling: dict[str, object] | None, theta: float, expected: Rope) -> None:
    assert Rope.from_dict(scaling, theta) == expected
    assert Rope.from_dict(expected.scaling(), expected.rope_theta) == expected
