"""A block of a model as a function of its parameters, for methods that learn by gradients (`BlockMethod`).

The block itself stays as it is: for the length of one call its parameters are swapped for those given
(`torch.func.functional_call`), hooks round the inputs of its linear layers, and gradients of the output
reach the parameters. Rounding has the gradient 0 almost everywhere, so it is passed straight through: the
output is A(x), the gradient that of x.

The block reads what the quantized blocks before it write, and is to write what the float model writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qlib.activation import Activation
from qlib.calibrate import Visit
from qlib.grid import Grid
from qlib.methods.contracts import BlockTask, LayerStats
from qlib.models.structure import LayerGroup, Stage


def block_task(
    visit: Visit,
    grids: Mapping[str, Grid],
    stats: Mapping[str, LayerStats],
    activations: Mapping[str, Activation | None] | None = None,
) -> BlockTask:
    """Return the learning problem of one block.

    Parameters
    ----------
    visit : Visit
        The block, in float, with what arrives there and what the float model writes. Nothing is changed. One
        utterance a batch, if steps are to see one.
    grids : mapping
        The linear layers of the block that will be rounded, by full path, and the grid of each.
    stats : mapping
        Statistics of each layer's input.
    activations : mapping, optional
        What rounds the input of each of these layers while the model runs; it must not need calibration. None
        or no entry: the input stays in float.
    """
    block, inputs, batches = visit.name, visit.inputs, visit.batches
    runner = _Runner(visit.stage, visit.block)
    rounded = [
        (visit.model.get_submodule(layer), activation)
        for layer, activation in (activations or {}).items()
        if layer in grids and activation is not None
    ]
    targets, valid = visit.targets, [visit.stage.valid(batch, "hidden") for batch in batches]

    def output(parameters: Mapping[str, Tensor], sample: int) -> Tensor:
        swapped = {f"block{name.removeprefix(block)}": value for name, value in {**own, **parameters}.items()}
        with rounded_inputs(rounded):
            return functional_call(runner, swapped, (inputs[sample], batches[sample]))  # type: ignore[no-any-return]

    own = {f"{block}.{name}": value.detach() for name, value in visit.block.named_parameters()}
    return BlockTask(
        # Copies: a method that changes them in place changes neither the block nor `output`.
        parameters={name: value.clone() for name, value in own.items()},
        layers=tuple(grids),
        groups=tuple(group for group in visit.groups if _is_inside(group, block, grids)),
        stats=stats,
        samples=len(batches),
        output=output,
        target=lambda sample: targets[sample][valid[sample]],
        rounds_inputs=bool(rounded),
        grids=dict(grids),
    )


@contextmanager
def rounded_inputs(modules: Iterable[tuple[nn.Module, Activation]]) -> Iterator[None]:
    """Round the input of each module, gradients straight through; the hooks go when the context ends."""

    def hook(activation: Activation) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda module, inputs: (straight_through(activation, inputs[0]), *inputs[1:])

    with ExitStack() as hooks:
        for module, activation in modules:
            hooks.enter_context(module.register_forward_pre_hook(hook(activation)))
        yield


def straight_through(activation: Activation, inputs: Tensor) -> Tensor:
    """Return A(x), whose gradient with respect to x is taken to be 1."""
    return _StraightThrough.apply(inputs, activation)  # type: ignore[no-any-return,no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    """A(x) forward, the identity backward: x + (A(x) - x) would be A(x) only up to a float error."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, activation: Activation) -> Tensor:
        return activation(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Runner(nn.Module):
    """A stage's way to run a block, as a module: parameters can only be swapped in one of those."""

    def __init__(self, stage: Stage, block: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.block = block

    def forward(self, hidden: Tensor, batch: Any) -> Tensor:
        return self.stage.run(self.block, hidden, batch, self.stage.valid(batch, "hidden"))


def _is_inside(group: LayerGroup, block: str, layers: Iterable[str]) -> bool:
    """Return whether a group can be folded within the block, and some of its layers will be rounded."""
    members = (*group.layers, group.before or "")
    return all(name.startswith(f"{block}.") for name in members) and not set(layers).isdisjoint(group.layers)
