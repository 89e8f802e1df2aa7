"""The head that decides how far to draft, trained together with the drafter: `schedules.py` at work.

    adapter = HeadTraining(OnlineAdapter(update_every=None), "joint")
    decoder = SpeculativeDecoder(target, draft, length=AcceptanceHead(train_every=0), adapter=adapter)

Paper     OmniDraft (arXiv 2507.02659), Algorithms 3 and 4.
Problem   A head learns from the drafter's hidden states. An update of the drafter changes them.
Rule      A round is kept as the text it drafted for, its draft tokens, and which of them were accepted. When
          the head learns from it, the drafter of now reads the text again and gives its states.
Left out  Rounds beyond `MOST_ROUNDS` of a batch: reading a round again costs as much as 100 tokens of text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import nn

from draftlib.adapter import Adapter
from draftlib.learning.acceptance import AcceptanceHead
from draftlib.learning.labels import Examples, labels_of
from draftlib.learning.online import OnlineAdapter
from draftlib.learning.schedules import interleaved, joint
from draftlib.round import Round
from draftlib.state import State
from qlib.errors import DraftError, check_one_of, describe, whole_number

if TYPE_CHECKING:
    from draftlib.decoder import SpeculativeDecoder

Schedule = Literal["joint", "interleaved"]
CONTEXT = 64  # draft tokens of text in front of a draft that are read again
MOST_ROUNDS = 64  # of a batch
STORED = 64  # requests from which the interleaved schedule chooses


class Seen(NamedTuple):
    """A round to learn from again.

    Attributes
    ----------
    tokens : tuple of int
        The end of the text in draft tokens, at least one, and what was drafted after it.
    labels : tuple of (float or None)
        Of the drafted ones; see `labels_of`.
    """

    tokens: tuple[int, ...]
    labels: tuple[float | None, ...]


Request = list[Seen]  # the rounds of one answer


class HeadTraining(Adapter):
    """Teaches a decoder's drafter, and its `AcceptanceHead` in step with it.

    Parameters
    ----------
    adapter : OnlineAdapter
        Teaches the drafter; with `update_every=None`, for this class says when.
    schedule : {"joint", "interleaved"}
        Algorithm 3 or 4.
    every : int
        Requests between two updates of the drafter, the paper's I.
    batch : int
        Requests of a batch of the interleaved schedule, the paper's B.
    seed : int
        Of the choice of requests and rounds.

    Raises
    ------
    DraftError
        A setting is out of its range, or the adapter is none, or decides itself when it learns.
    """

    def __init__(
        self,
        adapter: OnlineAdapter,
        schedule: Schedule = "joint",
        *,
        every: int = 8,
        batch: int = 8,
        seed: int = 0,
    ):
        check_one_of(schedule, "HeadTraining: schedule", get_args(Schedule), DraftError)
        if not isinstance(adapter, OnlineAdapter):
            raise DraftError(
                f"HeadTraining: adapter is {describe(adapter)}. Pass OnlineAdapter(update_every=None)."
            )
        if adapter.update_every is not None:
            raise DraftError(
                f"HeadTraining says when the drafter learns, and its adapter does so every "
                f"{adapter.update_every} requests. Make it with OnlineAdapter(update_every=None)."
            )
        self.adapter, self.schedule = adapter, schedule
        self._every = whole_number(every, "HeadTraining: every", DraftError, 1)
        self._batch = whole_number(batch, "HeadTraining: batch", DraftError, 1)
        self._generator = torch.Generator().manual_seed(
            whole_number(seed, "HeadTraining: seed", DraftError, 0)
        )
        self._rounds: Request = []
        self._requests: list[Request] = []
        self._store: deque[Request] = deque(maxlen=STORED)

    def bind(self, decoder: SpeculativeDecoder) -> None:
        """Take drafter and head of a decoder over.

        Raises
        ------
        DraftError
            The drafter cannot be trained, or the length is no `AcceptanceHead(train_every=0)`.
        """
        head = decoder.length
        if not isinstance(head, AcceptanceHead) or head.train_every:
            raise DraftError(
                f"HeadTraining trains the head, and the decoder's length is {head!r}. Make the decoder with "
                "length=AcceptanceHead(train_every=0)."
            )
        self.adapter.bind(decoder)
        self._head, self._decoder = head, decoder

    def observe(self, round: Round) -> None:
        """Take what a round has shown; learn at the end of a request."""
        self.adapter.observe(round)
        if round.draft is not None and round.draft_context:
            text = round.draft_context[-CONTEXT:] + round.draft.tokens
            self._rounds.append(Seen(text, tuple(labels_of(round))))
        if not round.ended or self.adapter.frozen:
            return
        if any(label is not None for seen in self._rounds for label in seen.labels):
            self._requests.append(self._rounds)
        self._rounds = []
        if self.schedule == "joint":
            joint(self._requests, self._every, self, self._head)
        else:
            interleaved(
                self._requests, self._store, self._every, self._batch, self, self._head, self._generator
            )

    # --- the drafter of the schedules

    def update(self, requests: Sequence[Request]) -> None:
        """Let the drafter learn from the answers that have come; the adapter keeps them itself."""
        self.adapter.learn()

    @torch.no_grad()
    def examples(self, requests: Sequence[Request]) -> Examples:
        """Return the labelled draft tokens of some rounds of requests, as the drafter of now sees them."""
        rounds = [seen for request in requests for seen in request if any(x is not None for x in seen.labels)]
        order = torch.randperm(len(rounds), generator=self._generator)[:MOST_ROUNDS]
        chosen = [rounds[i] for i in order.tolist()]
        draft = self._decoder.draft
        assert draft is not None
        width = draft.config.hidden_size
        found = [Examples(torch.empty(0, width), torch.empty(0), torch.empty(0))]
        if chosen:
            texts = [torch.tensor(seen.tokens) for seen in chosen]
            tokens = nn.utils.rnn.pad_sequence(texts, batch_first=True)
            states = draft.decode(tokens.to(draft.model.embed_tokens.weight.device))
            for state, text, seen in zip(states, texts, chosen, strict=True):
                first = len(text) - len(seen.labels)  # the state before a token is the one that predicts it
                known = [first + i for i, label in enumerate(seen.labels) if label is not None]
                hidden = state[[i - 1 for i in known]]
                q = draft.logits(hidden).float().softmax(-1)
                confidences = q.cpu().gather(1, text[known][:, None])[:, 0]
                labels = torch.tensor([label for label in seen.labels if label is not None])
                found.append(Examples(hidden.to("cpu", torch.float32), confidences, labels))
        return Examples(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    # --- keep

    def state(self) -> State:
        """Return what the drafter has learned; the head is kept as the length, and rounds are forgotten."""
        return self.adapter.state()

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self.adapter.restore(state)
