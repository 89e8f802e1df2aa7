"""Parts that models share: the token table of all, and norm, attention and gated MLP of text models.

B batch, T new tokens, S keys (old and new), D width, H query heads, G key/value heads, R = H / G query
heads that read one key head, C channels a head.

    x [B, T, D] -> q [B, T, H, C], k and v [B, T, G, C] -> rotate q and k by their positions
    -> attend, the R queries of one key head as R T rows of one product -> [B, T, H C] -> o_proj

`attend` is the only place where queries meet keys. One new token needs no mask, and keys that lie outside
every query's window are never read. With `stable`, what a token sees is computed in one way whatever
stands beside it: queries in blocks of 8, filled up, and keys up to a multiple of 64, under a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlib.models.cache import KEY_BLOCK, KVCache
from qlib.models.packed import pack_linears
from qlib.models.rotary import Rotary, rotate

QUERY_BLOCK = 8  # tokens whose queries are attended together, where rows are to be stable
FIRST_BLOCK = 512  # attention takes keys in blocks of so many: they must begin at the same places


def embedding(count: int, width: int) -> nn.Embedding:
    """Return a table of vectors that is not filled yet.

    Filling it with random numbers would be wasted work, and on the meta device imports a compiler for 2 s.
    """
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * gain, over the last dimension; the sums are in float32 or wider."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self._packed: tuple[Tensor, float] | None = None

    def gain(self) -> Tensor:
        """Return the factor of each channel, [width]."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        if self._packed is None:
            return F.rms_norm(x, self.weight.shape, self.gain(), self.eps)
        # The same in fewer operations: sqrt(D) x / sqrt(|x|^2 + D eps). Each of them rounds correctly, or is
        # a sum over one row, so that a row's result does not depend on the others.
        gain, floor = self._packed
        wide = x.to(gain.dtype)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        normed: Tensor = wide / length.square_().add_(floor).sqrt_()
        return normed.mul_(gain).to(x.dtype)

    def pack(self) -> None:
        """Prepare for inference."""
        gain, width = self.gain().detach(), len(self.weight)
        gain = gain.to(torch.promote_types(gain.dtype, torch.float32)) * width**0.5
        self._packed = gain, width * self.eps


@dataclass(frozen=True)
class Reach:
    """Where the new tokens of one call stand and what they see: the same in all layers of a kind."""

    cos: Tensor  # [T, 1, C]
    sin: Tensor
    masks: tuple[Tensor | None, ...]  # of each block of tokens: bool [R block, S], True where it may look
    keys: slice  # the positions [S] that are read
    block: int  # tokens in a block; the last one is filled up


def make_reach(
    rotary: Rotary,
    start: int,
    new: int,
    like: Tensor,
    groups: int = 1,
    window: int | None = None,
    stable: bool = False,
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
    stable : bool
        Blocks of `QUERY_BLOCK` tokens, and keys in whole blocks, also beyond the last token.
    """
    end, device = start + new, like.device
    cos, sin = rotary.tables(start, end, attention_dtype(like), device)
    first = 0 if window is None else max(0, start - window + 1)
    if new == 1 and not stable:
        return Reach(cos, sin, (None,), slice(first, end), 1)
    block, last = new, end
    if stable:
        block, last = QUERY_BLOCK, -(-end // KEY_BLOCK) * KEY_BLOCK
        first -= first % FIRST_BLOCK
    # A block is filled up with tokens behind the last one: they see what there is, and are cut off.
    places = torch.arange(start, start - (-new // block) * block, device=device)
    distance = places[:, None] - torch.arange(first, last, device=device)
    mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    masks = tuple(part.repeat(groups, 1) for part in torch.split(mask, block))
    return Reach(cos, sin, masks, slice(first, last), block)


def attention_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of queries, keys and values for hidden states like this one.

    Half precision on a CPU is attended in float32: for a few queries its half-precision kernels take
    three to seven times as long.
    """
    narrow = like.device.type == "cpu" and like.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow else like.dtype


def attend(queries: Tensor, keys: Tensor, values: Tensor, reach: Reach, scale: float) -> Tensor:
    """softmax(scale Q K^T) V for queries `[B, T, H, C]`, keys and values `[B, G, S, C]`: `[B, T, H C]`."""
    batch, new, heads, channels = queries.shape
    shared = keys.shape[1]
    mixed = []
    for part, mask in zip(torch.split(queries, reach.block, 1), reach.masks, strict=True):
        short = reach.block - part.shape[1]
        part = F.pad(part, (0, 0, 0, 0, 0, short)) if short else part
        # [B, t, G, R, C] -> [B, G, R t, C]: the queries of one key head are rows of one product.
        rows = part.view(batch, reach.block, shared, -1, channels).permute(0, 2, 3, 1, 4)
        rows = rows.reshape(batch, shared, -1, channels)
        found = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
        mixed.append(found.view(batch, heads, reach.block, channels).transpose(1, 2))
    joined = mixed[0] if len(mixed) == 1 else torch.cat(mixed, 1)
    return joined[:, :new].reshape(batch, new, -1)


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
        self.o_proj: nn.Module = nn.Linear(inner, width, bias=shape.o_bias)
        self.qkv_proj: nn.Module | None = None  # the three in one, once packed
        self.q_norm = norm(shape.head_dim) if norm else None
        self.k_norm = norm(shape.head_dim) if norm else None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries beside keys [B, T, H + G, C], normed, not rotated, and values [B, T, G, C]."""
        split, heads, shared = (*x.shape[:2], -1, self.shape.head_dim), self.shape.heads, self.shape.kv_heads
        if self.qkv_proj is None:
            both = torch.cat((self.q_proj(x), self.k_proj(x)), -1).view(split)
            v = self.v_proj(x).view(split)
        else:
            both, v = self.qkv_proj(x).view(split).split_with_sizes((heads + shared, shared), 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = both.split_with_sizes((heads, shared), 2)
            both = torch.cat((self.q_norm(q), self.k_norm(k)), 2)
        return both, v

    def forward(self, x: Tensor, reach: Reach, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """[B, T, D] -> [B, T, D]; with a cache, behind the tokens in it."""
        both, v = self.project(x)
        both = rotate(both.to(reach.cos.dtype), reach.cos, reach.sin)
        q, k = both.split_with_sizes((self.shape.heads, self.shape.kv_heads), 2)
        keys, values = k.transpose(1, 2), v.to(both.dtype).transpose(1, 2)  # [B, G, T, C]
        if cache is None:
            keys, values = keys[:, :, reach.keys], values[:, :, reach.keys]
        else:
            keys, values = cache.append(layer, keys, values, reach.keys)
        mixed = attend(q, keys, values, reach, self.shape.scale)
        return self.o_proj(mixed.to(x.dtype))  # type: ignore[no-any-return]

    def pack(self, stable: bool) -> None:
        """Lay the projections out for inference, q, k and v as one."""
        self.qkv_proj = pack_linears([self.q_proj, self.k_proj, self.v_proj], stable=stable)
        self.o_proj = pack_linears([self.o_proj], stable=stable)
        del self.q_proj, self.k_proj, self.v_proj

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
        self.down_proj: nn.Module = nn.Linear(inner, width, bias=bias)
        self.activation, self.inner = activation, inner
        self.gate_up_proj: nn.Module | None = None  # both in one, once packed

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = self.gate_up_proj(x).split_with_sizes((self.inner, self.inner), -1)
        return self.down_proj(self.activation(gate) * up)  # type: ignore[no-any-return]

    def pack(self, stable: bool) -> None:
        """Lay the projections out for inference, gate and up as one."""
        self.gate_up_proj = pack_linears([self.gate_proj, self.up_proj], stable=stable)
        self.down_proj = pack_linears([self.down_proj], stable=stable)
        del self.gate_proj, self.up_proj
