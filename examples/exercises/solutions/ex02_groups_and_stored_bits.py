"""Solution of exercise 2. `split` makes the last part narrower; the number of groups is rounded up."""

import torch
from torch import Tensor

from qlib.grid import Grid, round_to_nearest


def rounded(W: Tensor, bits: int, group: int) -> Tensor:
    parts = W.split(group, dim=1)
    return torch.cat([round_to_nearest(part, Grid(bits)) for part in parts], dim=1)


def stored_bits(rows: int, columns: int, bits: int, group: int) -> int:
    groups = -(-columns // group)
    return bits * rows * columns + (32 + bits) * rows * groups
