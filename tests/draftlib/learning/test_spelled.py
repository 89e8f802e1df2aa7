"""Alignment, distributions carried into the draft vocabulary, and losses: against brute force and loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftlib.learning.alignment import Aligned, align
from draftlib.learning.distill import (
    TopK,
    Written,
    compress,
    forward_kl,
    hybrid_loss,
    log_probabilities,
    ngram_kl,
    ngram_probability,
    reverse_kl,
    target_probability,
)
from draftlib.learning.spelled import Soft, acceptance_loss, next_pieces, spelled_positions, speller_of
from draftlib.learning.spelled import forward_kl as spelled_kl
from draftlib.vocabulary.mapping import VocabularyMap

DRAFT = [b"a", b"b", b"c", b"ab", b"ca", None]
TARGET = [b"a", b"b", b"c", b"abc", b"bc", b"cab", None, None]
WORDS = VocabularyMap.from_bytes(DRAFT, TARGET, specials={5: 6}, ends=[5])
Targets = st.lists(st.integers(0, 7), min_size=1, max_size=8)


def units(tokens: list[int], pieces: list[bytes | None], special: int) -> list[int]:
    """Where each token ends; one unit for the special token that both have, none for the other."""
    at, stops = 0, []
    for token in tokens:
        piece = pieces[token]
        at += len(piece) if piece is not None else int(token == special)
        stops.append(at)
    return stops


@given(Targets, st.randoms(use_true_random=False))
def test_alignment_against_byte_offsets(target: list[int], random: object) -> None:
    text = [TARGET[token] or (b"|" if token == 6 else b"") for token in target]
    draft: list[int] = []
    rest = b"".join(text)
    while rest:
        fits = [i for i, piece in enumerate(DRAFT) if rest.startswith(piece or b"|")]
        draft.append(random.choice(fits))  # type: ignore[attr-defined]
        rest = rest[len(DRAFT[draft[-1]] or b"|") :]
    context = [0, 3]
    starts = {0: 2} | {stop: i + 3 for i, stop in enumerate(units(draft, DRAFT, 5))}
    stops = units(target, TARGET, 6)
    for found, start, stop in zip(align([*context, *draft], target, WORDS), [0, *stops], stops, strict=False):
        expected = starts.get(start) if stop > start else None
        assert (found is None) == (expected is None)
        if found is not None:
            assert (found.start, found.stop) == (expected, starts.get(stop))


def test_next_pieces_against_all_target_tokens() -> None:
    spell = speller_of(WORDS)
    assert spell(3) == (3, 2) and spell(5) == (4, 1) and spell(6) == (5,) and spell(7) == ()
    p = torch.rand(8, generator=torch.Generator().manual_seed(0)).softmax(0).tolist()
    for pieces in ([], [3], [4], [0]):
        found, total = next_pieces(range(8), p, pieces, spell)
        n = len(pieces)
        begins = [t for t in range(8) if list(spell(t)[:n]) == pieces and len(spell(t)) > n]
        assert total == pytest.approx(sum(p[t] for t in begins))
        for piece in {spell(t)[n] for t in begins}:
            mass = sum(p[t] for t in begins if spell(t)[n] == piece)
            assert found[piece] == pytest.approx(mass / (total if n else 1))


def test_every_piece_has_a_distribution() -> None:
    """The text "abc" "b": its first token is two pieces for the drafter."""
    spell, draft = speller_of(WORDS), [3, 2, 1]
    rows, p = [[3, 0], [1, 2]], [[0.75, 0.25], [0.5, 0.5]]
    aligned = align(draft, [3, 1], WORDS)
    assert aligned == [Aligned(0, 2), Aligned(2, 3)]
    found = spelled_positions(draft, aligned, rows, p, spell)
    assert found == {0: {3: 0.75, 0: 0.25}, 1: {2: 1.0}, 2: {1: 0.5, 2: 0.5}}


def test_losses_in_the_draft_vocabulary_by_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    p = torch.randn(4, 6, generator=generator, dtype=torch.float64).softmax(-1)
    soft = Soft(torch.arange(6).expand(4, 6), p.float())
    q = logits.softmax(-1)
    for row in range(4):
        least = sum(min(float(a), float(b)) for a, b in zip(p[row], q[row], strict=True))
        tv = sum(abs(float(a - b)) for a, b in zip(p[row], q[row], strict=True)) / 2
        kl = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p[row], q[row], strict=True))
        assert float(acceptance_loss(logits, soft)[row]) == pytest.approx(1 - least, abs=1e-6)
        assert 1 - least == pytest.approx(tv)
        assert float(spelled_kl(logits, soft)[row]) == pytest.approx(kl, abs=1e-6)


def test_compression_keeps_the_probable_and_the_mass() -> None:
    logits = 3 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(2))
    rows = compress(logits, 16)
    logp = logits.log_softmax(-1)
    assert torch.equal(rows.tokens.long(), logp.topk(16).indices)
    found = log_probabilities(rows, torch.arange(1000), 1000)
    assert torch.allclose(found.exp().sum(1), torch.ones(50), atol=2e-3)
    kept = logp.gather(1, rows.tokens.long())
    assert float((found.gather(1, rows.tokens.long()) - kept).abs().max()) < 5e-3
    assert sum(part[0].numel() * part.element_size() for part in rows) == 16 * 6 + 4


DIRECT = torch.tensor([0, 1, -1, 1, 4])  # of five draft tokens; two of them are target token 1


def events(logits: torch.Tensor, p: torch.Tensor) -> list[tuple[float, float]]:
    """(q', p) of every event, by the definition: target tokens 0, 1, 4, and all others."""
    q = logits.double().softmax(-1).tolist()
    mapped = [(q[0], p[0]), (q[1] + q[3], p[1]), (q[4], p[4])]
    return [*mapped, (q[2], 1 - float(p[0] + p[1] + p[4]))]


def test_kl_in_the_target_s_vocabulary_by_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, full = torch.randn(6, 5, generator=generator), torch.randn(6, 7, generator=generator)
    rows, p = compress(full, 7), full.double().softmax(-1)
    for n in range(6):
        pairs = events(logits[n], p[n])
        reverse = sum(q * math.log(q / float(x)) for q, x in pairs)
        forward = sum(float(x) * math.log(float(x) / q) for q, x in pairs)
        assert float(reverse_kl(logits, rows, DIRECT, 7)[n]) == pytest.approx(reverse, abs=3e-3)
        assert float(forward_kl(logits, rows, DIRECT, 7)[n]) == pytest.approx(forward, abs=3e-3)


def test_the_loss_is_finite_where_probabilities_are_zero() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf, -torch.inf]], requires_grad=True)
    rows = compress(torch.tensor([[0.0, *[-1e9] * 6]]), 3)
    loss = reverse_kl(logits, rows, DIRECT, 7) + forward_kl(logits, rows, DIRECT, 7)
    assert bool(torch.isfinite(loss).all())
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and bool(torch.isfinite(logits.grad[0, :1]).all())


# Positions of a text: one draft token alone, a token of three pieces, one of which the end is not there.
TEXT = Written(torch.tensor([0, 3, 2, 4, 1]), torch.tensor([0, 5, 5, 5, 6]), torch.tensor([1, 3, 2, 1, 0]))


def text_rows() -> tuple[torch.Tensor, TopK, torch.Tensor]:
    """Draft logits of five positions, the target's rows, and its probabilities."""
    generator = torch.Generator().manual_seed(4)
    logits, full = torch.randn(5, 5, generator=generator), torch.randn(5, 7, generator=generator)
    return logits, compress(full, 7), full.double().softmax(-1)


def test_positions_of_a_text() -> None:
    assert TEXT.is_direct.tolist() == [True, False, False, False, False]
    assert TEXT.begins.tolist() == [False, True, False, False, False]


def test_the_probability_of_an_n_gram_is_a_product() -> None:
    logits, rows, p = text_rows()
    q = logits.double().softmax(-1)
    chain = [q[1, 3] * q[2, 2] * q[3, 4], q[2, 2] * q[3, 4], q[3, 4]]
    assert ngram_probability(logits, TEXT).tolist() == pytest.approx(
        [float(x) for x in (q[0, 0], *chain, q[4, 1])], rel=1e-5
    )
    expected = [float(p[n, t]) for n, t in enumerate(TEXT.owners.tolist())]
    assert target_probability(rows, TEXT.owners, 7).tolist() == pytest.approx(expected, rel=2e-3)
    few = compress(p.float().log(), 2)  # two kept tokens, five that share the rest
    kept = few.tokens[0].tolist()
    assert float(target_probability(few, torch.tensor([kept[1]] * 5), 7)[0]) == pytest.approx(
        float(p[0, kept[1]]), rel=2e-3
    )
    unkept = next(t for t in range(7) if t not in kept)
    share = (1 - float(p[0, kept[0]] + p[0, kept[1]])) / 5
    assert float(target_probability(few, torch.tensor([unkept] * 5), 7)[0]) == pytest.approx(share, rel=1e-2)


@pytest.mark.parametrize("owner", [5, 4], ids=["unmapped", "a mapped token"])
def test_the_kl_of_an_n_gram_by_loops(owner: int) -> None:
    """Equation 2 where a token of three pieces begins: 3, which alone is target token 1, then 2 and 4."""
    logits, rows, p = text_rows()
    written = TEXT._replace(owners=torch.where(TEXT.owners == 5, owner, TEXT.owners))
    q = logits.double().softmax(-1)
    whole = float(q[1, 3] * q[2, 2] * q[3, 4])
    mass = {0: q[1, 0], 1: q[1, 1] + q[1, 3] - whole, 4: q[1, 4], "other": q[1, 2]}
    mass[owner] = float(mass.get(owner, 0.0)) + whole
    named = [t for t in mass if t != "other"]
    p_of = {t: float(p[1, t]) for t in named} | {"other": 1 - sum(float(p[1, t]) for t in named)}
    expected = sum(float(mass[t]) * math.log(float(mass[t]) / p_of[t]) for t in mass)
    assert float(ngram_kl(logits, written, rows, DIRECT, 7)[1]) == pytest.approx(expected, abs=3e-3)


def test_the_hybrid_loss_by_hand() -> None:
    logits, rows, p = text_rows()
    q = logits.double().softmax(-1)
    nll = [-math.log(float(q[n, d])) for n, d in enumerate(TEXT.tokens.tolist())]
    p_t = [float(p[n, t]) for n, t in enumerate(TEXT.owners.tolist())]
    reverse, forward = (float(kl(logits, rows, DIRECT, 7)[0]) for kl in (reverse_kl, forward_kl))
    eq2 = float(ngram_kl(logits, TEXT, rows, DIRECT, 7)[1])
    for settings, expected in [
        ({}, reverse + 0.2 * sum(nll[1:])),
        ({"ngram_weight": 0.5, "divergence": "forward"}, forward + 0.5 * sum(nll[1:])),
        ({"ngram_weight": "probability"}, reverse + sum(p_t[n] * nll[n] for n in range(1, 5))),
        ({"ngram_weight": 1.0, "ngram": "kl"}, reverse + eq2),
    ]:
        found = hybrid_loss(logits, TEXT, rows, DIRECT, 7, **settings)  # type: ignore[arg-type]
        assert float(found) == pytest.approx(expected / 5, rel=1e-3)


def test_gradients_by_finite_differences() -> None:
    rows = TopK(
        *(part for part in compress(torch.randn(1, 7, generator=torch.Generator().manual_seed(6)), 7))
    )
    soft = Soft(torch.tensor([[0, 2, 4]]), torch.tensor([[0.5, 0.2, 0.1]]))
    two_rows = TopK(*(torch.cat([part, part]) for part in rows))
    pieces = Written(torch.tensor([3, 4]), torch.tensor([5, 5]), torch.tensor([2, 1]))
    losses = [
        lambda x: reverse_kl(x, rows, DIRECT, 7).sum(),
        lambda x: ngram_kl(x.expand(2, 5), pieces, two_rows, DIRECT, 7)[0],
        lambda x: acceptance_loss(x, soft).sum(),
        lambda x: spelled_kl(x, soft).sum(),
    ]
    for loss in losses:
        x = torch.tensor([[0.3, -0.2, 0.5, 0.1, -0.4]], requires_grad=True)
        loss(x).backward()
        assert x.grad is not None
        for i in range(5):
            step = torch.zeros(1, 5)
            step[0, i] = 1e-2
            slope = float(loss(x.detach() + step) - loss(x.detach() - step)) / 2e-2
            assert float(x.grad[0, i]) == pytest.approx(slope, abs=2e-3)
