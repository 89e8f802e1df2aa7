"""Losslessness: the distribution of the text by exact enumeration, and the text itself with shared noise.

Enumeration runs the real drafting and verification over every outcome. It must also be able to fail: the
paper's rule, and others that look right, are caught by the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from drafting_toys import (
    DrawsLast,
    Enumeration,
    Round,
    Rule,
    Toy,
    distance,
    target_first_tokens,
    total_variation,
    translate_plainly,
)

from draftlib.drafting.coupled import Coupled
from draftlib.drafting.length import Confidence, Entropy, FixedLength, Length
from draftlib.drafting.propose import propose
from draftlib.verification.draws import RandomDraws
from draftlib.verification.noise import GumbelNoise, splitmix
from draftlib.verification.rejection import ratio, verify_rejection
from draftlib.verification.revealed import path_revealed
from draftlib.verification.verify import Verdict, choose, verify_exact, verify_greedy, verify_point_mass
from draftlib.vocabulary.ngram_table import NGramTable
from draftlib.vocabulary.ngram_trie import Tokens

Keys = dict[Tokens, int]
A, B, C, AB, ABC, BC = range(6)
a, b, c = range(3)
DIRECT: Keys = {(a,): A, (b,): B, (c,): C}

DICTIONARIES: dict[str, Keys] = {
    "direct map only": DIRECT,
    "bigram": DIRECT | {(a, b): AB},
    "bigram and trigram": DIRECT | {(a, b): AB, (a, b, c): ABC},
    "gap: abc without ab": DIRECT | {(a, b, c): ABC},
    "gap and overlap": DIRECT | {(a, b, c): ABC, (b, c): BC, (b, a): AB},
    "gap, then another": DIRECT | {(a, b, c): ABC, (b, a): AB},
    "two spellings": DIRECT | {(a, b): AB, (b, a): AB, (c, c): C},
    "two tokens, one meaning": {(a,): A, (b,): A, (c,): C, (a, c): BC},
    "b is unmappable": {(a,): A, (c,): C, (a, b): AB},
    "a and b are unmappable": {(c,): C, (a, b): AB, (b, c, a): BC},
    "keys of itself": DIRECT | {(a, a): AB, (a, a, a): ABC, (a, a, a, a): BC},
    "long, with gaps": {(a,): A, (b,): B, (a, b, a, b): ABC, (b, a, c): BC, (a, b): AB},
}


def random_keys(seed: int) -> Keys:
    """A random dictionary: some tokens unmappable, up to six n-grams of two to four tokens."""
    generator = torch.Generator().manual_seed(seed)

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    keys: Keys = {(token,): pick(6) for token in range(3) if pick(4)}
    for _ in range(1 + pick(6)):
        keys[tuple(pick(3) for _ in range(2 + pick(3)))] = pick(6)
    return keys


# --- the rules, as functions of a round


Judge = Callable[[RandomDraws], Verdict]


def greedy(seen: Round) -> Judge:
    return lambda draws: verify_greedy(seen.proposed, seen.rows)


def point_mass(seen: Round) -> Judge:
    return lambda draws: verify_point_mass(seen.proposed, seen.rows, draws)


def revealed(seen: Round) -> DrawsLast:
    proposals = path_revealed(seen.draft, seen.keys, seen.rows.shape[1])
    assert [proposal.token for proposal in proposals] == seen.proposed
    for _, probabilities in proposals:
        assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    return DrawsLast(lambda draws: verify_rejection(proposals, seen.rows, draws))


def paper(seen: Round) -> DrawsLast:
    proposals = ratio(seen.draft, seen.keys, seen.spans, seen.rows.shape[1])
    return DrawsLast(lambda draws: verify_rejection(proposals, seen.rows, draws))


def paper_without_subtraction(seen: Round) -> DrawsLast:
    """Equation 1 alone: the first token keeps the mass of the merge that was drafted."""
    proposals = ratio(seen.draft, seen.keys, seen.spans, seen.rows.shape[1])
    for proposal, (start, stop) in zip(proposals, seen.spans, strict=True):
        first = int(seen.keys.direct[seen.draft.tokens[start]])
        if stop - start > 1 and first >= 0:
            proposal.probabilities[first] += proposal.probabilities[proposal.token]
    return DrawsLast(lambda draws: verify_rejection(proposals, seen.rows, draws))


def own_length_as_horizon(seen: Round) -> DrawsLast:
    """Path-revealed, but counting with the tokens that were drafted instead of those that could have been."""
    return revealed(replace(seen, draft=replace(seen.draft, horizon=len(seen.draft.tokens))))


EXACT = [point_mass, revealed]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", DICTIONARIES)
def test_path_revealed_leaves_the_distribution_of_the_target(name: str, k: int) -> None:
    assert distance(Toy(seed=k), DICTIONARIES[name], revealed, k) < 1e-12


@pytest.mark.parametrize("name", DICTIONARIES)
def test_point_mass_leaves_the_distribution_of_the_target(name: str) -> None:
    assert distance(Toy(seed=2), DICTIONARIES[name], point_mass, k=2) < 1e-12


@pytest.mark.parametrize("name", ["gap and overlap", "keys of itself", "long, with gaps"])
def test_exact_rules_with_four_drafted_tokens(name: str) -> None:
    assert distance(Toy(seed=4), DICTIONARIES[name], revealed, 4) < 1e-12


@pytest.mark.parametrize("seed", range(24))
def test_path_revealed_with_random_dictionaries(seed: int) -> None:
    assert distance(Toy(seed), random_keys(seed), revealed, k=3 + (seed % 8 == 0), count=1 + seed % 2) < 1e-12


def test_n_grams_beyond_the_outputs_of_the_target_end_the_proposal() -> None:
    """A tokenizer may have more tokens than its model has outputs: here BC."""

    def rule(seen: Round) -> DrawsLast:
        size = seen.rows.shape[1]
        m = next((i for i, token in enumerate(seen.proposed) if token >= size), len(seen.proposed))
        proposals = path_revealed(seen.draft, seen.keys, size)
        assert [proposal.token for proposal in proposals] == seen.proposed[:m]
        return DrawsLast(lambda draws: verify_rejection(proposals, seen.rows[: m + 1], draws))

    for name in ("gap and overlap", "two tokens, one meaning", "a and b are unmappable"):
        toy = Toy(seed=16, target_size=5)
        assert distance(toy, DICTIONARIES[name], rule, k=3) < 1e-12


@pytest.mark.parametrize("rule", EXACT, ids=lambda rule: rule.__name__)
def test_three_tokens(rule: Rule) -> None:
    assert distance(Toy(seed=9), DICTIONARIES["bigram and trigram"], rule, k=2, count=3) < 1e-12


def test_what_was_ruled_out_stays_so() -> None:
    """In abb neither abc nor ba came about, so the last is neither c nor a. Seen with three tokens only."""
    keys = DICTIONARIES["gap, then another"]
    assert distance(Toy(seed=3, target_size=5), keys, revealed, k=3, count=3) < 1e-12


@pytest.mark.parametrize("rule", EXACT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_top_k_and_temperature(temperature: float, rule: Rule) -> None:
    toy = Toy(seed=10, temperature=temperature, top_k=2)
    assert distance(toy, DICTIONARIES["gap and overlap"], rule, k=3) < 1e-12


def grow(keys: Keys, emitted: Tokens) -> Keys:
    """Learn something from every round, and forget something: any rule that depends on the emitted tokens."""
    place = splitmix(sum((i + 1) * (token + 1) for i, token in enumerate(emitted)))
    learnt = tuple(place >> (8 * i) & 0xFF for i in range(2 + place % 2))
    new = keys | {tuple(token % 3 for token in learnt): place % 6}
    if len(new) > 5:
        del new[max(key for key in new if len(key) > 1)]
    return new


@pytest.mark.parametrize("rule", EXACT, ids=lambda rule: rule.__name__)
def test_a_dictionary_that_changes_between_rounds(rule: Rule) -> None:
    assert distance(Toy(seed=11), DICTIONARIES["bigram"], rule, k=2, count=3, grow=grow) < 1e-12
    assert grow(DIRECT, (A,)) != grow(DIRECT, (B,)) != DIRECT


@pytest.mark.parametrize("rule", EXACT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("length", [Confidence(0.2, 3), Confidence(0.45, 3), Entropy(0.8, 3)], ids=str)
def test_stopping_by_what_the_drafter_knows(length: Length, rule: Rule) -> None:
    toy = Toy(seed=12)
    enumeration = Enumeration(toy, DICTIONARIES["gap and overlap"], rule, length)
    assert total_variation(enumeration.first_tokens(2), target_first_tokens(toy, 2)) < 1e-12


@pytest.mark.parametrize("rule", EXACT, ids=lambda rule: rule.__name__)
def test_stopping_at_a_token(rule: Rule) -> None:
    toy = Toy(seed=13)
    enumeration = Enumeration(
        toy, DICTIONARIES["gap and overlap"], rule, FixedLength(3), ended=lambda tokens: tokens[-1] == c
    )
    assert total_variation(enumeration.first_tokens(2), target_first_tokens(toy, 2)) < 1e-12


@pytest.mark.parametrize("name", DICTIONARIES)
def test_greedy_gives_the_greedy_text(name: str) -> None:
    toy = Toy(seed=14)
    text: Tokens = ()
    for _ in range(3):
        text = (*text, int(toy.target_logits(text).argmax()))
    distribution = Enumeration(toy, DICTIONARIES[name], greedy, FixedLength(2)).first_tokens(3)
    assert set(distribution) == {text}


def test_the_more_is_revealed_the_less_is_accepted() -> None:
    accepted = []
    for rule in (point_mass, revealed):
        enumeration = Enumeration(Toy(seed=15), DICTIONARIES["bigram"], rule, FixedLength(3))
        enumeration.first_tokens(1)
        accepted.append(enumeration.accepted)
    assert accepted[0] < 0.9 * accepted[1]


# --- the enumeration has teeth


@pytest.mark.parametrize("rule", [paper, paper_without_subtraction], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", ["bigram", "bigram and trigram", "gap and overlap"])
def test_the_papers_rule_is_caught(name: str, rule: Rule) -> None:
    assert distance(Toy(seed=1), DICTIONARIES[name], rule, k=3) > 1e-2


def test_the_papers_rule_is_exact_without_ngrams() -> None:
    assert distance(Toy(seed=1), DIRECT, paper, k=3) < 1e-12


class Stubborn(Toy):
    """The drafter always spells AB, the target always wants A."""

    def draft_logits(self, text: Tokens, drafted: Tokens) -> torch.Tensor:
        return torch.eye(3, dtype=torch.float64)[len(drafted) % 2]

    def target_logits(self, text: Tokens) -> torch.Tensor:
        return torch.tensor([1.0, 0.5, 0.2, 0.0, 0.0, 0.0], dtype=torch.float64)


def test_without_the_subtraction_even_cold_sampling_breaks() -> None:
    """AB is rejected, and A has p - q' = 0 without Equation 2: another token than A is written."""
    toy, keys = Stubborn(seed=0, temperature=0.02), DICTIONARIES["bigram"]
    assert distance(toy, keys, paper, k=2) < 1e-9
    assert distance(toy, keys, paper_without_subtraction, k=2) > 0.99


def test_counting_with_the_realised_length_is_caught() -> None:
    toy, length = Toy(seed=12), Confidence(0.45, max_tokens=3)
    enumeration = Enumeration(toy, DICTIONARIES["bigram"], own_length_as_horizon, length)
    assert total_variation(enumeration.first_tokens(2), target_first_tokens(toy, 2)) > 1e-3


# --- the smallest counter-example, by hand


class Uniform(Toy):
    """Two draft tokens and three target tokens, all equally likely."""

    def draft_logits(self, text: Tokens, drafted: Tokens) -> torch.Tensor:
        return torch.zeros(2, dtype=torch.float64)

    def target_logits(self, text: Tokens) -> torch.Tensor:
        return torch.zeros(3, dtype=torch.float64)


SMALLEST: Keys = {(a,): 0, (b,): 1, (a, b): 2}


def smallest(rule: Rule) -> tuple[list[float], float]:
    """Distribution of the first token over (A, B, AB), and how likely the first proposed one is accepted."""
    toy = Uniform(seed=0, draft_size=2, target_size=3)
    enumeration = Enumeration(toy, SMALLEST, rule, FixedLength(2))
    distribution = enumeration.first_tokens(1)
    kept = sum(
        share for emitted, share in enumeration.round_distribution((), SMALLEST).items() if len(emitted) > 1
    )
    return [distribution.get((token,), 0.0) for token in range(3)], kept


def test_smallest_counter_example() -> None:
    """Drafts aa, ab, ba, bb: A is proposed with 1/4, B with 1/2, AB with 1/4; the paper takes A to have 1/2.

    So A is accepted with (1/3) / (1/2) = 2/3 instead of always: 1/4 * 2/3 = 1/6 of the texts begin with A,
    and no residual makes up for it. For a rejected A (1/12) or B (1/6) AB is drawn: 1/4 + 1/12 + 1/6 = 1/2.
    """
    output, kept = smallest(paper)
    assert output == pytest.approx([1 / 6, 1 / 3, 1 / 2], abs=1e-15)
    assert kept == pytest.approx(3 / 4)
    third = pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=1e-15)
    for rule, expected in ((revealed, 1 / 2), (point_mass, 1 / 3)):
        output, kept = smallest(rule)
        assert output == third
        assert kept == pytest.approx(expected)


def dropping(seen: Round) -> Judge | DrawsLast:
    """Path-revealed, without the newest drafted token where the drafter is unsure of it."""
    if seen.draft.confidences[-1] >= 0.5:
        return revealed(seen)
    assert len(seen.proposed) == 1
    return lambda draws: verify_rejection([], seen.rows[:1], draws)


class Sure(Toy):
    """q = (.9, .1), p = (.5, .5)."""

    def draft_logits(self, text: Tokens, drafted: Tokens) -> torch.Tensor:
        return torch.tensor([0.9, 0.1], dtype=torch.float64).log()

    def target_logits(self, text: Tokens) -> torch.Tensor:
        return torch.zeros(2, dtype=torch.float64)


def test_dropping_a_drawn_token_for_what_it_is() -> None:
    """The example of `propose`: without tokens of q < .5 the output is (.55, .45); with them it is p."""
    toy, keys = Sure(seed=0, draft_size=2, target_size=2), {(a,): A, (b,): B}
    for rule, expected in ((dropping, [0.55, 0.45]), (revealed, [0.5, 0.5])):
        enumeration = Enumeration(toy, keys, rule, Confidence(0.5, max_tokens=1))
        output = enumeration.first_tokens(1)
        assert [output[A,], output[B,]] == pytest.approx(expected, abs=1e-15)


# --- shared noise: not the same distribution, the same text


def plain_text(toy: Toy, noise: GumbelNoise, count: int) -> Tokens:
    text: Tokens = ()
    while len(text) < count:
        row = toy.target_logprobs(toy.target_logits(text))
        text = (*text, int(choose(row, noise.row(len(text)))))
    return text


def coupled_text(
    toy: Toy, noise: GumbelNoise, count: int, keys: Keys, length: Length, learn: bool = True
) -> tuple[Tokens, int, int]:
    """Decode with shared noise; returns the text, the rounds it took and how many tokens were accepted."""
    own = GumbelNoise(noise.seed, toy.draft_size, stream=1)
    text: Tokens = ()
    rounds = accepted = 0
    while len(text) < count:
        table = NGramTable.of(keys, toy.draft_size)
        draw = Coupled(len(text), table, noise, own)
        draft = propose(toy.step(text), [0], length, toy.draft_logprobs, draw)
        proposed, _ = translate_plainly(draft.tokens, keys)
        rows = toy.target_rows(text, proposed)
        verdict = verify_exact(proposed, rows, noise.rows(len(text), len(rows)))
        emitted = (*proposed[: verdict.accepted], verdict.token)
        text, rounds, accepted = (*text, *emitted), rounds + 1, accepted + verdict.accepted
        keys = grow(keys, emitted) if learn else keys
    return text[:count], rounds, accepted


@pytest.mark.parametrize("name", DICTIONARIES)
@pytest.mark.parametrize("length", [FixedLength(1), FixedLength(4), Confidence(0.4, 4)], ids=str)
def test_coupling_gives_the_text_of_the_target(name: str, length: Length) -> None:
    for seed in range(8):
        toy = Toy(seed, temperature=0.8, top_k=None if seed % 2 else 4)
        noise = GumbelNoise(seed, toy.target_size)
        text, _, _ = coupled_text(toy, noise, 10, DICTIONARIES[name], length)
        assert text == plain_text(toy, GumbelNoise(seed, toy.target_size), 10)


def test_the_texts_of_different_seeds_differ() -> None:
    toy = Toy(seed=3)
    assert len({plain_text(toy, GumbelNoise(seed, toy.target_size), 6) for seed in range(30)}) > 20


class Following(Toy):
    """A target that writes what the drafter writes, in its own tokens: p is q, translated."""

    keys: Keys = DICTIONARIES["bigram"]

    def draft_logits(self, text: Tokens, drafted: Tokens) -> torch.Tensor:
        return table_of_bytes(spelling(text) + drafted)

    def target_logits(self, text: Tokens) -> torch.Tensor:
        spelled = spelling(text)
        q = table_of_bytes(spelled).softmax(-1)
        after = table_of_bytes((*spelled, a)).softmax(-1)
        merge = q[a] * after[b]
        p = torch.stack([q[a] - merge, q[b], q[c], merge])
        return torch.cat([p, torch.full((2,), 1e-9).double()]).log()


def spelling(text: Sequence[int]) -> Tokens:
    return tuple(
        token for target in text for token in {A: (a,), B: (b,), C: (c,), AB: (a, b)}.get(target, ())
    )


def table_of_bytes(drafted: Tokens) -> torch.Tensor:
    return Toy(seed=21).draft_logits((), drafted[-2:])


def test_coupled_drawing_agrees_more_often_than_independent_drawing() -> None:
    toy, keys = Following(seed=0), DICTIONARIES["bigram"]
    rounds = {"coupled": 0, "independent": 0}
    for seed in range(60):
        noise = GumbelNoise(seed, toy.target_size)
        rounds["coupled"] += coupled_text(toy, noise, 12, keys, FixedLength(3), learn=False)[1]
    mean = Enumeration(toy, keys, point_mass, FixedLength(3))
    mean.first_tokens(1)
    tokens_coupled = 60 * 12 / rounds["coupled"]
    assert tokens_coupled > 1.25 * (1 + mean.accepted)
