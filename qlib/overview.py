"""Which layers of a model there are to quantize, before anything is quantized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from qlib.arguments import as_grids, as_model, as_patterns
from qlib.grid import Grid
from qlib.models.structure import LayerGroup, Model
from qlib.models.table import align
from qlib.selection import Layer, check_layers, choose_grids, choose_layers


@dataclass(frozen=True)
class LayerInfo:
    """One linear layer of a float model, or a token embedding with a table of its own."""

    name: str
    outputs: int
    inputs: int
    parameters: int  # bias included
    share: float  # of all parameters of the model, 0 to 1
    group: int  # layers with the same number read the same input, and a scale for it is theirs together
    before: str  # the operation that can absorb a scale, or why none can
    skipped: str = ""  # why `quantize` leaves the layer in float, or nothing
    grid: Grid | None = None  # that `quantize` would round the layer to, where `weight` was given


@dataclass(frozen=True)
class Layers:
    """The linear layers of a model in order of use, those that stay in float included.

    A token embedding comes after them, unless it is tied to the head.
    """

    layers: tuple[LayerInfo, ...]
    others: tuple[tuple[str, str], ...]  # other modules with parameters: (name, what they are)
    parameters: int  # of the whole model; a tied head counts once

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that `quantize` would round."""
        return tuple(layer.name for layer in self.layers if not layer.skipped)

    def __iter__(self) -> Iterator[LayerInfo]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        chosen = [layer for layer in self.layers if not layer.skipped]
        share = sum(layer.share for layer in chosen)
        planned = any(layer.grid for layer in self.layers)
        rows = [("layer", "shape", "parameters", "share", "input", "grid" if planned else "")]
        rows += [
            (
                layer.name,
                f"{layer.outputs}x{layer.inputs}",
                f"{layer.parameters:,}",
                f"{layer.share:.1%}",
                f"#{layer.group}" if layer.group else "-",
                str(layer.grid) if layer.grid else f"float: {layer.skipped}" if planned else layer.skipped,
            )
            for layer in self.layers
        ]
        head = (
            f"{len(chosen)} of {len(self.layers)} layers {'will' if planned else 'can'} be quantized: "
            f"{share:.1%} of {self.parameters:,} parameters. Layers with the same input number share a scale."
        )
        return "\n".join([head, align(rows)])


def layers(
    model: Model, skip: str | Iterable[str] = (), weight: Grid | Mapping[str, Grid] | None = None
) -> Layers:
    """Return the linear layers of a float model: shapes, sizes, who shares an input, what stays in float.

    >>> print(qlib.layers(model, weight={"*": qlib.Grid(4, 64), "proj_out": qlib.Grid(8)}))  # doctest: +SKIP

    Parameters
    ----------
    model : Model
        A float model.
    skip : str or iterable of str
        Patterns as for `quantize`, to see what they match.
    weight : Grid, or mapping of patterns to grids, optional
        As for `quantize`: the grid of each layer is shown, before anything is computed.

    Raises
    ------
    QuantError
        This is no float model of the library, a pattern matches nothing, no layer is left, or a layer has no
        grid or one that it cannot be rounded to.
    ModelError
        The model is packed.
    """
    model = as_model(model, "layers")
    weight = None if weight is None else as_grids(weight)
    chosen, skipped = choose_layers(model, as_patterns(skip), weight)
    grids = {} if weight is None else choose_grids(model, chosen, weight)
    check_layers(chosen, grids)
    reasons, modules = dict(skipped), dict(model.named_modules())
    parameters = sum(each.numel() for each in model.parameters())
    groups = {name: (number, each) for number, each in enumerate(model.groups(), 1) for name in each.layers}
    heads = [name for name in reasons if isinstance(modules[name], nn.Linear)]
    found = []
    for name in dict.fromkeys([*groups, *heads, *model.tables]):
        layer = modules[name]
        assert isinstance(layer, Layer)
        outputs, inputs = layer.weight.shape
        size = sum(each.numel() for each in layer.parameters())
        number, group = groups.get(name, (0, None))
        reason = "" if name in chosen else reasons[name]
        share, before = size / parameters, _before(group)
        found.append(LayerInfo(name, outputs, inputs, size, share, number, before, reason, grids.get(name)))
    listed = {layer.name for layer in found}
    return Layers(tuple(found), tuple(each for each in skipped if each[0] not in listed), parameters)


def _before(group: LayerGroup | None) -> str:
    """Say which operation can absorb a scale of a group's input, or why none can."""
    if group is None:
        return "its input belongs to no group"
    return group.before or group.reason
