"""How far to draft, by what a token gains and what it costs: no training, no threshold to tune.

Problem   One more draft token is worth it where it is accepted often enough to pay for a step of the drafter
          and a longer pass of the target. How often that is depends on the drafter's probability of it, and
          on how much that is worth with this target and this kind of text.
Rule      With d_1..d_i drafted, of confidences c_1..c_i, stop when

              1.25 * a(c_1) a(c_2) .. a(c_i) * n(c_i)  <  rate * (step + row)

          a(c): share of the tokens of such confidence that were accepted lately, where all before them were
          n(c): target tokens that the token *after* one of such confidence gained lately, where that one was
                accepted; a token that is one of three pieces of a target token gains a third
          rate: tokens per second of the latest rounds;  step, row: seconds (`costs.py`)
          1.25: an accepted token also makes room for further ones

          What n(c) is, is seen only where the draft went on. So every `EXPLORE`-th draft goes on once more
          than it should: without, a kind that was unlucky for a while would never be tried again.

          The left side are the tokens that one more draft token gains, the right side those that are written
          in the same time without it. A rule that stops where the two are equal has the greatest rate of all
          (the marginal value theorem of renewal theory), once `rate` is its own.
Lossless  It looks at what was drafted, and at earlier rounds. The newest token is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draftlib.drafting.choice import Recent
from draftlib.drafting.costs import Costs
from draftlib.drafting.guess import Rates
from draftlib.drafting.length import Drafted, Length, whole_length
from draftlib.state import State
from qlib.errors import DraftError

if TYPE_CHECKING:
    from draftlib.round import Round

BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # of the kinds of confidences
EXPLORE = 16  # every so many-th draft is one token longer: what is never tried is never known better
LOOKAHEAD = 1.25  # of 1, 1.25 and 1.5 the best on HumanEval and Alpaca, by up to 2 %
STEP = 0.1  # of a pass of the target: a step of the drafter, before one was measured


class CostAware(Length):
    """Stop where one more token costs more than it is expected to gain.

    It learns from every round, also from those without a draft, and lets rounds go without one where that is
    quicker (`choice.py`). Its lengths follow measured times: they differ from run to run, and so does text
    that is sampled by another rule of verification than "exact", which does not depend on them.

    Parameters
    ----------
    max_tokens : int
        Most tokens of a round.

    Raises
    ------
    DraftError
        `max_tokens` is no whole number of 1 or more.
    """

    optional = True

    def __init__(self, max_tokens: int = 12):
        self.max_tokens = whole_length(max_tokens, "CostAware: max_tokens")
        self.costs, self._recent = Costs(), Recent()
        self._accepted, self._gain = Rates(), Rates()
        self._drafts, self._explored = 0, False

    def __repr__(self) -> str:
        return f"CostAware(max_tokens={self.max_tokens})"

    def stop(self, drafted: Sequence[Drafted]) -> bool:
        """Return whether one more token is expected to cost more than it gains."""
        alive = 1.0
        for each in drafted:
            alive *= self._accepted.of(_kind(each.confidence), each.confidence)
        newest = drafted[-1].confidence
        gain = LOOKAHEAD * alive * self._gain.of(_kind(newest), 0.6)
        count, plain = len(drafted), self.costs.round(0)
        rate = self._recent.rate or 1 / plain
        step = STEP * plain if self.costs.step is None else self.costs.step
        row = self.costs.round(count + 1) - self.costs.round(count)
        pays = gain >= rate * (step + max(row, 0.0))
        if pays or self._drafts % EXPLORE or self._explored:
            return not pays
        self._explored = True
        return False

    def learn(self, round: Round) -> None:
        """Count which drafted tokens were accepted, and what the round took."""
        self.costs.learn(round)
        seconds = self.costs.round(len(round.proposed))
        if round.draft is not None:
            self._drafts, self._explored = self._drafts + 1, False
            seconds += len(round.draft.tokens) * (self.costs.step or 0.0)
            self._count(round.draft.confidences, fates(round))
        self._recent.add(len(round.tokens), seconds)

    def state(self) -> State:
        """Return the counts by confidence."""
        counts = {"accepted": self._accepted, "gain": self._gain}
        return State({name: _table(rates) for name, rates in counts.items()}, {})

    def restore(self, state: State) -> None:
        """Take back what `state` gave; times are measured anew."""
        for name, rates in (("accepted", self._accepted), ("gain", self._gain)):
            table = state.tensor(name)
            if table.shape != (len(BOUNDS) + 1, 2) or not bool((table >= 0).all()):
                raise DraftError(f"The tensor {name!r} holds no counts: the state is damaged.")
            for kind, (right, seen) in enumerate(table.tolist()):
                rates.put(kind, right, seen)

    def _count(self, confidences: Sequence[float], gains: Sequence[float | None]) -> None:
        for i, (confidence, gained) in enumerate(zip(confidences, gains, strict=True)):
            if gained is None:
                return
            self._accepted.seen(_kind(confidence), gained > 0)
            if i:
                self._gain.seen(_kind(confidences[i - 1]), gained)


def fates(round: Round) -> list[float | None]:
    """Return for each draft token the target tokens that it gained: 0 where rejected, None where unknown.

    A piece of an accepted target token of n pieces gained 1/n. What follows the first rejected token
    was never looked at. A token that nothing translates is rejected.
    """
    assert round.draft is not None
    gains: list[float | None] = []
    for i, (start, stop) in enumerate(round.spans):
        accepted = i < round.accepted
        gains += [1 / (stop - start)] * (stop - start) if accepted else [0.0]
        if not accepted:
            break
    else:
        if len(gains) < len(round.draft.tokens) and not round.ended:
            gains.append(0.0)
    return [*gains, *[None] * (len(round.draft.tokens) - len(gains))]


def _table(rates: Rates) -> Tensor:
    """Return the counts of all kinds of confidence, [kinds, 2]: right ones, and all."""
    table = torch.zeros(len(BOUNDS) + 1, 2, dtype=torch.float64)
    for kind, counts in rates:
        assert isinstance(kind, int)
        table[kind] = torch.tensor(counts, dtype=table.dtype)
    return table


def _kind(confidence: float) -> int:
    return bisect_right(BOUNDS, confidence)
