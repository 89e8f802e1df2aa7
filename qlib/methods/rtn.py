"""Round to nearest: each weight goes to the closest value of its grid, alone.

Paper: none; the baseline of all of them. The range search ("mse") is that of BRECQ (Li et al. 2021,
arXiv 2102.05426) and GPTQ's code.
Problem: minimise |W - Q(W)|, weight by weight.
Rule: fit the range of each group, then W^ = Q(W).
Why it works: with 8 bits the grid is fine enough for almost any layer; below 4 bits it is not.
Shapes: W [outputs, inputs].
Needs: nothing. Changes: this weight only.
Left out: the inputs. A weight is rounded in the same way whether its inputs are large or always 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qlib.grid import Fit, Grid, check_fit, encode, fit_scale
from qlib.methods.contracts import LayerStats, Needs
from qlib.quantized_weight import QuantizedWeight


def rtn(weight: Tensor, grid: Grid, *, fit: Fit = "minmax") -> QuantizedWeight:
    """Round a weight to the nearest values of its grid.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs], any floating dtype.
    grid : Grid
        Bits, group and symmetry.
    fit : {"minmax", "mse"}
        How the range of a group is chosen.

    Raises
    ------
    QuantError
        NaN or infinite weights, a group larger than the layer, an unknown fit.

    Examples
    --------
    >>> import torch
    >>> rtn(torch.tensor([[-1.0, 0.2, 0.9, 2.0]]), Grid(bits=2)).decode().tolist()
    [[-1.0, 0.0, 1.0, 2.0]]
    """
    # 1. Fit the range of each group: its scale and its zero point.
    params = fit_scale(weight, grid, fit)
    # 2. Round each weight: q = clamp(round(w / scale) + zero).
    codes = encode(weight, params, grid)
    # 3. These codes stand for the values w^ = scale (q - zero): see `QuantizedWeight.decode`.
    return QuantizedWeight.of(codes, params)


@dataclass(frozen=True)
class RTN:
    """Settings of round to nearest."""

    fit: Fit = "minmax"  # or "mse": search for a narrower range

    name: ClassVar[str] = "rtn"
    paper: ClassVar[str] = "the baseline"
    needs: ClassVar[Needs] = Needs.NOTHING

    def __post_init__(self) -> None:
        check_fit(self.fit)

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round one layer; `stats` is not looked at."""
        return rtn(weight, grid, fit=self.fit)
