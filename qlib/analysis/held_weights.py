"""What each module of a model holds: the bits of its weight, the widths of its products, the bytes of a file.

A module counts by what it holds, not by its class: a `quantized` weight with its `grid`, or parameters. Float
numbers count with the bits of the model's dtype, 32 for float32; what is quantized counts as it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from qlib.activation import FixedRange, PerTensor, PerToken
from qlib.errors import QuantError, describe
from qlib.grid import Grid
from qlib.kept_columns import KeepColumns
from qlib.models.structure import Model
from qlib.quantized_weight import QuantizedWeight
from qlib.stored_weight import to_16_bits


@dataclass(frozen=True)
class HeldWeight:
    """The weight of one module, and how wide the numbers are that its products multiply.

    Parameters
    ----------
    name : str
        Full path of the module.
    shape : tuple of int
        [outputs, inputs]; of a convolution [outputs, inputs, kernel], of a norm [width].
    bits : int
        All that the module holds: codes, scales, zero points, indices, what stays in float, the bias.
    weight_bits, input_bits : int
        b_w and b_a, the bits of one code (or float number) of the weight and of its input.
    columns, column_bits, column_input_bits : int
        Number of input columns that stay in float; bits of a weight and of an input in them.
    outliers, outlier_bits : int
        Number of single weights that stay in float, and the bits of one.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    weight_bits: int
    input_bits: int
    columns: int = 0
    column_bits: int = 0
    column_input_bits: int = 0
    outliers: int = 0
    outlier_bits: int = 0

    @property
    def outputs(self) -> int:
        """Numbers in an output vector, O."""
        return self.shape[0]

    @property
    def inputs(self) -> int:
        """Numbers that each output is a sum over, I; of a convolution, channels times kernel."""
        return prod(self.shape[1:])

    @property
    def bit_operations(self) -> int:
        """O I b_w b_a for one input vector; kept columns and outliers at widths of their own."""
        codes = self.outputs * (self.inputs - self.columns) - self.outliers
        return (
            codes * self.weight_bits * self.input_bits
            + self.outputs * self.columns * self.column_bits * self.column_input_bits
            + self.outliers * self.outlier_bits * self.input_bits
        )

    @property
    def activation_bits(self) -> int:
        """(I + O) b_a, read and written for one input vector; inputs of kept columns at their own width."""
        codes = self.inputs - self.columns + self.outputs
        return codes * self.input_bits + self.columns * self.column_input_bits


def held_weights(model: Model, width: int | None = None) -> list[HeldWeight]:
    """Return the weight of every module that holds one, in the order of the model; a tied head has its own.

    Parameters
    ----------
    model : Model
        Float or quantized.
    width : int, optional
        Bits of what stays in float; by default those of the model's dtype.

    Raises
    ------
    QuantError
        A layer rounds its input in a way whose width is unknown.
    """
    width = width or dtype_bits(model)
    found = []
    for name, module in model.named_modules():
        own = sum(each.numel() for each in module.parameters(recurse=False))
        if (held := quantized_of(module)) is not None:
            activation = getattr(module, "activation", None)
            found.append(_quantized(name, *held, activation, width, own))
        elif own:
            weight = module.get_parameter("weight")
            found.append(HeldWeight(name, tuple(weight.shape), own * width, width, width))
    return found


def _quantized(
    name: str, weight: QuantizedWeight, grid: Grid, activation: object, width: int, others: int
) -> HeldWeight:
    """Return what a module with a quantized weight, and `others` float numbers such as a bias, holds."""
    input_bits = _input_bits(name, activation, width)
    columns, outliers = weight.column_values, weight.outlier_values
    return HeldWeight(
        name,
        shape=tuple(weight.codes.shape),
        bits=weight.bits(grid) + others * width,
        weight_bits=grid.bits,
        input_bits=input_bits,
        columns=0 if columns is None else columns.shape[1],
        column_bits=0 if columns is None else 8 * columns.element_size(),
        column_input_bits=width if isinstance(activation, KeepColumns) else input_bits,
        outliers=0 if outliers is None else len(outliers),
        outlier_bits=0 if outliers is None else 8 * outliers.element_size(),
    )


def _input_bits(name: str, activation: object, width: int) -> int:
    """Return the bits of one rounded input; `width` where inputs stay in float."""
    if isinstance(activation, KeepColumns):
        activation = activation.inner
    if isinstance(activation, FixedRange):
        activation = activation.spec
    if activation is None:
        return width
    if isinstance(activation, PerToken | PerTensor):
        return activation.bits
    raise QuantError(
        f"{name} rounds its input by {describe(activation)}, of which nobody knows how many bits a number "
        "takes. Use qlib.PerToken or qlib.PerTensor."
    )


def quantized_of(module: nn.Module) -> tuple[QuantizedWeight, Grid] | None:
    """Return the quantized weight that a module holds, and its grid, or None."""
    weight, grid = getattr(module, "quantized", None), getattr(module, "grid", None)
    return (weight, grid) if isinstance(weight, QuantizedWeight) and isinstance(grid, Grid) else None


def dtype_bits(model: nn.Module) -> int:
    """Return the bits of one float number of a model: 32 for float32."""
    return 8 * next(model.parameters()).element_size()


@dataclass(frozen=True)
class Size:
    """How large a model is on disk.

    Parameters
    ----------
    parameters : int
        Of the whole model; a tied table counts once.
    file_bytes : int
        Data of model.safetensors as `save` writes it; its header (names, shapes) and the manifest are extra.
    quantized_weights, quantized_bits : int
        Weights on grids, and all bits that they take there; biases are extra.
    """

    parameters: int
    file_bytes: int
    quantized_weights: int
    quantized_bits: int


def size_of(model: Model) -> Size:
    """Return the size of a model, float or quantized, as its checkpoint will have it to the byte."""
    quantized = dict(_distinct(model))
    weights = sum(weight.codes.numel() for weight, _ in quantized.values())
    bits = sum(weight.bits(grid) for weight, grid in quantized.values())
    held = {name for name, module in model.named_modules() if quantized_of(module) is not None}
    state = model.state_dict()
    floats = [state[f"{name}.bias"] for name in quantized if f"{name}.bias" in state]
    for name, value in state.items():
        if name not in model.tied and name.rpartition(".")[0] not in held:
            floats.append(value)
    recomputed = sum(to_16_bits(state[name].detach()).nbytes for name in model.recomputed())  # not stored
    return Size(
        parameters=weights + sum(each.numel() for each in floats),
        file_bytes=bits // 8 + sum(to_16_bits(each.detach()).nbytes for each in floats) - recomputed,
        quantized_weights=weights,
        quantized_bits=bits,
    )


def _distinct(model: nn.Module) -> Iterator[tuple[str, tuple[QuantizedWeight, Grid]]]:
    """Yield the modules with a quantized weight by name; of those that share codes, the first alone."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if (held := quantized_of(module)) is not None and (place := held[0].codes.data_ptr()) not in seen:
            seen.add(place)
            yield name, held
