"""Which layers of a model there are to quantize, before anything is quantized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from qlib.arguments import as_model, as_patterns
from qlib.models.structure import LayerGroup, Model
from qlib.models.table import align
from qlib.selection import choose_layers


@dataclass(frozen=True)
class LayerInfo:
    """One linear layer of a float model."""

    name: str
    outputs: int
    inputs: int
    parameters: int  # bias included
    share: float  # of all parameters of the model, 0 to 1
    group: int  # layers with the same number read the same input, and a scale for it is theirs together
    before: str  # the operation that can absorb a scale, or why none can
    skipped: str = ""  # why `quantize` leaves the layer in float, or nothing


@dataclass(frozen=True)
class Layers:
    """The linear layers of a model in order of use, those that stay in float included."""

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
        rows = [("layer", "shape", "parameters", "share", "input", "")]
        rows += [
            (
                layer.name,
                f"{layer.outputs}x{layer.inputs}",
                f"{layer.parameters:,}",
                f"{layer.share:.1%}",
                f"#{layer.group}" if layer.group else "-",
                layer.skipped,
            )
            for layer in self.layers
        ]
        head = (
            f"{len(chosen)} of {len(self.layers)} linear layers can be quantized: {share:.1%} of "
            f"{self.parameters:,} parameters. Layers with the same input number share a scale."
        )
        return "\n".join([head, align(rows)])


def layers(model: Model, skip: str | Iterable[str] = ()) -> Layers:
    """Return the linear layers of a float model: shapes, sizes, who shares an input, what stays in float.

    Parameters
    ----------
    model : Model
        A float model.
    skip : str or iterable of str
        Patterns as for `quantize`, to see what they match.

    Raises
    ------
    QuantError
        This is no float model of the library, a pattern matches nothing, or no layer is left.
    ModelError
        The model is packed.
    """
    model = as_model(model, "layers")
    chosen, skipped = choose_layers(model, as_patterns(skip))
    reasons = dict(skipped)
    parameters = sum(each.numel() for each in model.parameters())
    groups = {name: (number, each) for number, each in enumerate(model.groups(), 1) for name in each.layers}
    modules = dict(model.named_modules())
    named = [*groups, *(name for name in reasons if name not in groups)]
    found = []
    for name in named:
        layer = modules[name]
        if not isinstance(layer, nn.Linear):
            continue
        number, group = groups.get(name, (0, None))
        size = sum(each.numel() for each in layer.parameters())
        reason = "" if name in chosen else reasons.get(name, "")
        found.append(
            LayerInfo(
                name,
                layer.out_features,
                layer.in_features,
                size,
                size / parameters,
                number,
                _before(group),
                reason,
            )
        )
    others = tuple((name, reason) for name, reason in skipped if not isinstance(modules[name], nn.Linear))
    return Layers(tuple(found), others, parameters)


def _before(group: LayerGroup | None) -> str:
    """Say which operation can absorb a scale of a group's input, or why none can."""
    if group is None:
        return "its input belongs to no group"
    return group.before or group.reason
