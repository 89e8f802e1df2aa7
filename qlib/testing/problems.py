"""Small layers and blocks for checks, with what methods stumble on: outliers, unused inputs, ragged groups.

Inputs repeat one another and two of them are 20 times larger; a few weights are large. Numbers are seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu

from qlib.activation import PerToken
from qlib.block_task import straight_through
from qlib.grid import Grid
from qlib.methods.contracts import BlockTask, LayerStats, Needs
from qlib.methods.hessian import statistics
from qlib.models.structure import LayerGroup

ALL = Needs.HESSIAN | Needs.RANGE | Needs.MAGNITUDE
ROWS, COLUMNS, TOKENS, UTTERANCES = 12, 24, 240, 4
LARGE = (3, 17)  # inputs that are 20 times larger
GRIDS = (
    Grid(4), Grid(3, 8), Grid(4, 8, symmetric=True), Grid(3, 8, scale_bits=16), Grid(4, 8, scale_bits=4),
)  # fmt: skip
# Where a method refuses all of `GRIDS`.
OTHERS = (Grid(2, 8), Grid(8, 8), Grid(2, 8, symmetric=True), Grid(8, 8, symmetric=True))
RAGGED = (Grid(4, 10), Grid(4, 10, symmetric=True))  # of 24 columns: 10, 10 and 4
NORM, FC1, FC2 = "block.norm", "block.fc1", "block.fc2"


@dataclass(frozen=True)
class Problem:
    """One layer and what it reads.

    Parameters
    ----------
    weight : Tensor
        W [outputs, inputs].
    inputs : Tensor
        X [tokens, inputs].
    where : str
        What is special about it, for messages.
    """

    weight: Tensor
    inputs: Tensor
    where: str = ""

    def __str__(self) -> str:
        kind = str(self.weight.dtype).removeprefix("torch.")
        text = f"a weight {list(self.weight.shape)} in {kind}"
        return f"{text}, {self.where}" if self.where else text

    def stats(self, needs: Needs) -> LayerStats:
        """Return the statistics that `needs` names; the others are None, as in calibration."""
        return statistics(self.inputs).copy_for(needs)

    def task(self, needs: Needs, grid: Grid, rounds_inputs: bool = True) -> BlockTask:
        """Return fc2(gelu(fc1(norm(x)))) as a learning problem; norm(x) is X, and a scale may move there."""
        generator = torch.Generator().manual_seed(5)
        rows, columns = self.weight.shape
        W2 = torch.randn(columns, rows, generator=generator).to(self.weight) / rows**0.5
        gain = self.inputs.abs().amax(0)  # 0 for an input that is always 0
        raw = (self.inputs / gain.masked_fill(gain == 0, 1)).chunk(UTTERANCES)
        parameters = {
            f"{NORM}.weight": gain, f"{NORM}.bias": torch.zeros_like(gain),
            f"{FC1}.weight": self.weight.clone(), f"{FC1}.bias": self.weight.new_zeros(rows),
            f"{FC2}.weight": W2, f"{FC2}.bias": W2.new_zeros(columns),
        }  # fmt: skip
        own = {name: value.clone() for name, value in parameters.items()}
        at_input = _rounded_inputs if rounds_inputs else _same

        def output(given: Mapping[str, Tensor], sample: int) -> Tensor:
            return _block({**own, **given}, raw[sample], at_input)

        hidden = gelu(self.inputs @ self.weight.T)
        return BlockTask(
            parameters, (FC1, FC2), (LayerGroup((FC1,), NORM, shift=True),),
            {FC1: self.stats(needs), FC2: statistics(hidden).copy_for(needs)}, len(raw), output,
            target=lambda sample: _block(own, raw[sample]), rounds_inputs=rounds_inputs,
            grids={FC1: grid, FC2: grid},
        )  # fmt: skip


def _same(x: Tensor) -> Tensor:
    return x


def _rounded_inputs(x: Tensor) -> Tensor:
    return straight_through(PerToken(8), x)


def _block(p: Mapping[str, Tensor], x: Tensor, at_input: Callable[[Tensor], Tensor] = _same) -> Tensor:
    x = x * p[f"{NORM}.weight"] + p[f"{NORM}.bias"]
    x = gelu(at_input(x) @ p[f"{FC1}.weight"].T + p[f"{FC1}.bias"])
    return at_input(x) @ p[f"{FC2}.weight"].T + p[f"{FC2}.bias"]


def layer(rows: int = ROWS, seed: int = 0, dtype: torch.dtype = torch.float32, where: str = "") -> Problem:
    """Return a layer whose inputs repeat one another; see the module."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    mixing *= torch.linspace(1.5, 0.3, COLUMNS, dtype=torch.float64)[:, None] / COLUMNS**0.5
    X = torch.randn(TOKENS, COLUMNS, generator=generator, dtype=torch.float64) @ mixing
    X[:, LARGE] *= 20
    W = torch.randn(rows, COLUMNS, generator=generator, dtype=torch.float64)
    W = W * (1 + 3 * (torch.rand(W.shape, generator=generator) > 0.97))
    return Problem(W.to(dtype), X.to(dtype), where)


def dead_inputs() -> Problem:
    """Return a layer two inputs of which are always 0, and one row of which is 0."""
    problem = layer(where="two inputs of which are always 0")
    problem.inputs[:, [0, 13]] = 0
    problem.weight[2] = 0
    return problem
