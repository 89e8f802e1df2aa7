"""What `quantize` checks before it begins: methods, layers, grid. Every refusal names layers and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from fnmatch import fnmatch
from typing import Any

from torch import nn

from qlib.errors import QuantError, list_names
from qlib.grid import Grid, check_weight
from qlib.linear import FakeQuantLinear
from qlib.methods import METHODS
from qlib.methods.contracts import BlockMethod, Clip, Needs, Transform, WeightMethod
from qlib.methods.rtn import RTN
from qlib.models.structure import Model

Preparation = Transform | Clip | BlockMethod
Method = Preparation | WeightMethod


@dataclass(frozen=True)
class Chain:
    """Methods in the order in which they are applied: transformations, then one rounding method."""

    preparations: tuple[Preparation, ...]
    rounding: WeightMethod

    @property
    def name(self) -> str:
        """What stands in reports: ``awq + gptq``. Rounding to nearest goes without saying."""
        names = [method.name for method in self.preparations]
        return " + ".join(names if names and isinstance(self.rounding, RTN) else [*names, self.rounding.name])

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

    def describe(self) -> list[dict[str, Any]]:
        """Return names and settings, for the manifest."""
        return [
            {"name": method.name, **(asdict(method) if is_dataclass(method) else {})}
            for method in (*self.preparations, self.rounding)
        ]


def make_chain(methods: Sequence[Method]) -> Chain:
    """Return the methods as a chain; without a rounding method, weights are rounded to nearest.

    Raises
    ------
    QuantError
        Something is not a method, there are two rounding methods, or a transformation follows one.
    """
    known = f"Known methods: {list_names(METHODS, 20)}, each an object such as qlib.GPTQ()."
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise QuantError(f"methods={methods!r} is not a list of methods. {known}")
    rounding: list[WeightMethod] = []
    preparations: list[Preparation] = []
    for method in methods:
        if isinstance(method, type) or not isinstance(method, Preparation | WeightMethod):
            raise QuantError(f"{method!r} is not a quantization method. {known}")
        if isinstance(method, WeightMethod):
            rounding.append(method)
        elif rounding:
            raise QuantError(
                f"{method.name} stands behind {rounding[0].name}: a weight that is rounded cannot be "
                f"transformed any more. Pass [{method.name}, {rounding[0].name}]: transformations first."
            )
        else:
            preparations.append(method)
    if len(rounding) > 1:
        names = [method.name for method in rounding]
        raise QuantError(f"{list_names(names)}: a weight can be rounded only once. Pass one rounding method.")
    return Chain(tuple(preparations), rounding[0] if rounding else RTN())


def choose_layers(
    model: Model, skip: Sequence[str]
) -> tuple[dict[str, nn.Linear], tuple[tuple[str, str], ...]]:
    """Return the layers to quantize by name, and all other modules with weights, each with a reason.

    Raises
    ------
    QuantError
        The model is quantized already, a pattern matches no module, or no layer is left.
    """
    model.require_unpacked("quantized")
    modules = {name: module for name, module in model.named_modules() if name}
    if done := [name for name, module in modules.items() if isinstance(module, FakeQuantLinear)]:
        raise QuantError(f"The model is quantized already: {list_names(done)}. Quantize the float model.")
    blocks = [block for stage in model.stages() for block in stage.blocks]
    known = [
        layer
        for group in model.groups()
        for layer in group.layers
        if layer.startswith(tuple(f"{block}." for block in blocks))
    ]
    for pattern in skip:
        if not any(matches(name, pattern) for name in modules):
            raise QuantError(
                f"skip pattern {pattern!r} matches no module. Layers are named {list_names(known)}."
            )
    reasons = {
        name: _reason_to_skip(model, name, module, skip, name in known)
        for name, module in modules.items()
        if list(module.parameters(recurse=False))
    }
    layers = {
        name: module for name in known if not reasons[name] and isinstance(module := modules[name], nn.Linear)
    }
    if not layers:
        raise QuantError(
            f"No layer is left to quantize: skip={list(skip)} covers all {len(known)}. Skip fewer."
        )
    return layers, tuple((name, reason) for name, reason in reasons.items() if reason)


def check_layers(layers: dict[str, nn.Linear], grid: Grid) -> None:
    """Refuse grids and weights that some layer cannot be rounded with, naming every such layer."""
    narrow = {
        name: layer.in_features for name, layer in layers.items() if layer.in_features < (grid.group or 1)
    }
    if narrow:
        grid.check(min(narrow.values()), list_names(narrow))
    for name, layer in layers.items():
        try:
            check_weight(layer.weight)
        except QuantError as error:
            raise QuantError(f"{name}: {error}") from error


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern covers a module path, or a module that contains it, from any dot on."""
    return fnmatch(f".{name}.", f"*.{pattern}.*")


def _reason_to_skip(model: Model, name: str, module: nn.Module, skip: Sequence[str], inside: bool) -> str:
    """Return why a module with weights stays in float, or nothing."""
    if f"{name}.weight" in model.tied:
        return "shares its weight with the token embedding"
    if not isinstance(module, nn.Linear):
        return f"{type(module).__name__}, not a linear layer"
    if any(matches(name, pattern) for pattern in skip):
        return "skipped as asked"
    return "" if inside else "stands outside the blocks"
