"""With how many tokens and keys attention is row-stable, and with how many tokens a whole network is.

Attention over 8 new tokens and over 1 must give the 1 the same bits, also where the text ends at another
place in a block of keys. Which sizes do that depends on the processor, so they are measured, with the same
functions that the network calls. `row_stability.py` says what row stability is.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from qlib.models.cache import KEY_SPLIT
from qlib.models.fast.packed import PackedLinear
from qlib.models.fast.packed_layer import PackedLayer
from qlib.models.fast.row_stability import (
    KEY_BLOCK,
    STABLE_ROWS,
    StableSizes,
    intersect,
    round_up_to,
    row_stable_counts,
)
from qlib.models.layers import AttentionShape, attend, attention_dtype, attention_inputs
from qlib.models.rotary import Rope, Rotary


@cache
def measure_stable_attention(
    shape: AttentionShape, dtype: torch.dtype, device: torch.device, threads: int
) -> StableSizes:
    """Measure with which numbers of keys and of tokens attention gives a token the same bits.

    `threads` is `torch.get_num_threads()`, on which the result may depend.
    """
    heads, source = (shape.heads, shape.kv_heads), torch.Generator().manual_seed(0)
    sizes = 2, 1, shape.kv_heads, 2 * KEY_SPLIT, shape.head_dim
    keys, values = torch.randn(sizes, generator=source).to(device, dtype)
    queries = torch.randn(1, STABLE_ROWS, shape.heads, shape.head_dim, generator=source).to(device, dtype)
    rotary = Rotary(Rope(), shape.head_dim)

    def run(before: int, sizes: StableSizes, start: int, stop: int) -> Tensor:
        """Attend with queries number `start` to `stop` - 1, the first query being at position `before`."""
        inputs = attention_inputs(rotary, before + start, stop - start, keys, heads, stable=sizes)
        read = keys[:, :, inputs.keys], values[:, :, inputs.keys]
        return attend(queries[:, start:stop], *read, inputs.mask, shape.scale)[0]

    # Which numbers of blocks give what all blocks of a split give, wherever the text ends.
    most = KEY_SPLIT // KEY_BLOCK
    as_many_tokens = tuple(range(STABLE_ROWS + 1))
    all_blocks = StableSizes(as_many_tokens, (0, *[most] * most))

    def agrees(blocks: int) -> bool:
        fewer = StableSizes(as_many_tokens, (0, *[blocks] * blocks))
        ends = range(blocks * KEY_BLOCK, STABLE_ROWS, -17)  # 17: at all distances from the ends of blocks
        return all(
            torch.equal(run(end - count, fewer, 0, count), run(end - count, all_blocks, 0, count))
            for end in ends
            for count in (1, 2, 3, 5, 8, STABLE_ROWS)
        )

    blocks = round_up_to([0, *(n for n in range(1, most) if agrees(n)), most])
    # With these, which numbers of tokens, the last ones after a block of keys, and after a split of them.
    before = (KEY_BLOCK - 6, KEY_SPLIT - 6)
    tables = [row_stable_counts(partial(run, each, StableSizes(as_many_tokens, blocks))) for each in before]
    return StableSizes(intersect(tables), blocks)


@torch.inference_mode()
def measure_stable_network(network: nn.Module, weight: Tensor, threads: int) -> StableSizes:
    """Measure with which sizes all products and attentions of a packed network are row-stable.

    Parameters
    ----------
    network : Module
        Its `PackedLayer` and `PackedLinear` modules are measured.
    weight : Tensor
        Gives dtype and device of the hidden states.
    threads : int
        `torch.get_num_threads()`: how a product is split among threads may change its bits.
    """
    modules = list(network.modules())
    shapes = {module.shape for module in modules if isinstance(module, PackedLayer)}
    setting = attention_dtype(weight), weight.device, threads
    attentions = [measure_stable_attention(shape, *setting) for shape in shapes]
    products = [module for module in modules if isinstance(module, PackedLinear)]
    for product in products:
        product.measure_counts(threads)  # kept in product.counts
    return StableSizes(
        intersect([*(each.tokens for each in attentions), *(product.counts for product in products)]),
        intersect([each.blocks for each in attentions]),
    )
