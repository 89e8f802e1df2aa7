"""Random decisions in order, from a seed: for the rules of verification that reject."""

from __future__ import annotations

import torch
from torch import Tensor

from draftlib.verification.noise import MASK, splitmix
from qlib.errors import DraftError


class RandomDraws:
    """Random decisions in order, from a seed. A test can take a subclass that goes through all outcomes.

    >>> draws = RandomDraws(0)
    >>> draws.bernoulli(0.0), draws.bernoulli(1.0), draws.categorical(torch.tensor([0.0, 2.0, 0.0]))
    (False, True, 1)
    """

    def __init__(self, seed: int) -> None:
        self._key, self._calls = splitmix(seed & MASK), 0

    def uniform(self) -> float:
        """Return the next number in [0, 1), of 53 bits."""
        self._calls += 1
        return (splitmix(self._key ^ self._calls) >> 11) * 2.0**-53

    def bernoulli(self, probability: float) -> bool:
        """Return True with this probability; always if it is 1 or more, never if it is 0."""
        return self.uniform() < probability

    def categorical(self, weights: Tensor) -> int:
        """Return an index, each with a probability proportional to its weight.

        Parameters
        ----------
        weights : Tensor
            [V], not negative, at least one positive; need not sum to 1.

        Raises
        ------
        DraftError
            The weights have no positive, finite sum.
        """
        total = weights.cpu().double().cumsum(0)  # float32 would lose whatever is below 6e-8
        if not 0 < float(total[-1]) < float("inf"):
            raise DraftError(
                f"cannot draw from {len(weights)} weights that sum to {float(total[-1])}: at least one must "
                "be positive and all finite. Look for NaN, or a mask of everything, in their logits."
            )
        index = int(torch.searchsorted(total, self.uniform() * total[-1:], right=True))
        # Rounding can put the number at the very end, behind tokens of weight 0.
        return min(index, int(torch.searchsorted(total, total[-1:])))
