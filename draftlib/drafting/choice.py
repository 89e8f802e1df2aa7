"""Who proposes in a round: the drafter, a source that costs nothing, or nobody.

Problem   A round yields the accepted tokens and one more. A draft costs k steps of the drafter and a longer
          pass of the target; a guess costs only the longer pass; nothing costs nothing and yields one token.
Rule      Take what promises the most tokens per second:

              nobody      1 / t(0)
              a guess     (1 + E(n)) / t(n),  E(n) = sum over i <= n of r_1 r_2 .. r_i,  the best n
              the drafter (tokens / seconds) of its latest rounds

          t(n): seconds of a round that verifies n tokens (`costs.py`); r_i: how often tokens of the kind of
          token i were right lately (`guess.Rates`). "Nobody" is a choice where the rule for the draft length
          allows it (`Length.optional`), and where there is no drafter.
Guard     A drafter that did not pay is tried again after `PAUSE` rounds. No answer may lose by such trials:
          its account holds the seconds that it has taken beyond those of the target alone. While it is in
          debt by more than `DEBT` of its length, and drafting does not clearly pay, nobody proposes.
Lossless  The choice is made before the round, from what earlier rounds have shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from draftlib.drafting.costs import Costs
from draftlib.drafting.guess import LONGEST, Guess, Rates, Source, checked_guess
from draftlib.drafting.length import Length
from draftlib.open_answers import of_answer

if TYPE_CHECKING:
    from draftlib.round import Round

PAUSE = 24  # rounds without the drafter before it is tried again
DEBT = 0.02  # of the time that the target alone would have taken
ALLOWED = 0.5  # of a pass, which every answer may lose: the first trial has to be possible
FIRST = 6  # rounds with a draft in a row, after which one without measures the target alone, until two have
REFRESH = 128  # such rounds, after which one measures it again
TRIED = 4  # rounds of the drafter, before it is judged
MEMORY = 16  # rounds that the drafter's expected gain rests on
CLEARLY = 1.03  # times the target's own rate: a drafter that gained so much lately may get into debt

DRAFT: Literal["draft"] = "draft"  # the choice of the drafter, and its name in statistics


@dataclass
class Account:
    """What an answer took, and what the target alone would have taken for the same tokens, in seconds."""

    spent: float = 0.0
    alone: float = 0.0

    def in_debt(self, plain: float) -> bool:
        """Return whether the answer has lost more than it may."""
        return self.spent - self.alone > DEBT * self.alone + ALLOWED * plain


class Recent:
    """Tokens and seconds of the latest rounds: each round counts less than the next one."""

    def __init__(self) -> None:
        self.tokens = self.seconds = 0.0
        self.rounds = 0

    def add(self, tokens: int, seconds: float) -> None:
        """Add a round."""
        self.rounds += 1
        kept = 1 - 1 / MEMORY
        self.tokens, self.seconds = self.tokens * kept + tokens, self.seconds * kept + seconds

    @property
    def rate(self) -> float | None:
        """Tokens a second; None before the first round."""
        return self.tokens / self.seconds if self.seconds else None


class Choice:
    """Decides who proposes in a round, and learns from what came of it.

    Parameters
    ----------
    length : Length
        How many tokens the drafter drafts, and whether it may be passed over.
    sources : sequence of Source
        What guesses.

    Attributes
    ----------
    costs : Costs
        Of passes and steps.
    rates : Rates
        How often guesses of each kind were right.
    """

    def __init__(self, length: Length, sources: Sequence[Source]):
        self.length, self.sources = length, tuple(sources)
        self.costs, self.rates = Costs(), Rates()
        self._drafter = Recent()
        self._since_draft = self._since_plain = 0
        self._accounts: dict[int, Account] = {}

    def guesses(self, text: Sequence[int]) -> tuple[Guess, ...]:
        """Return what all sources guess after a text of target tokens; those without a guess are left out.

        Raises
        ------
        DraftError
            What a source returns is no guess of its own.
        """
        found = [checked_guess(source.guess(text), source.name) for source in self.sources]
        return tuple(guess for guess in found if guess.tokens)

    def choose(
        self, guesses: Sequence[Guess], room: int, answer: int, drafter: bool
    ) -> Guess | Literal["draft"] | None:
        """Return who proposes: one of the guesses, as long as it pays, the drafter, or nobody.

        Parameters
        ----------
        guesses : sequence of Guess
            Of this round.
        room : int
            Most tokens that may be proposed.
        answer : int
            Number of the answer, for its account.
        drafter : bool
            Whether there is one.
        """
        optional = not drafter or self.length.optional
        if room < 1 or (optional and self._must_be_plain(answer)):
            return None
        plain = 1 / self.costs.round(0)
        paying = [cut for guess in guesses if self.rate_of(cut := self._cut(guess, room)) > plain]
        best = max(paying, key=self.rate_of, default=None)
        if drafter:
            rate = self._drafter_rate
            if self._since_draft >= PAUSE:
                return DRAFT
            if (rate > plain or not optional) and (best is None or self.rate_of(best) <= rate):
                return DRAFT
        return best

    def rate_of(self, guess: Guess) -> float:
        """Return the tokens per second that a guess promises."""
        return (1 + sum(self._expected(guess))) / self.costs.round(len(guess.tokens))

    def learn(self, round: Round) -> None:
        """Count what came of a round."""
        self.costs.learn(round)
        self.length.learn(round)
        for guess in round.guesses:
            self.rates.learn(guess, round.tokens)
        for source in self.sources:
            source.learn(round)
        # Medians and not the clock: a round that other work has interrupted says nothing of drafting.
        seconds = self.costs.round(len(round.proposed))
        self._since_draft += 1
        self._since_plain = self._since_plain + 1 if round.proposed or round.draft else 0
        if round.draft is not None:
            seconds += len(round.draft.tokens) * (self.costs.step or 0.0)
            self._drafter.add(len(round.tokens), seconds)
            self._since_draft = 0
        account = of_answer(self._accounts, round.answer, Account)
        account.spent += seconds
        account.alone += len(round.tokens) * self.costs.round(0)
        if round.ended:
            del self._accounts[round.answer]

    # --- inside

    def _must_be_plain(self, answer: int) -> bool:
        if self._since_plain >= (REFRESH if self.costs.plain_rounds > 1 else FIRST):
            return True
        account, plain = self._accounts.get(answer), self.costs.round(0)
        if account is None or self._drafter_rate > CLEARLY / plain:
            return False
        return account.in_debt(plain)

    @property
    def _drafter_rate(self) -> float:
        """Tokens a second of the drafter's latest rounds; infinite before a few were tried."""
        rate = self._drafter.rate
        return math.inf if rate is None or self._drafter.rounds < TRIED else rate

    def _cut(self, guess: Guess, room: int) -> Guess:
        """Return the beginning of a guess that promises the most tokens per second."""
        tokens, best, gain = 0, 1 / self.costs.round(0), 0.0
        for n, share in enumerate(self._expected(guess), 1):
            gain += share
            if n <= min(room, LONGEST) and (rate := (1 + gain) / self.costs.round(n)) > best:
                tokens, best = n, rate
        return replace(guess, tokens=guess.tokens[:tokens], kinds=guess.kinds[:tokens])

    def _expected(self, guess: Guess) -> Iterator[float]:
        """Yield for each token of a guess how likely it is accepted, with all before it."""
        share = 1.0
        for kind in guess.kinds:
            share *= self.rates.of((guess.source, kind))
            yield share
