"""The formulas of the cost model: what one layer moves and computes in a run.

For N input vectors through a weight [O, I] of b_w bits, with inputs of b_a bits:

    bit operations      N I O b_w b_a
    weight bytes        all that the layer holds, once for each pass: codes, scales, zero points, ...
    activation bytes    N (I + O) b_a / 8
    cache bytes         keys and values that a pass reads; writing them counts as activations

The products of attention, queries with keys (scores) and scores with values (mixtures), have no weights: 2 C
multiplications for each query and each key that it sees, C the width of all heads together. Scores never
leave the processor. Left out: arithmetic of norms, activation functions, residual sums, softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from qlib.analysis.held_weights import HeldWeight


@dataclass(frozen=True)
class Amount:
    """What some part of a run moves and computes."""

    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    cache_bytes: float = 0.0
    bit_operations: float = 0  # a whole number in sums

    def __add__(self, other: Amount) -> Amount:
        return Amount(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __truediv__(self, number: float) -> Amount:
        return Amount(*(getattr(self, each.name) / number for each in fields(self)))

    @property
    def bytes_moved(self) -> float:
        """Weights, activations and cache together."""
        return self.weight_bytes + self.activation_bytes + self.cache_bytes


def product_amount(weight: HeldWeight, rows: int, passes: int) -> Amount:
    """Return the cost of `rows` input vectors through a linear layer, in so many passes."""
    return Amount(
        weight_bytes=passes * weight.bits / 8,
        activation_bytes=rows * weight.activation_bits / 8,
        bit_operations=rows * weight.bit_operations,
    )


def lookup_amount(weight: HeldWeight, rows: int, width: int) -> Amount:
    """Return the cost of looking up `rows` rows of a table [V, D]; what is read is float, `width` bits."""
    return Amount(
        weight_bytes=rows * weight.bits / weight.outputs / 8,
        activation_bytes=rows * weight.inputs * width / 8,
    )


def convolution_amount(weight: HeldWeight, before: int, after: int) -> Amount:
    """Return the cost of a convolution that makes `after` positions of `before`, in one pass."""
    return Amount(
        weight_bytes=weight.bits / 8,
        activation_bytes=(before * weight.shape[1] + after * weight.outputs) * weight.input_bits / 8,
        bit_operations=after * weight.bit_operations,
    )


@dataclass(frozen=True)
class AttentionSize:
    """The sizes of one attention.

    Parameters
    ----------
    part : str
        Its row in the table.
    queries, keys : int
        Width of all query heads together, and of all key heads.
    window : int or None
        Positions that a token sees, itself included; None: all before it.
    """

    part: str
    queries: int
    keys: int
    window: int | None = None


def attention_amount(size: AttentionSize, pairs: int, queries: int, read: int, width: int) -> Amount:
    """Return the cost of scores and mixtures.

    Parameters
    ----------
    size : AttentionSize
        Widths.
    pairs : int
        Queries times the keys that each sees.
    queries : int
        Queries, which are read; as many mixtures are written.
    read : int
        Positions whose keys and values are read.
    width : int
        Bits of a number.
    """
    return Amount(
        activation_bytes=2 * queries * size.queries * width / 8,
        cache_bytes=2 * read * size.keys * width / 8,
        bit_operations=2 * pairs * size.queries * width * width,
    )


@dataclass(frozen=True)
class Window:
    """One window of a recording and its text; of a text model, the text.

    Parameters
    ----------
    samples : int
        What the encoder reads: positions of its input.
    states : int
        What it writes, S.
    prompt, written : int
        Tokens that stand in front, and tokens that the decoder writes.
    """

    samples: int
    states: int
    prompt: int
    written: int

    @property
    def read(self) -> int:
        """Tokens that the decoder reads: all but the last, which ends the text."""
        return self.prompt + self.written - 1


def self_attention_amount(size: AttentionSize, window: Window, width: int) -> Amount:
    """Return the cost of a decoder's self-attention: position t sees min(t, window) keys."""
    most = size.window or window.read
    pairs = sum(min(place, most) for place in range(1, window.read + 1))
    later = sum(min(place, most) for place in range(window.prompt + 1, window.read + 1))
    return attention_amount(size, pairs, window.read, window.prompt + later, width)
