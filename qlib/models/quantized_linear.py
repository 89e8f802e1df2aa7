"""What the networks know of a quantized layer, so that they can lay it out for inference as well."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class QuantizedLinear(nn.Module):
    """y = A(x) W^T + b with a quantized weight W: the base of `qlib.FakeQuantLinear`.

    That class uses all of `qlib`, and this package imports nothing of it but the errors.

    Attributes
    ----------
    weight : Tensor
        [outputs, inputs], W as floating-point values.
    bias : Tensor or None
        [outputs].
    activation : callable or None
        A, which rounds the inputs; None where they are not rounded.
    """

    weight: Tensor
    bias: Tensor | None
    activation: Callable[[Tensor], Tensor] | None
