"""What the drafter learns from: texts in its own tokens, and what the target thought at every position.

Nothing is computed for it. The target's logits are there anyway, at every position of the answer; of each
row the `KEPT` most probable tokens stay. A text of 128 tokens takes about 40 kB, so that a buffer of 256
texts stays below 12 MB.

An answer becomes one example when it ends, and a long one an example for every `update_tokens` tokens, so
that it can be learned from before it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draftlib.learning.alignment import align
from draftlib.learning.distill import TopK, compress
from draftlib.learning.spelled import Spell, spelled_positions, speller_of
from draftlib.open_answers import of_answer
from draftlib.round import Round
from draftlib.vocabulary.mapping import VocabularyMap

KEPT = 16  # target tokens of a row: they hold 97 % of its mass on GSM8K
CONTEXT = 96  # draft tokens of context in front of what is learned
HELD_OUT = 8  # every so many-th example is held out
KEPT_OUT = 12  # held-out examples


@dataclass(frozen=True)
class Example:
    """A part of a text, with what is to be learned at some of its positions.

    Attributes
    ----------
    tokens : Tensor
        int64 [T], draft tokens, context included.
    positions : Tensor
        int64 [N]; indices of the draft tokens that are predicted, 1 or more.
    soft_tokens, soft_probabilities : Tensor
        int64 and float32 [N, K], the target's distribution in draft tokens (`spelled.Soft`).
    owners, left : Tensor
        int64 [N]; the target token of which the draft token there is a piece, and the pieces of it from there
        on (`distill.Written`).
    rows : TopK
        [N]; the target's row where the token begins: the same for all pieces of a token.
    """

    tokens: Tensor
    positions: Tensor
    soft_tokens: Tensor
    soft_probabilities: Tensor
    owners: Tensor
    left: Tensor
    rows: TopK


def make_example(
    draft: Sequence[int],
    target: Sequence[int],
    rows: TopK,
    vocabulary: VocabularyMap,
    spell: Spell,
    longest: int,
) -> Example | None:
    """Return the example of a text's end, or None where nothing of it can be learned.

    Parameters
    ----------
    draft : sequence of int
        Draft tokens of the whole text.
    target : sequence of int
        The last target tokens of the text: what is learned.
    rows : TopK
        One for each of them: what the target found most probable in its place.
    vocabulary : VocabularyMap
        The pair.
    spell : Spell
        Spells target tokens with draft tokens.
    longest : int
        Positions of the drafter: of a longer text only the end is learned.
    """
    aligned = align(draft, target, vocabulary)
    tokens, probabilities = rows.tokens.tolist(), rows.logprobs.float().exp().tolist()
    soft = spelled_positions(draft, aligned, tokens, probabilities, spell)
    start = max(0, len(draft) - longest)
    soft = {i: distribution for i, distribution in soft.items() if i > start}
    if not soft:
        return None
    places = sorted(soft)
    first = max(start, places[0] - CONTEXT)
    row_of = {
        i: j
        for j, place in enumerate(aligned)
        if place is not None
        for i in range(place.start, place.stop or place.start + 1)
    }
    left = {
        i: place.stop - i
        for place in aligned
        if place is not None and place.stop is not None and place.stop - 1 in soft
        for i in range(place.start, place.stop)
    }
    soft_tokens, soft_probabilities = torch.zeros(2, len(places), KEPT, dtype=torch.float64)
    for n, i in enumerate(places):
        for k, (token, p) in enumerate(list(soft[i].items())[:KEPT]):
            soft_tokens[n, k], soft_probabilities[n, k] = token, p
    chosen = torch.tensor([row_of[i] for i in places])
    return Example(
        torch.tensor(draft[first:]),
        torch.tensor([i - first for i in places]),
        soft_tokens.long(),
        soft_probabilities.float(),
        torch.tensor(target)[chosen],
        torch.tensor([left.get(i, 0) for i in places]),
        TopK(*(part[chosen] for part in rows)),
    )


@dataclass
class Writing:
    """An answer that is being written: what of it is not yet an example."""

    tokens: list[int] = field(default_factory=list)
    rows: list[TopK] = field(default_factory=list)


class Buffer:
    """Examples, of which some are held out.

    Parameters
    ----------
    vocabulary : VocabularyMap
        The pair.
    most : int
        Examples that are kept, the latest ones.
    update_tokens : int
        Tokens of one answer that make an example though it goes on.
    longest : int
        Positions of the drafter: most draft tokens of an example.

    Attributes
    ----------
    examples, held_out : deque of Example
        To learn from, and to judge by.
    fresh : deque of Example
        Those of `examples` that came since the last `take`.
    requests : int
        Answers that ended since then.
    """

    def __init__(self, vocabulary: VocabularyMap, most: int, update_tokens: int, longest: int):
        self._vocabulary, self._spell = vocabulary, speller_of(vocabulary)
        self._update_tokens, self._longest = update_tokens, longest
        self.examples: deque[Example] = deque(maxlen=most)
        self.held_out: deque[Example] = deque(maxlen=KEPT_OUT)
        self.fresh: deque[Example] = deque(maxlen=most)
        self.requests = self.count = 0
        self.cut = False  # whether a part of an answer that goes on came since the last `take`
        self._writing: dict[int, Writing] = {}

    def add(self, round: Round) -> None:
        """Take what a round has verified."""
        if not round.spelled:
            return
        writing = of_answer(self._writing, round.answer, Writing)
        writing.tokens += round.tokens
        writing.rows.append(compress(round.rows[: len(round.tokens)], KEPT))
        full = len(writing.tokens) >= self._update_tokens
        if not (round.ended or full):
            return
        del self._writing[round.answer]
        rows = TopK(*(torch.cat(parts) for parts in zip(*writing.rows, strict=True)))
        example = make_example(
            round.spelled, writing.tokens, rows, self._vocabulary, self._spell, self._longest
        )
        self.requests += round.ended
        self.cut |= not round.ended
        if example is not None:
            self._put(example)

    def take(self) -> list[Example]:
        """Return the fresh examples, and count from here on."""
        fresh = list(self.fresh)
        self.fresh.clear()
        self.requests, self.cut = 0, False
        return fresh

    def _put(self, example: Example) -> None:
        self.count += 1
        if self.count % HELD_OUT == HELD_OUT // 2:
            self.held_out.append(example)
        else:
            self.examples.append(example)
            self.fresh.append(example)

    # --- keep

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all examples as few tensors, one after the other, and their sizes."""
        everything = [*self.examples, *self.held_out]
        tensors = {}
        if everything:
            for name, parts in _fields(everything).items():
                tensors[name] = torch.cat(parts)
        sizes = [[len(each.tokens), len(each.positions)] for each in everything]
        values = {
            "sizes": sizes,
            "held_out": len(self.held_out),
            "fresh": len(self.fresh),  # the last ones of `examples`
            "requests": self.requests,
            "cut": self.cut,
            "count": self.count,
        }
        return tensors, values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take back what `state` gave; answers that were being written are not in it."""
        sizes = values["sizes"]
        lengths, positions = [size[0] for size in sizes], [size[1] for size in sizes]
        found = []
        if sizes:
            split = {
                name: torch.split(tensor, lengths if name == "tokens" else positions)
                for name, tensor in tensors.items()
            }
            for i in range(len(sizes)):
                # Clones: a view would keep all examples in memory for as long as one of them is there.
                part = {name: parts[i].clone() for name, parts in split.items()}
                rows = TopK(part.pop("row_tokens"), part.pop("row_logprobs"), part.pop("row_rest"))
                found.append(Example(**part, rows=rows))
        learned = found[: len(found) - values["held_out"]]
        for kept, some in (
            (self.examples, learned),
            (self.held_out, found[len(learned) :]),
            (self.fresh, learned[len(learned) - values["fresh"] :]),
        ):
            kept.clear()
            kept.extend(some)
        self.requests, self.count, self.cut = values["requests"], values["count"], values["cut"]


def _fields(examples: Sequence[Example]) -> dict[str, list[Tensor]]:
    """Return the tensors of examples by the name that a saved state gives them."""
    names = "tokens", "positions", "soft_tokens", "soft_probabilities", "owners", "left"
    found: dict[str, list[Tensor]] = {name: [getattr(each, name) for each in examples] for name in names}
    for k, name in enumerate(("row_tokens", "row_logprobs", "row_rest")):
        found[name] = [each.rows[k] for each in examples]
    return found
