"""Layers with a quantized weight: a linear layer, and an embedding whose rows are looked up.

This is *fake* quantization: a layer keeps the integer codes and their scales, decodes them once, and
computes in floating point. Its outputs are those of real integer weights, so accuracy can be studied
on any device; it is not faster than `nn.Linear`, and in memory it is larger, because codes and values
are both there. On disk only the codes count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as look_up
from torch.nn.functional import linear as multiply

from qlib.activation import Activation, PerTensor
from qlib.errors import QuantError, describe, list_names
from qlib.grid import Grid, check_grid
from qlib.kept_columns import KeepColumns
from qlib.models.quantized_linear import QuantizedLinear
from qlib.quantized_weight import QuantizedWeight


class FakeQuantWeight(nn.Module):
    """A quantized weight as the state of a layer: codes and scales, and the values that they decode to.

    Parameters
    ----------
    quantized : QuantizedWeight
        Codes [rows, columns] and their scales.
    grid : Grid
        The grid that the codes belong to: kept for reports and for saving.
    dtype : torch.dtype
        Dtype of the decoded weight.

    Notes
    -----
    All tensors of the quantized weight (`QuantizedWeight.tensors`) are in the state dict. `weight`, the
    decoded values, is not: it is computed from them, also after `load_state_dict`. Casting the module to a
    shorter float (`.half()`) rounds its scales as well.

    `load_state_dict` takes tensors of the same names, shapes and kinds alone, as the same method stores them
    on the same grid; others are an error (torch's RuntimeError) that names the layer, also with
    ``strict=False``. Kind, bits and range of an input rounding are not in the state dict; the columns that it
    leaves in float because the weight does (QUIK) are taken from those of the weight.
    """

    codes: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor | None
    activation: Activation | None

    def __init__(self, quantized: QuantizedWeight, grid: Grid, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.grid = grid
        self.notes = quantized.notes
        self.second = None if quantized.second is None else quantized.second.grid
        self.parts = tuple(quantized.tensors())
        for name, tensor in quantized.tensors().items():
            # A copy of its own: layers of a method may share tensors, and learned ones hang on a graph.
            own = tensor.detach().clone(memory_format=torch.contiguous_format)
            self.register_buffer(name, own)
        self.register_buffer("weight", _values(quantized, dtype).detach(), persistent=False)

    @property
    def quantized(self) -> QuantizedWeight:
        """The quantized weight that the layer was made of."""
        tensors = {name: self.get_buffer(name) for name in self.parts}
        return QuantizedWeight.from_tensors(tensors, self.second, self.notes)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {name[len(prefix) :]: each for name, each in state_dict.items() if name.startswith(prefix)}
        stored = {name: value for name, value in own.items() if "." not in name and name != "bias"}
        if stored and (fault := self._misfit(stored)):
            error_msgs.append(
                f"{prefix.removesuffix('.') or 'The layer'}: {fault}. A state dict fits layers of the same "
                "method, grid and calibration; torch.save(model, path) keeps a whole model."
            )
            return
        kept, columns = self.activation, self.quantized.columns
        follows = isinstance(kept, KeepColumns) and columns is not None and torch.equal(kept.columns, columns)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if stored:
            self.weight.copy_(_values(self.quantized, self.weight.dtype))  # else those of the codes before
        if isinstance(kept, KeepColumns) and follows:
            self.activation = KeepColumns(kept.inner, self.get_buffer("columns"))

    def _misfit(self, stored: Mapping[str, Tensor]) -> str:
        """Say which of the tensors of another weight does not fit in the place of this one's, or nothing."""
        more, less = (
            [each for each in stored if each not in self.parts],
            [each for each in self.parts if each not in stored],
        )
        if more or less:
            faults = [f"holds {list_names(more)}, which this layer does not have"] if more else []
            faults += [f"lacks {list_names(less)}"] if less else []
            return f"the state dict {' and '.join(faults)}"
        for name, value in stored.items():
            here = self.get_buffer(name)
            floats = here.is_floating_point() and value.is_floating_point()  # these may be cast
            if value.shape != here.shape or not (floats or value.dtype == here.dtype):
                return (
                    f"{name} is {value.dtype} {list(value.shape)} in the state dict, and {here.dtype} "
                    f"{list(here.shape)} in the model"
                )
        low, high = int(stored["codes"].min()), int(stored["codes"].max())
        if low < self.grid.qmin or high > self.grid.qmax:
            return f"the state dict has codes from {low} to {high} of it, and it is rounded to {self.grid}"
        return ""


class FakeQuantLinear(FakeQuantWeight, QuantizedLinear):
    """y = A(x) W^T + b, with W decoded from integer codes and A an optional rounding of the input.

    Parameters
    ----------
    quantized : QuantizedWeight
        Codes [out_features, in_features] and their scales.
    grid : Grid
        The grid that the codes belong to: kept for reports and for saving.
    bias : Tensor or None
        [out_features]; copied.
    activation : callable or None
        Applied to the input first: `PerToken(bits=8)`, `PerTensor(dynamic=True)`, or the `FixedRange` that a
        calibrated `PerTensor` gives.
    dtype : torch.dtype
        Dtype of the decoded weight, and so of the multiplication.

    Notes
    -----
    The state dict and casts are those of `qlib.linear.FakeQuantWeight`, and `bias`.
    """

    def __init__(
        self,
        quantized: QuantizedWeight,
        grid: Grid,
        bias: Tensor | None = None,
        activation: Activation | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(quantized, grid, dtype)
        self.activation = activation
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, quantized: QuantizedWeight, grid: Grid, activation: Activation | None = None
    ) -> FakeQuantLinear:
        """Return the quantized form of a linear layer: its bias and dtype, and the decoded weight.

        Input columns whose weights stay in float (QUIK) stay in float as well: around `activation` comes a
        `KeepColumns`, if it is none yet.

        Raises
        ------
        QuantError
            This is not a linear layer and a quantized weight, the codes do not have the shape of the layer's
            weight, a scale is NaN or infinite, or the activation cannot be called or has no range yet.
        """
        if not isinstance(linear, nn.Linear) or not isinstance(quantized, QuantizedWeight):
            raise QuantError(
                f"from_linear got {describe(linear)} and {describe(quantized)}. Pass an nn.Linear and what "
                "method.quantize_layer(linear.weight, stats, grid) returns."
            )
        check_grid(grid)
        if activation is not None and (not callable(activation) or isinstance(activation, type)):
            raise QuantError(
                f"activation is {describe(activation)}, which rounds no inputs. Pass qlib.PerToken(bits=8), "
                "or None to leave them in float."
            )
        if isinstance(activation, PerTensor) and not activation.dynamic:
            raise QuantError(
                f"{activation} has no range yet, and a layer rounds inputs as soon as it runs. Pass what its "
                "calibrated(histogram) returns, or qlib.PerToken(bits=8) or qlib.PerTensor(dynamic=True)."
            )
        if quantized.codes.shape != linear.weight.shape:
            raise QuantError(
                f"codes of shape {tuple(quantized.codes.shape)} for a linear layer whose weight is "
                f"{tuple(linear.weight.shape)}. Quantize this layer's own weight [out_features, in_features]."
            )
        if bad := int((~quantized.scale.isfinite()).sum()):
            raise QuantError(
                f"{bad} of {quantized.scale.numel()} scales are NaN or infinite. Look at the method: "
                "the scale of a group of zeros, for example, is often 0 / 0."
            )
        kept = quantized.columns
        if not (activation is None or kept is None or isinstance(activation, KeepColumns)):
            activation = KeepColumns(activation, kept)
        return cls(quantized, grid, linear.bias, activation, linear.weight.dtype)

    @property
    def in_features(self) -> int:
        """Size of an input vector."""
        return self.codes.shape[1]

    @property
    def out_features(self) -> int:
        """Size of an output vector."""
        return self.codes.shape[0]

    @property
    def mixes_tokens(self) -> bool:
        """Whether the grid of the inputs is fitted to all tokens of a call: `PerTensor(dynamic=True)`."""
        inner = self.activation.inner if isinstance(self.activation, KeepColumns) else self.activation
        return isinstance(inner, PerTensor) and inner.dynamic

    def forward(self, inputs: Tensor) -> Tensor:
        """Return [..., out_features] for inputs [..., in_features]."""
        if self.activation is not None:
            inputs = self.activation(inputs)
        return multiply(inputs, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        activation = "" if self.activation is None else f", {self.activation}"
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.grid}{activation}"
        )


class FakeQuantEmbedding(FakeQuantWeight):
    """Rows of W, looked up by token, with W [tokens, width] decoded from integer codes.

    The parameters are those of `qlib.linear.FakeQuantWeight`. It has a table of its own: where a head shares
    the table, the head is a `FakeQuantLinear`, and a `TiedEmbedding` looks up its rows.
    """

    bias = None
    activation = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., width] for tokens [...]."""
        return look_up(tokens, self.weight)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{len(self.codes)}, {self.codes.shape[1]}, {self.grid}"


def _values(quantized: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return the decoded weight in a dtype; half a step beyond the end of a shorter float is its end."""
    values = quantized.decode()
    end = torch.finfo(dtype).max
    if end < torch.finfo(values.dtype).max:
        values.clamp_(-end, end)
    return values.to(dtype)
