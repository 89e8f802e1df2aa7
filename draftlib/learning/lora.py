"""Low-rank adapters: a small change of every linear layer, trained instead of the weights.

Paper     Hu et al. 2021, arXiv 2106.09685. OmniDraft takes rank 32 and keeps the adapters apart from the
          weights, so that they can be exchanged per target and task.
Rule      y = W x + (alpha / r) B A x, with A [r, inputs] random and B [outputs, r] zero at first, so that an
          adapter begins as no change. W stays as it is.
Shapes    r is at most min(inputs, outputs): a larger one would hold more numbers than W itself can use.
Left out  Dropout; adapters of embedding and head, which are one tensor in most small models.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from qlib.errors import DraftError
from qlib.models.text import TextModel

Text = TypeVar("Text", bound=TextModel)


class LoRALinear(nn.Module):
    """A linear layer and a low-rank change of it.

    Parameters
    ----------
    linear : Linear
        Stays as it is.
    rank : int
        r.
    generator : torch.Generator
        Draws A.
    alpha : float, optional
        Scale of the change; r if not given, so that the factor is 1.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator, alpha: float | None = None):
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.linear = linear.requires_grad_(False)
        noise = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        self.a = nn.Parameter(noise.to(linear.weight))
        self.b = nn.Parameter(linear.weight.new_zeros(outputs, rank))
        self.factor = 1.0 if alpha is None else alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        y: Tensor = self.linear(x)
        return y + self.factor * (x @ self.a.T @ self.b.T)

    def folded(self) -> nn.Linear:
        """Return one linear layer that computes the same."""
        outputs, inputs = self.linear.weight.shape
        layer = nn.Linear(
            inputs, outputs, bias=self.linear.bias is not None, device=self.linear.weight.device
        )
        change = self.factor * (self.b @ self.a)
        layer.weight = nn.Parameter((self.linear.weight + change).detach(), requires_grad=False)
        if self.linear.bias is not None:
            layer.bias = nn.Parameter(self.linear.bias.detach(), requires_grad=False)
        return layer


def add_lora(model: TextModel, rank: int, seed: int = 0) -> list[nn.Parameter]:
    """Put an adapter around every linear layer of a model's blocks, in place; return what is to be trained.

    Raises
    ------
    DraftError
        The rank is larger than a layer, which is named, or below 1.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [
        (name, layer) for name, layer in model.model.layers.named_modules() if isinstance(layer, nn.Linear)
    ]
    for name, layer in found:
        most = min(layer.weight.shape)
        if not 1 <= rank <= most:
            raise DraftError(
                f"lora_rank={rank}: layer model.layers.{name} of {layer.in_features} inputs and "
                f"{layer.out_features} outputs has room for ranks from 1 to {most}. 8 to 128 are usual, or "
                "None to train all weights (--lora-rank 0)."
            )
    trained: list[nn.Parameter] = []
    model.requires_grad_(False)
    for name, layer in found:
        adapter = LoRALinear(layer, rank, generator)
        parent, _, last = name.rpartition(".")
        setattr(model.model.layers.get_submodule(parent), last, adapter)
        trained += [adapter.a, adapter.b]
    return trained


def folded_copy(model: Text) -> Text:
    """Return a copy with plain linear layers that computes the same; only the tokenizer is shared."""
    found = copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})
    for name, layer in list(found.model.layers.named_modules()):
        if isinstance(layer, LoRALinear):
            parent, _, last = name.rpartition(".")
            setattr(found.model.layers.get_submodule(parent), last, layer.folded())
    return found
