"""What the networks know of quantized layers, so that they can lay them out for inference as well."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import embedding


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

    @property
    def mixes_tokens(self) -> bool:
        """Whether the output for one token depends on the other tokens of the call."""
        return False


class TiedEmbedding(nn.Module):
    """Rows of a quantized head's weight, looked up by token: what stands in the place of its embedding.

    Parameters
    ----------
    head : Module
        Its `weight` is [tokens, width].

    Notes
    -----
    The head is no submodule of this one: the table is moved, copied and stored where the head stands, once.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = (head,)  # in a tuple, where torch does not look for submodules

    @property
    def weight(self) -> Tensor:
        """The table, [tokens, width]."""
        weight = self._head[0].weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows [..., width] of tokens [...]."""
        return embedding(tokens, self.weight)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{len(self.weight)}, {self.weight.shape[1]}, rows of the head"
