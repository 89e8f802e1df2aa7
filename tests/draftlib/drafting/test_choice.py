"""Who proposes in a round, and how far a draft goes, on rounds of known costs and chances."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftlib.drafting.choice import DRAFT, PAUSE, Choice
from draftlib.drafting.cost_aware import CostAware, fates
from draftlib.drafting.costs import Costs
from draftlib.drafting.guess import Guess, Source
from draftlib.drafting.length import Drafted, FixedLength, Length
from draftlib.drafting.propose import Draft
from draftlib.round import Round
from draftlib.seconds import Seconds
from draftlib.state import State
from draftlib.verification.verify import Verdict
from draftlib.vocabulary.translate import Translation
from qlib.errors import DraftError

STEP, ROW = 0.1, 0.03  # seconds of a step of the drafter and of one more row; a pass takes 1


def round_of(drafted: list[float], accepted: int, number: int = 1, **fields: object) -> Round:
    """A round with a draft of these confidences, each token of it a target token."""
    k = len(drafted)
    draft = Draft(tuple(range(k)), torch.empty(k, 0), tuple(drafted), k) if k else None
    places = tuple(range(k))
    return Round(
        number,
        (0,) * number,
        (),
        draft,
        Translation(places, places, tuple(i + 1 for i in places)),
        verdict=Verdict(accepted, 0),
        tokens=(0,) * (accepted + 1),
        seconds=Seconds(draft=k * STEP, target=1 + ROW * k),
        **fields,  # type: ignore[arg-type]
    )


class Simulated:
    """A drafter whose tokens are accepted as often as its confidences say, times `truth`."""

    def __init__(self, rule: Length, seed: int = 0):
        self.rule, self.choice, self.random = rule, Choice(rule, ()), random.Random(seed)

    def round(self, truth: float, answer: int = 1) -> tuple[int, float]:
        """Go one round; return its tokens and seconds."""
        drafted: list[float] = []
        if self.choice.choose((), 99, answer, True) == DRAFT:
            while len(drafted) < self.rule.max_tokens:
                drafted.append(self.random.choice([0.3, 0.6, 0.9, 0.97]))
                if self.rule.stop([Drafted(0, Tensor(), each, Tensor()) for each in drafted]):
                    break
        right = [self.random.random() < each * truth for each in drafted]
        accepted = right.index(False) if False in right else len(right)
        found = round_of(drafted, accepted, answer=answer)
        self.choice.learn(found)
        return accepted + 1, found.seconds.decoding

    def rate(self, truth: float, rounds: int) -> float:
        """Return the tokens per second of so many rounds."""
        tokens, seconds = map(sum, zip(*(self.round(truth) for _ in range(rounds)), strict=True))
        return tokens / seconds


@pytest.mark.parametrize("truth", [1.0, 0.8, 0.5])
def test_cost_aware_is_as_good_as_the_best_fixed_length(truth: float) -> None:
    best = max(Simulated(FixedLength(k)).rate(truth, 2000) for k in range(1, 9))
    assert Simulated(CostAware()).rate(truth, 2000) > 0.97 * best


def test_where_drafting_never_pays_it_is_left() -> None:
    simulated = Simulated(CostAware())
    assert simulated.rate(0.0, 400) > 0.97  # the target alone writes 1 token a second
    assert Simulated(FixedLength(5)).rate(0.0, 400) < 0.7


def test_on_two_regimes_the_regret_grows_more_slowly_than_the_stream() -> None:
    """Against the best fixed length of each half, which is known afterwards."""
    simulated, lost = Simulated(CostAware()), []
    for truth in (0.95, 0.3):
        best = max(Simulated(FixedLength(k)).rate(truth, 1500) for k in range(1, 9))
        parts = [simulated.rate(truth, 500) for _ in range(3)]
        lost.append([max(0.0, best - part) for part in parts])
    for first, *_, last in lost:
        assert last <= max(first, 0.02)


def test_no_answer_loses_more_than_the_guard_allows() -> None:
    simulated = Simulated(CostAware())
    for _ in range(40):
        simulated.round(0.9, answer=1)  # it has paid so far
    rounds = [simulated.round(0.0, answer=2) for _ in range(200)]
    assert sum(seconds for _, seconds in rounds) < 1.03 * sum(tokens for tokens, _ in rounds) + 3


def test_a_drafter_that_was_left_is_tried_again() -> None:
    simulated = Simulated(CostAware())
    for _ in range(100):
        simulated.round(0.0)
    chosen = []
    for _ in range(3 * PAUSE):
        chosen.append(simulated.choice.choose((), 99, 7, True))
        simulated.choice.learn(round_of([], 0, answer=7))
    assert chosen.count(DRAFT) >= 1
    assert simulated.rate(1.0, 300) > 1.2  # and used again once it pays


class Fixed(Source):
    """Guesses the same tokens always."""

    name = "fixed"

    def guess(self, text: object) -> Guess:
        return Guess(self.name, tuple(range(9)), tuple(("fixed", i) for i in range(9)))


def test_a_guess_is_cut_where_it_stops_paying() -> None:
    choice = Choice(FixedLength(1), [Fixed()])
    for number in range(200):
        (guess,) = choice.guesses((0,))
        written = (*range(4), 99)  # the first four are right, the fifth is not
        found = replace(round_of([], 0, number + 1), guesses=(guess,), tokens=written)
        choice.learn(replace(found, seconds=Seconds(target=1.0)))
    for rows in range(2, 10):
        places = (0,) * (rows - 1)
        found = round_of([], 0)
        found = replace(found, translation=Translation(places, places, places))
        choice.costs.learn(replace(found, seconds=Seconds(target=1 + ROW * (rows - 1))))
    chosen = choice.choose(choice.guesses((0,)), 99, 1, drafter=False)
    assert isinstance(chosen, Guess) and chosen.tokens == (0, 1, 2, 3)
    short = choice.choose(choice.guesses((0,)), 2, 1, drafter=False)
    assert isinstance(short, Guess) and short.tokens == (0, 1)  # an answer with room for two
    assert choice.choose(choice.guesses((0,)), 0, 1, drafter=False) is None


def test_where_a_length_holds_for_every_round_a_bad_guess_is_no_reason_to_go_without() -> None:
    """Neither the drafter nor the source is ever right; a rule that is not optional drafts nevertheless."""
    choice = Choice(FixedLength(3), [Fixed()])
    for number in range(60):
        found = replace(round_of([0.5] * 3, 0, number + 1), guesses=choice.guesses((0,)), tokens=(99,))
        choice.learn(found)
        choice.learn(round_of([], 0, number + 1))
    for room in (99, 2, 1):
        assert choice.choose(choice.guesses((0,)), room, 1, drafter=True) == DRAFT
        assert choice.choose(choice.guesses((0,)), room, 1, drafter=False) is None


def test_what_became_of_draft_tokens() -> None:
    """20 is two pieces, accepted; 21 is rejected; what follows is unknown."""
    draft = Draft((5, 6, 7, 8), torch.empty(4, 9), (0.5,) * 4, horizon=4)
    spans = Translation(tokens=(20, 21, 22), starts=(0, 2, 3), stops=(2, 3, 4))
    found = Round(1, (), (), draft, spans, verdict=Verdict(1, 30), tokens=(20, 30))
    assert fates(found) == [0.5, 0.5, 0.0, None]
    whole = replace(found, verdict=Verdict(3, 30), tokens=(20, 21, 22, 30))
    assert fates(whole) == [0.5, 0.5, 1.0, 1.0]
    spans = Translation(tokens=(20,), starts=(0,), stops=(2,))  # nothing translates 7
    found = replace(found, translation=spans, verdict=Verdict(1, 30), tokens=(20, 30))
    assert fates(found) == [0.5, 0.5, 0.0, None]


def test_costs_are_medians_and_lie_between_what_was_measured() -> None:
    costs = Costs()
    assert costs.plain is None and costs.step is None
    for seconds in (1.0, 1.0, 50.0):  # other work has interrupted the last one
        costs.learn(replace(round_of([], 0), seconds=Seconds(target=seconds)))
    costs.learn(replace(round_of([0.5] * 4, 0), seconds=Seconds(target=2.0, draft=0.4)))
    assert costs.plain == 1.0 and costs.step == pytest.approx(0.1)
    assert costs.round(0) == 1.0 and costs.round(4) == 2.0 and costs.round(2) == 1.5
    assert 2.0 < costs.round(8) < 2.5


# --- who proposes, on rates that are set by hand


class Named(Source):
    """Guesses n tokens of a kind of its own, which are right as often as `share` says."""

    def __init__(self, name: str, share: float, n: int = 3):
        self._name, self.share, self.n = name, share, n

    @property
    def name(self) -> str:
        return self._name

    def guess(self, text: object) -> Guess:
        return Guess(self.name, (7,) * self.n, (self.name,) * self.n)


def settled(length: Length, *sources: Named, drafts: tuple[int, int] | None = None) -> Choice:
    """A choice of known rates and costs; `drafts`: tokens drafted and accepted in each of its rounds."""
    choice = Choice(length, sources)
    for source in sources:
        choice.rates.put((source.name, source.name), 1000 * source.share, 1000)
    for answer in range(30):
        choice.learn(round_of([], 0, answer=answer, ended=True))
        if drafts is not None:
            choice.learn(round_of([0.5] * drafts[0], drafts[1], answer=answer, ended=True))
    return choice


@pytest.mark.parametrize("shares", [(0.9, 0.5), (0.5, 0.9)])
def test_of_several_guesses_the_best_one_proposes(shares: tuple[float, float]) -> None:
    choice = settled(CostAware(), *(Named(f"{share}", share) for share in shares))
    chosen = choice.choose(choice.guesses((0,)), 99, 0, drafter=False)
    assert isinstance(chosen, Guess) and chosen.source == "0.9" and len(chosen.tokens) == 3


@pytest.mark.parametrize(("share", "expected"), [(0.95, "known"), (0.4, DRAFT)])
def test_a_guess_and_the_drafter_compete_by_tokens_a_second(share: float, expected: str) -> None:
    """The drafter writes 3 tokens in 1.26 passes, 2.4 a pass; the guess 3.7 in 1.09, or 1.6."""
    choice = settled(FixedLength(2), Named("known", share), drafts=(2, 2))
    chosen = choice.choose(choice.guesses((0,)), 99, 0, drafter=True)
    assert (chosen.source if isinstance(chosen, Guess) else chosen) == expected


def test_after_a_draft_the_pause_begins_anew() -> None:
    choice = settled(CostAware(), drafts=(4, 0))
    for number in range(3):
        for _ in range(PAUSE - 1):
            choice.learn(round_of([], 0, answer=9))
            assert number or choice.choose((), 99, 9, drafter=True) in (None, DRAFT)
        assert choice.choose((), 99, 9, drafter=True) is None
        choice.learn(round_of([], 0, answer=9))
        assert choice.choose((), 99, 9, drafter=True) == DRAFT
        choice.learn(round_of([0.5] * 4, 0, answer=9))


def test_the_account_of_an_answer_ends_with_it() -> None:
    assert settled(CostAware(), drafts=(4, 0))._accounts == {}


def test_a_drafter_is_judged_after_four_rounds() -> None:
    choice = Choice(CostAware(), ())
    for answer in range(3):
        choice.learn(round_of([], 0, answer=answer, ended=True))
    for number in range(5):
        assert (choice.choose((), 99, 9, drafter=True) == DRAFT) == (number < 4)
        choice.learn(round_of([0.5] * 4, 0, answer=number, ended=True))


def test_the_counts_of_a_length_rule_come_back() -> None:
    rule, again = CostAware(), CostAware()
    for confidence, accepted in ((0.3, 0), (0.6, 1), (0.97, 2), (0.97, 2)):
        rule.learn(round_of([confidence] * 2, accepted))
    again.restore(rule.state())
    for kept in ("_accepted", "_gain"):
        mine, its = getattr(rule, kept), getattr(again, kept)
        assert dict(its).items() >= dict(mine).items() and len(dict(mine)) > 1
        assert all(its.of(kind, 0.3) == mine.of(kind, 0.3) for kind in range(12))
    for wrong in (torch.full((12, 2), -1.0), torch.full((12, 2), torch.nan), torch.zeros(11, 2)):
        with pytest.raises(DraftError, match="'gain' holds no counts"):
            again.restore(State({**rule.state().tensors, "gain": wrong}, {}))
