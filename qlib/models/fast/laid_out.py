"""A model's linear layers in oneDNN's layout for a while, in place of `F.linear`.

Many rows, as an encoder has them, take as long in both layouts where torch's own library suits the processor.
Where it does not (float32 with Intel's MKL on an AMD processor with AVX-512: 230 for 520 billion operations a
second on two cores), the encoders of Whisper take half the time. A few rows gain everywhere, see
`products.py`. Sums are added up in another order, so outputs differ in their last digits.

Unlike `Model.pack`, nothing is replaced: the layers compute by other means, and can be hooked, read and saved
as ever. Whoever changes a weight meanwhile would not see it in the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qlib.models.fast.products import Product, reordered_product
from qlib.models.quantized_linear import QuantizedLinear


@contextmanager
def laid_out(module: nn.Module) -> Iterator[None]:
    """Lay all float32 linear layers inside of a module out, until the context ends.

    Where the operators are missing, and on other devices, everything stays as it is.
    """
    changed = []
    for layer in module.modules():
        # `forward` in the instance: laid out already, by another thread or by who called this
        if "forward" not in vars(layer) and (forward := _forward(layer)) is not None:
            layer.forward = forward
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            vars(layer).pop("forward", None)


def _forward(layer: nn.Module) -> Product | None:
    """Return what computes the output of a layer from its input, or None where `forward` is to stay."""
    if type(layer) is not nn.Linear and not isinstance(layer, QuantizedLinear):
        return None
    product = reordered_product(layer.weight, layer.bias) if layer.weight.dtype == torch.float32 else None
    activation = layer.activation if isinstance(layer, QuantizedLinear) else None
    if product is None or activation is None:
        return product
    rounded, multiply = activation, product
    return lambda inputs: multiply(rounded(inputs))
