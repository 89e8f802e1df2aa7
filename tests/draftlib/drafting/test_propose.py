"""Drafting: what is fed, drawn and kept; when it stops; whose noise a draft token takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from draftlib.drafting.coupled import Coupled, coupled_noise
from draftlib.drafting.length import Confidence, Drafted, Entropy, FixedLength, Length, entropy
from draftlib.drafting.propose import draw_greedy, draw_independent, propose
from draftlib.verification.draws import RandomDraws
from draftlib.verification.noise import GumbelNoise
from draftlib.verification.sampling import warp
from draftlib.vocabulary.ngram_table import NGramTable
from qlib.errors import DraftError

SIZE = 5


class Recorder:
    """A drafter whose logits depend on the last token; remembers what it was fed."""

    def __init__(self) -> None:
        self.fed: list[list[int]] = []

    def __call__(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.fed.append(list(tokens))
        generator = torch.Generator().manual_seed(100 + tokens[-1])
        return torch.randn(SIZE, generator=generator) * 2, torch.tensor([float(tokens[-1])])


def test_feeds_the_pending_tokens_and_then_each_drafted_one_but_the_last() -> None:
    step = Recorder()
    draft = propose(step, [3, 1, 4], FixedLength(4), warp, draw_greedy)
    assert step.fed == [[3, 1, 4], *([token] for token in draft.tokens[:-1])]
    assert len(draft.tokens) == draft.horizon == 4


def test_keeps_the_distributions_that_were_drawn_from_and_plain_confidences() -> None:
    step = Recorder()
    to_logprobs = partial(warp, temperature=0.5, top_k=2)
    draft = propose(step, [2], FixedLength(3), to_logprobs, draw_independent(RandomDraws(1)))
    again = Recorder()
    for fed, token, row, confidence in zip(
        step.fed, draft.tokens, draft.logprobs, draft.confidences, strict=True
    ):
        logits, _ = again(fed)
        assert torch.equal(row, to_logprobs(logits))
        assert torch.isfinite(row[token])
        assert confidence == pytest.approx(float(logits.softmax(-1)[token]), rel=1e-5)


def test_independent_drawing_follows_the_distribution() -> None:
    draw, logprobs = draw_independent(RandomDraws(0)), torch.tensor([0.7, 0.0, 0.3]).log()
    counts = torch.bincount(torch.tensor([draw(logprobs, []) for _ in range(1000)]), minlength=3)
    assert counts[1] == 0
    assert counts[0] / 1000 == pytest.approx(0.7, abs=0.05)


def test_confidence_stops_behind_the_token_it_doubts() -> None:
    sure, unsure = torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.1, 0.0, 0.0])

    def step(tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return unsure if len(calls) == 3 else sure, torch.empty(0)

    calls: list[int] = []
    draft = propose(step, [0], Confidence(threshold=0.5, max_tokens=8), warp, draw_greedy)
    assert len(draft.tokens) == 3
    assert draft.horizon == 8
    assert draft.confidences[2] < 0.5 < draft.confidences[1]


def test_confidence_multiplies() -> None:
    rule = Confidence(threshold=0.3, max_tokens=8)
    assert [rule.stop([drafted(0.6)] * n) for n in (1, 2, 3)] == [False, False, True]
    assert not Confidence(threshold=0.0).stop([drafted(1e-9)])


def drafted(confidence: float) -> Drafted:
    return Drafted(0, torch.zeros(SIZE), confidence, torch.zeros(1))


def test_the_entropy_against_a_sum_written_out() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    q = [math.exp(each) for each in logits.tolist()]
    expected = -sum(each / sum(q) * math.log(each / sum(q)) for each in q)
    assert entropy(logits) == pytest.approx(expected, rel=1e-5)
    masked = torch.cat([logits, torch.full((3,), -torch.inf)])
    assert entropy(masked.float()) == pytest.approx(expected, rel=1e-5)
    assert entropy(torch.zeros(1000, dtype=torch.bfloat16)) == pytest.approx(math.log(1000), rel=1e-5)


def test_entropy_looks_at_the_newest_token_alone() -> None:
    sure, torn = (drafted(0.9)._replace(logits=torch.tensor(each)) for each in ([9.0, 0.0], [0.0, 0.0]))
    rule = Entropy(threshold=0.6, max_tokens=8)
    assert [rule.stop(each) for each in ([], [sure], [torn, sure], [sure, torn])] == [
        False,
        False,
        False,
        True,
    ]
    assert not Entropy(threshold=math.log(2) + 1e-4).stop([torn])


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.5])
def test_entropy_is_that_of_the_drafter_itself_whatever_it_draws_from(temperature: float) -> None:
    """Here H = ln 3 after token 2 and nearly 0 elsewhere: the draft ends with the token drawn there."""

    def step(tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        logits = torch.full((5,), -20.0)
        logits[: 3 if tokens[-1] == 2 else 1] = 0.0
        return (logits if tokens[-1] == 2 else logits.roll(tokens[-1] + 1)), torch.empty(0)

    draw = draw_independent(RandomDraws(2))
    draft = propose(step, [0], Entropy(max_tokens=8), partial(warp, temperature=temperature), draw)
    assert draft.tokens[:2] == (1, 2)
    assert (len(draft.tokens), draft.horizon) == (3, 8)


def test_a_length_sees_each_token_with_all_that_the_drafter_knew() -> None:
    seen: list[list[Drafted]] = []

    class Looking(Length):
        max_tokens = 3

        def stop(self, drafted: Sequence[Drafted]) -> bool:
            seen.append(list(drafted))
            return False

    draft = propose(Recorder(), [2], Looking(), warp, draw_independent(RandomDraws(1)))
    assert [len(each) for each in seen] == [1, 2, 3]
    last = seen[-1]
    assert tuple(each.token for each in last) == draft.tokens
    assert tuple(each.confidence for each in last) == draft.confidences
    assert torch.equal(torch.stack([each.logprobs for each in last]), draft.logprobs)
    again = Recorder()
    fed = [2, *draft.tokens[:-1]]  # the state that predicts a token is that of the token before it
    assert [float(each.hidden) for each in last] == [float(each) for each in draft.hidden] == fed
    assert all(torch.equal(each.logits, again([token])[0]) for each, token in zip(last, fed, strict=True))


def test_ends_where_nothing_more_can_be_proposed() -> None:
    draft = propose(Recorder(), [0], FixedLength(6), warp, draw_greedy, ended=lambda tokens: len(tokens) == 2)
    assert len(draft.tokens) == len(draft.logprobs) == 2
    assert draft.horizon == 6


@pytest.mark.parametrize("rule", [FixedLength, lambda n: Confidence(0.1, n), lambda n: Entropy(0.1, n)])
def test_a_draft_of_no_token_is_refused(rule: type[FixedLength]) -> None:
    with pytest.raises(DraftError, match=r"max_tokens=0.*at least 1.*target alone"):
        rule(0)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    with pytest.raises(DraftError, match=f"threshold={threshold}"):
        Confidence(threshold)


@pytest.mark.parametrize("threshold", [-0.1, math.nan])
def test_an_entropy_below_0_is_refused(threshold: float) -> None:
    with pytest.raises(DraftError, match=f"Entropy.threshold={threshold}.*0.3 to 2"):
        Entropy(threshold)


def test_nothing_to_continue_is_refused() -> None:
    with pytest.raises(DraftError, match="pending is empty"):
        propose(Recorder(), [], FixedLength(1), warp, draw_greedy)


# --- whose noise

a, b, c, d = range(4)
A, B, C, ABC, BD, AB = 10, 11, 12, 13, 14, 15  # d has no target token of its own


def coupled(keys: dict[tuple[int, ...], int], candidates: int = 32) -> Coupled:
    direct = {(a,): A, (b,): B, (c,): C}
    return Coupled(
        5, NGramTable.of(direct | keys, 4), GumbelNoise(0, 16), GumbelNoise(0, 4, stream=1), candidates
    )


def noise_names(keys: dict[tuple[int, ...], int], drafted: Sequence[int], candidates: int = 32) -> list[str]:
    """Where the noise of each draft token comes from: target token @ position, or 'own' @ position."""
    drawing = coupled(keys, candidates)
    names = {float(drawing.noise.row(p)[t]): f"{t}@{p}" for p in range(5, 10) for t in range(16)}
    names |= {float(drawing.own.row(p)[t]): f"own {t}@{p}" for p in range(5, 10) for t in range(4)}
    logprobs = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    return [names[value] for value in coupled_noise(drawing, logprobs, drafted).tolist()]


@pytest.mark.parametrize(
    ("keys", "drafted", "expected"),
    [
        ({}, (), [f"{A}@5", f"{B}@5", f"{C}@5", "own 3@5"]),
        ({}, (a, c), [f"{A}@7", f"{B}@7", f"{C}@7", "own 3@7"]),
        # a may become ab: b takes the noise of AB at the same position, the others begin the next one.
        ({(a, b): AB}, (a,), [f"{A}@6", f"{AB}@5", f"{C}@6", "own 3@6"]),
        # ab is merged and cannot grow: settled.
        ({(a, b): AB}, (a, b), [f"{A}@6", f"{B}@6", f"{C}@6", "own 3@6"]),
        # ab is merged and can grow.
        ({(a, b): AB, (a, b, c): ABC}, (a, b), [f"{A}@6", f"{B}@6", f"{ABC}@5", "own 3@6"]),
        # ab is no key: unless c completes abc, a is settled and b open, and d completes bd a position later.
        ({(a, b, c): ABC, (b, d): BD}, (a, b), [f"{A}@7", f"{B}@7", f"{ABC}@5", f"{BD}@6"]),
        # d alone translates to nothing, unless a completes da.
        ({(d, a): AB}, (d,), [f"{AB}@5", f"{B}@6", f"{C}@6", "own 3@6"]),
    ],
)
def test_noise_of_a_draft_token(
    keys: dict[tuple[int, ...], int], drafted: tuple[int, ...], expected: list[str]
) -> None:
    assert noise_names(keys, drafted) == expected


def test_only_likely_tokens_are_looked_up() -> None:
    assert noise_names({(a, b): AB}, (a,), candidates=1)[b] == f"{B}@6"
    assert noise_names({(a, b): AB}, (a,), candidates=2)[b] == f"{AB}@5"


def test_coupled_drawing_takes_the_best_sum() -> None:
    drawing = coupled({(a, b): AB})
    logprobs = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    sums = logprobs + coupled_noise(drawing, logprobs, [a])
    assert drawing(logprobs, [a]) == int(sums.argmax())


def test_coupled_drawing_does_not_spoil_the_kept_rows() -> None:
    drawing = coupled({(a, b): AB})
    before = drawing.noise.row(5).clone(), drawing.noise.row(6).clone(), drawing.own.row(6).clone()
    drawing(torch.zeros(4), [a])
    assert torch.equal(drawing.noise.row(5), before[0])
    assert torch.equal(drawing.noise.row(6), before[1])
    assert torch.equal(drawing.own.row(6), before[2])
