"""The checks: each is one idea, a function `check(method, side)` that raises a `CheckError` where it fails.

`side` is the contract that is looked at; where a method fills in two, each check runs twice. The message says
what is wrong, where, with which numbers, and what to do.
"""

from __future__ import annotations

from functools import reduce
from itertools import combinations
from operator import or_
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from qlib.checkpoint import load_quantized
from qlib.errors import CheckError, QlibError, describe, list_names
from qlib.grid import Grid
from qlib.methods.contracts import Needs, Transform
from qlib.models.structure import Model
from qlib.models.tiny import tiny_llama
from qlib.pipeline import quantize
from qlib.quantized_weight import QuantizedWeight
from qlib.testing.problems import ALL, RAGGED, dead_inputs, layer
from qlib.testing.sides import Side, failed, given_tensors, grids_for, not_refused

FIELDS = {
    Needs.HESSIAN: "stats.hessian",
    Needs.RANGE: "stats.low, stats.high or stats.absmax",
    Needs.MAGNITUDE: "stats.absolute or stats.magnitude",
}
TEXTS = ("the cat sat on the heath", "at the heart of the matter", "a cat that sat")


def says_what_it_is(method: Any, side: Side) -> None:
    """Look at the fields: `name` and `paper` are texts, and `needs` is a `Needs`."""
    promised = (
        ("name", str, "'mine'"),
        ("paper", str, "'Who et al. 2025'"),
        ("needs", Needs, "Needs.HESSIAN"),
    )
    for name, kind, example in promised:
        if not isinstance(value := getattr(method, name, None), kind):
            raise CheckError(
                f"{type(method).__name__}.{name} is {describe(value)}. Give the class {name}: "
                f"ClassVar[{kind.__name__}] = {example}."
            )


def returns_what_it_promises(method: Any, side: Side) -> None:
    """Look at shapes, codes in the range of the grid, finite scales and their bits; on five grids."""
    for grid in grids_for(method):
        side.run(method, layer(), grid)


def takes_a_ragged_last_group(method: Any, side: Side) -> None:
    """Give it groups of 10 in 24 columns: the last one has 4."""
    for grid in not_refused(method, RAGGED, layer())[0]:
        side.run(method, layer(where="whose last group has 4 columns (grid.slices gives the ranges)"), grid)


def takes_one_row(method: Any, side: Side) -> None:
    """Give it a layer with one output: statistics over rows and a squeeze go wrong there."""
    problem = layer(rows=1, where="with one output")
    for grid in not_refused(method, (Grid(4), Grid(4, symmetric=True)), problem)[0]:
        side.run(method, problem, grid)


def takes_unused_inputs(method: Any, side: Side) -> None:
    """Give it two inputs that are always 0, so rows and columns of H are, and a row of zeros."""
    for grid in grids_for(method):
        side.run(method, dead_inputs(), grid)


def takes_every_float(method: Any, side: Side) -> None:
    """Give it float16, bfloat16 and float64; float64 stays float64, and no other weight has such scales."""
    grid = Grid(4, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        problem = layer(dtype=dtype)
        if not not_refused(method, (grid,), problem)[0]:  # refused beforehand, as it may be
            continue
        result = side.run(method, problem, grid)
        parts = side.tensors(result) if isinstance(result, QuantizedWeight) else {}
        for name, part in parts.items():
            if dtype != torch.float64 and part.dtype == torch.float64:
                raise CheckError(
                    f"{method.name}.{side.call} on {problem}, {grid}: its {name} is float64, and 64 bits are "
                    f"stored for each number. Return {name}.float()."
                )
        if dtype != torch.float64 or side.contract is Transform:
            continue
        values = (
            {"the decoded weight": result.decode()}
            if isinstance(result, QuantizedWeight)
            else side.tensors(result)
        )
        for name, value in values.items():
            if value.dtype != torch.float64:
                raise CheckError(
                    f"{method.name}.{side.call} on {problem}, {grid}: {name} is {value.dtype}. Keep "
                    "the dtype of the weight: qlib.grid.as_compute_dtype(weight) keeps float64."
                )


def leaves_its_arguments(method: Any, side: Side) -> None:
    """Compare weight, statistics and parameters of a block with what they were before the call."""
    grid = grids_for(method)[0]
    given = side.arguments(layer(), method.needs, grid)
    before = {name: value.clone() for name, value in given_tensors(given).items()}
    side.run_with(method, layer(), grid, given)
    for name, value in given_tensors(given).items():
        if not torch.equal(value, before[name]):
            changed = int((value != before[name]).sum())
            raise CheckError(
                f"{method.name}.{side.call} changed {changed} of {value.numel()} numbers of {name}. Work "
                "on a copy: begin with weight = weight.clone(), and leave out operations that end in _."
            )


def names_what_it_needs(method: Any, side: Side) -> None:
    """Run it with all statistics, and with those that `needs` names: the result is the same."""
    grid = grids_for(method)[0]
    expected = _tensors(method, side, grid, ALL | method.needs)
    if _same(_tensors_or_none(method, side, grid, method.needs), expected):
        return
    flags = [need for need in FIELDS if need not in method.needs]
    for some in (some for count in (1, 2, 3) for some in combinations(flags, count)):
        more = reduce(or_, some)
        if _same(_tensors_or_none(method, side, grid, method.needs | more), expected):
            raise CheckError(
                f"{method.name}.{side.call} reads {' and '.join(FIELDS[need] for need in some)}, and its "
                f"needs, {method.needs}, do not say so: calibration then leaves them None. "
                f"Add {' | '.join(f'Needs.{need.name}' for need in some)} to needs."
            )
    _tensors(method, side, grid, method.needs)  # it fails for another reason: this says which


def is_repeatable(method: Any, side: Side) -> None:
    """Run it twice: the same bits, whatever random numbers and which other layer came in between."""
    grid, state = grids_for(method)[0], torch.random.get_rng_state()
    try:
        torch.manual_seed(1)
        first = _tensors(method, side, grid, method.needs)
        torch.manual_seed(2)
        side.run(method, layer(seed=1), grid)
        second = _tensors(method, side, grid, method.needs)
    finally:
        torch.random.set_rng_state(state)
    if not _same(first, second):
        differ = [name for name in first if name not in second or not torch.equal(first[name], second[name])]
        raise CheckError(
            f"{method.name}.{side.call} gave two results for one layer, {grid}: {list_names(differ)} differ. "
            "Draw random numbers from torch.Generator().manual_seed(0), and keep nothing between two calls."
        )


def comes_back_from_disk(method: Any, side: Side) -> None:
    """Quantize a small language model, save and load it: every tensor has the same bits."""
    usual, _ = not_refused(method, (Grid(4, 8), Grid(4, 8, symmetric=True)), layer())
    short, _ = not_refused(method, (Grid(4, 5, scale_bits=4),), layer())  # of 16 columns: 5, 5, 5 and 1
    for grid in [*(usual or grids_for(method))[:1], *short]:
        model = tiny_llama()
        try:
            result = quantize(model, [method], weight=grid, calib=TEXTS, progress=False)
            with TemporaryDirectory() as folder:
                again = load_quantized(result.save(f"{folder}/model"))
        except Exception as error:
            why = str(error) if isinstance(error, QlibError) else (
                f"{failed(error)}. That model has layers of several shapes: keep nothing between two calls."
            )  # fmt: skip
            raise CheckError(f"{method.name} on qlib.models.tiny.tiny_llama(), {grid}: {why}") from error
        saved, loaded = _buffers(result.model), _buffers(again)
        if not _same(loaded, saved):
            differ = [
                name for name in saved if name not in loaded or not torch.equal(saved[name], loaded[name])
            ]
            raise CheckError(
                f"{method.name} on qlib.models.tiny.tiny_llama(), {grid}: after save and load_quantized "
                f"{len(differ)} of {len(saved)} tensors differ: {list_names(differ)}. Only what the fields "
                "of a QuantizedWeight hold is stored: codes, scale, zero, index, what stays in float."
            )


# --- helpers


def _buffers(model: Model) -> dict[str, Tensor]:
    """Return codes, scales and decoded weights of all layers."""
    return dict(model.named_buffers(remove_duplicate=False))


def _tensors(method: Any, side: Side, grid: Grid, needs: Needs) -> dict[str, Tensor]:
    return side.tensors(side.run(method, layer(), grid, needs))


def _tensors_or_none(method: Any, side: Side, grid: Grid, needs: Needs) -> dict[str, Tensor] | None:
    try:
        return _tensors(method, side, grid, needs)
    except CheckError:
        return None


def _same(one: dict[str, Tensor] | None, other: dict[str, Tensor]) -> bool:
    return (
        one is not None and one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in other)
    )
