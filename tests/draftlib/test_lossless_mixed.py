"""Losslessness where rounds are mixed: a drafter, each source and nobody propose in one and the same answer.

The real decoder on miniatures of two and three tokens runs once for every outcome of every random decision;
who proposes follows a plan. The sum of the probabilities is the exact distribution of the text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import pytest
import torch
from drafting_toys import Distribution, every_way, total_variation

from draftlib import FixedLength, NGramCache, SpeculativeDecoder
from draftlib.arguments import Verify
from draftlib.drafting.choice import DRAFT, Choice
from draftlib.drafting.guess import Guess, Source
from draftlib.drafting.sources import ALL, as_sources
from draftlib.round import Round
from draftlib.state import State
from draftlib.verification.draws import RandomDraws
from draftlib.verification.rejection import verify_rejection
from draftlib.verification.revealed import Proposed
from draftlib.verification.rules import RULES, VerifyInputs
from draftlib.verification.verify import Verdict, verify_exact
from qlib.models.llama import Llama
from qlib.models.tiny import tiny_llama

PIECES = ("Ġt", "he", "Ġa")
PROMPT = "the a the a the"
NOBODY = ""


def only(model: Llama, pieces: Sequence[str]) -> Llama:
    """The model, in float64, saying nothing but these tokens, none of them for sure."""
    assert model.tokenizer is not None
    silence = torch.full((model.config.vocab_size,), -torch.inf, dtype=torch.float64)
    silence[[model.tokenizer.token_id(piece) for piece in pieces]] = 0
    model = model.double()
    model.logits = lambda hidden: model.lm_head(hidden) / 4 + silence  # type: ignore[method-assign]
    return model


class Planned(Choice):
    """Lets propose whom a plan names, round by round; where a source has no guess, nobody does."""

    def __init__(self, plan: Sequence[str], sources: Sequence[Source]):
        super().__init__(FixedLength(2), sources)
        self._left = list(plan)
        self.proposed: set[str] = set()

    def choose(
        self, guesses: Sequence[Guess], room: int, answer: int, drafter: bool
    ) -> Guess | Literal["draft"] | None:
        name = self._left.pop(0) if self._left else DRAFT
        found = next((guess for guess in guesses if guess.source == name), None)
        if room < 1 or (name != DRAFT and found is None):
            return None
        self.proposed.add(name)
        if found is None:
            return DRAFT
        return replace(found, tokens=found.tokens[:room], kinds=found.kinds[:room])

    def learn(self, round: Round) -> None:
        for source in self.sources:
            source.learn(round)


class Mixed:
    """A decoder whose sources know something from earlier answers, begun anew for every run."""

    def __init__(self, verify: Verify, plan: Sequence[str]):
        self.target = only(tiny_llama(27), PIECES)
        self.decoder = SpeculativeDecoder(self.target, only(tiny_llama(1), PIECES[:2]), verify=verify)
        assert self.target.tokenizer is not None
        self.prompt = self.target.tokenizer.encode(PROMPT)
        self.plan, self.proposed = plan, set[str]()
        t, he, a = (self.target.tokenizer.token_id(piece) for piece in PIECES)
        successors = torch.full((self.target.config.vocab_size,), -1, dtype=torch.int32)
        successors[[t, he, a]] = torch.tensor([he, a, t], dtype=torch.int32)
        earlier = torch.tensor([a, t, he, he, a, t, a, -1], dtype=torch.int32)
        self._known = {"recycle": {"successors": successors}, "answers": {"tokens": earlier}}

    def answer(self, count: int, **options: Any) -> tuple[int, ...]:
        self.decoder._choice = choice = Planned(self.plan, as_sources(ALL))
        self.decoder.cache = NGramCache()
        for source in choice.sources:
            if source.name in self._known:
                source.restore(State(self._known[source.name], {}))
        found = self.decoder.generate(self.prompt, max_new_tokens=count, **options)
        self.proposed |= choice.proposed
        return found.tokens

    def distribution(self, monkeypatch: pytest.MonkeyPatch, count: int) -> Distribution:
        """The exact distribution of the first `count` tokens of answers that have room for one more."""

        def drawn(inputs: VerifyInputs) -> Verdict:  # a draw by noise, as a draw that can be enumerated
            return Verdict(0, inputs.draws.categorical(inputs.logprobs[0].exp()))

        def run(draws: RandomDraws) -> tuple[int, ...]:
            monkeypatch.setattr("draftlib.answer.RandomDraws", lambda seed: draws)
            return self.answer(count + 1, temperature=1.0)[:count]

        monkeypatch.setitem(RULES, "exact", drawn)
        found: Distribution = defaultdict(float)
        for probability, tokens in every_way(run):
            found[tokens] += probability
        return found

    def alone(self, count: int, text: tuple[int, ...] = ()) -> Distribution:
        """The distribution of the target's own text, in one pass for every text."""
        if not count:
            return {(): 1.0}
        p = self.target(torch.tensor([[*self.prompt, *text]]))[0, -1].softmax(-1)
        return {
            (token, *rest): float(p[token]) * share
            for token in p.nonzero().flatten().tolist()
            for rest, share in self.alone(count - 1, (*text, token)).items()
        }


PLANS = [
    ("draft", "tail"),
    ("draft", "suffix"),
    ("suffix", "draft"),
    ("answers", "recycle"),
    ("recycle", "tail"),
    ("suffix", NOBODY),
    (NOBODY, "answers"),
]
by_plan = pytest.mark.parametrize("plan", PLANS, ids="-".join)


@by_plan
@pytest.mark.parametrize("verify", ["path_revealed", "point_mass", "ratio"])
def test_mixed_rounds_leave_the_distribution_of_the_target(
    verify: Verify, plan: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the paper's rule too: without n-grams it is exact."""
    mixed = Mixed(verify, plan)
    found, alone = mixed.distribution(monkeypatch, 2), mixed.alone(2)
    assert len(alone) == 9 and min(alone.values()) > 1e-3
    assert total_variation(found, alone) < 1e-12
    assert mixed.proposed >= {*plan} - {NOBODY}


@by_plan
@pytest.mark.parametrize(
    ("verify", "options"),
    [*((verify, {}) for verify in get_args(Verify)), ("exact", {"temperature": 0.8})],
    ids=str,
)
def test_mixed_rounds_write_the_very_same_text(
    verify: Verify, plan: Sequence[str], options: dict[str, float]
) -> None:
    """Greedy by every rule, sampled by shared noise."""
    mixed = Mixed(verify, [*plan, *ALL] * 6)
    for seed in range(6):
        plain = mixed.decoder.generate_target_only(mixed.prompt, max_new_tokens=24, seed=seed, **options)
        assert mixed.answer(24, seed=seed, **options) == plain.tokens
    assert mixed.proposed >= {*plan} - {NOBODY}


# --- the enumeration has teeth


def unverified(inputs: VerifyInputs) -> Verdict:
    """The first guessed token stands, whatever the target thinks of it."""
    return Verdict(1, inputs.draws.categorical(inputs.logprobs[1].exp()))


def as_if_drawn(inputs: VerifyInputs) -> Verdict:
    """A guess judged as if it had been drawn, with probability 1/2 and nothing else likely."""
    q = torch.zeros_like(inputs.logprobs[0])
    q[inputs.proposed[0]] = 0.5
    proposal = Proposed(inputs.proposed[0], q)
    return verify_rejection([proposal], inputs.logprobs[:2], inputs.draws)


@pytest.mark.parametrize("wrong", [unverified, as_if_drawn], ids=lambda wrong: wrong.__name__)
@by_plan
def test_a_wrong_rule_for_guesses_is_caught(
    wrong: Callable[[VerifyInputs], Verdict], plan: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = Mixed("path_revealed", plan)
    right = RULES["point_mass"]
    monkeypatch.setitem(RULES, "point_mass", lambda i: wrong(i) if i.proposed else right(i))
    assert total_variation(mixed.distribution(monkeypatch, 2), mixed.alone(2)) > 1e-3


def one_position_late(inputs: VerifyInputs) -> Verdict:
    rows = inputs.noise.rows(inputs.position + (inputs.draft is None), len(inputs.proposed) + 1)
    return verify_exact(inputs.proposed, inputs.logprobs, rows)


@by_plan
def test_the_noise_of_another_position_is_caught(
    plan: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = Mixed("exact", plan)
    options: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.8}
    plain = [mixed.decoder.generate_target_only(mixed.prompt, seed=seed, **options) for seed in range(6)]
    monkeypatch.setitem(RULES, "exact", one_position_late)
    texts = [mixed.answer(24, temperature=0.8, seed=seed) for seed in range(6)]
    assert texts != [each.tokens for each in plain]
