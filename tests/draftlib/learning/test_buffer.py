"""What the drafter learns from: rounds become examples, worked by hand, and the buffer keeps the latest."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from draftlib.learning.buffer import HELD_OUT, KEPT, KEPT_OUT, Buffer, Example, make_example
from draftlib.learning.distill import TopK, compress
from draftlib.learning.spelled import speller_of
from draftlib.round import Round
from draftlib.vocabulary.mapping import VocabularyMap

DRAFT, TARGET = [b"a", b"b", b"ab", b"c"], [b"a", b"b", b"c", b"ca", b"cab", b"bb"]
PAIR = VocabularyMap.from_bytes(DRAFT, TARGET)
a, b, ab, c = range(4)
A, B, C, CA, CAB, BB = range(6)


def rows_of(*favourites: dict[int, float]) -> Tensor:
    """Logits [N, V] of distributions that are given by their likeliest tokens; the rest is shared evenly."""
    rows = torch.empty(len(favourites), len(TARGET))
    for row, some in zip(rows, favourites, strict=True):
        row[:] = (1 - sum(some.values())) / (len(TARGET) - len(some))
        row[list(some)] = torch.tensor([*some.values()])
    return rows.log()


def example(draft: list[int], target: list[int], rows: Tensor) -> Example | None:
    return make_example(draft, target, compress(rows, KEPT), PAIR, speller_of(PAIR), 1000)


def soft(found: Example, i: int) -> dict[int, float]:
    pairs = zip(found.soft_tokens[i].tolist(), found.soft_probabilities[i].tolist(), strict=True)
    return {token: round(p, 3) for token, p in pairs if p}


def test_an_example_worked_by_hand() -> None:
    """The target wrote "a", "cab" after "b"; the drafter spells this "b", "a", "c", "ab"."""
    rows = rows_of({A: 0.6, B: 0.1, C: 0.1, CA: 0.1, CAB: 0.05}, {C: 0.3, CA: 0.1, CAB: 0.4, A: 0.1, B: 0.05})
    found = example([b, a, c, ab], [A, CAB], rows)
    assert found is not None
    assert found.tokens.tolist() == [b, a, c, ab] and found.positions.tolist() == [1, 2, 3]
    assert soft(found, 0) == {a: 0.6, b: 0.15, c: 0.25}  # "bb" begins with b; "ca" and "cab" with c
    assert soft(found, 1) == {c: 0.8, a: 0.1, b: 0.1}
    assert soft(found, 2) == {a: 0.2, ab: 0.8}  # after "c": "ca" against "cab"; "c" itself says nothing
    assert found.owners.tolist() == [A, CAB, CAB] and found.left.tolist() == [1, 2, 1]
    assert found.rows.tokens[:, 0].tolist() == [A, CAB, CAB]


def test_the_first_token_of_a_text_is_never_predicted() -> None:
    found = example([a, c], [A, C], rows_of({A: 0.9}, {C: 0.9}))
    assert found is not None and found.positions.tolist() == [1]
    assert example([a], [A], rows_of({A: 0.9})) is None


def test_a_token_that_begins_inside_of_a_draft_token_is_left_out() -> None:
    """The drafter has "ab" for "a" and "b": "b" begins nowhere, and after "a" the target goes on freely."""
    found = example([c, ab, c], [A, B, C], rows_of({A: 0.9}, {B: 0.9}, {C: 0.9}))
    assert found is not None and found.positions.tolist() == [1, 2]
    assert found.owners.tolist() == [A, C]


def test_a_long_text_keeps_its_end() -> None:
    found = example([a] * 500 + [c, a], [C, A], rows_of({C: 0.9}, {A: 0.9}))
    assert found is not None and len(found.tokens) == 96 + 2 and found.positions.tolist() == [96, 97]


# --- the buffer


def round_of(answer: int, target: list[int], spelled: list[int], ended: bool) -> Round:
    """A round in which the target wrote these tokens, and thought each of them likely."""
    rows = rows_of(*({token: 0.9} for token in target), {A: 0.5})
    return Round(
        1, (), (), rows=rows, tokens=tuple(target), answer=answer, spelled=tuple(spelled), ended=ended
    )


def filled(answers: int, update_tokens: int = 100, most: int = 8) -> Buffer:
    buffer = Buffer(PAIR, most, update_tokens, 1000)
    for number in range(answers):
        buffer.add(round_of(number, [A, C], [b, a, c], ended=False))
        buffer.add(round_of(number, [A], [b, *[a] * (number + 1)], ended=True))
    return buffer


def ends(examples: Any) -> list[int]:
    """Which answers, by the length of what the drafter read last."""
    return [len(each.tokens) for each in examples]


def test_rounds_of_one_answer_are_one_example() -> None:
    buffer = Buffer(PAIR, 8, 100, 1000)
    buffer.add(round_of(1, [A], [b, a], ended=False))
    buffer.add(round_of(2, [B], [c, b], ended=False))  # another answer comes between
    assert not buffer.examples and buffer.requests == 0
    buffer.add(round_of(1, [C, A], [b, a, c, a], ended=True))
    (found,) = buffer.take()
    assert found.tokens.tolist() == [b, a, c, a] and found.positions.tolist() == [1, 2, 3]
    assert found.owners.tolist() == found.rows.tokens[:, 0].tolist() == [A, C, A]
    assert buffer.requests == 0 and not buffer.fresh and list(buffer.examples) == [found]


def test_a_long_answer_is_cut_and_every_token_is_learned_once() -> None:
    buffer = Buffer(PAIR, 8, update_tokens=3, longest=1000)
    text: list[int] = [b]
    for number, token in enumerate([A, C, A, A, C, B, C]):
        text = [*text, {A: a, B: b, C: c}[token]]
        buffer.add(round_of(7, [token], text, ended=number == 6))
        assert buffer.cut == (number >= 2) and buffer.requests == (number == 6)
    learned = [each.tokens[each.positions].tolist() for each in buffer.examples]
    assert learned == [[a, c, a], [a, c, b], [c]]
    assert len(buffer.take()) == 3 and not buffer.fresh and not buffer.cut and buffer.requests == 0


def test_what_the_target_had_no_row_for_or_the_drafter_no_text_for_is_left_out() -> None:
    buffer = Buffer(PAIR, 8, 100, 1000)
    buffer.add(round_of(1, [A, C], [], ended=True))  # a decoder without a drafter
    assert not buffer.examples and buffer.requests == buffer.count == 0


@given(st.integers(0, 60))
def test_sizes_are_bounded_and_one_of_eight_is_held_out(answers: int) -> None:
    buffer = filled(answers)
    held_out = [number for number in range(1, answers + 1) if number % HELD_OUT == HELD_OUT // 2]
    learned = [number for number in range(1, answers + 1) if number not in held_out]
    assert ends(buffer.held_out) == [number + 1 for number in held_out][-KEPT_OUT:]
    assert ends(buffer.examples) == ends(buffer.fresh) == [number + 1 for number in learned][-8:]
    assert buffer.requests == buffer.count == answers


@given(st.integers(0, 30), st.integers(0, 12), st.sampled_from([2, 100]))
def test_a_state_is_all_that_the_buffer_is(before: int, after: int, update_tokens: int) -> None:
    buffer, again = filled(before, update_tokens), Buffer(PAIR, 8, update_tokens, 1000)
    buffer.take()
    for number in range(after):
        buffer.add(round_of(number, [C, A], [b, c, a], ended=bool(number % 3)))
    tensors, values = buffer.state()
    again.restore({name: each.clone() for name, each in tensors.items()}, json.loads(json.dumps(values)))
    for one, other in (
        (buffer.examples, again.examples),
        (buffer.held_out, again.held_out),
        (buffer.fresh, again.fresh),
    ):
        assert len(one) == len(other)
        assert all(same(x, y) for x, y in zip(one, other, strict=True))
    for name in ("requests", "count", "cut"):
        assert getattr(buffer, name) == getattr(again, name)
    assert all(any(x is y for y in again.examples) for x in again.fresh)


def same(one: Example, other: Example) -> bool:
    return all(
        all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(mine, its, strict=True))
        if isinstance(mine, TopK)
        else torch.equal(mine, its) and mine.dtype == its.dtype
        for mine, its in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("answers", [40])
def test_an_example_of_a_restored_buffer_holds_no_other_ones_in_memory(answers: int) -> None:
    tensors, values = filled(answers).state()
    again = Buffer(PAIR, 8, 100, 1000)
    again.restore(tensors, values)
    assert all(each.tokens.untyped_storage().nbytes() == 8 * len(each.tokens) for each in again.examples)
