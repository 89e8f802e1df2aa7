"""Linear layers whose weights are laid out once for the processor's matrix kernels.

On a CPU, `F.linear` is fast for one row (a matrix-vector product) and for thousands, but a few rows, those
of batched decoding and of verifying a draft, cost two to three times one. With the weight laid out
beforehand 6 rows cost little more than 1, and layers that read the same input become one:

    half       the weight in float16, products and sums in float32 (FBGEMM). Reads half the bytes, and
               those decide the time of few rows. Only where float16 holds every weight, as it does for
               checkpoints of 16 bits: then it is the float32 product up to the order of its sum
    reordered  the weight in the layout of oneDNN's kernels, in float32, or bfloat16 where the CPU has it
    plain      `F.linear`, everywhere else: other devices and dtypes, a torch without those operators

A CPU without bfloat16 arithmetic multiplies in float32 (`arithmetic_dtype`). A product's result has the dtype
of its input, so inputs in float32 are not rounded on the way.

**Row-stable**: a row's result is bitwise the same, however many rows stand beside it. Kernels are not:
they treat the last one or two rows of an odd number in another way. So it is measured which numbers of rows
agree (`safe_counts`), and others are filled up to the next of them. Any kernel agrees with itself at 16 rows.
The number of threads has a say in it: after `torch.set_num_threads` it is measured again (`find_rows`).

The operators are not public, so they are probed once, and the plain product stands in for missing ones.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

Product = Callable[[Tensor], Tensor]  # [rows, inputs] -> [rows, outputs]
Pack = Callable[[Tensor, "Tensor | None"], "Product | None"]  # of weight and bias; None: not to be had
STABLE_ROWS = 16  # up to so many rows of one product are row-stable, if asked for
SHARED_FROM = 3 << 18  # a smaller weight's product takes less time than handing it to threads


class PackedLinear(nn.Module):
    """y = x W^T + b, its weight packed. It can run, but no longer be saved, moved, trained or quantized.

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs].
    bias : Tensor, optional
        [outputs].
    stable : bool
        Make products of up to `STABLE_ROWS` rows row-stable.

    Attributes
    ----------
    kind : str
        "half", "reordered" or "plain".
    rows : tuple of int
        See `safe_counts`; each number itself where nothing was asked for.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, stable: bool = False):
        super().__init__()
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        self.outputs, self.inputs = weight.shape
        shared = weight.numel() >= SHARED_FROM and torch.get_num_threads() > 1
        for self.kind, pack in (
            ("half", shared_half_product if shared else half_product),
            ("reordered", reordered_product),
            ("plain", plain_product),
        ):
            if (product := pack(weight, bias)) is not None:
                self.product: Product = product
                break
        self.rows = tuple(range(STABLE_ROWS + 1))
        self._measure = partial(safe_rows, pack, (self.outputs, self.inputs), weight.dtype, weight.device)
        if stable:
            self.find_rows(torch.get_num_threads())

    @torch.inference_mode()
    def find_rows(self, threads: int) -> None:
        """Measure with how many rows this product is row-stable on so many threads."""
        self.rows = self._measure(threads)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        count = inputs.numel() // self.inputs
        if inputs.dim() > 1 and (count > STABLE_ROWS or self.rows[count] == count):
            return self.product(inputs)
        rows = F.pad(inputs.reshape(count, self.inputs), (0, 0, 0, self.rows[count] - count))
        return self.product(rows)[:count].view(*inputs.shape[:-1], self.outputs)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{self.inputs}, {self.outputs}, {self.kind}"


class Beside(nn.Module):
    """Layers that read the same input, their outputs side by side."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., inputs] -> [..., sum of outputs]."""
        return torch.cat([layer(inputs) for layer in self.layers], -1)


def pack_linears(layers: Sequence[nn.Module], *, stable: bool = False) -> nn.Module:
    """Return one module for linear layers that read the same input; their outputs stand side by side.

    Parameters
    ----------
    layers : sequence of Module
        With `weight` [outputs, inputs] and `bias` (or None). A quantized layer that rounds its input
        (`activation`) stays what it is, beside the others.
    stable : bool
        See `PackedLinear`.
    """
    if any(getattr(layer, "activation", None) is not None for layer in layers):
        return layers[0] if len(layers) == 1 else Beside(layers)
    weights: list[Any] = [layer.weight for layer in layers]
    biases: list[Any] = [layer.bias for layer in layers]
    filled = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    bias = None if all(each is None for each in biases) else torch.cat(filled)
    return PackedLinear(torch.cat(weights), bias, stable=stable)


def safe_counts(run: Callable[[int, int], Tensor]) -> tuple[int, ...]:
    """Return, for 0 to `STABLE_ROWS` rows, the least number >= it at which rows come out as among all.

    Parameters
    ----------
    run : callable
        Computes rows number `start` to `stop`, on their own: [rows, ...]. Called with runs of every length,
        at both ends of 0 to `STABLE_ROWS`.
    """
    whole = run(0, STABLE_ROWS)

    def agrees(count: int) -> bool:
        last = STABLE_ROWS - count
        return torch.equal(run(0, count), whole[:count]) and torch.equal(run(last, STABLE_ROWS), whole[last:])

    good = [count for count in range(1, STABLE_ROWS) if agrees(count)]
    return next_of([0, *good, STABLE_ROWS], STABLE_ROWS + 1)


@cache
def safe_rows(
    pack: Pack, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, threads: int
) -> tuple[int, ...]:
    """Return `safe_counts` of a kind of product.

    The right half of the weight is the left one negated, and so for the input equal: all products are 0 but
    for rounding errors. Another order of the sum then shows in the first digits, while a narrow dtype would
    nearly always round it away.

    Parameters
    ----------
    pack : callable
        The kind of product.
    shape : (int, int)
        [outputs, inputs] of the weight.
    dtype, device : torch.dtype, torch.device
        Of weight and rows.
    threads : int
        `torch.get_num_threads()`, which has a say in it.
    """
    outputs, inputs = shape
    half, source = inputs // 2, torch.Generator().manual_seed(0)
    weight, x = torch.zeros(shape), torch.zeros(STABLE_ROWS, inputs)
    # Few digits, exact in any dtype, but of such different size that their sums are not.
    sizes = torch.randint(-8, 9, (half,), generator=source)
    weight[:, :half] = (16 * torch.randn(outputs, half, generator=source)).round() * 2.0**sizes
    weight[:, half : 2 * half] = -weight[:, :half]
    x[:, :half] = x[:, half : 2 * half] = torch.randn(STABLE_ROWS, half, generator=source)
    weight = weight.to(device, dtype)
    product = pack(weight, None)
    assert product is not None  # the layer in question was packed in this way
    x = x.to(device, arithmetic_dtype(weight))
    return safe_counts(lambda start, stop: product(x[start:stop]))


def safe_for_all(tables: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the table of numbers that are safe by every one of some tables of `safe_counts`."""
    known = list(tables)
    good = [n for n in range(len(known[0])) if all(table[n] == n for table in known)]
    return next_of(good, len(known[0]))


def next_of(good: Sequence[int], count: int) -> tuple[int, ...]:
    """Return, for 0 to `count` - 1, the least of some growing numbers that is not below it."""
    return tuple(next(n for n in good if n >= number) for number in range(count))


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x.to(dtype)`, which takes as long as a small operation even where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


# --- the three products: a function of the input, or None where it is not to be had


def half_product(weight: Tensor, bias: Tensor | None, shared: bool = False) -> Product | None:
    """Return x W^T + b with the weight in float16 and arithmetic in float32; `shared` among all threads."""
    dtype = weight.dtype
    if weight.device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return None
    if arithmetic_dtype(weight) != torch.float32:
        return None  # the CPU has bfloat16 arithmetic, and its kernels are faster
    operators = _half_operators(shared)
    if operators is None or not torch.equal(weight.half().to(dtype), weight):
        return None
    pack, multiply = operators
    packed = pack(weight.float(), None if bias is None else bias.float())
    return lambda x: cast(multiply(cast(x, torch.float32), packed), x.dtype)


def shared_half_product(weight: Tensor, bias: Tensor | None) -> Product | None:
    """Return `half_product` for a weight that is large enough to be shared among threads."""
    return half_product(weight, bias, shared=True)


def reordered_product(weight: Tensor, bias: Tensor | None) -> Product | None:
    """Return x W^T + b with the weight in oneDNN's layout; it takes little time to make."""
    wide = arithmetic_dtype(weight)
    if weight.device.type != "cpu" or not _can_reorder(wide):
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(wide), 8)  # 8: usual rows, a hint
    offset = None if bias is None else bias.detach().to(wide)
    multiply = torch.ops.mkldnn._linear_pointwise.default._op  # without the wrapper in Python, 10 us a call
    # "none", [], "": no operation fused behind the product.
    return lambda x: cast(multiply(cast(x, wide), packed, offset, "none", [], ""), x.dtype)


def plain_product(weight: Tensor, bias: Tensor | None) -> Product:
    """Return x W^T + b by `F.linear`."""
    wide = arithmetic_dtype(weight)
    weight, offset = weight.to(wide), None if bias is None else bias.to(wide)
    return lambda x: cast(F.linear(cast(x, wide), weight, offset), x.dtype)


# --- probes


def arithmetic_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype in which a packed weight is multiplied: its own, if the processor can."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not _can_reorder(weight.dtype):
        return torch.float32
    return weight.dtype


# Pack a weight and a bias; multiply by what that gives.
Operators = tuple[Callable[[Tensor, "Tensor | None"], Any], Callable[[Tensor, Any], Tensor]]


@cache
def _half_operators(shared: bool) -> Operators | None:
    """Return FBGEMM's operators for weights in float16, or None where they are not to be had.

    Torch has them twice. The older pair is deprecated, but a call costs 20 us less, as much as a small layer;
    the newer one shares the work out to all threads.
    """
    weight, x, bias = torch.arange(12.0).view(3, 4), torch.arange(8.0).view(2, 4), torch.ones(3)
    for find in (_newer_half, _older_half) if shared else (_older_half, _newer_half):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pack, multiply = find()
                found = multiply(x, pack(weight, bias))
        except (AttributeError, RuntimeError) as error:
            log.info("%s: not available (%s)", find.__name__, error)
            continue
        if torch.equal(found, F.linear(x, weight, bias)):
            return pack, multiply
    return None


def _older_half() -> Operators:
    reorder, multiply = torch.fbgemm_pack_gemm_matrix_fp16, torch.fbgemm_linear_fp16_weight_fp32_activation

    def pack(weight: Tensor, bias: Tensor | None) -> tuple[Any, Tensor]:
        return reorder(weight), weight.new_zeros(len(weight)) if bias is None else bias

    return pack, lambda x, packed: multiply(x, *packed)


def _newer_half() -> Operators:
    operators = torch.ops.quantized
    # `_op` is the operator without the wrapper in Python, which takes 10 us a call.
    return operators.linear_prepack_fp16.default, operators.linear_dynamic_fp16.default._op


@cache
def _can_reorder(dtype: torch.dtype) -> bool:
    """Return whether torch has oneDNN's operators for a dtype, and they compute what `F.linear` computes."""
    weight, x = torch.arange(12.0).view(3, 4).to(dtype), torch.ones(2, 4, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, RuntimeError) as error:
        log.info("prepacked products of %s are not available (%s)", dtype, error)
        return False
    return torch.allclose(found, F.linear(x, weight))
