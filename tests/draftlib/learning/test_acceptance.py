"""The acceptance head: its network, its rule, what it learns from a stream of rounds, its saved state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from learning_rounds import round_of, singles
from torch import Tensor

from draftlib import AcceptanceHead, Confidence
from draftlib.drafting.length import Drafted
from draftlib.learning.acceptance import AcceptanceNet, likely_rejected
from draftlib.learning.labels import Examples, examples_of
from draftlib.round import Round
from qlib.errors import DraftError

WIDTH = 16
DIRECTION = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))


def drafted(hidden: Tensor, confidence: float = 0.7) -> Drafted:
    return Drafted(0, torch.empty(0), confidence, hidden)


def states(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def stream(rounds: int, seed: int = 0) -> list[Round]:
    """Rounds of four draft tokens. One is accepted where its state points along a direction; two of them in
    every other round are one target token, which needs both. Confidences say nothing."""
    found = []
    for number, hidden in enumerate(states(rounds * 4, seed).split(4)):
        stands = (hidden @ DIRECTION > -1.5).tolist()
        spans = singles(4) if number % 2 else [(0, 1), (1, 3), (3, 4)]
        good = [all(stands[start:stop]) for start, stop in spans]
        accepted = good.index(False) if False in good else len(good)
        found.append(round_of(spans, accepted, hidden, [0.7] * 4))
    return found


def trained(rounds: int = 400, **settings: Any) -> AcceptanceHead:
    head = AcceptanceHead(**{"train_every": 2, **settings})
    for found in stream(rounds):
        head.learn(found)
    return head


def area_under_the_curve(scores: Tensor, labels: Tensor) -> float:
    """How often a token with label 1 is scored above one with label 0: all pairs are counted."""
    return float((scores[labels == 1].unsqueeze(1) > scores[labels == 0]).double().mean())


def log_odds(head: AcceptanceHead, hidden: Tensor) -> Tensor:
    assert head.net is not None
    return head.net(hidden, torch.full((len(hidden),), 0.7)).detach()


# --- the network and the rule


def test_the_network_against_a_loop() -> None:
    net = AcceptanceNet(3).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    hidden, confidence = [3.0, -4.0, 1.0], 0.8
    scale = math.sqrt(sum(each**2 for each in hidden) / 3)
    x = [*(each / scale for each in hidden), math.log(0.8 / 0.2)]
    for block in net.blocks:
        weight, bias = block.weight.tolist(), block.bias.tolist()  # type: ignore[operator, union-attr]
        inner = [
            sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)
        ]
        x = [v + z / (1 + math.exp(-z)) for v, z in zip(x, inner, strict=True)]
    expected = sum(w * v for w, v in zip(net.out.weight[0].tolist(), x, strict=True)) + net.out.bias.item()
    found = net(torch.tensor([hidden]).double(), torch.tensor([confidence]).double())
    assert found.tolist() == pytest.approx([expected], rel=1e-6)


def test_each_block_has_its_own_weights() -> None:
    assert sum(each.numel() for each in AcceptanceNet(3).parameters()) == 3 * (16 + 4) + 4 + 1


def test_certainty_is_finite() -> None:
    logits = AcceptanceNet(2)(torch.zeros(2, 2), torch.tensor([0.0, 1.0]))
    assert logits.tolist() == pytest.approx([-9.21, 9.21], abs=0.01)


@pytest.mark.parametrize("confidences", [[0.9], [0.9, 0.6], [0.9, 0.6, 0.8], [0.2], [0.99] * 8])
def test_untrained_it_is_the_rule_of_confidence(confidences: list[float]) -> None:
    tokens = [drafted(states(1, 0)[0], each) for each in confidences]
    for gamma in (0.05, 0.3, 0.5, 0.7, 0.9):
        assert AcceptanceHead(gamma).stop(tokens) == Confidence(1 - gamma).stop(tokens)


def test_the_probability_of_a_rejection_by_hand() -> None:
    logits = torch.tensor([0.9, 0.5, 0.8]).logit()  # 1 - 0.9 * 0.5 * 0.8 = 0.64
    assert [likely_rejected(logits, gamma) for gamma in (0.63, 0.65)] == [True, False]
    assert not AcceptanceHead(0.0).stop([])


def test_random_numbers_of_the_user_stay() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trained(8)
    assert torch.equal(torch.rand(1), expected)


# --- learning


def test_it_learns_what_is_accepted() -> None:
    head, hidden = trained(), states(1000, seed=99)
    labels = (hidden @ DIRECTION > -1.5).double()
    assert area_under_the_curve(log_odds(head, hidden), labels) > 0.9
    again = trained()
    assert torch.equal(log_odds(again, hidden), log_odds(head, hidden))
    assert not torch.equal(log_odds(trained(seed=1), hidden), log_odds(head, hidden))


def test_and_stops_there() -> None:
    head = trained()
    good, bad = (drafted(sign * 3 * DIRECTION / DIRECTION.norm()) for sign in (1, -1))
    assert [head.stop(each) for each in ([good], [good, good], [bad], [good, bad])] == [
        False,
        False,
        True,
        True,
    ]
    assert not AcceptanceHead().stop([bad])


def test_a_larger_weight_of_rejections_makes_it_careful() -> None:
    hidden = states(200, seed=5)
    bold, careful = (log_odds(trained(reject_weight=weight), hidden).mean() for weight in (1.0, 6.0))
    assert careful < bold - 0.5


def test_in_inference_mode_too() -> None:
    with torch.inference_mode():
        found = stream(8)
        head = AcceptanceHead(train_every=1)
        head.stop([drafted(states(1, 0)[0])])
        for each in found:
            head.learn(each)
    assert head.net is not None and bool(head.net.out.bias != 0)


def test_it_trains_every_so_many_rounds_and_forgets_old_ones() -> None:
    head = AcceptanceHead(train_every=3)
    steps = []
    for found in stream(7):
        head.learn(found)
        assert head.net is not None
        steps.append(bool(head.net.out.bias != 0))
    assert steps == [False, False, True, True, True, True, True]
    head = trained(1100, train_every=0)
    assert head.net is not None and not bool(head.net.out.bias != 0)
    state, newest = head.state_dict(), examples_of(stream(1100)[-1])
    assert len(state["kept.lengths"]) == 1024
    assert newest is not None and torch.equal(state["kept.hidden"][-len(newest.labels) :], newest.hidden)


def test_a_round_without_labels_is_passed_over() -> None:
    head = AcceptanceHead(train_every=1)
    head.learn(Round(1, (), ()))
    assert head.net is None


def test_states_seen_by_a_changed_drafter_take_the_place_of_the_old_ones() -> None:
    """The changed drafter's states are those of before, turned round: so is what the head must learn."""
    hidden = states(600, seed=11)
    labels = (hidden @ DIRECTION > -1.5).float()
    turned = Examples(-hidden, torch.full((600,), 0.7), labels)
    head = trained()
    head.refresh(Examples(*each) for each in zip(*(part.split(4) for part in turned), strict=True))
    losses = [head.train() for _ in range(200)]
    assert losses[-1] < 0.5 * losses[0]
    assert area_under_the_curve(log_odds(head, -hidden), labels) > 0.9


def test_given_examples_are_the_ones_trained_on() -> None:
    head = AcceptanceHead(train_every=0)
    examples = Examples(states(1, 0), torch.tensor([0.8]), torch.tensor([0.0]))
    assert head.train(examples) == pytest.approx(-math.log(0.2), rel=1e-5)
    assert head.train(examples) < -math.log(0.2)


def test_what_is_not_finite_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    head = trained(6)
    before = head.state_dict()
    spoiled = states(2, 0)
    spoiled[0, 0] = torch.nan
    head.learn(round_of(singles(2), 2, spoiled))
    assert math.isnan(head.train(Examples(spoiled, torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]))))
    assert [word in caplog.text for word in ("hidden states are not finite", "loss is nan")] == [True, True]
    after = head.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != "generator")


# --- its state


def test_a_saved_head_goes_on_as_it_would_have() -> None:
    head, other = trained(30), AcceptanceHead(train_every=2)
    other.load_state_dict(head.state_dict())
    for found in stream(30, seed=1):
        for each in (head, other):
            each.learn(found)
    mine, its = head.state_dict(), other.state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_a_state_is_a_copy() -> None:
    head = trained(10)
    before = head.state_dict()
    copies = {name: value.clone() for name, value in before.items()}
    other = AcceptanceHead(train_every=1)
    other.load_state_dict(before)
    for found in stream(10, seed=1):
        head.learn(found)
        other.learn(found)
    assert all(torch.equal(before[name], copies[name]) for name in copies)


def test_a_state_from_before_the_first_round_or_step() -> None:
    head = trained(10)
    assert AcceptanceHead().state_dict() == {}
    head.load_state_dict({})
    assert head.state_dict() == {}
    only_steps = AcceptanceHead(train_every=0)
    only_steps.train(Examples(states(1, 0), torch.tensor([0.8]), torch.tensor([0.0])))
    head.load_state_dict(only_steps.state_dict())
    assert len(head.state_dict()["kept.lengths"]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"net.out.weight": None}, "net.out.weight is missing"),
        ({"generator": None}, "generator is missing"),
        ({"net.blocks.1.bias": torch.zeros(3)}, r"net.blocks.1.bias has the shape \[3\], not \[17\]"),
        ({"extra": torch.zeros(1)}, "extra is unknown"),
    ],
)
def test_another_state_is_refused(change: dict[str, Tensor | None], words: str) -> None:
    state = {name: value for name, value in (trained(4).state_dict() | change).items() if value is not None}
    head = trained(6)
    before = head.state_dict()
    with pytest.raises(DraftError, match=f"no state of an AcceptanceHead.*{words}.*state_dict"):
        head.load_state_dict(state)
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())


def test_a_drafter_of_another_width_is_refused() -> None:
    head = trained(4)
    with pytest.raises(DraftError, match=r"width 16.*width 5.*new head"):
        head.stop([drafted(torch.zeros(5))])
    with pytest.raises(DraftError, match=r"width 16.*width 5"):
        head.learn(round_of(singles(2), 1, torch.zeros(2, 5)))
    with pytest.raises(DraftError, match=r"width 16.*width 5"):
        narrow = AcceptanceHead()
        narrow.learn(round_of(singles(2), 1, torch.zeros(2, 5)))
        head.load_state_dict(narrow.state_dict())


def test_nothing_to_train_on() -> None:
    with pytest.raises(DraftError, match="no round is remembered"):
        AcceptanceHead().train()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 1.5}, "threshold=1.5.*between 0"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"threshold": "a"}, "AcceptanceHead: threshold is the str 'a'"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0.*positive.*0.001"),
        ({"reject_weight": -1}, "reject_weight=-1.0.*positive"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"train_every": -1}, "train_every=-1"),
        ({"seed": 0.5}, "seed is the float"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DraftError, match=words):
        AcceptanceHead(**settings)
