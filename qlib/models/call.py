"""A module's output as the tensor that it is: torch says `Any` of everything that a module returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def call(module: nn.Module, *inputs: Any, **named: Any) -> Tensor:
    """Return `module(*inputs, **named)`, for modules that return one tensor."""
    output: Tensor = module(*inputs, **named)
    return output
