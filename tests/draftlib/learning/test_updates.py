"""When the drafter learns and what becomes of an update, with a clock and losses that the test makes."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from learners import PROMPTS, answer, decoder, learner

from draftlib import OnlineAdapter
from draftlib.answer import Answer
from draftlib.decoder import SpeculativeDecoder
from draftlib.learning import online
from draftlib.learning.online import FACTORS, STEPS, Weights


class Clock:
    """Seconds that pass only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock on which a step of training takes a second, and nothing else takes time."""
    clock, step = Clock(), online.train_step

    def second(*arguments: Any) -> bool:
        clock.now += 1
        return step(*arguments)

    monkeypatch.setattr(online, "perf_counter", clock)
    monkeypatch.setattr(online, "train_step", second)
    return clock


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_learning_takes_its_share_of_the_time(clock: Clock, share: float) -> None:
    """10 s of decoding an answer: at most the share of them, but for the last step of each learning rate."""
    adapter = learner(share=share, update_every=1)
    one = decoder(adapter)
    for number in range(1, 31):
        adapter._decoding += 10
        one.generate(PROMPTS[number % len(PROMPTS)], max_new_tokens=12)
        assert adapter.seconds == clock.now <= share * adapter._decoding + len(FACTORS)
    assert adapter.seconds > 0.8 * share * adapter._decoding


def test_without_a_limit_every_update_takes_all_its_steps(clock: Clock) -> None:
    adapter = learner(update_every=1)
    answer(decoder(adapter))
    # The 4th example is held out, so nothing is learned then; the 5th update tries all learning rates.
    assert adapter.updates == 7 and adapter.seconds == STEPS * (6 + len(FACTORS))


def test_with_little_time_left_only_the_learning_rate_of_now_is_tried(clock: Clock) -> None:
    adapter = learner(update_every=1)
    one = decoder(adapter)
    answer(one)
    adapter.share, adapter.updates = 0.1, 4  # the next update would try all of them
    adapter._decoding = 10 * (adapter.seconds + 0.5)
    before = clock.now
    one.generate(PROMPTS[0], max_new_tokens=12)
    assert adapter.updates == 5 and clock.now == before + 1


def parts(weights: Weights) -> list[Any]:
    return [weights.steps, *(each.tolist() for part in ("trained", "first", "second")
                             for each in getattr(weights, part))]  # fmt: skip


def judged(adapter: OnlineAdapter, losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """One update whose held-out losses, before and after each learning rate, are these."""
    each: Iterator[float] = iter(losses)
    monkeypatch.setattr(OnlineAdapter, "_judge", lambda self, held_out: next(each))
    examples = list(adapter.buffer.examples)
    adapter._update(examples, examples, examples[:1])
    assert next(each, None) is None


@pytest.fixture
def taught() -> OnlineAdapter:
    """An adapter that has examples and moments; its next update tries one learning rate only."""
    adapter = learner()
    answer(decoder(adapter))
    adapter.updates = 1
    adapter._rate = 0
    return adapter


def test_a_worse_update_leaves_weights_moments_and_steps(
    taught: OnlineAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = parts(taught._trainee.weights)
    assert before[0] > 0
    for rate in (1, 2, 2):  # each time with a smaller learning rate, down to the last
        judged(taught, [0.5, 0.6], monkeypatch)
        assert parts(taught._trainee.weights) == before and taught._rate == rate
        taught.updates = 1
    assert all(
        torch.equal(x, y)
        for x, y in zip(taught._trainee.trained, taught._trainee.weights.trained, strict=True)
    )


def test_a_better_update_is_kept_with_its_moments(
    taught: OnlineAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, kept = parts(taught._trainee.weights), taught.kept
    judged(taught, [0.5, 0.4], monkeypatch)
    after = parts(taught._trainee.weights)
    assert after[0] == before[0] + STEPS and taught._rate == 0 and taught.kept == kept + 1
    assert all(x != y for x, y in zip(before, after, strict=True))
    assert taught.losses[-1] == (0.5, 0.4)


@pytest.mark.parametrize(
    ("rate", "losses", "expected"),
    [
        (0, [0.4, 0.3, 0.35], 1),
        (0, [0.3, 0.35, 0.4], 0),
        (1, [0.3, 0.2, 0.4], 0),  # the one of now comes first, then the others
        (1, [0.3, 0.4, 0.2], 2),
        (0, [0.6, 0.3, math.nan], 1),
        (0, [0.6, 0.7, 0.8], 1),  # all worse: taken back, and smaller from now on
    ],
)
def test_every_fourth_update_tries_all_learning_rates(
    taught: OnlineAdapter,
    monkeypatch: pytest.MonkeyPatch,
    rate: int,
    losses: list[float],
    expected: int,
) -> None:
    taught.updates, taught._rate = 4, rate
    used: list[float] = []
    train = OnlineAdapter._train

    def remember(self: OnlineAdapter, fresh: Any, older: Any, rate: float, until: float) -> bool:
        used.append(rate)
        return train(self, fresh, older, rate, until)

    monkeypatch.setattr(OnlineAdapter, "_train", remember)
    before = parts(taught._trainee.weights)
    judged(taught, [0.5, *losses], monkeypatch)
    assert used[0] == taught.learning_rate * FACTORS[rate]
    assert sorted(used) == sorted(taught.learning_rate * factor for factor in FACTORS)
    assert taught._rate == expected
    steps = before[0] + (STEPS if min(losses) < 0.5 else 0)
    assert taught._trainee.weights.steps == steps  # all begin where the first one began


@pytest.mark.parametrize("background", [False, True])
def test_the_drafter_is_exchanged_between_rounds_by_the_thread_that_decodes(
    monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    adapter = learner(background=background, update_every=1)
    one = decoder(adapter)
    next_round, replace_draft = Answer.next_round, SpeculativeDecoder.replace_draft
    inside, exchanged = [False], []

    def watched(self: Answer, *arguments: Any) -> Any:
        inside[0], before = True, one.draft
        found = next_round(self, *arguments)
        assert one.draft is before
        inside[0] = False
        return found

    def noted(self: SpeculativeDecoder, draft: Any) -> None:
        exchanged.append(not inside[0] and threading.current_thread() is threading.main_thread())
        replace_draft(self, draft)

    monkeypatch.setattr(Answer, "next_round", watched)
    monkeypatch.setattr(SpeculativeDecoder, "replace_draft", noted)
    answer(one)
    adapter.wait()
    assert len(exchanged) == adapter.kept > 1 and all(exchanged)


def test_frozen_it_uses_what_it_learned_and_learns_no_more(taught: OnlineAdapter) -> None:
    taught.frozen = True
    before, count = parts(taught._trainee.weights), taught.buffer.count
    assert taught._decoder is not None
    answer(taught._decoder)
    assert parts(taught._trainee.weights) == before and taught.buffer.count == count


def test_what_drafts_is_the_adapter_switched_to(taught: OnlineAdapter) -> None:
    """Each packed drafter computes what its own adapter has learned, and a new one what the first one did."""
    one, tokens = taught._decoder, torch.arange(3, 12)[None]
    assert one is not None and one.draft is not None
    untrained = decoder().draft
    assert untrained is not None
    with torch.inference_mode():
        learned, begin = one.draft(tokens), untrained(tokens)
        taught.switch("code")
        assert torch.allclose(one.draft(tokens), begin, atol=1e-2)  # float16 holds the packed weights
        assert not torch.allclose(learned, begin, atol=1e-1)
        taught.switch("default")
        assert torch.equal(one.draft(tokens), learned)
