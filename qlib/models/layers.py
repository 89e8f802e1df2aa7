"""Parts that models share: the token table of all, and norm, attention and gated MLP of text models.

B batch, T new tokens, S keys (old and new), D width, H query heads, G key/value heads, R = H / G query
heads that read one key head, C channels a head.

    x [B, T, D] -> q, k and v side by side [B, T, H + 2 G, C] -> rotate q and k by their positions
    -> attend, the R queries of one key head as R T rows of one product -> [B, T, H C] -> o_proj

`attend` is the only place where queries meet keys. One new token needs no mask, and keys that lie outside
every query's window are never read. Where a token's bits must not depend on the end of the text and on what
else is computed (`Stable`), keys are read up to a length, and tokens filled up to a number, at which the
kernel is known to give the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as remember
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlib.models.cache import LONG_BLOCK, KVCache
from qlib.models.fast.packed import STABLE_ROWS, cast, next_of, safe_counts, safe_for_all
from qlib.models.rotary import Rope, Rotary, rotate

KEY_BLOCK = 64  # lengths of keys are multiples of it, where rows are to be stable


@dataclass(frozen=True)
class Stable:
    """How to compute a token to the same bits whatever else is computed.

    Parameters
    ----------
    tokens : tuple of int
        For each number of new tokens the number to compute; see `safe_counts`.
    blocks : tuple of int
        For each number of blocks of `KEY_BLOCK` keys, behind whole ones of `LONG_BLOCK`, the number to read.
    """

    tokens: tuple[int, ...]
    blocks: tuple[int, ...]

    def length(self, end: int) -> int:
        """Return how many keys to read where `end` count."""
        whole, rest = divmod(end, LONG_BLOCK)
        return whole * LONG_BLOCK + self.blocks[-(-rest // KEY_BLOCK)] * KEY_BLOCK


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

    def gain(self) -> Tensor:
        """Return the factor of each channel, [width]."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.rms_norm(x, self.weight.shape, self.gain(), self.eps)


@dataclass(frozen=True)
class Reach:
    """Where the new tokens of one call stand and what they see: the same in all layers of a kind."""

    cos: Tensor  # [T, H + 2 G, C]; queries and keys turn, values stand still: 1 and
    sin: Tensor  # 0
    mask: Tensor | None  # [R T, S], added to the scores: 0 where a query may look, else -inf; None: 0
    keys: slice  # the positions [S] that are read
    new: int  # tokens that count; those behind them fill up


def make_reach(
    rotary: Rotary,
    start: int,
    new: int,
    like: Tensor,
    heads: tuple[int, int],
    window: int | None = None,
    stable: Stable | None = None,
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
    heads : (int, int)
        H and G, the heads of queries and of keys.
    window : int, optional
        A token sees itself and the `window` - 1 before it; None: all before it.
    stable : Stable, optional
        So many tokens are computed, and keys read, that no bit depends on them. Tokens that fill up see
        something; it does not matter what.
    """
    end, device, dtype = start + new, like.device, attention_dtype(like)
    first, last, filled = 0 if window is None else max(0, start - window + 1), end, end
    if stable is not None:
        filled = start + stable.tokens[new]
        first, last = first - first % LONG_BLOCK, stable.length(end)
    turns = [each.expand(-1, sum(heads), -1) for each in rotary.tables(start, filled, dtype, device)]
    # Values stand still, so that they lie beside the keys, and one copy writes both into the cache.
    beside = 0, 0, 0, heads[1]
    cos, sin = F.pad(turns[0], beside, value=1.0), F.pad(turns[1], beside)
    if new == 1 and stable is None:
        return Reach(cos, sin, None, slice(first, last), new)
    places = torch.arange(start, filled, device=device)
    distance = places[:, None] - torch.arange(first, last, device=device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
    return Reach(cos, sin, mask.repeat(heads[0] // heads[1], 1), slice(first, last), new)


def attention_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of queries, keys and values for hidden states like this one.

    Half precision on a CPU is attended in float32: for a few queries its half-precision kernels take
    three to seven times as long.
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
    if new == 1:  # the same without moving anything
        rows = queries.view(batch, shared, -1, channels)
        mixed = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
        return mixed.reshape(batch, 1, -1)
    rows = queries.view(batch, new, shared, -1, channels).permute(0, 2, 3, 1, 4)  # [B, G, R, T, C]
    rows = rows.reshape(batch, shared, -1, channels)
    mixed = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return mixed.reshape(batch, heads, new, channels).transpose(1, 2).reshape(batch, new, -1)


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


def look_back(
    every: Tensor, shape: AttentionShape, reach: Reach, cache: KVCache | None = None, layer: int = 0
) -> Tensor:
    """Return what each token takes from those before it, [B, T, H C], in the dtype of `reach`.

    `every` [B, T, H + 2 G, C]: queries, keys and values side by side, not rotated. With a cache the tokens
    stand behind those in it.
    """
    every = rotate(cast(every, reach.cos.dtype), reach.cos, reach.sin)
    q, new = every.split_with_sizes((shape.heads, 2 * shape.kv_heads), 2)
    if cache is None:
        keys, values = new[:, reach.keys].transpose(1, 2).chunk(2, 1)  # [B, G, T, C]
    else:
        keys, values = cache.append(layer, new[:, : reach.new], reach.keys)
    return attend(q, keys, values, reach.mask, shape.scale)


@remember
def stable_attention(shape: AttentionShape, dtype: torch.dtype, device: torch.device, threads: int) -> Stable:
    """Measure at which lengths of keys and numbers of tokens attention gives a token the same bits.

    `threads` is `torch.get_num_threads()`, which may have a say in it.
    """
    heads, source = (shape.heads, shape.kv_heads), torch.Generator().manual_seed(0)
    sizes = 2, 1, shape.kv_heads, 2 * LONG_BLOCK, shape.head_dim
    keys, values = torch.randn(sizes, generator=source).to(device, dtype)
    some = torch.randn(1, STABLE_ROWS, shape.heads, shape.head_dim, generator=source).to(device, dtype)
    rotary = Rotary(Rope(), shape.head_dim)

    def run(before: int, stable: Stable, start: int, stop: int) -> Tensor:
        """Attend by tokens number `start` to `stop` behind `before` others."""
        reach = make_reach(rotary, before + start, stop - start, keys, heads, stable=stable)
        seen = keys[:, :, reach.keys], values[:, :, reach.keys]
        return attend(some[:, start:stop], *seen, reach.mask, shape.scale)[0]

    most = LONG_BLOCK // KEY_BLOCK
    every = tuple(range(STABLE_ROWS + 1))
    longest = Stable(every, (0, *[most] * most))

    def agrees(blocks: int) -> bool:
        """Return whether a length gives what the whole long block gives, wherever the text ends in it."""
        given = Stable(every, (0, *[blocks] * blocks))
        ends = range(blocks * KEY_BLOCK, STABLE_ROWS, -17)
        return all(
            torch.equal(run(end - count, given, 0, count), run(end - count, longest, 0, count))
            for end in ends
            for count in (1, 2, 3, 5, 8, STABLE_ROWS)
        )

    blocks = next_of([0, *(n for n in range(1, most) if agrees(n)), most], most + 1)
    # Texts that end on both sides of a block, short and long.
    places = (KEY_BLOCK - 6, LONG_BLOCK - 6)
    tables = [safe_counts(partial(run, place, Stable(every, blocks))) for place in places]
    return Stable(safe_for_all(tables), blocks)


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

    def forward(self, x: Tensor, reach: Reach, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """[B, T, D] -> [B, T, D]; with a cache, behind the tokens in it."""
        heads = *x.shape[:2], -1, self.shape.head_dim
        q, k, v = (project(x).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = look_back(torch.cat((q, k, v), 2), self.shape, reach, cache, layer)
        return self.o_proj(mixed.to(x.dtype))  # type: ignore[no-any-return]

    def value_rows(self) -> tuple[int, ...] | None:
        """Return the output of `v_proj` that each input of `o_proj` comes from; None: the same one."""
        heads, channels = self.shape.heads, self.shape.head_dim
        groups = heads // self.shape.kv_heads
        if groups == 1:
            return None
        return tuple(head // groups * channels + c for head in range(heads) for c in range(channels))


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
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]
