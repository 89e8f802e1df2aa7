"""Parts that models share: the token table of all, and norm, attention and gated MLP of text models.

B batch, T new tokens, S keys (old and new), D width, H query heads, G key/value heads, R = H / G query
heads that read one key head, C channels a head.

    x [B, T, D] -> q [B, T, H, C], k and v [B, T, G, C] -> rotate q and k by their positions
    -> attend, the R queries of one key head as R T rows of one product -> [B, T, H C] -> o_proj

`attend` is the only place where queries meet keys. One new token needs no mask, and keys that lie outside
every query's window are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlib.models.cache import KVCache
from qlib.models.rotary import Rotary, rotate


def embedding(count: int, width: int) -> nn.Embedding:
    """Return a table of vectors that is not filled yet.

    Filling it with random numbers would be wasted work, and on the meta device imports a compiler for 2 s.
    """
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension; the sums are in float32 or wider."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Reach:
    """Where the new tokens of one call stand and what they see: the same in all layers of a kind."""

    cos: Tensor  # [T, 1, C]
    sin: Tensor
    mask: Tensor | None  # bool [R T, S], True where a query may look; None: everywhere
    first: int = 0  # earlier keys are outside every query's window


def make_reach(
    rotary: Rotary, start: int, new: int, like: Tensor, groups: int = 1, window: int | None = None
) -> Reach:
    """Return tables and mask of `new` tokens behind `start` others.

    Parameters
    ----------
    rotary : Rotary
        The tables.
    start, new : int
        The tokens stand at positions start .. start + new - 1.
    like : Tensor
        Gives device and dtype of the model; attention itself may be wider (`attention_dtype`).
    groups : int
        R, the query heads that read one key head.
    window : int, optional
        A token sees itself and the `window` - 1 before it; None: all before it.
    """
    end, device = start + new, like.device
    cos, sin = rotary.tables(start, end, attention_dtype(like), device)
    first = 0 if window is None else max(0, start - window + 1)
    if new == 1:
        return Reach(cos, sin, None, first)
    distance = torch.arange(start, end, device=device)[:, None] - torch.arange(first, end, device=device)
    mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return Reach(cos, sin, mask.repeat(groups, 1), first)


def attention_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of queries, keys and values for hidden states like this one.

    Half precision on a CPU is attended in float32: for a few queries its half-precision kernels take
    three to seven times as long.
    """
    narrow = like.device.type == "cpu" and like.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow else like.dtype


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale Q K^T) V for queries `[B, G, rows, C]`, keys and values `[B, G, S, C]`.

    `mask`, bool `[rows, S]`, is True where a query may look. Returns `[B, G, rows, C]`.
    """
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of an attention layer."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float  # of query times key
    qkv_bias: bool = False
    o_bias: bool = False


class Attention(nn.Module):
    """Causal self-attention with rotary positions; several query heads may read one key head.

    Parameters
    ----------
    shape : AttentionShape
        Sizes.
    norm : callable, optional
        Makes the norm of each query's and key's channels (before they are rotated), given their number.
    """

    def __init__(self, shape: AttentionShape, norm: Callable[[int], nn.Module] | None = None):
        super().__init__()
        self.shape = shape
        width, inner, shared = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(width, inner, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(width, shared, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(width, shared, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(inner, width, bias=shape.o_bias)
        self.q_norm = norm(shape.head_dim) if norm else None
        self.k_norm = norm(shape.head_dim) if norm else None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> queries [B, T, H, C], keys and values [B, T, G, C], normed, not rotated."""
        split = (*x.shape[:2], -1, self.shape.head_dim)
        q, k, v = self.q_proj(x).view(split), self.k_proj(x).view(split), self.v_proj(x).view(split)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def forward(self, x: Tensor, reach: Reach, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """[B, T, D] -> [B, T, D]; with a cache, behind the tokens in it."""
        shape = self.shape
        batch, new, groups = x.shape[0], x.shape[1], shape.heads // shape.kv_heads
        q, k, v = self.project(x)
        both = rotate(torch.cat((q, k), 2).to(reach.cos.dtype), reach.cos, reach.sin)
        q, k = both.split_with_sizes((shape.heads, shape.kv_heads), 2)
        keys, values = k.transpose(1, 2), v.to(both.dtype).transpose(1, 2)  # [B, G, T, C]
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        if reach.first:
            keys, values = keys[:, :, reach.first :], values[:, :, reach.first :]
        # [B, T, G, R, C] -> [B, G, R T, C]: the queries of one key head are rows of one product.
        rows = q.view(batch, new, shape.kv_heads, groups, shape.head_dim).permute(0, 2, 3, 1, 4)
        rows = rows.reshape(batch, shape.kv_heads, groups * new, shape.head_dim)
        mixed = attend(rows, keys, values, reach.mask, shape.scale)
        mixed = mixed.reshape(batch, shape.heads, new, shape.head_dim).transpose(1, 2)
        return self.o_proj(mixed.reshape(batch, new, -1).to(x.dtype))  # type: ignore[no-any-return]

    def value_rows(self) -> tuple[int, ...] | None:
        """Return the output of `v_proj` that each input of `o_proj` comes from; None: the same one."""
        heads, channels = self.shape.heads, self.shape.head_dim
        groups = heads // self.shape.kv_heads
        if groups == 1:
            return None
        return tuple(head // groups * channels + c for head in range(heads) for c in range(channels))

    def rotary_rows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the free scale behind each output of `q_proj` and of `k_proj`.

        The two channels of a rotated pair share theirs, and so do all query heads of one key head.
        """
        pairs, channels = self.shape.head_dim // 2, self.shape.head_dim
        groups = self.shape.heads // self.shape.kv_heads
        queries = [h // groups * pairs + c % pairs for h in range(self.shape.heads) for c in range(channels)]
        keys = [h * pairs + c % pairs for h in range(self.shape.kv_heads) for c in range(channels)]
        return tuple(queries), tuple(keys)


class GatedMLP(nn.Module):
    """y = down(activation(gate(x)) * up(x)). Paper: Shazeer 2020, arXiv 2002.05202."""

    def __init__(self, width: int, inner: int, activation: Callable[[Tensor], Tensor], bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]
