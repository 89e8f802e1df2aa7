"""The rules one by one: by hand, against the formula, against each other; the distributions; refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from drafting_toys import every_way
from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.verification.draws import RandomDraws
from draftlib.verification.noise import GumbelNoise, gumbel
from draftlib.verification.rejection import (
    ratio,
    residual,
    verify_path_revealed,
    verify_ratio,
    verify_rejection,
)
from draftlib.verification.revealed import Proposed, next_tokens, path_revealed
from draftlib.verification.rules import RULES, VerifyInputs
from draftlib.verification.sampling import warp
from draftlib.verification.verify import Verdict, choose, verify_exact, verify_greedy, verify_point_mass
from draftlib.vocabulary.ngram_table import NGramTable
from qlib.errors import DraftError


def distribution(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).double().softmax(-1)


def rows(*seeds: int, size: int = 4) -> Tensor:
    return torch.stack([distribution(size, seed) for seed in seeds]).log()


# --- choices


@pytest.mark.parametrize(
    ("proposed", "expected"),
    [([2, 0, 1], (3, 3)), ([2, 0, 0], (2, 1)), ([2, 1, 1], (1, 0)), ([0, 0, 1], (0, 2))],
)
def test_greedy(proposed: list[int], expected: tuple[int, int]) -> None:
    logits = torch.eye(4)[[2, 0, 1, 3]]
    assert verify_greedy(proposed, logits) == Verdict(*expected)


def test_nothing_proposed_still_gives_a_token() -> None:
    assert verify_greedy([], torch.tensor([[0.0, 1.0]])) == Verdict(0, 1)
    assert verify_exact([], torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])) == Verdict(0, 0)
    assert verify_point_mass([], torch.tensor([[-torch.inf, 0.0]]), RandomDraws(0)) == Verdict(0, 1)
    assert verify_rejection([], torch.tensor([[-torch.inf, 0.0]]), RandomDraws(0)) == Verdict(0, 1)


def test_exact_emits_the_targets_own_draws_whatever_is_proposed() -> None:
    logprobs = rows(0, 1, 2, 3, size=6)
    noise = torch.stack([gumbel(9, position, 6) for position in range(4)])
    own = choose(logprobs, noise).tolist()
    for wrong in range(4):
        proposed = [*own[:wrong], *((token + 1) % 6 for token in own[wrong:3])]
        assert verify_exact(proposed, logprobs, noise) == Verdict(min(wrong, 3), own[min(wrong, 3)])


def test_exact_at_temperature_zero_is_greedy() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.stack([gumbel(1, position, 6) for position in range(4)])
    proposed = logits.argmax(-1).tolist()[:3]
    assert verify_exact(proposed, warp(logits, 0), noise) == verify_greedy(proposed, logits)


def outcome(probability_of: dict[Verdict, float], accepted: int, size: int) -> list[float]:
    return [probability_of.get(Verdict(accepted, token), 0.0) for token in range(size)]


def outcomes(run: object) -> dict[Verdict, float]:
    result: dict[Verdict, float] = {}
    for probability, verdict in every_way(run):  # type: ignore[arg-type]
        result[verdict] = result.get(verdict, 0.0) + probability
    return result


def test_point_mass_is_rejection_with_the_probability_on_one_token() -> None:
    logprobs, proposed = rows(4, 5, 6), [2, 0]
    points = [Proposed(token, torch.eye(4).double()[token]) for token in proposed]
    one = outcomes(lambda draws: verify_point_mass(proposed, logprobs, draws))
    other = outcomes(lambda draws: verify_rejection(points, logprobs, draws))
    assert one == pytest.approx(other)


# --- rejection


@pytest.mark.parametrize("token", range(4))
def test_rejection_follows_the_formula(token: int) -> None:
    p, q, free = distribution(4, 7), distribution(4, 8), distribution(4, 9)
    verdicts = outcomes(
        lambda draws: verify_rejection([Proposed(token, q)], torch.stack([p, free]).log(), draws)
    )
    accepted = min(1.0, float(p[token] / q[token]))
    left = (p - q).clamp(min=0)
    assert outcome(verdicts, 1, 4) == pytest.approx((accepted * free).tolist())
    assert outcome(verdicts, 0, 4) == pytest.approx(((1 - accepted) * left / left.sum()).tolist())


def test_rejection_averaged_over_the_proposal_is_the_target() -> None:
    p, q = distribution(5, 10), distribution(5, 11)
    logprobs = torch.stack([p, p]).log()
    emitted = torch.zeros(5).double()
    for token in range(5):
        for verdict, probability in outcomes(
            lambda draws, token=token: verify_rejection([Proposed(token, q)], logprobs, draws)  # type: ignore[misc]
        ).items():
            emitted[token if verdict.accepted else verdict.token] += q[token] * probability
    assert emitted.tolist() == pytest.approx(p.tolist(), abs=1e-15)


def test_residual_without_mass_is_the_target() -> None:
    p = distribution(4, 12)
    assert torch.equal(residual(p, p), p)
    assert torch.equal(residual(p, p + 1e-9), p)


def test_a_distribution_of_another_precision_is_taken() -> None:
    half = Proposed(0, torch.tensor([1.0, 0.0], dtype=torch.float32))
    logprobs = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).double().log()
    assert verify_rejection([half], logprobs, RandomDraws(0)) == Verdict(0, 1)


# --- distributions of merged tokens

a, b, c = range(3)
A, B, C, AB, ABC = range(5)
KEYS = {(a,): A, (b,): B, (c,): C, (a, b): AB, (a, b, c): ABC}
Q = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)


def draft(*tokens: int, horizon: int | None = None) -> Draft:
    n = len(tokens)
    return Draft(tokens, Q[:n].log(), (0.5,) * n, horizon or n)


def distributions(drafted: Draft, keys: dict[tuple[int, ...], int] = KEYS) -> list[tuple[int, list[float]]]:
    return plain(path_revealed(drafted, NGramTable.of(keys, 3), 5))


def plain(proposals: Sequence[Proposed]) -> list[tuple[int, list[float]]]:
    return [(token, q.tolist()) for token, q in proposals]


def near(*values: float) -> object:
    return pytest.approx(list(values), abs=1e-12)


def test_a_token_that_starts_no_key_stays_hidden() -> None:
    """b was not a: its distribution is q without a."""
    assert distributions(draft(b, horizon=3))[0] == (B, near(0, 0.6, 0.4, 0, 0))


def test_at_the_last_place_nothing_merges_and_q_it_is() -> None:
    assert distributions(draft(a)) == [(A, near(0.5, 0.3, 0.2, 0, 0))]


def test_a_start_is_revealed_and_what_follows_decides() -> None:
    """Two places: ab or a. With a alone, the next token is one of a and c, and merges with nothing."""
    assert distributions(draft(a, c)) == [(A, near(0.3, 0, 0, 0.7, 0)), (C, near(2 / 3, 0, 1 / 3, 0, 0))]
    assert distributions(draft(a, b)) == [(AB, near(0.3, 0, 0, 0.7, 0))]


def test_an_inner_token_is_revealed_too() -> None:
    """Three places: after a, b could become abc, so that it is revealed; then c or not c decides."""
    assert distributions(draft(a, b, c)) == [(ABC, near(0, 0, 0, 0.4, 0.6))]
    assert distributions(draft(a, b, b)) == [(AB, near(0, 0, 0, 0.4, 0.6)), (B, near(0.25, 0.75, 0, 0, 0))]


def test_a_known_token_is_a_point() -> None:
    """abc without ab: a falls out, and the b after it is known."""
    keys = {key: target for key, target in KEYS.items() if key != (a, b)}
    expected = [(A, near(0.4, 0, 0, 0, 0.6)), (B, near(0, 1, 0, 0, 0)), (B, near(0.25, 0.75, 0, 0, 0))]
    assert distributions(draft(a, b, b), keys) == expected


def test_what_two_merges_missed_is_ruled_out_together() -> None:
    """After ab not c, after b not a: only b is left."""
    keys = {(a,): A, (b,): B, (c,): C, (a, b, c): ABC, (b, a): AB}
    expected = [(A, near(0.4, 0, 0, 0, 0.6)), (B, near(0, 0.75, 0, 0.25, 0)), (B, near(0, 1, 0, 0, 0))]
    assert distributions(draft(a, b, b), keys) == expected


def test_an_early_end_is_a_point_where_more_was_possible() -> None:
    assert distributions(draft(a, horizon=3)) == [(A, near(1, 0, 0, 0, 0))]


def test_unmappable_tokens_have_no_part_and_end_the_proposal() -> None:
    keys = {(a,): A, (c,): C}
    assert distributions(draft(a, b, c), keys) == [(A, near(5 / 7, 0, 2 / 7, 0, 0))]
    assert distributions(draft(b), keys) == []
    keys[(b, a)] = AB  # b only begins a merge: given that there is a proposal, it is that merge
    assert distributions(draft(b, a), keys) == [(AB, near(0, 0, 0, 1, 0))]
    assert distributions(draft(b, c), keys) == []


def test_keys_with_the_same_value_add_up() -> None:
    keys = KEYS | {(a, c): AB}
    assert distributions(draft(a, c), keys)[0] == (AB, near(0.2, 0, 0, 0.8, 0))


def test_only_n_grams_that_fit_count() -> None:
    table = NGramTable.of(KEYS, 3)
    assert next_tokens(table, (), 3) == ({a}, set())
    assert next_tokens(table, (), 1) == (set(), set())
    assert next_tokens(table, (a,), 2) == ({b}, set())
    assert next_tokens(table, (a,), 1) == (set(), {b})


def test_the_papers_distribution() -> None:
    """Equation 1 for the merged token, Equation 2 for its first one, q for the rest."""
    keys = NGramTable.of(KEYS, 3)
    merged, single = plain(ratio(draft(a, b, c), keys, [(0, 2), (2, 3)], 5))
    assert merged == (AB, near(0.5 - 0.35, 0.3, 0.2, 0.35, 0))
    assert single == (C, near(0.1, 0.3, 0.6, 0, 0))
    no_first = NGramTable.of({(b,): B, (a, b): AB}, 3)
    assert plain(ratio(draft(a, b), no_first, [(0, 2)], 5)) == [(AB, near(0, 0.3, 0, 0.35, 0))]


class NearlyAlways(RandomDraws):
    """Accepts what is at least as likely as this."""

    def __init__(self, least: float) -> None:
        self.least = least

    def bernoulli(self, probability: float) -> bool:
        return probability >= self.least

    def categorical(self, weights: Tensor) -> int:
        return int(weights.argmax())


def test_the_whole_rules_put_distributions_and_rejection_together() -> None:
    drafted, keys = draft(a, b, b), NGramTable.of(KEYS, 3)
    logprobs = torch.tensor([[0.2, 0.2, 0.2, 0.3, 0.1]] * 3).double().log()
    draws = NearlyAlways(0.8)
    assert verify_path_revealed(drafted, keys, logprobs, draws) == Verdict(0, A)  # .3 / .4
    assert verify_ratio(drafted, keys, [(0, 2), (2, 3)], logprobs, draws) == Verdict(
        1, AB
    )  # .3 / .35, .2 / .3


def test_path_revealed_looks_at_as_many_tokens_as_there_are_rows() -> None:
    drafted, keys, draws = draft(a, b, b), NGramTable.of(KEYS, 3), NearlyAlways(0)
    logprobs = torch.full((3, 5), 0.2).double().log()
    found = [verify_path_revealed(drafted, keys, logprobs[: m + 1], draws) for m in (0, 1, 2)]
    assert [verdict.accepted for verdict in found] == [0, 1, 2]
    with pytest.raises(DraftError, match="2 proposed tokens"):
        verify_path_revealed(drafted, keys, torch.full((4, 5), 0.2), draws)


# --- by name


def test_the_rules_by_name_are_the_functions() -> None:
    """Each gets the same round; the draws start anew, so that they give the same verdicts."""
    drafted, table, spans = draft(a, b, b), NGramTable.of(KEYS, 3), ((0, 2), (2, 3))
    noise, proposed = GumbelNoise(3, 5), (AB, B)
    for seed in range(20):
        logprobs = rows(seed, seed + 100, seed + 200, size=5)
        expected = {
            "greedy": verify_greedy(proposed, logprobs),
            "exact": verify_exact(proposed, logprobs, noise.rows(7, 3)),
            "point_mass": verify_point_mass(proposed, logprobs, RandomDraws(seed)),
            "path_revealed": verify_path_revealed(drafted, table, logprobs, RandomDraws(seed)),
            "ratio": verify_ratio(drafted, table, spans, logprobs, RandomDraws(seed)),
        }
        assert expected.keys() == RULES.keys()
        for name, verdict in expected.items():
            inputs = VerifyInputs(proposed, spans, drafted, table, logprobs, 7, noise, RandomDraws(seed))
            assert RULES[name](inputs) == verdict, name


# --- refusals


def test_the_number_of_rows_is_checked_by_every_rule() -> None:
    logprobs, draws = rows(0, 1), RandomDraws(0)
    proposals = [Proposed(token, distribution(4, 0)) for token in (1, 2)]
    for rule in (
        lambda: verify_greedy([1, 2], logprobs),
        lambda: verify_exact([1, 2], logprobs, torch.zeros(2, 4)),
        lambda: verify_point_mass([1, 2], logprobs, draws),
        lambda: verify_rejection(proposals, logprobs, draws),
    ):
        with pytest.raises(DraftError, match=r"2 proposed tokens.*\[2, 4\].*3 rows"):
            rule()


@pytest.mark.parametrize("proposed", [[4], [-1]])
def test_tokens_of_another_vocabulary_are_refused(proposed: Sequence[int]) -> None:
    with pytest.raises(DraftError, match=r"target of 4 tokens.*translated"):
        verify_greedy(proposed, rows(0, 1))


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(DraftError, match=r"noise \[1, 4\].*\[2, 4\]"):
        verify_exact([1], rows(0, 1), torch.zeros(1, 4))


def test_spans_of_another_translation_are_refused() -> None:
    with pytest.raises(DraftError, match=r"draft tokens \(1, 1\) at 0..2"):
        ratio(draft(b, b), NGramTable.of(KEYS, 3), [(0, 2)], 5)
