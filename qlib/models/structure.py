"""What a quantizer must know of an architecture: which layers share an input, and how it runs.

A model describes itself twice. `groups()` lists its linear layers by the tensor that they read:

    LayerGroup(layers=(q_proj, k_proj, v_proj), before=layer_norm, inspect=self_attn)

Layers of one group see the same input, so they share its statistics, and a scale that moves from that
input into the weights must be the same for all of them. `before` is the operation that can absorb the
inverse scale; where there is none, `reason` says why. `stages()` lists the chains of blocks, each block
fed by the one before: an encoder-decoder has two chains, a decoder-only model one.

Nothing else in the library looks inside an architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

Source = Literal["hidden", "encoder"]


@dataclass(frozen=True)
class LayerGroup:
    """Linear layers that read the same tensor. All names are full module paths."""

    layers: tuple[str, ...]
    before: str | None  # operation that produces the input and can absorb a scale, or None
    inspect: str  # smallest module whose output shows what quantizing these layers did
    reason: str = ""  # why `before` is None
    source: Source = "hidden"  # the stream that is read: this stage's own, or the encoder's output


class Stage(Protocol):
    """A chain of blocks in which each block reads what the previous one wrote.

    `batch` is whatever the model's family feeds: its type is between the stage and the function that
    prepares calibration data.
    """

    name: str
    blocks: tuple[str, ...]  # full module paths, in order

    def enter(self, batch: Any) -> Tensor:
        """Return the first block's input, `[batch, time, width]`."""
        ...

    def run(self, block: nn.Module, hidden: Tensor, batch: Any) -> Tensor:
        """Return one block's output for its input `hidden`."""
        ...

    def leave(self, hidden: Tensor, batch: Any) -> Any:
        """Return the batch as the next stage needs it, given the last block's output."""
        ...

    def valid(self, batch: Any, source: Source) -> Tensor:
        """Return which rows of a stream are data and not padding, bool `[batch, time]`."""
        ...
