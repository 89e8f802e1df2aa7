"""SmoothQuant: divide each input channel by a factor and multiply its weights by it, so that both round well.

Paper: Xiao et al. 2022, arXiv 2211.10438, equation 4.
Problem: inputs are rounded too (w8a8). A few channels are 10 to 100 times larger than the rest, always the
    same ones, and make the grid of every token coarse. Weights have no such channels.
Rule: y = W x = (W s) (x / s) for any s > 0; choose, for channel j,
          s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)
Why it works: alpha = 0 makes the ranges of all columns of W equal, alpha = 1 those of all inputs. At 0.5
    channel j has the same largest value in both, the geometric mean of what they were.
Shapes: W [outputs, inputs], one or several that read the same input; s [inputs].
Needs: the range of the inputs. Changes: these weights, and the operation before them, which absorbs 1 / s.
Dead channels (max|x_j| = 0) keep s = 1. The formula would give s near 0, and the gain of the norm before
    would grow a hundredfold: other inputs, for which the channel is not 0, would become as much larger.
Left out: a search for alpha; what suits depends on the model (0.8 to 0.9 for some large ones). Where weights
    alone are rounded it does harm: it makes their ranges larger, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qlib.errors import QuantError, real_number
from qlib.grid import Grid, check_tensor
from qlib.methods.channels import check_channels
from qlib.methods.checks import check_stats, check_types, check_weights
from qlib.methods.contracts import LayerStats, Needs

TINY = 1e-5  # smaller ranges count as this: no division by 0. The authors' code clamps max|W| and s itself


def smoothing_scale(absmax_inputs: Tensor, weights: Sequence[Tensor], alpha: float = 0.5) -> Tensor:
    """Return s, the factor that moves from each input channel into the weights that read it.

    Parameters
    ----------
    absmax_inputs : Tensor
        Largest |x| of each channel over the calibration tokens, [inputs].
    weights : sequence of Tensor
        All weights [outputs, inputs] that read this input; they share one s.
    alpha : float
        0 to 1: the share of the inputs' range that moves.

    Returns
    -------
    Tensor
        [inputs], > 0, float32 (float64 if all arguments are).

    Raises
    ------
    QuantError
        alpha out of range, no weight, widths that differ, NaN or infinite numbers.

    Examples
    --------
    >>> smoothing_scale(torch.tensor([16.0, 1.0, 0.0]), [torch.tensor([[0.25, -1.0, 2.0]])])
    tensor([8., 1., 1.])
    """
    check_alpha(alpha)
    check_weights(weights, "SmoothQuant")
    remedy = "Pass the largest |x| of each input: inputs.abs().amax(0)."
    check_tensor(absmax_inputs, "absmax_inputs", remedy)
    check_channels(absmax_inputs, weights, "input ranges", remedy)
    wide = all(each.dtype == torch.float64 for each in (absmax_inputs, *weights))
    dtype = torch.float64 if wide else torch.float32
    # 1. The largest |x_j| and the largest |W_j| of each channel, over all weights that read it.
    max_x = absmax_inputs.detach().to(dtype)
    max_w = torch.stack([weight.detach().abs().amax(0).to(dtype) for weight in weights]).amax(0)
    # 2. s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), equation 4.
    s = max_x.clamp(min=TINY) ** alpha / max_w.clamp(min=TINY) ** (1 - alpha)
    # 3. A channel whose inputs are always 0 keeps s = 1.
    return s.masked_fill(max_x == 0, 1)


def check_alpha(alpha: float) -> None:
    """Refuse what is not a number from 0 to 1."""
    if not 0 <= real_number(alpha, "alpha in SmoothQuant", QuantError, "Use alpha=0.5.") <= 1:
        raise QuantError(f"alpha={alpha!r} in SmoothQuant is outside 0 to 1. Use alpha=0.5.")


@dataclass(frozen=True)
class SmoothQuant:
    """Settings of SmoothQuant; see `smoothing_scale`."""

    alpha: float = 0.5  # the paper's; 0: equal ranges of all columns of the weights, 1: of all inputs

    name: ClassVar[str] = "smoothquant"
    paper: ClassVar[str] = "Xiao et al. 2022, arXiv 2211.10438"
    needs: ClassVar[Needs] = Needs.RANGE

    def __post_init__(self) -> None:
        check_types(self, ("alpha",))
        check_alpha(self.alpha)

    def scale_group(self, weights: Sequence[Tensor], stats: LayerStats, grid: Grid) -> Tensor:
        """Return s for the layers that share an input; the grid is not looked at.

        Raises
        ------
        QuantError
            The statistics hold no range, and all that `smoothing_scale` refuses.
        """
        check_stats(stats, "SmoothQuant")
        if stats.absmax is None:
            raise QuantError(
                "SmoothQuant got statistics without the range of the inputs. "
                "Calibrate with needs=Needs.RANGE."
            )
        return smoothing_scale(stats.absmax, weights, self.alpha)

    def scale_mixed(self, weights: Sequence[Tensor], stats: LayerStats, grids: Sequence[Grid]) -> Tensor:
        """Return s for layers that share an input and not their grid; the grids are not looked at."""
        return self.scale_group(weights, stats, grids[0])
