"""The check of what SmoothQuant and AWQ know of an input: one number for each of its channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qlib.errors import QuantError


def check_channels(values: Tensor, weights: Sequence[Tensor], name: str, remedy: str) -> None:
    """Refuse what is not one finite number >= 0 for each input channel of some weights.

    Parameters
    ----------
    values : Tensor
        Should be [inputs].
    weights : sequence of Tensor
        [outputs, inputs] each: all weights that read this input.
    name : str
        What the numbers are, for the message: "input ranges".
    remedy : str
        Last sentence of the message: what to pass.
    """
    shapes = [tuple(weight.shape) for weight in weights]
    if any(values.shape != (columns,) for _, columns in shapes):
        raise QuantError(
            f"{name} of shape {tuple(values.shape)} for weights {shapes}. "
            f"{remedy} And pass weights that read that same input."
        )
    for bad, what in ((~values.isfinite(), "NaN or infinite"), (values < 0, "below 0")):
        if count := int(bad.sum()):
            raise QuantError(
                f"{count} of {len(values)} {name} are {what}, the first in channel {int(bad.nonzero()[0])}. "
                f"{remedy} Or is one of the calibration samples bad?"
            )
