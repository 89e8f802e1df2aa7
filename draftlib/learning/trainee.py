"""The drafter that learns: a copy of the decoder's, its optimizer, and the packed form that drafts.

It trains in float32 (or wider), whatever the drafter's dtype. What it has learned is a value, `Weights`: an
update that is taken back, another learning rate from the same beginning, and another named adapter are each
a `put` of other weights.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftlib.learning.lora import add_lora, folded_copy
from draftlib.state import State
from qlib.errors import DraftError
from qlib.models.text import TextModel


@dataclass
class Weights:
    """What one named adapter has learned: trained tensors and AdamW's two moments of each."""

    trained: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    steps: int = 0

    def copy(self) -> Weights:
        """Return a copy that does not change with this one."""
        trained, first, second = (
            [each.detach().clone() for each in part] for part in (self.trained, self.first, self.second)
        )
        return Weights(trained, first, second, self.steps)

    @classmethod
    def untrained(cls, trained: Sequence[Tensor]) -> Weights:
        """Return a copy of tensors that were not trained yet."""
        return cls(
            [each.detach().clone() for each in trained],
            [torch.zeros_like(each) for each in trained],
            [torch.zeros_like(each) for each in trained],
        )

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return all tensors under names that `read_weights` knows."""
        parts = {"trained": self.trained, "first": self.first, "second": self.second}
        return {
            f"adapters/{name}/{part}/{i}": each for part, all in parts.items() for i, each in enumerate(all)
        }


def read_weights(state: State, name: str, steps: int, like: Sequence[Tensor]) -> Weights:
    """Return the weights that a state keeps under a name.

    Raises
    ------
    DraftError
        A tensor is missing, or of another shape than that in `like`.
    """

    def part(which: str) -> list[Tensor]:
        found = [state.tensor(f"adapters/{name}/{which}/{i}") for i in range(len(like))]
        for mine, theirs in zip(like, found, strict=True):
            if mine.shape != theirs.shape:
                raise DraftError(f"a tensor of {list(theirs.shape)} stands for one of {list(mine.shape)}.")
        return found

    return Weights(part("trained"), part("first"), part("second"), steps)


class Trainee:
    """A copy of a drafter whose weights change.

    Parameters
    ----------
    draft : TextModel
        Not packed.
    lora_rank : int, optional
        Train adapters of this rank; None trains all weights.

    Attributes
    ----------
    model : TextModel
        The copy, in float32 or wider.
    trained : list of Tensor
        Its tensors that change.
    weights : Weights
        What it has learned.
    fresh : Weights
        What it began with.
    base : str
        Hash of the drafter that it began as.

    Raises
    ------
    DraftError
        The rank does not fit a layer.
    """

    def __init__(self, draft: TextModel, lora_rank: int | None):
        self._dtype = draft.model.embed_tokens.weight.dtype
        memo = {id(draft.tokenizer): draft.tokenizer}
        self.model = copy.deepcopy(draft, memo).to(torch.promote_types(self._dtype, torch.float32))
        self.base = _hash(self.model)
        if lora_rank is None:
            self.trained = list(self.model.requires_grad_(True).parameters())
        else:
            self.trained = add_lora(self.model, lora_rank)
        self.fresh = Weights.untrained(self.trained)
        self.weights = self.fresh.copy()

    def put(self, weights: Weights) -> None:
        """Go on from a copy of these weights."""
        self.weights = weights.copy()
        with torch.no_grad():
            for mine, theirs in zip(self.trained, weights.trained, strict=True):
                mine.copy_(theirs)

    def optimizer(self, rate: float) -> torch.optim.AdamW:
        """Return AdamW going on with the moments of now: it changes them, and the weights, in place."""
        optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=0.0)
        self.weights.trained = [each.detach() for each in self.trained]
        for each, first, second in zip(self.trained, self.weights.first, self.weights.second, strict=True):
            optimizer.state[each] = {
                "step": torch.tensor(float(self.weights.steps)),
                "exp_avg": first,
                "exp_avg_sq": second,
            }
        return optimizer

    def packed(self) -> TextModel:
        """Return what drafts from now on: the weights of now, rounded to what packs best."""
        with torch.no_grad():
            plain = folded_copy(self.model).requires_grad_(False)
            if self._dtype == torch.float32:
                for each in plain.parameters():  # float16 holds them then, and products read half the bytes
                    each.copy_(each.half())
            return plain.to(self._dtype).packed_copy()


def _hash(model: TextModel) -> str:
    digest = hashlib.sha256()
    for name, each in model.state_dict().items():
        digest.update(name.encode())
        digest.update(each.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
