"""An embedding with a quantized weight, of a class that the library does not know."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import qlib
from qlib.methods.rtn import rtn


class Table(nn.Module):
    """Rows of a quantized weight."""

    def __init__(self, weight: Tensor, grid: qlib.Grid) -> None:
        super().__init__()
        self.quantized = rtn(weight, grid)
        self.weight = self.quantized.decode()

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)
