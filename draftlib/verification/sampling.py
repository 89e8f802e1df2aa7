"""From logits to the distribution that is drawn from: temperature, top-k, top-p, in this order.

Speculative and plain decoding must draw from the same distribution, to the last bit. Therefore each row is
computed by itself: its result is the same bits however many rows come together. Tokens of equal probability
are kept or dropped together, for which of them a sort puts first depends on the shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qlib.errors import DraftError


def warp(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return the log-probabilities to draw from.

    Parameters
    ----------
    logits : Tensor
        [..., V]; -inf excludes a token. Half precision is computed in float32.
    temperature : float
        Logits are divided by it. 0 leaves only the most probable token, the first of equals.
    top_k : int, optional
        Keep the k most probable tokens, and whatever equals the last of them.
    top_p : float, optional
        Keep the most probable tokens that together have this probability, and whatever equals the last of
        them.

    Returns
    -------
    Tensor
        [..., V], float32 or float64; -inf for tokens that are excluded.

    Raises
    ------
    DraftError
        A setting is out of its range, or a row has no finite largest logit.

    >>> [round(p, 3) for p in warp(torch.tensor([3.0, 2.0, 1.0]).log(), top_k=2).exp().tolist()]
    [0.6, 0.4, 0.0]
    """
    _check_settings(temperature, top_k, top_p)
    if logits.dtype != torch.float64:
        logits = logits.float()
    peak = logits.amax(-1, keepdim=True)
    if not bool(torch.isfinite(peak).all()):
        raise DraftError(
            f"logits of shape {list(logits.shape)} have a row whose largest value is not finite: the model "
            "overflowed, or a mask left no token. Try float32, and check what is masked."
        )
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
    logits = (logits - peak) / temperature  # the peak first: a tiny temperature must not overflow
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    logprobs = logits.log_softmax(-1)
    if top_p is None or top_p == 1:
        return logprobs
    rows = [_nucleus(row, top_p) for row in logprobs.reshape(-1, logprobs.shape[-1])]
    return torch.stack(rows).reshape(logprobs.shape).log_softmax(-1)


def _nucleus(row: Tensor, top_p: float) -> Tensor:
    """Exclude the tokens after those that together have the probability `top_p`, [V].

    Sorting the whole vocabulary is slow, and few tokens have most of the probability: take the 1,024 most
    probable ones, and eight times as many while that is not enough. The result does not depend on the two
    numbers.
    """
    width = min(1024, len(row))
    while True:
        largest = row.topk(width).values
        total = largest.exp().cumsum(0)
        if float(total[-1]) >= top_p or width == len(row):
            break
        width = min(8 * width, len(row))
    last = min(int(torch.searchsorted(total, top_p)), width - 1)
    return row.masked_fill(row < largest[last], -torch.inf)


def _check_settings(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < math.inf:
        raise DraftError(
            f"temperature={temperature}: it must be 0 (always the most probable token) or a positive number."
        )
    if top_k is not None and top_k < 1:
        raise DraftError(f"top_k={top_k}: at least 1 token must be kept. None keeps all.")
    if top_p is not None and not 0 < top_p <= 1:
        raise DraftError(f"top_p={top_p}: it must be above 0 and at most 1. None keeps all tokens.")
