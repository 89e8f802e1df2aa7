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
Options   The paper's: lambda = p(t), the target's probability of the token (`ngram_weight="probability"`);
          KL for n-grams too (`ngram="kl"`), "only slightly better at T = 1"; and the other direction of the
          divergence (`divergence="forward"`), which DistillSpec and GKD take.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

FLOOR, LEAST = -30.0, 1e-13  # of log-probabilities and probabilities: a loss is finite where p or q is 0


class Written(NamedTuple):
    """What a text has at N positions, in draft tokens, and the target tokens that they are pieces of.

    Attributes
    ----------
    tokens : Tensor
        int64 [N], draft tokens.
    owners : Tensor
        int64 [N], the target token that each of them belongs to.
    left : Tensor
        int64 [N], pieces of that token from this one on: 3, 2, 1 for one of three pieces; 0 where the last
        pieces of a token are not among the positions.
    """

    tokens: Tensor
    owners: Tensor
    left: Tensor

    @property
    def is_direct(self) -> Tensor:
        """Bool [N]; whether the target token is this one draft token."""
        return (self.left == 1) & ~self._goes_on

    @property
    def begins(self) -> Tensor:
        """Bool [N]; whether this is the first of several pieces."""
        return (self.left > 1) & ~self._goes_on

    @property
    def _goes_on(self) -> Tensor:
        """Bool [N]; whether a token goes on that began before."""
        before = self.left.roll(1)
        before[:1] = 0
        return before == self.left + 1


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


def ngram_nll(draft_logits: Tensor, written: Written) -> Tensor:
    """Return -log q(d) of the draft tokens that the text has: draft logits [N, D] -> [N]."""
    return -draft_logits.float().log_softmax(-1).gather(1, written.tokens[:, None])[:, 0]


def ngram_probability(draft_logits: Tensor, written: Written) -> Tensor:
    """Return the product of q(d) over the pieces of a token from each position on, [N]: Equation 1."""
    logq = -ngram_nll(draft_logits, written)
    total = logq
    for ahead in range(1, int(written.left.max())):
        total = total + torch.where(written.left > ahead, logq.roll(-ahead), 0.0)
    return total.exp()


def target_probability(rows: TopK, tokens: Tensor, vocab_size: int) -> Tensor:
    """Return p of one target token at each position: int64 [N] -> [N]."""
    same = rows.tokens == tokens[:, None]
    others = max(vocab_size - rows.tokens.shape[1], 1)
    return torch.where(same.any(1), (rows.logprobs.float().exp() * same).sum(1), rows.rest.exp() / others)


def ngram_kl(draft_logits: Tensor, written: Written, rows: TopK, direct: Tensor, vocab_size: int) -> Tensor:
    """Return KL(q' || p) where an n-gram d_1 ... d_m of the target token t begins, with Equation 2, [N].

        q'(t) = q(d_1) ... q(d_m),   q'(d_1) = q(d_1) - q'(t),   and q elsewhere

    What it is at other positions has no meaning. Arguments are those of `hybrid_loss`.
    """
    logq, tokens = lift(draft_logits, direct)
    whole = ngram_probability(draft_logits, written)
    # The probability of the n-gram is taken from its first piece, in the column of that, or of "other" ...
    first = direct[written.tokens]
    column = torch.where(first < 0, len(tokens), torch.searchsorted(tokens, first.clamp(min=0)))
    q = logq.exp().scatter_add(1, column[:, None], -whole[:, None])
    # ... and given to t: to a column of its own, or to the one that it has already.
    p_t = target_probability(rows, written.owners, vocab_size)
    known = torch.isin(written.owners, tokens)
    place = torch.searchsorted(tokens, written.owners).clamp(max=len(tokens))
    q = q.scatter_add(1, place[:, None], (whole * known)[:, None])
    q = torch.cat([q, (whole * ~known)[:, None]], 1).clamp(min=LEAST)
    p = log_probabilities(rows, tokens, vocab_size).exp()
    p_t = p_t * ~known
    p = torch.cat([p, (1 - p.sum(1) - p_t)[:, None], p_t[:, None]], 1).clamp(min=LEAST)
    return (q * (q.log() - p.log())).sum(1)


def hybrid_loss(
    draft_logits: Tensor,
    written: Written,
    rows: TopK,
    direct: Tensor,
    vocab_size: int,
    *,
    ngram_weight: float | Literal["probability"] = 0.2,
    divergence: Literal["reverse", "forward"] = "reverse",
    ngram: Literal["nll", "kl"] = "nll",
) -> Tensor:
    """Return the paper's loss, the mean over N positions.

    Parameters
    ----------
    draft_logits : Tensor
        [N, D].
    written : Written
        What the text has at these positions: KL where a target token is one draft token, the likelihood of
        the piece elsewhere.
    rows : TopK
        [N], the target's rows.
    direct, vocab_size
        As for `reverse_kl`.
    ngram_weight : float or "probability"
        lambda, or p(t) as lambda.
    divergence : {"reverse", "forward"}
        KL(q' || p), or KL(p || q').
    ngram : {"nll", "kl"}
        "kl": `ngram_kl` at the first piece of an n-gram, and nothing at the others, which are part of it.
    """
    kl = {"reverse": reverse_kl, "forward": forward_kl}[divergence](draft_logits, rows, direct, vocab_size)
    if ngram == "kl":
        pieces = ngram_kl(draft_logits, written, rows, direct, vocab_size) * written.begins
    else:
        pieces = ngram_nll(draft_logits, written)
    weight = (
        target_probability(rows, written.owners, vocab_size)
        if ngram_weight == "probability"
        else torch.tensor(ngram_weight)
    )
    return torch.where(written.is_direct, kl, weight * pieces).mean()
