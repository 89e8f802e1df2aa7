"""The four contracts seen alike: how a method is called, what it may return, and which tensors that is.

With these, one check serves all four: see `qlib/testing/checks.py`.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlib.errors import CheckError, QuantError
from qlib.grid import Grid
from qlib.methods.contracts import BlockMethod, Clip, LayerStats, Needs, Transform, WeightMethod
from qlib.quantized_weight import QuantizedWeight
from qlib.returned import check_clipped, check_fitted, check_rounded, check_scale
from qlib.testing.problems import FC1, FC2, GRIDS, OTHERS, Problem, layer

Arguments = dict[str, Any]  # of one call, by name, in their order
LIBRARIES = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))


@dataclass(frozen=True)
class Side:
    """One contract, as checks use it.

    Parameters
    ----------
    contract : type
        The protocol.
    call : str
        The name of its method.
    arguments : callable
        `arguments(problem, needs, grid)` -> what the method is called with, by name; made anew each time.
    returned : callable
        `returned(result, problem, grid, name)` -> the result, or a QuantError where it is none.
    tensors : callable
        `tensors(result)` -> all tensors of the result, by name.
    """

    contract: type
    call: str
    arguments: Callable[[Problem, Needs, Grid], Arguments]
    returned: Callable[[object, Problem, Grid, str], Any]
    tensors: Callable[[Any], dict[str, Tensor]]

    def run(self, method: Any, problem: Problem, grid: Grid, needs: Needs | None = None) -> Any:
        """Call the method once, and return what it returns if its contract allows it.

        Raises
        ------
        CheckError
            It failed, or returned something else.
        """
        given = self.arguments(problem, method.needs if needs is None else needs, grid)
        return self.run_with(method, problem, grid, given)

    def run_with(self, method: Any, problem: Problem, grid: Grid, given: Arguments) -> Any:
        """As `run`, with arguments that were made before."""
        where = f"{method.name}.{self.call} on {problem}, {grid}"
        call = getattr(method, self.call)
        _check_signature(call, f"{method.name}.{self.call}", given)
        try:
            result = call(*given.values())
        except Exception as error:
            raise CheckError(
                f"{where}: {failed(error)}. Mend that line; or, if the method cannot work on such a layer or "
                "grid, refuse it in check_weights(weights, grid), by a QuantError."
            ) from error
        with _as_check_error(where):
            return self.returned(result, problem, grid, method.name)


def _layer_arguments(problem: Problem, needs: Needs, grid: Grid) -> Arguments:
    return {"weight": problem.weight.clone(), "stats": problem.stats(needs), "grid": grid}


def _group_arguments(problem: Problem, needs: Needs, grid: Grid) -> Arguments:
    """Two layers that share the input; the second is the first, turned round."""
    weights = [problem.weight.clone(), problem.weight.flip(0) / 2]
    return {"weights": weights, "stats": problem.stats(needs), "grid": grid}


def _block_arguments(problem: Problem, needs: Needs, grid: Grid) -> Arguments:
    return {"task": problem.task(needs, grid), "grid": grid}


SIDES = (
    Side(
        WeightMethod, "quantize_layer", _layer_arguments,
        lambda result, problem, grid, name: check_rounded(result, problem.weight, grid, name),
        QuantizedWeight.tensors,
    ),
    Side(
        Transform, "scale_group", _group_arguments,
        lambda result, problem, _, name: check_scale(result, problem.weight, name),
        lambda result: {"the scale": result},
    ),
    Side(
        Clip, "clip_layer", _layer_arguments,
        lambda result, problem, _, name: check_clipped(result, problem.weight, name),
        lambda result: {"the clipped weight": result},
    ),
    Side(
        BlockMethod, "fit", _block_arguments,
        lambda result, problem, grid, name: check_fitted(
            result, problem.task(Needs.NOTHING, grid).parameters, name
        ),
        dict,
    ),
)  # fmt: skip


def sides_of(method: object) -> list[Side]:
    """Return the contracts that a method fills in, as `quantize` takes it; AWQ, for one, has two.

    A method that rounds does nothing else: its `fit`, if it has one, is a setting.
    """
    found = [side for side in SIDES if isinstance(method, side.contract)]
    return found[:1] if isinstance(method, WeightMethod) else found


def grids_for(method: Any) -> list[Grid]:
    """Return those of `GRIDS` that a method does not refuse beforehand; of `OTHERS` if it refuses them all.

    Raises
    ------
    CheckError
        It refuses those too, without which there is nothing to check; or its `check_weights` fails.
    """
    problem = layer()
    for grids in (GRIDS, OTHERS):
        found, why = not_refused(method, grids, problem)
        if found:
            return found
    raise CheckError(
        f"{method.name}.check_weights refuses {problem} on all of "
        f"{', '.join(map(str, GRIDS + OTHERS))}: {why} Let one of these pass, with settings for small layers."
    )


def not_refused(method: Any, grids: tuple[Grid, ...], problem: Problem) -> tuple[list[Grid], str]:
    """Return the grids that `check_weights` lets pass, and why it refused the last of the others."""
    refuse = getattr(method, "check_weights", None)
    if refuse is None:
        return list(grids), ""
    weight, found, why = problem.weight, [], ""
    for grid in grids:
        try:
            refuse({FC1: weight, FC2: weight.T.contiguous()}, grid)
            found.append(grid)
        except QuantError as error:
            why = str(error)
        except Exception as error:
            raise CheckError(
                f"{method.name}.check_weights on {problem}, {grid}: {failed(error)}. It takes "
                "weights by the names of their layers, and a grid, and refuses by a QuantError."
            ) from error
    return found, why


def failed(error: Exception) -> str:
    """Say with what a method failed, and in which of its own lines: the last one outside of the libraries."""
    lines = traceback.extract_tb(error.__traceback__)
    line = ([each for each in lines if not each.filename.startswith(LIBRARIES)] or lines)[-1]
    why = f"{type(error).__name__}: {error}".rstrip(". :")
    return f"failed in {Path(line.filename).name}, line {line.lineno} ({line.name}), with {why}"


def _check_signature(call: Callable[..., Any], name: str, arguments: Iterable[str]) -> None:
    """Refuse a method that cannot be called with so many arguments."""
    signature, names = inspect.signature(call), list(arguments)
    try:
        signature.bind(*names)
    except TypeError as error:
        raise CheckError(
            f"{name}{signature} is called with {', '.join(names)}: {error}. Write def "
            f"{name.rpartition('.')[2]}(self, {', '.join(names)})."
        ) from error


def given_tensors(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return every tensor among the arguments of a call, by a name for messages."""
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, list):
            found |= {f"{name}[{k}]": each for k, each in enumerate(value)}
        elif isinstance(value, LayerStats):
            found |= {f"stats.{k}": each for k, each in vars(value).items() if isinstance(each, Tensor)}
        elif hasattr(value, "parameters"):
            found |= {f"task.parameters[{k!r}]": each for k, each in value.parameters.items()}
    return found


@contextmanager
def _as_check_error(where: str) -> Iterator[None]:
    """Say where it was that a result was refused."""
    try:
        yield
    except QuantError as error:
        raise CheckError(f"{where}: {error}") from error
