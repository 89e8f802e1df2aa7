"""Hybrid distillation: what the paper lets the drafter learn from the target while it is used.

Paper     OmniDraft, arXiv 2507.02659, Equations 3 and 4:

              L = KL(q' || p)(t | x) * 1[t is one draft token]  -  lambda log q(d | x) * 1[d is a piece]

          Reverse KL in the *target's* vocabulary where its token is a single draft token, q lifted by the
          vocabulary map; the negative log-likelihood in the *draft* vocabulary on the pieces of n-grams that
          the target wrote. lambda = 0.2.
Unmapped  A draft token without a target token can never be accepted by itself, and a target token that no
          single draft token spells can never be proposed by one. Each side's mass of these is one more event,
          "other". Renormalising q instead would hide the mass that the drafter wastes on such tokens.
Shapes    N positions, D draft tokens, V target tokens, K kept target tokens of a row.
Left out  Equation 2 in the loss: with it the paper is "only slightly better at T = 1".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOOR, LEAST = -30.0, 1e-13  # of log-probabilities and probabilities: a loss is finite where p or q is 0


class TopK(NamedTuple):
    """Rows of a distribution over target tokens, compressed: 6 bytes a kept token and 4 for the rest.

    Attributes
    ----------
    tokens : Tensor
        int32 [N, K], the most probable tokens, in order.
    logprobs : Tensor
        float16 [N, K]; the error of a probability is at most 1 / 2000 of it, or 6e-8 where that is more.
    rest : Tensor
        float32 [N], log of the mass of all others, which is spread evenly among them.
    """

    tokens: Tensor
    logprobs: Tensor
    rest: Tensor


def compress(logits: Tensor, k: int) -> TopK:
    """Return the k most probable tokens of rows of logits [N, V], and the mass of the rest.

    >>> row = compress(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), 2)
    >>> row.tokens.tolist(), round(row.rest.exp().item(), 3)
    ([[0, 1]], 0.25)
    """
    logprobs = logits.float().log_softmax(-1)
    values, tokens = logprobs.topk(min(k, logprobs.shape[-1]), -1)
    rest = (1 - values.double().exp().sum(-1)).clamp(min=LEAST).log().float()
    return TopK(tokens.int(), values.clamp(min=FLOOR).half(), rest)


def log_probabilities(rows: TopK, tokens: Tensor, vocab_size: int) -> Tensor:
    """Return log p of the same target tokens [M] for every row, [N, M].

    Tokens that are not among the K share the rest of the mass evenly.
    """
    others = max(vocab_size - rows.tokens.shape[1], 1)
    found = (rows.rest - torch.tensor(float(others)).log())[:, None].expand(-1, vocab_size)
    dense = found.clone().scatter(1, rows.tokens.long(), rows.logprobs.float())
    return dense[:, tokens].clamp(min=FLOOR)


def lift(draft_logits: Tensor, direct: Tensor) -> tuple[Tensor, Tensor]:
    """Return log q' of the target tokens that are single draft tokens, [N, M + 1], the last for all others.

    Parameters
    ----------
    draft_logits : Tensor
        [N, D].
    direct : Tensor
        int64 [D], the target token of each draft token; -1 where there is none. Where several draft tokens
        lead to one target token, their mass is added up.

    Returns
    -------
    logq : Tensor
        [N, M + 1].
    tokens : Tensor
        int64 [M], the target tokens of its columns.
    """
    q = draft_logits.float().softmax(-1)
    tokens, column = torch.unique(direct, return_inverse=True)
    lifted = q.new_zeros(len(q), len(tokens)).index_add(1, column, q)
    if int(tokens[0]) < 0:  # the unmapped ones come first
        lifted, tokens = lifted.roll(-1, 1), tokens[1:]
    else:
        lifted = torch.cat([lifted, lifted[:, :1] * 0], 1)
    return lifted.clamp(min=LEAST).log(), tokens


def _both(draft_logits: Tensor, rows: TopK, direct: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return log q' and log p over the same events: the mapped tokens, and all others."""
    logq, tokens = lift(draft_logits, direct)
    logp = log_probabilities(rows, tokens, vocab_size)
    other = (1 - logp.exp().sum(1, keepdim=True)).clamp(min=LEAST).log()
    return logq, torch.cat([logp, other], 1)


def reverse_kl(draft_logits: Tensor, rows: TopK, direct: Tensor, vocab_size: int) -> Tensor:
    """Return KL(q' || p) over the target tokens that are one draft token, and "other", [N]."""
    logq, logp = _both(draft_logits, rows, direct, vocab_size)
    return (logq.exp() * (logq - logp)).sum(1)


def forward_kl(draft_logits: Tensor, rows: TopK, direct: Tensor, vocab_size: int) -> Tensor:
    """Return KL(p || q') over the same events, [N]: the option of DistillSpec and GKD."""
    logq, logp = _both(draft_logits, rows, direct, vocab_size)
    return (logp.exp() * (logp - logq)).sum(1)


def ngram_nll(draft_logits: Tensor, pieces: Tensor) -> Tensor:
    """Return -log q of pieces of n-grams: draft logits [N, D], pieces int64 [N] -> [N]."""
    return -draft_logits.float().log_softmax(-1).gather(1, pieces[:, None])[:, 0]


def hybrid_loss(
    draft_logits: Tensor,
    written: Tensor,
    is_direct: Tensor,
    rows: TopK,
    direct: Tensor,
    vocab_size: int,
    ngram_weight: float = 0.2,
) -> Tensor:
    """Return the paper's loss, the mean over N positions.

    Parameters
    ----------
    draft_logits : Tensor
        [N, D].
    written : Tensor
        int64 [N], the draft tokens that the text has there.
    is_direct : Tensor
        bool [N]: reverse KL there, the likelihood of the piece elsewhere.
    rows : TopK
        [N], the target's rows.
    direct, vocab_size
        As for `reverse_kl`.
    ngram_weight : float
        lambda.
    """
    kl = reverse_kl(draft_logits, rows, direct, vocab_size)
    nll = ngram_nll(draft_logits, written)
    return torch.where(is_direct, kl, ngram_weight * nll).mean()
