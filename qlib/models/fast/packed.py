"""Linear layers for inference: the weight laid out once for the processor, layers of one input as one.

`products.py` has the three layouts and why they are faster, `row_stability.py` what `stable` means. Row
stability depends on the number of threads: after `torch.set_num_threads` it is measured again
(`PackedLinear.measure_counts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlib.models.fast.products import (
    Product,
    half_product,
    plain_product,
    reordered_product,
    threaded_half_product,
)
from qlib.models.fast.row_stability import STABLE_ROWS, measure_row_stable_counts
from qlib.models.quantized_linear import QuantizedLinear

# The product of a smaller weight runs on one thread. Measured on two cores with the layers of SmolLM2-135M
# and drafter-7m: below 0.8 million weights, handing the work to a second thread took longer than the product.
THREADED_FROM = 3 << 18


class PackedLinear(nn.Module):
    """y = x W^T + b, its weight packed. It can run, but no longer be saved, moved, trained or quantized.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs].
    bias : Tensor, optional
        [outputs].
    stable : bool
        Make products of up to `STABLE_ROWS` rows row-stable.

    Attributes
    ----------
    kind : str
        "half", "reordered" or "plain".
    counts : tuple of int
        ``counts[n]``: how many rows are computed where n are needed; n itself without `stable`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, stable: bool = False):
        super().__init__()
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        self.outputs, self.inputs = weight.shape
        threaded = weight.numel() >= THREADED_FROM and torch.get_num_threads() > 1
        for self.kind, pack in (
            ("half", threaded_half_product if threaded else half_product),
            ("reordered", reordered_product),
            ("plain", plain_product),
        ):
            if (product := pack(weight, bias)) is not None:
                self.product: Product = product
                break
        self.counts = tuple(range(STABLE_ROWS + 1))
        about = (self.outputs, self.inputs), weight.dtype, weight.device
        self._measure = partial(measure_row_stable_counts, pack, *about)
        if stable:
            self.measure_counts(torch.get_num_threads())

    @torch.inference_mode()
    def measure_counts(self, threads: int) -> None:
        """Measure with how many rows this product is row-stable on so many threads."""
        self.counts = self._measure(threads)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        needed = inputs.numel() // self.inputs
        if inputs.dim() > 1 and (needed > STABLE_ROWS or self.counts[needed] == needed):
            return self.product(inputs)
        rows = F.pad(inputs.reshape(needed, self.inputs), (0, 0, 0, self.counts[needed] - needed))
        return self.product(rows)[:needed].view(*inputs.shape[:-1], self.outputs)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{self.inputs}, {self.outputs}, {self.kind}"


class SideBySide(nn.Module):
    """Layers that read the same input, their outputs side by side."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., inputs] -> [..., sum of outputs]."""
        return torch.cat([layer(inputs) for layer in self.layers], -1)


def pack_linears(layers: Sequence[nn.Module], *, stable: bool = False) -> nn.Module:
    """Return one module for linear layers that read the same input; their outputs stand side by side.

    Parameters
    ----------
    layers : sequence of Module
        `nn.Linear` or `QuantizedLinear`. If one of them rounds its input, all stay as they are, side by side.
    stable : bool
        See `PackedLinear`.
    """
    if any(isinstance(layer, QuantizedLinear) and layer.activation is not None for layer in layers):
        return layers[0] if len(layers) == 1 else SideBySide(layers)
    weights: list[Any] = [layer.weight for layer in layers]
    biases: list[Any] = [layer.bias for layer in layers]
    filled = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    bias = None if all(each is None for each in biases) else torch.cat(filled)
    return PackedLinear(torch.cat(weights), bias, stable=stable)
