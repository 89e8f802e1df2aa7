"""Whether a method is better than rounding to nearest at what it says that it is better at.

Three claims, each a sum over three layers, W [outputs, inputs] and X [tokens, inputs]:

    "weights"          |W^ - W|^2                       what rounding to nearest with a better range claims
    "outputs"          |X (W^ - W)^T|^2                 GPTQ, AWQ: the inputs decide what an error costs
    "rounded inputs"   |A(X / s) (W^ s)^T - X W^T|^2    SmoothQuant: inputs are rounded too, to 8 bits a token

Input columns whose weights stay in float are not rounded, as in `quantize`.
A method that scales or clips is followed by rounding to nearest, Q: W^ is then Q(W s) / s, or Q of the
clipped W; s is 1 where nothing scales. For a method of whole blocks each claim means the loss of the block.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from qlib.activation import PerToken
from qlib.errors import CheckError, QuantError
from qlib.grid import Grid, round_to_nearest
from qlib.kept_columns import KeepColumns
from qlib.methods.contracts import BlockMethod, BlockTask, Transform, WeightMethod
from qlib.testing.problems import FC1, FC2, Problem, layer
from qlib.testing.sides import Side, grids_for, not_refused

Claim = Literal["weights", "outputs", "rounded inputs"]

SEEDS = (0, 1, 2)
WEIGHTS_ONLY = (Grid(3), Grid(3, 8))
INPUTS_TOO = (Grid(8), Grid(8, 8))


def check_claim(claim: str) -> None:
    """Refuse another word than the three."""
    if claim not in get_args(Claim):
        raise QuantError(f"better_at={claim!r} is unknown. Use {', '.join(map(repr, get_args(Claim)))}.")


def is_better_than_nearest(method: Any, side: Side, claim: Claim) -> None:
    """Compare the sum of the errors over three layers with that of rounding to nearest."""
    fine = claim == "rounded inputs" and side.contract is not BlockMethod
    grids, _ = not_refused(method, INPUTS_TOO if fine else WEIGHTS_ONLY, layer())
    for grid in grids or grids_for(method):
        own = nearest = 0.0
        for problem in map(_layer, SEEDS):
            mine, theirs = _errors(method, side, problem, grid, claim)
            own, nearest = own + mine, nearest + theirs
        if not own < nearest:
            raise CheckError(
                f"{method.name}.{side.call} on three layers, {_layer(0)}, {grid}: its squared error "
                f"({claim}) is {own:.6g}, that of rounding to nearest {nearest:.6g}. Compare one layer with "
                f"an oracle of qlib.testing, or leave out better_at={claim!r}."
            )


def _layer(seed: int) -> Problem:
    return layer(seed=seed)


def _errors(method: Any, side: Side, problem: Problem, grid: Grid, claim: Claim) -> tuple[float, float]:
    """Return the error of a method and that of rounding to nearest."""
    result, W = side.run(method, problem, grid), problem.weight
    if side.contract is BlockMethod:
        task = problem.task(method.needs, grid)
        return _loss(task, {**task.parameters, **result}, grid), _loss(task, dict(task.parameters), grid)
    s = result if side.contract is Transform else torch.ones_like(W[0])
    if side.contract is WeightMethod:
        values = result.decode()
    else:
        values = round_to_nearest(W * s if side.contract is Transform else result, grid)
    return _error(values, s, problem, claim, getattr(result, "columns", None)), _error(
        round_to_nearest(W, grid), torch.ones_like(s), problem, claim
    )


def _error(values: Tensor, s: Tensor, problem: Problem, claim: Claim, columns: Tensor | None = None) -> float:
    """Return the squared error of `values`, W^ s, which reads X / s; the inputs `columns` stay in float."""
    W, X, values, s = problem.weight.double(), problem.inputs.double(), values.double(), s.double()
    if claim == "rounded inputs":
        A = PerToken(8) if columns is None else KeepColumns(PerToken(8), columns)
        return float((A(X / s) @ values.T - X @ W.T).square().sum())
    D = values / s - W
    return float((D if claim == "weights" else X @ D.T).square().sum())


def _loss(task: BlockTask, parameters: dict[str, Tensor], grid: Grid) -> float:
    """Return the loss of a block with both of its weights rounded to nearest."""
    for name in (FC1, FC2):
        parameters[f"{name}.weight"] = round_to_nearest(parameters[f"{name}.weight"], grid)
    return sum(mse_loss(task.output(parameters, k), task.target(k)).item() for k in range(task.samples))
