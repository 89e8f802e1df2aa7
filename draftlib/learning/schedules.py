"""When the drafter learns, and when the head that decides how far it drafts.

Paper     OmniDraft (arXiv 2507.02659), Algorithms 3 and 4.
Problem   The head learns which of the drafter's tokens are accepted. Whenever the drafter changes, what the
          head has learned is out of date, and so are the hidden states that it has learned from.
Rule      Both are called after every request. `joint`: after every I requests the drafter learns from them,
          and then the head from the same requests, seen with the new drafter. `interleaved`: every I-th
          request the drafter learns from the last I, which go to a bounded store; on all other requests the
          head learns from a random batch of the store, again seen with the drafter of now.
Left out  Algorithm 4 without a first update of the drafter: while the store is empty the head does not learn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from draftlib.learning.acceptance import AcceptanceHead
from draftlib.learning.labels import Examples

Request = TypeVar("Request")
_Contra = TypeVar("_Contra", contravariant=True)


class Drafter(Protocol[_Contra]):
    """A drafter in training; a request is whatever it keeps of an answer."""

    def update(self, requests: Sequence[_Contra]) -> None:
        """Learn from what the target said."""
        ...

    def examples(self, requests: Sequence[_Contra]) -> Examples:
        """Return the labelled draft tokens, with states and confidences of the drafter of now."""
        ...


def joint(requests: list[Request], every: int, drafter: Drafter[Request], head: AcceptanceHead) -> None:
    """Learn after a request by Algorithm 3: the drafter and the head from the same `every` requests.

    Parameters
    ----------
    requests : list
        Those since the last update, the newest included; emptied by an update.
    every : int
        I, how many requests make an update.
    drafter : Drafter
        Learns first.
    head : AcceptanceHead
        Learns from the changed drafter.
    """
    if len(requests) < every:
        return
    drafter.update(requests)
    head.train(drafter.examples(requests))
    requests.clear()


def interleaved(
    requests: list[Request],
    store: deque[Request],
    every: int,
    batch: int,
    drafter: Drafter[Request],
    head: AcceptanceHead,
    generator: torch.Generator,
) -> None:
    """Learn after a request by Algorithm 4: every `every`-th the drafter, after all others the head.

    Parameters
    ----------
    requests : list
        Q: those since the drafter's last update, the newest included; moved to the store by an update.
    store : deque
        R: earlier requests, bounded by its `maxlen`.
    every : int
        I.
    batch : int
        B: how many requests of the store the head sees at a time.
    drafter, head
        As for `joint`.
    generator : torch.Generator
        Of the choice from the store.
    """
    if len(requests) >= every:
        drafter.update(requests)
        store.extend(requests)
        requests.clear()
    elif store:
        chosen = torch.randperm(len(store), generator=generator)[:batch]
        head.train(drafter.examples([store[i] for i in chosen.tolist()]))
