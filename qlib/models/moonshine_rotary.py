"""Moonshine's rotary position embeddings: pairs of neighbouring channels turn, and not all pairs of a head.

    pair i, the channels 2 i and 2 i + 1, turns by position * theta^(-2i / n), for i below n / 2;
    n = head width * `partial_rotary_factor`, rounded down, and the channels after them pass through

Paper: Su et al. 2021, arXiv 2104.09864. In text models (`rotary.py`) channels i and i + n / 2 are a pair.

B batch, H heads, T positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlib.models.moonshine_config import MoonshineConfig
from qlib.models.rotary import Rope, cos_sin

Angles = tuple[Tensor, Tensor]  # cosines and sines, [T, pairs]


def rotary_angles(config: MoonshineConfig, heads: int, start: int, end: int, like: Tensor) -> Angles:
    """Return cosines and sines `[end - start, pairs]` of the positions from `start` to `end`.

    Pair i turns by theta^(-2i / n) a position, n = head width * `partial_rotary_factor`. In float32, then
    in the dtype of `like`, so that float64 weights give what the reference implementation gives.
    """
    channels = int(config.hidden_size // heads * config.partial_rotary_factor)
    frequencies = Rope(config.rope_theta).frequencies(channels).to(like.device)
    cos, sin = cos_sin(frequencies, start, end)
    return cos.to(like.dtype), sin.to(like.dtype)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turn the channel pairs (0, 1), (2, 3), ... of `x [B, H, T, D/H]`; channels after them pass through."""
    cos, sin = angles
    turned = 2 * cos.shape[-1]
    even, odd = x[..., 0:turned:2], x[..., 1:turned:2]
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2), x[..., turned:]), dim=-1)
