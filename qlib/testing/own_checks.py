"""Checks of what only one of the contracts promises; in form as in `qlib/testing/checks.py`."""

from __future__ import annotations

from typing import Any

import torch

from qlib.errors import CheckError, list_names
from qlib.grid import Grid
from qlib.methods.contracts import Fitted, apply_folds
from qlib.testing.problems import layer
from qlib.testing.sides import Side, grids_for, not_refused

CLOSE = 0.05  # of the outputs' squared sum, at 8 bits: rounding to nearest has 0.0001


def is_close_with_8_bits(method: Any, side: Side) -> None:
    """Look at the outputs with 8 bits: codes, scales, zeros and groups belong together."""
    for grid in not_refused(method, (Grid(8, 10), Grid(8, 10, symmetric=True)), layer())[0]:
        problem = layer()
        W, X = problem.weight.double(), problem.inputs.double()
        D = side.run(method, problem, grid).decode().double() - W
        share = float((X @ D.T).square().sum() / (X @ W.T).square().sum())
        if not share < CLOSE:
            raise CheckError(
                f"{method.name}.quantize_layer on {problem}, {grid}: the squared error of the outputs is "
                f"{share:.3g} of them, where rounding to nearest has 0.0001. Does decode() give the weight? "
                "value = scale[row, index[column]] * (code - zero[row, index[column]])."
            )


def narrows_the_range(method: Any, side: Side) -> None:
    """Compare each row's range with the one that it had."""
    for grid in grids_for(method):
        problem = layer()
        clipped, W = side.run(method, problem, grid), problem.weight
        outside = (clipped > W.amax(1, keepdim=True).relu()) | (clipped < -(-W.amin(1, keepdim=True)).relu())
        if bool(outside.any()):
            raise CheckError(
                f"{method.name}.clip_layer on {problem}, {grid}: {int(outside.sum())} of {W.numel()} numbers "
                "lie outside of the range that their row had. Return weight.clamp(low, high); what scales a "
                "weight is a Transform."
            )


def names_its_folds(method: Any, side: Side) -> None:
    """Apply its folds alone: they leave the float block as it is, and its result holds what they move."""
    grid, problem = grids_for(method)[0], layer(dtype=torch.float64)
    fitted: Fitted = side.run(method, problem, grid)
    task = problem.task(method.needs, grid, rounds_inputs=False)
    try:
        folded = apply_folds(task.parameters, fitted.folds)
    except Exception as error:
        raise CheckError(
            f"{method.name}.fit on {problem}, {grid}: its folds cannot be applied, {type(error).__name__}: "
            f"{error}. Take groups from task.groups, and one scale for each input of the group."
        ) from error
    moved_names = [name for name, value in folded.items() if not torch.equal(value, task.parameters[name])]
    if missing := [name for name in moved_names if name not in fitted]:
        raise CheckError(
            f"{method.name}.fit on {problem}, {grid}: its folds move {list_names(missing)}, which its result "
            "does not hold. A Fold says what was moved, and moves nothing itself: return "
            "Fitted(apply_folds(task.parameters, folds), folds)."
        )
    for sample in range(task.samples):
        target = task.target(sample)
        moved = float((task.output(folded, sample).detach() - target).abs().max() / target.abs().max())
        if not moved < 1e-9:
            raise CheckError(
                f"{method.name}.fit on {problem}, {grid}: the {len(fitted.folds)} folds of its result change "
                f"the float output by {moved:.3g} of its largest number. A Fold is (group, scale, shift), "
                "and means what qlib.models.structure.fold does; other changes belong in the dict alone."
            )
