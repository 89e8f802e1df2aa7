"""Learning while decoding: a drafter that becomes what its target would say.

Paper     OmniDraft, arXiv 2507.02659, Algorithm 2: after every I requests one update on what the target said.
Problem   What the drafter learns from costs nothing, because the target's distribution at every position was
          computed anyway. But a user waits while it learns; a small model learns its latest texts by heart
          and forgets the rest; and which learning rate is right differs by a factor of ten between drafters:
          what helps one makes another worse.
Rule      1. when: after I requests, or after `update_tokens` tokens inside of one answer; as long as learning
             has taken less than its share of the time of decoding
          2. what: fresh examples, and as many from the whole buffer, which holds fresh and older ones
          3. how far: `STEPS` steps of AdamW, or until the share of the time is used up
          4. judge: the loss on examples that are never learned from. Where an update did not lower it, it is
             taken back, and the learning rate becomes smaller
          5. every `TRIAL`-th update also tries the other learning rates from the same beginning, and the best
             one is kept
Lossless  The text is the target's own, whatever the drafter is (`verify="exact"`). The drafter is exchanged
          between two rounds.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any, get_args

import torch

from draftlib.adapter import Adapter
from draftlib.learning.buffer import Buffer, Example
from draftlib.learning.train import Loss, Teacher, Weight, train_step
from draftlib.learning.trainee import Trainee, Weights, read_weights
from draftlib.round import Round
from draftlib.state import State
from qlib.errors import DraftError, check_one_of, describe, real_number, true_or_false, whole_number
from qlib.models.text import TextModel

if TYPE_CHECKING:
    from draftlib.decoder import SpeculativeDecoder

log = logging.getLogger(__name__)

FACTORS = (1.0, 0.3, 0.1)  # of the learning rate: those that are kept alive
TRIAL = 4  # every so many-th update tries all of them, the first one included
STEPS = 8  # of one update
BATCH = 4  # fresh examples of a step, and as many from the whole buffer
MOST_EXAMPLES = 256
RANK = 32  # the paper's
DEFAULT = "default"  # the adapter that an OnlineAdapter begins with


class OnlineAdapter(Adapter):
    """Teaches a decoder's drafter while it is used.

    Parameters
    ----------
    learning_rate : float
        The largest of three learning rates that are kept alive; the others are 0.3 and 0.1 of it.
    update_every : int, optional
        Requests between two updates, the paper's I. None: only when `learn` is called.
    update_tokens : int
        Tokens of one answer after which it is learned from though it goes on.
    ngram_weight : float or "probability"
        Weight of the n-grams in the "hybrid" loss, the paper's lambda; "probability" is the target's of
        each token.
    lora_rank : int, optional
        Train low-rank changes of the linear layers, of this rank (`lora.py`; 32 is the paper's). None trains
        all weights: with a drafter of 7 million parameters 91 MB of weights and moments in place of 9, and no
        more is accepted.
    loss : {"acceptance", "forward_kl", "hybrid"}
        What is made small: the probability of a rejection (`spelled.py`), or the paper's loss (`distill.py`).
    share : float
        Most time that learning takes, as a share of the time of decoding. `math.inf` for no limit.
    background : bool
        Learn in a thread of its own. Where decoding keeps all cores busy, it is slowed by more than it would
        wait for learning.

    Attributes
    ----------
    frozen : bool
        Set it to True to use what was learned and learn nothing more.
    updates, kept, undone, dropped : int
        Updates, those that changed the drafter, those taken back; and how often a loss that is NaN ended the
        steps at one of the learning rates that an update tries.
    seconds : float
        Time of all updates.
    losses : list of (float, float)
        Held-out loss before and after each update that could be judged.

    Raises
    ------
    DraftError
        A setting is out of its range.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        update_every: int | None = 8,
        update_tokens: int = 128,
        ngram_weight: Weight = 0.2,
        lora_rank: int | None = RANK,
        loss: Loss = "acceptance",
        share: float = 0.2,
        background: bool = False,
    ):
        self.learning_rate = _positive(learning_rate, "learning_rate", "1e-4 to 1e-3 are usual.")
        if update_every is not None:
            remedy = "It counts requests: 8 is usual. None: only when `learn` is called."
            update_every = whole_number(update_every, "update_every", DraftError, 1, remedy=remedy)
        self.update_every = update_every
        remedy = "It counts tokens of an answer: 128 is usual."
        self.update_tokens = whole_number(update_tokens, "update_tokens", DraftError, 8, remedy=remedy)
        self.ngram_weight: Weight = (
            "probability"
            if ngram_weight == "probability"
            else _positive(ngram_weight, "ngram_weight", "The paper has 0.2, or 'probability'.")
        )
        if lora_rank is not None:
            remedy = "None trains all weights."
            lora_rank = whole_number(lora_rank, "lora_rank", DraftError, 1, remedy=remedy)
        self.lora_rank = lora_rank
        check_one_of(loss, "loss", get_args(Loss), DraftError)
        self.loss: Loss = loss
        self.share = _positive(
            share, "share", "With no time nothing is learned: set `frozen`, or leave the adapter out."
        )
        self.background = true_or_false(background, "background", DraftError, "Pass True or False.")
        self.frozen = False
        self.name = DEFAULT
        self.updates = self.kept = self.undone = self.dropped = 0
        self.seconds = 0.0
        self.losses: list[tuple[float, float]] = []
        self._decoding = 0.0  # seconds
        self._rate = 0  # index into FACTORS
        self._decoder: SpeculativeDecoder | None = None
        self._stored: dict[str, Weights] = {}
        self._random = random.Random(0)
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[TextModel | None] | None = None

    @torch.inference_mode(False)  # here and below: the caller's mode would make weights that cannot learn
    def bind(self, decoder: SpeculativeDecoder) -> None:
        """Take the decoder's drafter over; it learns in a copy.

        Raises
        ------
        DraftError
            The decoder has no drafter, or a packed one, or a LoRA rank does not fit a layer.
        """
        if self._decoder is not None:
            raise DraftError("This OnlineAdapter teaches the drafter of another decoder. Make a new one.")
        if decoder.draft is None:
            raise DraftError("There is no draft model that could learn. Make the decoder with one.")
        draft = decoder.trainable_draft
        if draft is None:
            raise DraftError(
                "The draft model was given packed, and packed weights cannot be trained. Make the decoder "
                "with an unpacked one."
            )
        self._trainee = Trainee(draft, self.lora_rank)
        longest = draft.config.max_position_embeddings
        self.buffer = Buffer(decoder.vocabulary, MOST_EXAMPLES, self.update_tokens, longest)
        size = decoder.target.config.vocab_size
        self._teacher = Teacher(self.loss, self.ngram_weight, decoder.vocabulary, size)
        self._decoder = decoder

    # --- between rounds

    @torch.inference_mode(False)
    def observe(self, round: Round) -> None:
        """Take what a round has verified, and learn when it is time."""
        self._decoding += round.seconds.decoding
        if self._pending is not None and self._pending.done():
            self.wait()
        if self.frozen:
            return
        self.buffer.add(round)
        if self._pending is None and self._due():
            self._start()

    def _due(self) -> bool:
        """Return whether there is something to learn, and time for it."""
        if self.update_every is None:
            return False
        enough = self.buffer.requests >= self.update_every or self.buffer.cut
        return enough and bool(self.buffer.fresh) and self._time_left() > 0

    def learn(self) -> None:
        """Learn now from what has come since the last update, if anything has."""
        self.wait()
        if self.buffer.fresh and not self.frozen:
            self._start()

    def _time_left(self) -> float:
        return math.inf if math.isinf(self.share) else self.share * self._decoding - self.seconds

    def _start(self) -> None:
        fresh, held_out = self.buffer.take(), list(self.buffer.held_out)
        older = list(self.buffer.examples)
        if not self.background:
            self._swap(self._update(fresh, older, held_out))
            return
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "draftlib-learning")
        self._pending = self._worker.submit(self._update, fresh, older, held_out)

    def wait(self) -> None:
        """Wait for an update in the background, and draft with what it learned."""
        if self._pending is not None:
            futures.wait(
                [self._pending]
            )  # after Ctrl-C here the update goes on, and is still to be waited for
            done, self._pending = self._pending, None  # an error in it is raised once, and not for ever
            self._swap(done.result())

    def _swap(self, draft: TextModel | None) -> None:
        assert self._decoder is not None
        if draft is not None:
            self._decoder.replace_draft(draft)

    # --- one update

    def _update(
        self, fresh: Sequence[Example], older: Sequence[Example], held_out: Sequence[Example]
    ) -> TextModel | None:
        """Learn from examples; return the new drafter, packed, or None where it stays the old one."""
        started, until = perf_counter(), perf_counter() + self._time_left()
        self.updates += 1
        before, begin = self._judge(held_out), self._trainee.weights.copy()
        every_rate = self.updates % TRIAL == 1 and bool(held_out)  # else nothing says which is the best
        rates = sorted(range(len(FACTORS)), key=lambda i: i != self._rate) if every_rate else [self._rate]
        best, best_loss = begin, before
        try:
            for count, rate in enumerate(rates):
                if count and perf_counter() > until:
                    break
                share = (until - perf_counter()) / (len(rates) - count)  # of the time left, for this rate
                self._trainee.put(begin)
                learned = self._train(
                    fresh, older, self.learning_rate * FACTORS[rate], perf_counter() + share
                )
                loss = self._judge(held_out) if learned else math.nan
                if learned and (not held_out or loss < best_loss):
                    best, best_loss, self._rate = self._trainee.weights.copy(), loss, rate
        finally:  # after Ctrl-C or an error as well: half an update was never judged
            self._trainee.put(best)
        changed = best is not begin
        if not changed and self._rate + 1 < len(FACTORS):
            self._rate += 1
        self.kept += changed
        self.undone += not changed
        if held_out:
            self.losses.append((before, best_loss))
        draft = self._trainee.packed() if changed else None
        self.seconds += perf_counter() - started
        return draft

    def _train(self, fresh: Sequence[Example], older: Sequence[Example], rate: float, until: float) -> bool:
        """Take steps until the time is over, one at least; return whether all losses were numbers."""
        trainee, optimizer = self._trainee, self._trainee.optimizer(rate)
        for step in range(STEPS):
            if step and perf_counter() > until:
                break
            batch = self._random.sample(fresh, min(BATCH, len(fresh)))
            batch += self._random.sample(older, min(BATCH, len(older)))
            with torch.enable_grad():
                learned = train_step(self._teacher(trainee.model, batch), trainee.trained, optimizer)
            if not learned:
                self.dropped += 1
                log.warning("An update of the drafter was dropped: its loss is not a number (rate %g).", rate)
                return False
            trainee.weights.steps += 1
        return True

    @torch.no_grad()
    def _judge(self, held_out: Sequence[Example]) -> float:
        """Return the loss on held-out examples; infinite where there are none."""
        return float(self._teacher(self._trainee.model, held_out)) if held_out else math.inf

    # --- named adapters

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all adapters."""
        return tuple(sorted({*self._stored, self.name}))

    @torch.inference_mode(False)
    def switch(self, name: str) -> None:
        """Draft and learn with the adapter of a name, from the next round on; a new one begins untrained.

        Raises
        ------
        DraftError
            The name is no string, empty, or holds a "/"; or no decoder was made with this adapter.
        """
        if self._decoder is None:
            raise DraftError("This OnlineAdapter belongs to no decoder yet: make one with adapter=...")
        if not isinstance(name, str) or not name or "/" in name:
            raise DraftError(f"An adapter has a name without '/', not {describe(name)}. Pass one, as 'code'.")
        self.wait()
        self._stored[self.name] = self._trainee.weights.copy()
        self.name = name
        self._trainee.put(self._stored.pop(name, self._trainee.fresh))
        self._swap(self._trainee.packed())

    # --- keep

    def state(self) -> State:
        """Return all that was learned: every adapter, its optimizer, the buffer, the random numbers."""
        self.wait()
        tensors, values = self.buffer.state()
        tensors = {f"buffer/{name}": each for name, each in tensors.items()}
        adapters = {**self._stored, self.name: self._trainee.weights}
        for name, weights in adapters.items():
            tensors |= weights.tensors(name)
        version, numbers, gauss = self._random.getstate()
        counts = {name: getattr(self, name) for name in _COUNTS}
        return State(
            tensors,
            {
                "base": self._trainee.base,
                "lora_rank": self.lora_rank,
                "name": self.name,
                "steps": {name: weights.steps for name, weights in adapters.items()},
                "rate": self._rate,
                "counts": counts,
                "decoding": self._decoding,
                "losses": [list(pair) for pair in self.losses],
                "random": [version, list(numbers), gauss],
                "buffer": values,
            },
        )

    @torch.inference_mode(False)
    def restore(self, state: State) -> None:
        """Take back what `state` gave.

        Raises
        ------
        DraftError
            It belongs to another drafter, or to another rank.
        """
        if state.value("base", str) != self._trainee.base:
            raise DraftError(
                "it was learned by another draft model than this one. Load the one that it began with."
            )
        rank = state.values.get("lora_rank")
        if rank != self.lora_rank:
            raise DraftError(
                f"it was learned with lora_rank={rank}, and this adapter has lora_rank={self.lora_rank}. "
                f"Make it with OnlineAdapter(lora_rank={rank})."
            )
        steps, name = state.value("steps", dict), state.value("name", str)
        trained = self._trainee.trained
        self._stored = {each: read_weights(state, each, count, trained) for each, count in steps.items()}
        self.name = name
        self._trainee.put(self._stored.pop(name))
        self._rate, self._decoding = state.value("rate", int), state.value("decoding", float)
        for each, value in state.value("counts", dict).items():
            setattr(self, each, value)
        self.losses = [(before, after) for before, after in state.value("losses", list)]
        version, numbers, gauss = state.value("random", list)
        self._random.setstate((version, tuple(numbers), gauss))
        buffer = {
            key.removeprefix("buffer/"): each
            for key, each in state.tensors.items()
            if key.startswith("buffer/")
        }
        self.buffer.restore(buffer, state.value("buffer", dict))
        self._swap(self._trainee.packed())

    def __repr__(self) -> str:
        kind = "all weights" if self.lora_rank is None else f"LoRA of rank {self.lora_rank}"
        return (
            f"<OnlineAdapter {self.name!r}: {kind}, {self.updates} updates in {self.seconds:.1f} s, "
            f"{self.kept} kept, {self.undone} taken back, {self.dropped} dropped>"
        )


_COUNTS = ("updates", "kept", "undone", "dropped", "seconds")


def _positive(value: Any, name: str, remedy: str) -> float:
    found = float(real_number(value, f"OnlineAdapter: {name}", DraftError, remedy))
    if not found > 0:
        raise DraftError(f"OnlineAdapter: {name}={value!r} must be above 0. {remedy}")
    return found
