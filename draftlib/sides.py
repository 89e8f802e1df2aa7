"""The two models at work: each has a text, a key/value cache that follows it, and one kind of question.

The target is asked about several tokens at once and forgets the rejected ones. The drafter is asked token by
token; its text is the target's, spelled with its own tokens, and may change a little at its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftlib.vocabulary.reverse import ReverseTranslator
from qlib.models.fast.row_stability import STABLE_ROWS
from qlib.models.text import TextModel


class TargetSide:
    """The target and its text.

    Parameters
    ----------
    model : TextModel
        The target.
    prompt : sequence of int
        Its tokens, at least one. All but the last are read at once.
    room : int
        Most positions that will be needed.
    """

    def __init__(self, model: TextModel, prompt: Sequence[int], room: int):
        self.model, self.tokens = model, list(prompt)
        self._cache = model.start(capacity=room)
        if len(prompt) > 1:
            self._pass(self.tokens[:-1])

    def rows(self, proposed: Sequence[int]) -> Tensor:
        """Return the rows of a round: logits [m + 1, V] after the text and after each proposed token."""
        tokens = [self.tokens[-1], *proposed]
        # In a packed model, rows have the same bits however many are computed together, up to this number.
        parts = [tokens[i : i + STABLE_ROWS] for i in range(0, len(tokens), STABLE_ROWS)]
        return torch.cat([self.model.logits(self._pass(part))[0] for part in parts])

    def append(self, tokens: Sequence[int]) -> None:
        """Add tokens to the text and forget what was proposed beyond them."""
        self.tokens += tokens
        self._cache.truncate(min(self._cache.length, len(self.tokens) - 1))

    def _pass(self, tokens: Sequence[int]) -> Tensor:
        device = self.model.model.embed_tokens.weight.device
        return self.model.decode(torch.tensor([list(tokens)], device=device), self._cache)


class DraftSide:
    """The drafter and its spelling of the text.

    Parameters
    ----------
    model : TextModel
        The drafter.
    text : ReverseTranslator
        Its spelling, kept up by the caller.
    room : int
        Positions that will probably be needed.
    """

    def __init__(self, model: TextModel, text: ReverseTranslator, room: int):
        self.model, self.text = model, text
        self._cache = model.start(capacity=min(room, model.config.max_position_embeddings))
        self._processed: list[int] = []  # the cache holds those from `_first` on
        self._first = 0

    def prepare(self, count: int) -> list[int]:
        """Forget what is no longer right; return the tokens not yet processed, at least one if there are any.

        Where the context is too short for the text and `count` tokens more, the older half of it goes.
        """
        tokens, capacity = self.text.tokens, self._cache.capacity
        kept = min(self.text.common_prefix(self._processed), len(tokens) - 1)
        if kept < self._first or len(tokens) + count - self._first > capacity:
            # Begin anew with the newest half of the capacity, or with less where the draft needs the room.
            newest = max(1, min(capacity // 2, capacity - count))
            self._first = max(0, len(tokens) - newest)
            kept = self._first  # nothing of what is kept of the text has been processed
        kept = max(kept, 0)
        self._cache.truncate(kept - self._first if kept > self._first else 0)
        self._processed = tokens[:kept]
        return tokens[kept:]

    def step(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Process tokens; return the logits [D] after the last, and the hidden state [width] after them."""
        device = self.model.model.embed_tokens.weight.device
        hidden = self.model.decode(torch.tensor([list(tokens)], device=device), self._cache)[0, -1]
        self._processed += tokens
        return self.model.logits(hidden), hidden
