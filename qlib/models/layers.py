"""Parts that models share: the token table of all, and norm, attention and gated MLP of text models.

B batch, T new tokens, S keys (old and new), D width, H query heads, G key/value heads, R = H / G query heads
that read one key head, C channels a head.

    x [B, T, D] -> q, k and v side by side [B, T, H + 2 G, C] -> rotate q and k by their positions
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
from qlib.models.call import call
from qlib.models.fast.products import to_dtype
from qlib.models.fast.row_stability import StableSizes
from qlib.models.rotary import Rotary, rotate


def embedding(count: int, width: int) -> nn.Embedding:
    """Return a table of vectors that is not filled yet.

    `nn.Embedding` alone fills it with random numbers, which on the meta device imports a compiler for 2 s.
    """
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * gain, over the last dimension; the sums are in float32 or wider."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def gain(self) -> Tensor:
        """Return the factor of each channel, [width]."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.rms_norm(x, self.weight.shape, self.gain(), self.eps)


@dataclass(frozen=True)
class AttentionInputs:
    """What attention needs besides hidden states: the positions of the new tokens and the keys that they see.

    All layers of one kind have the same, so each pass makes it once.
    """

    cos: Tensor  # [T, H + 2 G, C], rotary tables of queries, keys and values; values are not rotated, so for
    sin: Tensor  # them cos is 1 and sin is 0
    mask: Tensor | None  # [R T, S], added to the scores: 0 for keys that a query sees, else the lowest number
    # of the dtype; None: all 0
    keys: slice  # the positions of the S keys that are read
    new: int  # how many of the T tokens are new; those after them are thrown away after the pass


def attention_inputs(
    rotary: Rotary,
    start: int,
    new: int,
    like: Tensor,
    heads: tuple[int, int],
    window: int | None = None,
    stable: StableSizes | None = None,
) -> AttentionInputs:
    """Return rotary tables and mask of `new` tokens after `start` others.

    Parameters
    ----------
    rotary : Rotary
        The rotary tables of single positions.
    start, new : int
        The tokens are at positions start .. start + new - 1.
    like : Tensor
        Gives device and dtype of the hidden states; attention itself may be wider (`attention_dtype`).
    heads : (int, int)
        H and G, the heads of queries and of keys.
    window : int, optional
        A token sees itself and the `window` - 1 before it; None: all before it.
    stable : StableSizes, optional
        Compute so many tokens, and read so many keys, that no bit of a new token depends on their number.
    """
    device, dtype = like.device, attention_dtype(like)
    keys = slice(0 if window is None else max(0, start - window + 1), start + new)
    end = start + new
    if stable is not None:
        keys, end = stable.keys(keys), start + stable.tokens[new]
    # Values are rotated by an angle of 0, so they stay as they are. One call then rotates queries, keys and
    # values, and one copy writes keys and values into the cache.
    queries_keys, values = (-1, sum(heads), -1), (0, 0, 0, heads[1])
    cos, sin = (table.expand(queries_keys) for table in rotary.tables(start, end, dtype, device))
    cos, sin = F.pad(cos, values, value=1.0), F.pad(sin, values)
    if new == 1 and stable is None:
        return AttentionInputs(cos, sin, None, keys, new)
    positions = torch.arange(start, end, device=device)
    distance = positions[:, None] - torch.arange(keys.start, keys.stop, device=device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    # Not -inf: on a CPU, torch 2.4 returns NaN for a query that sees none of its first 512 keys.
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
    return AttentionInputs(cos, sin, mask.repeat(heads[0] // heads[1], 1), keys, new)


def attention_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of queries, keys and values for hidden states like this one.

    Half precision on a CPU becomes float32: for a few queries, torch's attention kernels in half precision
    take three to seven times as long.
    """
    narrow = like.device.type == "cpu" and like.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow else like.dtype


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return softmax(scale Q K^T + mask) V, `[B, T, H C]`.

    For queries `[B, T, H, C]`, keys and values `[B, G, S, C]`. `mask` is `[R T, S]`: the R queries of one key
    head are rows of one product.
    """
    batch, new, heads, channels = queries.shape
    shared = keys.shape[1]
    if new == 1:  # the heads are in the right order already: nothing needs to be copied
        rows = queries.view(batch, shared, -1, channels)
        attended = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
        return attended.reshape(batch, 1, -1)
    rows = queries.view(batch, new, shared, -1, channels).permute(0, 2, 3, 1, 4)  # [B, G, R, T, C]
    rows = rows.reshape(batch, shared, -1, channels)
    attended = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return attended.reshape(batch, heads, new, channels).transpose(1, 2).reshape(batch, new, -1)


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


def cached_attention(
    qkv: Tensor, shape: AttentionShape, inputs: AttentionInputs, cache: KVCache | None = None, layer: int = 0
) -> Tensor:
    """Return what each token takes from those before it and itself, [B, T, H C], in the dtype of `inputs`.

    `qkv` [B, T, H + 2 G, C]: queries, keys and values side by side, not rotated. With a cache the tokens
    follow those in it.
    """
    qkv = rotate(to_dtype(qkv, inputs.cos.dtype), inputs.cos, inputs.sin)
    q, kv = qkv.split_with_sizes((shape.heads, 2 * shape.kv_heads), 2)
    if cache is None:
        keys, values = kv[:, inputs.keys].transpose(1, 2).chunk(2, 1)  # [B, G, T, C]
    else:
        keys, values = cache.append(layer, kv[:, : inputs.new], inputs.keys)
    return attend(q, keys, values, inputs.mask, shape.scale)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; several query heads may read one key head.

    Parameters
    ----------
    shape : AttentionShape
        Sizes.
    norm : callable, optional
        Makes the norm of each query's and key's channels (before they are rotated), given their number.
    """

    def __init__(self, shape: AttentionShape, norm: Callable[[int], RMSNorm] | None = None):
        super().__init__()
        self.shape = shape
        width, inner, shared = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(width, inner, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(width, shared, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(width, shared, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(inner, width, bias=shape.o_bias)
        self.q_norm = norm(shape.head_dim) if norm else None
        self.k_norm = norm(shape.head_dim) if norm else None

    def forward(
        self, x: Tensor, inputs: AttentionInputs, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; with a cache, behind the tokens in it."""
        heads = *x.shape[:2], -1, self.shape.head_dim
        q, k, v = (call(project, x).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attended = cached_attention(torch.cat((q, k, v), 2), self.shape, inputs, cache, layer)
        return call(self.o_proj, attended.to(x.dtype))


class GatedMLP(nn.Module):
    """y = down(activation(gate(x)) * up(x)). Paper: Shazeer 2020, arXiv 2002.05202."""

    def __init__(self, width: int, inner: int, activation: Callable[[Tensor], Tensor], bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.activation, self.inner = activation, inner

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return call(self.down_proj, self.activation(self.gate_proj(x)) * self.up_proj(x))
