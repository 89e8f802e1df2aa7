"""A linear map whose weight is laid out once for the processor's matrix kernels.

`F.linear` on a CPU is fast for one row (a matrix-vector product) and for thousands, but a few rows cost
almost three times one: exactly the sizes of batched decoding. oneDNN can reorder the weight beforehand
("prepack") and then handles 8 rows in about the time of 1. The large output head, which every decoding
step runs through, gains most.

The operators are those that torch's own compiler emits for frozen models. They are not public, so they
are probed once; where the probe fails (another device, dtype or torch), `F.linear` does the work, with
the same results up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)


def packed_linear(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """Return the map ``x -> x W^T`` for inputs [rows, inputs].

    Parameters
    ----------
    weight : Tensor
        [outputs, inputs]. The map holds a second, reordered copy.
    rows : int
        How many rows are usual; any number works.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not can_pack():
        return lambda x: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    # "none", [], "": no operation fused behind the product.
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


@lru_cache(maxsize=1)
def can_pack() -> bool:
    """Return whether this torch has the prepacking operators and they compute what `F.linear` computes."""
    weight, x = torch.arange(12.0).view(3, 4), torch.ones(2, 4)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, RuntimeError) as error:
        log.info("prepacked linear maps are not available (%s); using the ordinary ones", error)
        return False
    return torch.allclose(found, F.linear(x, weight))
