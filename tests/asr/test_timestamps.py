"""Rules of timestamps against a slow form, and segments worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib.asr.timestamps import MAX_INITIAL_STEP, Piece, apply_timestamp_rules, cut_into_pieces

# A small vocabulary: text 0 to 3, the end, a special token, <|notimestamps|>, and 80 timestamps.
END, NO_TIMESTAMPS, FIRST, VOCABULARY = 4, 6, 7, 87


def allowed(text: list[int], token: int) -> bool:
    """Say in words of segments whether a token may come next."""
    is_time = [each >= FIRST for each in (*text, token)]
    times = [each for each in (*text, token) if each >= FIRST]
    if token == NO_TIMESTAMPS:
        return False
    if not text:
        return is_time[0] and token - FIRST <= MAX_INITIAL_STEP
    after_text = not is_time[-2]
    start_known = len(text) == 1 or is_time[-3]  # the last timestamp, if any, is a start
    if is_time[-1]:
        if after_text:
            return token > times[-2]
        return not start_known and token >= times[-2]
    return after_text or start_known or token >= END


def slow_rules(logits: list[float], text: list[int]) -> list[float]:
    kept = [value if allowed(text, token) else -math.inf for token, value in enumerate(logits)]
    any_timestamp = sum(math.exp(value) for value in kept[FIRST:])
    if any_timestamp > math.exp(max(kept[:FIRST])):
        kept[:FIRST] = [-math.inf] * FIRST
    return kept


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), timestamp_bias=st.sampled_from([-8.0, -4.0, -2.0, 0.0]))
def test_rules_equal_the_slow_form_along_whole_texts(seed: int, timestamp_bias: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    texts: list[list[int]] = [[], [], []]
    for _ in range(12):
        logits = 2 * torch.randn(3, VOCABULARY, dtype=torch.float64, generator=generator)
        logits[:, FIRST:] += timestamp_bias
        expected = [slow_rules(row.tolist(), text) for row, text in zip(logits, texts, strict=True)]
        apply_timestamp_rules(logits, texts, END, NO_TIMESTAMPS)
        assert logits.tolist() == expected
        for row, text in zip(logits, texts, strict=True):
            if math.isfinite(float(row.max())):  # else the timestamps are used up
                text.append(int(row.softmax(-1).multinomial(1, generator=generator)))


def test_the_first_timestamp_is_at_most_one_second() -> None:
    logits = torch.zeros(1, VOCABULARY)
    apply_timestamp_rules(logits, [[]], END, NO_TIMESTAMPS)
    assert logits.isfinite().nonzero()[:, 1].tolist() == [*range(FIRST, FIRST + 51)]


@pytest.mark.parametrize(("timestamp", "chosen"), [(-1.0, False), (1.0, True)])
def test_timestamps_are_weighed_together(timestamp: float, chosen: bool) -> None:
    """70 timestamps of probability 1/100 each are less than a text token of 1, and of e/100 more."""
    logits = torch.full((1, VOCABULARY), -math.inf)
    logits[0, 0] = math.log(100)
    logits[0, FIRST + 10 :] = timestamp
    apply_timestamp_rules(logits, [[FIRST, 1]], END, NO_TIMESTAMPS)
    assert (int(logits.argmax()) >= FIRST) is chosen


A, B, C = 1, 2, 3  # text


def at(step: int) -> int:
    return FIRST + step


@pytest.mark.parametrize(
    ("tokens", "pieces", "seek"),
    [
        # one segment with an end: the window is done
        ([at(0), A, at(40)], [(0, 40, 3)], None),
        # cut off, or ended without a timestamp: as long as the sound
        ([at(0), A, B], [(0, 60, 3)], None),
        # no pair, but one timestamp: both reference codes begin at 0 and end at it
        ([at(5), A], [(0, 5, 2)], None),
        # two segments, the last with an end
        ([at(0), A, at(20), at(25), B, at(50)], [(0, 20, 3), (25, 50, 3)], None),
        # the last segment has no end: it is heard again in the next window
        ([at(0), A, at(20), at(25), B], [(0, 20, 3)], 20),
        # it ends in a pair: the next window starts at its first
        ([at(0), A, at(20), at(20), B, at(50), at(55)], [(0, 20, 3), (20, 50, 3)], 50),
        ([at(2)], [(0, 2, 1)], None),
    ],
)
def test_pieces(tokens: list[int], pieces: list[tuple[int, int, int]], seek: int | None) -> None:
    found, where = cut_into_pieces(tokens, NO_TIMESTAMPS, sound_steps=60)
    assert [(piece.start, piece.end, len(piece.tokens)) for piece in found] == pieces
    assert where == seek
    joined = [token for piece in found for token in piece.tokens]
    assert joined == tokens[: len(joined)]


def test_a_piece_keeps_its_timestamps() -> None:
    tokens = [at(0), A, at(20), at(25), B, C, at(50)]
    assert cut_into_pieces(tokens, NO_TIMESTAMPS, 60)[0][1] == Piece(25, 50, (at(25), B, C, at(50)))
