"""Mixed precision: which grid each layer takes, so that the total loss is least within a budget.

Finding the plan is exact (`qlib/analysis/knapsack.py`). What it is worth rests on one assumption: that the
losses of single layers, each measured with all others in float, add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from qlib.activation import Rounding
from qlib.analysis.cost import cost, multiplications
from qlib.analysis.held_weights import dtype_bits, size_of
from qlib.analysis.knapsack import least_loss
from qlib.arguments import as_activation, as_model
from qlib.errors import QuantError, describe, did_you_mean, real_number
from qlib.grid import Grid
from qlib.methods.contracts import LayerStats
from qlib.methods.rtn import RTN
from qlib.models.structure import Model
from qlib.models.table import align
from qlib.selection import choose_roundings
from qlib.stored_weight import to_16_bits

Losses = Mapping[str, Mapping[Grid, float]]


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of a plan."""

    name: str
    outputs: int
    inputs: int
    grid: Grid
    loss: float
    bits: int  # that the weight will take on disk


@dataclass(frozen=True)
class Plan(Mapping[str, Grid]):
    """A grid for each layer, as ``quantize(model, weight=plan)`` takes it, and what it will cost."""

    layers: tuple[PlannedLayer, ...]
    budget: str
    file_bytes: int  # data of model.safetensors
    bit_operations: int | None  # of the run, where they are the budget

    def __getitem__(self, name: str) -> Grid:
        return {layer.name: layer.grid for layer in self.layers}[name]

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def loss(self) -> float:
        """The sum of the losses of all layers."""
        return sum(layer.loss for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Average over the planned layers."""
        weights = sum(layer.outputs * layer.inputs for layer in self.layers)
        return sum(layer.bits for layer in self.layers) / weights

    def __str__(self) -> str:
        rows = [("layer", "shape", "grid", "bits", "loss")]
        for each in self.layers:
            shape, bits = f"{each.outputs}x{each.inputs}", each.bits / (each.outputs * each.inputs)
            rows.append((each.name, shape, str(each.grid), f"{bits:.2f}", f"{each.loss:.3g}"))
        total = (
            f"{len(self)} layers within {self.budget}: loss {self.loss:.4g}, {self.bits_per_weight:.3f} bits "
            f"per weight, file {self.file_bytes / 1e6:,.2f} MB"
        )
        if self.bit_operations is not None:
            total += f", {self.bit_operations / 1e9:,.2f} x 10^9 bit operations"
        return "\n".join([total, align(rows)])


def allocate(
    losses: Losses,
    model: Model,
    *,
    bits_per_weight: float | None = None,
    file_bytes: int | None = None,
    bit_operations: float | None = None,
    activation: Rounding | Mapping[str, Rounding] = None,
    audio_seconds: float | None = None,
    tokens: int = 40,
) -> Plan:
    """Return the plan of least total loss within one budget.

    Parameters
    ----------
    losses : mapping
        Of each layer, by full name: the loss on each grid that it may take. ``qlib.sensitivity(...).losses``.
    model : Model
        The float model.
    bits_per_weight : float, optional
        Budget: average over the layers in `losses`, scales and zero points included.
    file_bytes : int, optional
        Budget: data of the whole model.safetensors, embeddings and norms included.
    bit_operations : float, optional
        Budget: those of a run, as `qlib.cost` counts them for this `audio_seconds` and these `tokens`, with
        inputs rounded as `activation` says.
    activation : PerToken, PerTensor, or mapping, optional
        As for `quantize`; counts in bit operations alone.
    audio_seconds, tokens : optional
        As for `cost`; count in bit operations alone.

    Returns
    -------
    Plan
        Its sizes are those of rounding to nearest, GPTQ with its columns in order, AWQ, SmoothQuant and
        OmniQuant. Others store more: HQQ's zero points, GPTQ's groups in another order, what SpQR and QUIK
        keep in float.

    Raises
    ------
    QuantError
        Not exactly one budget; one that no plan can meet, the message names the smallest that one can; layers
        that the model does not have; losses that are no finite numbers; a group larger than a layer.
    """
    model = as_model(model, "allocate")
    given = {"bits_per_weight": bits_per_weight, "file_bytes": file_bytes, "bit_operations": bit_operations}
    name, budget = _one_budget(given)
    layers = _check_losses(losses, model)
    bits = {layer: [_bits(layer, layers[layer], grid) for grid in losses[layer]] for layer in losses}
    floats = sum(to_16_bits(each.weight.detach()).nbytes for each in layers.values())
    rest = size_of(model).file_bytes - floats  # bytes of all that the plan leaves alone
    costs, fixed, unit = bits, 0, 1
    if name == "bits_per_weight":
        unit = sum(each.weight.numel() for each in layers.values())
    elif name == "file_bytes":
        costs, fixed = {layer: [each // 8 for each in options] for layer, options in bits.items()}, rest
    else:
        costs, fixed = _operations(losses, model, activation, audio_seconds, tokens)
    most = _most(name, budget, unit, fixed + sum(map(min, costs.values())))
    options = least_loss(
        list(costs.values()), [list(each.values()) for each in losses.values()], most - fixed
    )
    planned = tuple(
        PlannedLayer(
            layer,
            layers[layer].out_features,
            layers[layer].in_features,
            *list(losses[layer].items())[option],
            bits[layer][option],
        )
        for layer, option in zip(losses, options, strict=True)
    )
    spent = fixed + sum(costs[layer][option] for layer, option in zip(losses, options, strict=True))
    return Plan(
        planned,
        budget=f"{name}={budget:,}",
        file_bytes=rest + sum(layer.bits for layer in planned) // 8,
        bit_operations=spent if name == "bit_operations" else None,
    )


def _most(name: str, budget: float, unit: int, smallest: int) -> int:
    """Return a budget as a whole number of costs; `unit` of them are 1 in the budget.

    Raises
    ------
    QuantError
        It is below the smallest sum of costs.
    """
    # The average of a plan, times the number of weights, may fall short of its bits by a rounding error.
    most = math.floor(budget * unit * (1 + 1e-12)) if unit > 1 else math.floor(budget)
    if most >= smallest:
        return most
    least = math.ceil(1e4 * smallest / unit) / 1e4 if unit > 1 else smallest
    raise QuantError(
        f"{name}={budget:,} cannot be met: with the cheapest grid for every layer it is {least:,}. Pass "
        f"{name}={least}, or offer coarser grids."
    )


def _one_budget(given: Mapping[str, object]) -> tuple[str, float]:
    """Return the one budget that was given."""
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise QuantError(
            f"allocate got {' and '.join(named) or 'no budget'}. Pass one of {', '.join(given)}, for example "
            "bits_per_weight=4.5."
        )
    ((name, value),) = named.items()
    number = real_number(value, name, QuantError)
    if not 0 < number < math.inf:
        raise QuantError(f"{name}={number} is no budget. Pass a number above 0.")
    return name, number


def _check_losses(losses: object, model: Model) -> dict[str, nn.Linear]:
    """Return the layers that losses name."""
    example = "Pass {layer: {Grid: loss}}, as qlib.sensitivity(...).losses is."
    if not isinstance(losses, Mapping) or not losses:
        raise QuantError(f"losses is {describe(losses)}. {example}")
    linears = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    for layer, options in losses.items():
        if layer not in linears:
            raise QuantError(
                f"losses name {layer!r}, which is no linear layer of this model."
                f"{did_you_mean(str(layer), linears)}"
            )
        if not isinstance(options, Mapping) or not options or not all(isinstance(g, Grid) for g in options):
            raise QuantError(f"the losses of {layer} are {describe(options)}. {example}")
        for grid, loss in options.items():
            if not math.isfinite(real_number(loss, f"the loss of {layer} on {grid}", QuantError)):
                raise QuantError(
                    f"the loss of {layer} on {grid} is {loss}. Leave this grid out, or measure it again."
                )
    return {layer: linears[layer] for layer in losses}


def _bits(name: str, layer: nn.Linear, grid: Grid) -> int:
    """Return how many bits a layer's weight takes on a grid."""
    grid.check(layer.in_features, name)
    return _bits_of_shape(layer.out_features, layer.in_features, grid)


@lru_cache(maxsize=1024)
def _bits_of_shape(rows: int, columns: int, grid: Grid) -> int:
    """Round a weight of zeros and count: only the quantized weight itself knows what it stores."""
    return RTN().quantize_layer(torch.zeros(rows, columns), LayerStats(), grid).bits(grid)


def _operations(
    losses: Losses,
    model: Model,
    activation: Rounding | Mapping[str, Rounding],
    audio_seconds: float | None,
    tokens: int,
) -> tuple[dict[str, list[int]], int]:
    """Return the bit operations of each layer on each of its grids, and those of all else."""
    products, width = multiplications(model, audio_seconds, tokens), dtype_bits(model)
    roundings = choose_roundings(model, losses, as_activation(activation))
    inputs = {layer: width if each is None else each.bits for layer, each in roundings.items()}
    costs = {
        layer: [products[layer] * grid.bits * inputs[layer] for grid in options]
        for layer, options in losses.items()
    }
    whole = round(cost(model, audio_seconds, tokens).total.bit_operations)
    return costs, whole - sum(products[layer] * width * width for layer in losses)
