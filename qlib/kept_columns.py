"""Rounding that leaves some input columns in float: what QUIK asks of activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qlib.activation import Activation, FixedRange
from qlib.errors import QuantError
from qlib.histogram import Histogram as Histogram


class KeepColumns(nn.Module):
    """Rounds all columns but a few, which pass in float: for layers whose weight keeps them in float as well.

    Parameters
    ----------
    inner : PerToken, PerTensor or FixedRange
        Rounds the other columns as if the kept ones were not there.
    columns : sequence of int or Tensor
        Numbers of the kept columns, [k].

    Raises
    ------
    QuantError
        A number below 0, or twice the same.
    """

    columns: Tensor

    def __init__(self, inner: Activation, columns: Sequence[int] | Tensor) -> None:
        super().__init__()
        numbers = torch.as_tensor(columns, dtype=torch.int64).sort().values
        if len(numbers) and (int(numbers[0]) < 0 or not bool((numbers.diff() > 0).all())):
            raise QuantError(
                f"columns={numbers.tolist()} in KeepColumns are not different numbers >= 0. Name each input "
                "column once, counted from 0."
            )
        self.inner = inner
        self.needed = int(numbers[-1]) + 1 if len(numbers) else 0  # inputs at least
        self.register_buffer("columns", numbers, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs [..., features], rounded but for the kept columns; same shape and dtype.

        Raises
        ------
        QuantError
            A kept column is beyond the last one.
        """
        if inputs.shape[-1] < self.needed:
            raise QuantError(
                f"column {self.needed - 1} is to be kept, but the input has {inputs.shape[-1]} columns. "
                "Use the columns of this layer."
            )
        inputs = inputs.detach()
        kept = inputs.index_select(-1, self.columns)
        # Zeros in their place change no range, since every range reaches 0.
        rounded = self.inner(inputs.index_fill(-1, self.columns, 0))
        if isinstance(self.inner, FixedRange):
            self.inner.seen -= kept.numel()
        return rounded.index_copy_(-1, self.columns, kept)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return str(self)

    def __str__(self) -> str:
        return f"{self.inner}, {len(self.columns)} columns in float"
