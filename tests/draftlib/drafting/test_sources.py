"""Sources that guess without a drafter, against brute force and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftlib.drafting.guess import LONGEST, Guess, Rates
from draftlib.drafting.lookup import AnswerLookup, SuffixIndex, TextLookup
from draftlib.drafting.recycle import Recycling
from draftlib.drafting.tail import RejectedTail
from draftlib.round import Round
from draftlib.state import State
from draftlib.verification.verify import Verdict
from draftlib.vocabulary.translate import Translation
from qlib.errors import DraftError

Texts = st.lists(st.integers(0, 3), min_size=2, max_size=30)


def round_of(
    context: list[int], tokens: list[int], proposed: tuple[int, ...] = (), **fields: object
) -> Round:
    """A round in which the target wrote `tokens` after `context`."""
    rows = torch.eye(8)[[*tokens, *[0] * (len(proposed) + 1 - len(tokens))]]
    nothing = (0,) * len(proposed)
    return Round(
        1,
        tuple(context),
        (),
        translation=Translation(proposed, nothing, nothing),
        rows=rows,
        verdict=Verdict(len(tokens) - 1, tokens[-1]),
        tokens=tuple(tokens),
        **fields,  # type: ignore[arg-type]
    )


@given(Texts, Texts)
def test_the_longest_match_against_brute_force(known: list[int], text: list[int]) -> None:
    index = SuffixIndex()
    index.extend(known)
    lengths = {
        at: next((n for n in range(min(at, len(text)), 0, -1) if known[at - n : at] == text[-n:]), 0)
        for at in range(1, len(known))
    }
    best = max(lengths.values(), default=0)
    found = index.longest(text)
    if best < 2:
        assert found is None
    else:
        assert found == (max(at for at, length in lengths.items() if length == best), best)


def test_of_a_common_pair_the_latest_places_are_looked_at() -> None:
    index = SuffixIndex()
    index.extend([token for follower in range(100, 200) for token in (1, 2, follower)])
    assert index.longest([1, 2]) == (3 * 99 + 2, 2)
    assert index.longest([3, 199, 1, 2]) == (3 * 99 + 2, 2)
    assert index.longest([198, 1, 2]) == (3 * 99 + 2, 3) and index.following(3 * 99 + 2) == (199,)
    assert index.longest([110, 1, 2]) == (3 * 99 + 2, 2)  # 88 places ago: too far


def test_a_text_is_looked_up_in_itself_as_it_grows() -> None:
    source, text = TextLookup(), [1, 2, 3, 4, 5, 1, 2]
    guess = source.guess(text)
    assert guess.tokens == (3, 4, 5, 1, 2)
    assert guess.kinds == tuple(("suffix", length) for length in (2, 3, 4, 6, 6))  # 5 and 6 are one kind
    index = source._index
    assert source.guess([*text, 3, 4]).tokens == source.guess([*text, 3, 4]).tokens == (5, 1, 2, 3, 4)
    assert source.guess([*text, 3, 4, 6]).tokens == () and source._index is index  # it only grew
    assert source.guess([7, 8, 9]).tokens == ()  # another text: nothing of the first one is left
    assert source.guess([3, 4, 7, 3, 4]).tokens == (7, 3, 4)


def test_earlier_answers_are_looked_up_once_they_have_ended() -> None:
    source = AnswerLookup(max_tokens=20)
    source.learn(round_of([9, 1, 2], [3, 4], answer=1))
    assert source.guess([0, 1, 2]).tokens == ()
    source.learn(round_of([9, 1, 2, 3, 4], [5], answer=1, ended=True))
    assert source.guess([0, 1, 2]).tokens == (3, 4, 5)
    other = AnswerLookup(max_tokens=20)
    other.restore(source.state())
    assert other.guess([0, 1, 2]).tokens == (3, 4, 5)
    with pytest.raises(DraftError, match="9 tokens of answers are more than the 8"):
        AnswerLookup(max_tokens=8).restore(State({"tokens": torch.ones(9, dtype=torch.int32)}, {}))
    for number in range(2, 9):
        source.learn(round_of([6, 6], [7, 7, 7], answer=number, ended=True))
    assert source.guess([0, 1, 2]).tokens == () and len(source.state().tensors["tokens"]) <= 20


def test_recycling_follows_what_the_target_found_most_probable() -> None:
    source = Recycling()
    assert source.guess([1]).tokens == ()
    source.learn(round_of([1], [2, 3], proposed=(2,)))  # behind 1 comes 2, behind 2 comes 3
    assert source.guess([5, 1]).tokens == (2, 3)
    source.learn(round_of([3], [1]))
    assert source.guess([1]).tokens == (2, 3)  # 1 would come twice
    other = Recycling()
    other.restore(source.state())
    assert other.guess([2]).tokens == source.guess([2]).tokens == (3, 1)


def test_the_rejected_tail_is_tried_where_the_text_rejoins_it() -> None:
    source = RejectedTail()
    source.learn(round_of([0], [1, 5], proposed=(1, 2, 3, 4)))
    assert source.guess([0, 1, 5]).tokens == (3, 4)  # 5 has replaced 2
    assert source.guess([0, 1, 5, 3]).tokens == ()  # once
    source.learn(round_of([0], [1, 3], proposed=(1, 2, 3, 4)))
    assert source.guess([0, 1, 3]).tokens == (4,)  # 2 was skipped
    source.learn(round_of([0], [1, 2, 6], proposed=(1, 2)))
    assert source.guess([0, 1, 2, 6]).tokens == ()


@given(Texts)
def test_a_guess_is_never_longer_than_what_can_be_verified(text: list[int]) -> None:
    guess = TextLookup().guess(text * 3)
    assert len(guess.tokens) == len(guess.kinds) <= LONGEST


def test_rates_count_up_to_the_first_wrong_token() -> None:
    rates = Rates()
    rates.learn(Guess("x", (1, 2, 3), ("a", "b", "c")), (1, 7, 3))
    assert rates.of(("x", "a")) == (1 + 2 * 0.5) / 3 and rates.of(("x", "b")) == 1 / 3
    assert rates.of(("x", "c")) == 0.5  # what follows a wrong token was never asked about
    assert rates.of(("y", "a")) == 0.5  # another source may name its kinds alike
    for _ in range(2000):
        rates.seen(("x", "a"), 0)
    assert rates.of(("x", "a")) < 0.01  # old ones are forgotten
