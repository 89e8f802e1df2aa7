"""Three ways to multiply by the weight of a linear layer that does not change any more.

On a CPU, `F.linear` is fast for one row (a matrix-vector product) and, where its library suits the processor
(`laid_out.py`), for thousands, but a few rows, those of batched decoding and of verifying a draft, cost two
to three times one. With the weight laid out beforehand 6 rows cost little more than 1:

    half       the weight in float16, products and sums in float32 (FBGEMM). Reads half the bytes, and
               those decide the time of few rows. Only where float16 holds every weight, as it does for
               checkpoints of 16 bits: then it is the float32 product up to the order of its sum
    reordered  the weight in the layout of oneDNN's kernels, in float32, or bfloat16 where the CPU has it
    plain      `F.linear`, everywhere else: other devices and dtypes, a torch without those operators

A CPU without bfloat16 arithmetic multiplies in float32 (`arithmetic_dtype`). A product's result has the dtype
of its input, so inputs in float32 are not rounded on the way.

The operators are not public, so each is tried once on a small example whose result is known, and the plain
product takes the place of those that are missing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

Product = Callable[[Tensor], Tensor]  # [rows, inputs] -> [rows, outputs]
Pack = Callable[[Tensor, "Tensor | None"], "Product | None"]  # of weight and bias; None: not available


def to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x.to(dtype)`, or `x` itself: the call takes as long as a small operation."""
    return x if x.dtype == dtype else x.to(dtype)


# --- the products: functions of the input, or None where one is not available


def half_product(weight: Tensor, bias: Tensor | None, threaded: bool = False) -> Product | None:
    """Return x W^T + b with the weight in float16 and arithmetic in float32; `threaded`: on all threads."""
    dtype = weight.dtype
    if weight.device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return None
    if arithmetic_dtype(weight) != torch.float32:
        return None  # the CPU has bfloat16 arithmetic, and its kernels are faster
    operators = _half_operators(threaded)
    if operators is None or not torch.equal(weight.half().to(dtype), weight):
        return None
    pack, multiply = operators
    packed = pack(weight.float(), None if bias is None else bias.float())
    return lambda x: to_dtype(multiply(to_dtype(x, torch.float32), packed), x.dtype)


def threaded_half_product(weight: Tensor, bias: Tensor | None) -> Product | None:
    """Return `half_product` on all threads: for weights large enough that dividing the work saves time."""
    return half_product(weight, bias, threaded=True)


def reordered_product(weight: Tensor, bias: Tensor | None) -> Product | None:
    """Return x W^T + b with the weight in oneDNN's layout, which takes little time to make."""
    wide = arithmetic_dtype(weight)
    if weight.device.type != "cpu" or not _can_reorder(wide):
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(
        weight.detach().to(wide), 8
    )  # 8: usual number of rows, a hint
    offset = None if bias is None else bias.detach().to(wide)
    # `_op` is the operator without its wrapper in Python, which takes 10 us a call.
    multiply = torch.ops.mkldnn._linear_pointwise.default._op
    # "none", [], "": no operation fused after the product.
    return lambda x: to_dtype(multiply(to_dtype(x, wide), packed, offset, "none", [], ""), x.dtype)


def plain_product(weight: Tensor, bias: Tensor | None) -> Product:
    """Return x W^T + b by `F.linear`."""
    wide = arithmetic_dtype(weight)
    weight, offset = weight.to(wide), None if bias is None else bias.to(wide)
    return lambda x: to_dtype(F.linear(to_dtype(x, wide), weight, offset), x.dtype)


# --- what this torch and this processor can do


def arithmetic_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype in which a packed weight is multiplied: its own, if the processor has kernels."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not _can_reorder(weight.dtype):
        return torch.float32
    return weight.dtype


# The first lays a weight and a bias out; the second multiplies an input by what the first returned.
Operators = tuple[Callable[[Tensor, "Tensor | None"], Any], Callable[[Tensor, Any], Tensor]]


@cache
def _half_operators(threaded: bool) -> Operators | None:
    """Return FBGEMM's operators for weights in float16, or None where they are not available.

    Torch has two pairs of them. The older one is deprecated, but a call takes 20 us less, the time of a
    small layer; the newer one divides the work among all threads.
    """
    weight, x, bias = torch.arange(12.0).view(3, 4), torch.arange(8.0).view(2, 4), torch.ones(3)
    for find in (_newer_half, _older_half) if threaded else (_older_half, _newer_half):
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
    # `_op`: as in `reordered_product`.
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
