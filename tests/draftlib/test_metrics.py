"""Every figure against a hand count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from draftlib.metrics import Stats
from draftlib.seconds import Seconds
from draftlib.step import Step
from draftlib.vocabulary.mapping import VocabularyMap

WORDS = VocabularyMap.from_bytes([b"f", b"la", b"ke", b"z"], [b"flake", b"f", b"la", b"ke"])


def step(
    spans: tuple[tuple[int, int], ...],
    accepted: int,
    own: int = 1,
    drafted: tuple[int, ...] = (0, 1, 2),
    **seconds: float,
) -> Step:
    proposed = tuple(0 if stop - start > 1 else drafted[start] + 1 for start, stop in spans)
    tokens = (*proposed[:accepted], *[3] * own)
    return Step(1, 5, drafted, proposed, spans, accepted, tokens, 0, Seconds(**seconds), WORDS)


MERGED = step(((0, 3),), 1, draft=0.2, target=1.0, translate=0.1)
SINGLE = step(((0, 1), (1, 2), (2, 3)), 1, draft=0.2, target=1.0, verify=0.2)
REJECTED = step(((0, 3),), 0, draft=0.2, target=1.0, prompt=9.0)
NOTHING = step((), 0, drafted=(3,), draft=0.1, target=1.0)
WITHOUT = step((), 0, drafted=(), target=0.5, update=0.3)


def test_counts_by_hand() -> None:
    stats = Stats.of([MERGED, SINGLE, REJECTED, NOTHING, WITHOUT])
    assert (stats.responses, stats.rounds, stats.tokens) == (1, 5, 7)
    assert (stats.drafted, stats.proposed, stats.accepted) == (10, 5, 2)
    assert (stats.merged, stats.hits, stats.drafting_rounds) == (2, 1, 4)
    assert stats.accepted_per_round == 2 / 5
    assert stats.tokens_per_target_call == 7 / 5
    assert stats.acceptance_rate == pytest.approx((1 + 1 / 3 + 0 + 0) / 4)
    assert (stats.hits_per_round, stats.hits_per_response) == (1 / 5, 1)
    assert stats.seconds.prompt == 9
    assert stats.seconds.overhead == pytest.approx(0.6)
    assert stats.seconds.decoding == pytest.approx(0.7 + 4.5 + 0.6)
    assert stats.tokens_per_second == pytest.approx(7 / 5.8)
    assert stats.measured_speedup is None and stats.predicted_speedup is None and stats.warning is None


def test_speed_ups() -> None:
    stats = Stats.of([MERGED, MERGED], plain=1.0)
    assert stats.measured_speedup == pytest.approx(4 / 2.6)
    # (accepted + 1) / (k c + v) with k = 3, c = 0.2 / 3, v = 1
    assert stats.predicted_speedup == pytest.approx((1 + 1) / (3 * (0.2 / 3) + 1))
    assert stats.warning is None
    assert "speed-up 1.54 (models alone: 1.67)" in str(stats)


def test_adding_up() -> None:
    one, other = Stats.of([MERGED], plain=1.0), Stats.of([SINGLE, NOTHING])
    both = one + other
    assert (both.responses, both.rounds, both.tokens, both.plain) == (2, 3, 5, 1.0)
    assert both.hits_per_response == 0.5
    assert both.seconds.target == 3.0
    assert (other + Stats.of([MERGED], plain=2.0)).plain == 2.0
    assert Stats() + one == one


def test_nothing_at_all() -> None:
    stats = Stats(plain=1.0)
    assert stats.tokens_per_target_call == stats.acceptance_rate == stats.hits_per_response == 0
    assert stats.measured_speedup is None and stats.predicted_speedup is None
    assert str(stats).startswith("0 tokens in 0 target calls")


@pytest.mark.parametrize(
    ("seconds", "accepted", "reason"),
    [
        ({"draft": 0.2, "target": 1.0}, 0, "Too little is accepted"),
        ({"draft": 1.5, "target": 1.0}, 1, "Drafting costs most"),
        ({"draft": 0.2, "target": 2.5}, 1, "Verifying several tokens"),
        ({"draft": 0.2, "target": 1.0, "verify": 1.0}, 1, "Translation and verification"),
        ({"draft": 0.2, "target": 1.0, "learn": 3.0}, 1, "Learning costs most"),
    ],
)
def test_a_warning_names_the_reason(seconds: Any, accepted: int, reason: str) -> None:
    stats = Stats.of([step(((0, 3),), accepted, **seconds)], plain=1.0)
    assert stats.warning is not None
    assert reason in stats.warning and "slower than the target alone" in stats.warning
    assert stats.warning in str(stats)


def test_no_warning_where_nothing_was_drafted() -> None:
    assert Stats.of([WITHOUT], plain=0.1).warning is None


def test_a_warning_of_sources_alone() -> None:
    guessed = replace(step(((0, 0),), 0, target=1.5), drafted=(), source="suffix")
    warning = Stats.of([guessed], plain=1.0).warning
    assert warning is not None and "guesses of the sources" in warning


def test_learning_is_shown_apart() -> None:
    stats = Stats.of([step(((0, 1), (1, 2)), 2, target=1.0, learn=0.5)], plain=1.0)
    assert stats.tokens_per_second == 2.0 and stats.tokens_per_second_without_learning == 3.0
    assert "2.0 tokens/s (3.0 without learning)" in str(stats)
    assert "acceptance length 3.00; accepted by position in the proposal: 100% 100%" in str(stats)
    assert stats.record()["acceptance_length"] == 3.0 and stats.record()["positions"][1]["accepted"] == 1


def test_a_round_as_a_line() -> None:
    assert str(MERGED) == "round 1: 'f' 'la' 'ke' -> ['flake'] => 'flake' | 'ke'"
    assert str(NOTHING) == "round 1: 'z' -> - => - | 'ke'"
    assert str(SINGLE) == "round 1: 'f' 'la' 'ke' -> 'f' 'la' 'ke' => 'f' | 'ke'"


def test_a_guess_is_no_part_of_the_drafter_s_acceptance_rate() -> None:
    """A round that drafted, one of two accepted; and one in which a source guessed, all accepted."""
    drafted = replace(step(((0, 1), (1, 2)), 1), drafted=(1, 2))
    guessed = replace(step(((0, 0), (0, 0)), 2), drafted=(), source="suffix")
    total = Stats.of([drafted, guessed])
    assert total.acceptance_rate == 0.5
    assert total.sources["suffix"].acceptance_length == 3 and total.sources["draft"].acceptance_length == 2
    assert total.acceptance_length == 2.5
