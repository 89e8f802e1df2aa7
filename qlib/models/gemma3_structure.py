"""What a quantizer must know of Gemma 3: its norms multiply by 1 + weight and cannot absorb a scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlib.models.structure import LayerGroup
from qlib.models.text_structure import decoder_groups

if TYPE_CHECKING:
    from qlib.models.gemma3 import Gemma3


def gemma3_groups(model: Gemma3) -> list[LayerGroup]:
    """Return every linear layer but a tied head, by the input that it reads, in order of use."""
    reason = "the norm multiplies by 1 + weight, and 1 + weight / s is not (1 + weight) / s"
    return decoder_groups(model, None, None, reason)
