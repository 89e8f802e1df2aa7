"""A list of methods: what may stand in it, what it needs, and what it refuses before the work begins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, is_dataclass, replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from qlib.errors import QuantError, describe, list_names
from qlib.grid import Grid
from qlib.methods import METHODS
from qlib.methods.contracts import BlockMethod, Clip, LayerStats, Needs, Transform, WeightMethod
from qlib.methods.rtn import RTN
from qlib.models.structure import LayerGroup, Model
from qlib.quantized_weight import QuantizedWeight
from qlib.selection import Layer, by_grid

Preparation = Transform | Clip | BlockMethod
Method = Preparation | WeightMethod


@dataclass(frozen=True)
class LookedUp(RTN):
    """Rounding to nearest, for a table without products, in the place of a method that needs inputs."""

    def quantize_layer(self, weight: Tensor, stats: LayerStats, grid: Grid) -> QuantizedWeight:
        """Round the table; a note says why."""
        note = "rounded to nearest: rows are looked up, not multiplied"
        return replace(super().quantize_layer(weight, stats, grid), notes=(note,))


@dataclass(frozen=True)
class Chain:
    """Methods in the order in which they are applied: transformations, then one rounding method."""

    preparations: tuple[Preparation, ...]
    rounding: WeightMethod

    @property
    def name(self) -> str:
        """What stands in reports: ``awq + gptq``. Rounding to nearest goes without saying."""
        names = [method.name for method in self.preparations]
        # By name: a method of the user's may inherit from RTN.
        return " + ".join(names if names and self.rounding.name == RTN.name else [*names, self.rounding.name])

    @property
    def learns(self) -> bool:
        """Whether a method wants the inputs and float outputs of whole blocks."""
        return any(isinstance(method, BlockMethod) for method in self.preparations)

    @property
    def needs(self) -> Needs:
        """All that the methods want to know of the inputs of layers."""
        needs = self.rounding.needs
        for method in self.preparations:
            needs |= method.needs
        return needs

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods, in order."""
        return (*self.preparations, self.rounding)

    def for_table(self, multiplied: bool) -> Chain:
        """Return what is done to a token table: nothing moves into it or out of it, it is rounded.

        A table that no head is multiplied with has no inputs: what needs them gives way to `LookedUp`.
        """
        rounding = self.rounding if multiplied or not self.rounding.needs else LookedUp()
        return Chain((), rounding)

    def describe(self) -> list[dict[str, Any]]:
        """Return names and settings, for the manifest.

        Raises
        ------
        QuantError
            A method's settings are no plain data.
        """
        return [{"name": method.name, **(_settings(method) or {})} for method in self.methods]

    def check_resumable(self) -> None:
        """Refuse a method that does not tell its settings: two runs of it could not be told apart.

        Raises
        ------
        QuantError
            Names the method.
        """
        for method in self.methods:
            if _settings(method) is None:
                raise QuantError(
                    f"work= goes on from blocks that were made with the same settings, and {method.name} "
                    f"({type(method).__name__}) does not tell its own. Make it a dataclass, or give it a "
                    "settings() that returns a dict of plain data; or leave work out."
                )

    def check_weights(self, layers: Mapping[str, Layer], grids: Mapping[str, Grid]) -> None:
        """Let each method that has a `check_weights` refuse layers that it could not round.

        `grids` names the layers to look at.

        Raises
        ------
        QuantError
            What the method says.
        """
        for method in self.methods:
            check = getattr(method, "check_weights", None)
            if callable(check):
                for grid, names in by_grid(grids).items():
                    check({name: layers[name].weight.detach() for name in names}, grid)

    def check_mixed(self, model: Model, grids: Mapping[str, Grid]) -> None:
        """Refuse layers on different grids to a method that takes them together and knows one grid only.

        Raises
        ------
        QuantError
            Names the method and the layers.
        """
        for method in self.preparations:
            if isinstance(method, BlockMethod) and not hasattr(method, "fit_mixed"):
                for block in (block for stage in model.stages() for block in stage.blocks):
                    inside = {name: grid for name, grid in grids.items() if name.startswith(f"{block}.")}
                    _refuse_mixed(method, "fit", "fit_mixed(task)", inside)
            if isinstance(method, Transform) and not hasattr(method, "scale_mixed"):
                for group in filter(_can_scale, model.groups()):
                    inside = {name: grids[name] for name in group.layers if name in grids}
                    _refuse_mixed(method, "scale_group", "scale_mixed(weights, stats, grids)", inside)


def _can_scale(group: LayerGroup) -> bool:
    return group.before is not None


def _refuse_mixed(method: Method, takes: str, lacks: str, grids: Mapping[str, Grid]) -> None:
    """Raise a QuantError if these layers, which the method takes together, are on several grids."""
    if len(set(grids.values())) > 1:
        shown = [f"{names[0]} ({grid})" for grid, names in by_grid(grids).items()]
        raise QuantError(
            f"{method.name}.{takes} takes one grid for {len(grids)} layers together, and theirs differ: "
            f"{list_names(shown)}. Give these layers one grid, or the method a {lacks}."
        )


def _settings(method: Method) -> dict[str, Any] | None:
    """Return a method's settings as plain data, or None where it has some and does not tell them."""
    tell = getattr(method, "settings", None)
    if callable(tell):
        told = tell()
    elif is_dataclass(method) and not isinstance(method, type):
        told = asdict(method)
    else:
        return None if getattr(method, "__dict__", None) or getattr(method, "__slots__", None) else {}
    try:
        json.dumps(told)
        return dict(told)
    except (TypeError, ValueError) as error:
        raise QuantError(
            f"the settings of {method.name} are {told!r}, which cannot be written as JSON ({error}). Use "
            "plain numbers, strings, lists and dicts."
        ) from error


def make_chain(methods: Method | Iterable[Method]) -> Chain:
    """Return the methods as a chain; without a rounding method, weights are rounded to nearest.

    A single method stands for a list of one.

    Raises
    ------
    QuantError
        Something is not a method, has a setting by the name of a call, or has `fit` and does not name
        `Needs.BLOCK`; one stands twice, there are two rounding methods, a transformation follows one, or one
        object is both.
    """
    rounding: list[WeightMethod] = []
    preparations: list[Preparation] = []
    for method in _listed(methods):
        _check_method(method)
        if isinstance(method, WeightMethod):
            rounding.append(method)
        elif rounding:
            raise QuantError(
                f"{method.name} comes after {rounding[0].name}: a weight that is rounded cannot be "
                f"transformed any more. Pass [{method.name}, {rounding[0].name}]: transformations first."
            )
        elif method.name in [other.name for other in preparations]:
            raise QuantError(f"{method.name} stands twice in the list of methods. Pass it once.")
        else:
            preparations.append(method)
    if len(rounding) > 1:
        names = [method.name for method in rounding]
        raise QuantError(f"{list_names(names)}: a weight can be rounded only once. Pass one rounding method.")
    last = rounding[0] if rounding else RTN()
    return Chain(tuple(_before(each, last.name) for each in preparations), last)


def _before(method: Preparation, rounding: str) -> Preparation:
    """Return a method with the settings that it takes in front of a rounding method."""
    before = getattr(method, "before", None)
    if not callable(before):
        return method
    found: Any = before(rounding)
    if isinstance(found, type) or not isinstance(found, Preparation):
        raise QuantError(
            f"{method.name}.before({rounding!r}) returned {describe(found)}. Return the method with its "
            "settings there: self, or dataclasses.replace(self, ...)."
        )
    return found


KNOWN = f"Known methods: {list_names(METHODS, 20)}, each an object such as qlib.GPTQ()."
DOES = ("quantize_layer", "scale_group", "clip_layer", "fit")  # each contract has one of them
HAS = ("name", "paper", "needs")


def _listed(methods: object) -> list[Any]:
    """Return the list of methods that was meant."""
    if isinstance(methods, str | bytes | Mapping | Set | type) or methods is None:
        raise QuantError(f"methods={methods!r} is not a list of methods. {KNOWN}{_meant(methods)}")
    if isinstance(methods, Iterable):
        return list(methods)
    return [methods]


def _check_method(method: object) -> None:
    """Refuse what is no method, and say what it lacks."""
    is_one = isinstance(method, Preparation | WeightMethod)
    if isinstance(method, type) or not is_one:
        raise QuantError(f"{_shown(method)} is not a quantization method. {KNOWN}{_meant(method)}")
    assert isinstance(method, Preparation | WeightMethod)
    if not isinstance(method.needs, Needs) or not isinstance(method.name, str):
        raise QuantError(
            f"{_shown(method)} is not a quantization method: its name is {describe(method.name)} and its "
            f"needs {describe(method.needs)}. Give it a name such as 'mine' and needs such as Needs.HESSIAN "
            "or Needs.NOTHING."
        )
    _check_calls(method)


def _check_calls(method: Preparation | WeightMethod) -> None:
    """Refuse settings by the name of a call, one object for two steps, and `fit` without `Needs.BLOCK`.

    What rounds may have a setting `fit`, as RTN and GPTQ have: nobody calls it.
    """
    if not callable(getattr(method, "quantize_layer", None)):
        for name in DOES:
            if hasattr(method, name) and not callable(setting := getattr(method, name)):
                raise QuantError(
                    f"{method.name}.{name} is {describe(setting)}, and {name} is what `quantize` calls. Give "
                    "that setting another name."
                )
        if isinstance(method, BlockMethod) and Needs.BLOCK not in method.needs:
            raise QuantError(
                f"{method.name} has fit, and its needs, {method.needs}, do not name Needs.BLOCK: without "
                "calibration data it would learn from nothing. Add Needs.BLOCK to needs."
            )
    others = [name for name in DOES[1:] if callable(getattr(method, name, None))]
    if isinstance(method, WeightMethod) and others:
        raise QuantError(
            f"{method.name} has quantize_layer and {list_names(others)}: what rounds does nothing else, and "
            "the rest would not be called. Make two objects and pass both, the one that rounds last; or give "
            "a helper another name."
        )


def _meant(method: object) -> str:
    """Say which method was meant, or what an object lacks to be one."""
    classes = {kind.__name__.lower(): kind.__name__ for kind in METHODS.values()}
    if isinstance(method, type):
        own = "qlib." if method in METHODS.values() else ""
        return f" It is a class and must be called: {own}{method.__name__}()."
    if isinstance(method, str):
        near = get_close_matches(method.lower(), classes, 1)
        return f" Did you mean qlib.{classes[near[0]]}()?" if near else ""
    if method is None or isinstance(method, bytes | Mapping | Set):
        return ""
    missing = [name for name in HAS if not hasattr(method, name)]
    if not any(callable(getattr(method, name, None)) for name in DOES):
        missing.append(f"{', '.join(DOES[:-1])} or {DOES[-1]}")
    return f" It has no {list_names(missing)}."


def _shown(method: object) -> str:
    """Return a method as a message shows it."""
    return repr(method) if isinstance(method, str | type) else describe(method)
