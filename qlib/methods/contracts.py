"""What a rounding method promises: the whole surface that a new one has to fill in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar, Protocol

from torch import Tensor

from qlib.grid import Grid, QuantizedWeight


class Needs(Flag):
    """What a method wants to know about the inputs of a layer; calibration collects that and no more."""

    NOTHING = 0
    HESSIAN = auto()


@dataclass
class LayerStats:
    """What calibration saw at the input of one layer.

    Parameters
    ----------
    tokens : int
        Number of input vectors; padding is not counted.
    hessian : Tensor or None
        Sum over the tokens of x x^T, [inputs, inputs], float64.
    """

    tokens: int = 0
    hessian: Tensor | None = None


class WeightMethod(Protocol):
    """Rounds the weight of one layer at a time. `name` stands in reports, `needs` steers calibration."""

    name: ClassVar[str]
    needs: ClassVar[Needs]

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Return the codes of a weight [outputs, inputs]; the weight itself is left as it is."""
        ...
