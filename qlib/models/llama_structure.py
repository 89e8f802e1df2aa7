"""What a quantizer must know of the Llama family: every norm can absorb a scale, none an offset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlib.models.structure import LayerGroup
from qlib.models.text_structure import decoder_groups

if TYPE_CHECKING:
    from qlib.models.llama import Llama


def llama_groups(model: Llama) -> list[LayerGroup]:
    """Return every linear layer but a tied head, by the input that it reads, in order of use.

    No offset moves: RMS norms have no bias that could absorb it.
    """
    return decoder_groups(model, "input_layernorm", "post_attention_layernorm")
