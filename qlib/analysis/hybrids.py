"""What can be exchanged between a float model and its quantized copy, and what must stay together.

A method that moves scales (SmoothQuant, AWQ, OmniQuant) changes float modules as well: a norm is divided by
s, the layers after it are multiplied by s. One without the other is another function. So modules that a
scale may have moved between form one unit, and units are exchanged whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from qlib.activation import Activation, FixedRange, PerTensor
from qlib.analysis.parts import HEAD, component_of, tied_head
from qlib.analysis.passes import shared_copy
from qlib.errors import ModelError, QuantError, list_names
from qlib.kept_columns import KeepColumns
from qlib.models.structure import Model
from qlib.quantized_weight import QuantizedWeight


def holds_codes(module: nn.Module) -> bool:
    """Return whether a module, of whatever class, computes with a quantized weight."""
    return isinstance(getattr(module, "quantized", None), QuantizedWeight)


@dataclass(frozen=True)
class Pair:
    """A float model and a quantized one of the same architecture."""

    float: Model
    quantized: Model
    rounded: tuple[str, ...]  # modules with a quantized weight
    changed: tuple[str, ...]  # float modules of the quantized model whose parameters are other ones

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that differ."""
        return (*self.rounded, *self.changed)

    @property
    def rounds_inputs(self) -> bool:
        """Whether some layer rounds its input."""
        return any(getattr(self.quantized.get_submodule(n), "activation", None) for n in self.rounded)

    def of_float(self, names: Iterable[str]) -> dict[str, nn.Module]:
        """Return the float model's modules of these names."""
        return {name: self.float.get_submodule(name) for name in names}

    def of_quantized(self, names: Iterable[str]) -> dict[str, nn.Module]:
        """Return the quantized model's modules of these names."""
        return {name: self.quantized.get_submodule(name) for name in names}


def pair(model: Model, quantized: Model) -> Pair:
    """Return what differs between two models.

    Raises
    ------
    QuantError
        The first is quantized, or the second is not.
    ModelError
        They are not of one architecture, or packed.
    """
    for each in (model, quantized):
        each.require_unpacked("explained")
    if wrong := [name for name, module in model.named_modules() if holds_codes(module)]:
        raise QuantError(
            f"explain: the first model is quantized ({list_names(wrong)}). Pass the float model first: "
            "qlib.explain(model, quantized, data)."
        )
    rounded = [name for name, module in quantized.named_modules() if holds_codes(module)]
    if not rounded:
        raise QuantError(
            f"explain: no layer of the second model, a {type(quantized).__name__}, is quantized. Pass what "
            "qlib.quantize or qlib.load_quantized returns."
        )
    _check_same(model, quantized)
    changed = [name for name in _changed(model, quantized) if name not in rounded]
    tied = tied_head(model)
    if tied and set(tied) & set(rounded):  # a rounded embedding is the head's weight too, and the reverse
        rounded += [name for name in tied if name not in rounded]
        changed = [name for name in changed if name not in tied]
    return Pair(model, quantized, tuple(rounded), tuple(changed))


def _changed(model: Model, quantized: Model) -> list[str]:
    """Return the modules with a parameter of their own that is another one in the quantized model."""
    found = {}
    before = dict(model.named_parameters(remove_duplicate=False))
    for name, value in quantized.named_parameters(remove_duplicate=False):
        if name in before and name not in model.tied and not torch.equal(value, before[name].to(value)):
            found[name.rpartition(".")[0]] = True
    return list(found)


def _check_same(model: Model, quantized: Model) -> None:
    """Refuse models of different architecture, naming the first module that differs."""
    if type(model) is not type(quantized):
        raise ModelError(
            f"explain: a float {type(model).__name__} and a quantized {type(quantized).__name__}. Pass the "
            "float model that the quantized one was made of."
        )
    sizes = [
        {
            name: list(weight.shape)
            for name, module in each.named_modules()
            if isinstance(weight := getattr(module, "weight", None), torch.Tensor)
        }
        for each in (model, quantized)
    ]
    for name in {**sizes[0], **sizes[1]}:
        found = [side.get(name, "missing") for side in sizes]
        if found[0] != found[1]:
            raise ModelError(
                f"explain: {name} is {found[0]} in the float model and {found[1]} in the quantized one. Pass "
                "the float model that the quantized one was made of."
            )


def components(pair: Pair) -> dict[str, tuple[str, ...]]:
    """Return the modules that differ by component; a norm belongs to the layers that read it."""
    owners = {
        group.before: component_of(group.first) for group in pair.float.groups() if group.before is not None
    }
    found: dict[str, list[str]] = {}
    for name in pair.modules:
        part = owners[name] if name in pair.changed and name in owners else component_of(name)
        found.setdefault(part, []).append(name)
    return {part: tuple(names) for part, names in found.items()}


def units(pair: Pair) -> list[tuple[str, ...]]:
    """Return the smallest sets of modules that can be exchanged, in order of computation.

    Single layers where no float module changed; else whatever a scale may have moved between.
    """
    together = [set(names) for part, names in components(pair).items() if part == HEAD]
    if pair.changed:
        for group in pair.float.groups():
            together.append({*group.layers, *([group.before] if group.before else [])})
            # Queries and keys may share a scale that cancels in their product.
            together += [{name, f"{name.rpartition('.')[0]}.k_proj"} for name in group.scores]
    merged: list[set[str]] = []
    for each in [*together, *({name} for name in pair.modules)]:
        joined = each & set(pair.modules)
        for other in [other for other in merged if other & joined]:
            merged.remove(other)
            joined |= other
        if joined:
            merged.append(joined)
    order = {name: i for i, name in enumerate(pair.modules)}
    return sorted(
        (tuple(sorted(m, key=order.__getitem__)) for m in merged), key=lambda names: order[names[0]]
    )


def without_input_rounding(model: Model) -> Model:
    """Return a copy of a quantized model, sharing its tensors, that reads its inputs as they are."""
    work = shared_copy(model)
    for module in work.modules():
        if holds_codes(module) and hasattr(module, "activation"):
            setattr(module, "activation", None)  # noqa: B010  (torch types it as a tensor or module)
    return work


def with_float_weights(pair: Pair) -> Mapping[str, nn.Module]:
    """Return the layers that round their inputs with the float model's weights; no scale may have moved."""
    work = shared_copy(pair.quantized)
    found = {}
    for name in pair.rounded:
        module = work.get_submodule(name)
        if getattr(module, "activation", None) is not None:
            module.weight = pair.float.get_parameter(f"{name}.weight").detach()
            found[name] = module
    return found


def with_wide_range(pair: Pair, name: str) -> dict[str, nn.Module]:
    """Return a layer of the quantized model with an input range as wide as each input, of as many bits."""
    module = shared_copy(pair.quantized).get_submodule(name)
    wide = _widened(module.activation)
    del module.activation  # a module: nothing else could be put in its place
    setattr(module, "activation", wide)  # noqa: B010  (as above)
    return {name: module}


def _widened(activation: object) -> Activation:
    if isinstance(activation, KeepColumns):
        return KeepColumns(_widened(activation.inner), activation.columns)
    assert isinstance(activation, FixedRange)
    return PerTensor(activation.spec.bits, activation.spec.symmetric, dynamic=True)
