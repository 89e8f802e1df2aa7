"""transformers' text models as oracles, exact in float64."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# Rules of tokenizers and templates that transformers has changed since the release that torch 2.4 can import.
todays_rules = pytest.mark.skipif(
    tuple(map(int, version("transformers").split(".")[:2])) < (5, 20), reason="an older transformers"
)


def transformers_logits(folder: Path, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the logits of a folder's model for tokens [B, T].

    transformers computes norms in float32 whatever the model's dtype, which caps the agreement in float64
    at 1e-7: there, the norms are replaced by their own formula without the rounding.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    if dtype == torch.float64:
        exact_norms(model)
    with torch.no_grad():
        return model(tokens).logits  # type: ignore[no-any-return]


def exact_norms(model: nn.Module) -> None:
    """Replace transformers' norms by their own formula, in the dtype of their input."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _exact_norm(module)  # type: ignore[method-assign]


def _exact_norm(module: nn.Module) -> Any:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0

    def forward(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * (offset + module.weight)  # type: ignore[operator]

    return forward
