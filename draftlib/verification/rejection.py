"""Verification by rejection: accept with min(1, p / q), else draw from max(p - q, 0)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.verification.draws import RandomDraws
from draftlib.verification.revealed import Proposed, path_revealed
from draftlib.verification.verify import Verdict, check_rows
from draftlib.vocabulary.ngram_table import NGramTable
from qlib.errors import DraftError


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return what is left to draw from after a rejection: max(p - Q, 0), [V], not normalised.

    `p` is the target's distribution, and `q` that of the proposed token, Q.

    Where rounding leaves nothing, it is p: then Q was p, and the rejection should not have happened.

    >>> residual(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])).tolist()
    [0.0, 0.25]
    """
    left = (p - q).clamp(min=0)
    return left if float(left.sum()) > 0 else p


def verify_rejection(proposals: Iterable[Proposed], logprobs: Tensor, draws: RandomDraws) -> Verdict:
    """Accept t_i with probability min(1, p_i(t_i) / Q_i(t_i)), else draw from the residual.

    Lossless if each Q_i is the distribution of t_i given what is known before position i.

    Parameters
    ----------
    proposals : iterable of Proposed
        m target tokens t_i, each with the distribution Q_i [V] that it was drawn from.
    logprobs : Tensor
        [m + 1, V], of the target, from `warp`.
    draws : RandomDraws
        Decides about acceptance and draws the token. It must not repeat the numbers that the drafter drew
        with.
    """
    proposals = list(proposals)
    check_rows([token for token, _ in proposals], logprobs)
    for i, (token, q) in enumerate(proposals):
        p = logprobs[i].exp()
        if not draws.bernoulli(float(p[token] / q[token])):
            return Verdict(i, draws.categorical(residual(p, q.to(p))))
    return Verdict(len(proposals), draws.categorical(logprobs[-1].exp()))


def verify_path_revealed(draft: Draft, table: NGramTable, logprobs: Tensor, draws: RandomDraws) -> Verdict:
    """Rejection with the exact distribution of the merged tokens, as the drafted path reveals it. Lossless.

    Parameters
    ----------
    draft : Draft
        Tokens drawn independently from the distributions in it (`draw_independent`).
    table : NGramTable
        Direct counterparts and n-grams as they were when the round began.
    logprobs : Tensor
        [m + 1, V], of the target; row i after the first i translated tokens. What the draft translates to
        beyond m tokens is left out; m may depend on anything but these tokens.
    draws : RandomDraws
        Decides and draws.
    """
    proposals = path_revealed(draft, table, logprobs.shape[-1])[: len(logprobs) - 1]
    return verify_rejection(proposals, logprobs, draws)


def verify_ratio(
    draft: Draft, table: NGramTable, spans: Sequence[tuple[int, int]], logprobs: Tensor, draws: RandomDraws
) -> Verdict:
    """Rejection with the paper's ratio, Equations 1 and 2. NOT lossless when sampling: for comparison only.

    Parameters
    ----------
    draft, table, logprobs, draws
        As in `verify_path_revealed`.
    spans : sequence of (int, int)
        For each proposed token the draft tokens [start, stop) it translates.
    """
    return verify_rejection(ratio(draft, table, spans, logprobs.shape[-1]), logprobs, draws)


def ratio(draft: Draft, table: NGramTable, spans: Iterable[tuple[int, int]], size: int) -> list[Proposed]:
    """Return the proposed tokens with the distributions that the paper takes them to have.

    1. Equation 1: q'(t) = q(d) for a direct counterpart, and prod_j q(d_j) for the n-gram that was drafted
       and merged.
    2. Equation 2: q'(t) = q(d_1) - prod_j q(d_j) for the direct counterpart of that n-gram's first token.

    It is not the distribution of t: n-grams that were *not* drafted also take probability from their first
    tokens; "not merged" says something about the next token; near the end of a draft fewer merges are
    possible; other n-grams may spell the same target token.

    Parameters
    ----------
    draft, table, spans
        As in `verify_ratio`.
    size : int
        The target's vocabulary, V.
    """
    known = table.direct >= 0
    proposals = []
    for start, stop in spans:
        # Equation 1, direct counterparts.
        q = draft.logprobs[start].exp()
        probabilities = q.new_zeros(size).index_add_(0, table.direct[known], q[known])
        token = table.target(draft.tokens[start:stop])
        if token is None:
            raise DraftError(
                f"draft tokens {draft.tokens[start:stop]} at {start}..{stop} spell no target token of the "
                "table. Pass the spans and the table of the same translation."
            )
        if stop - start > 1:
            path = torch.stack([draft.logprobs[i, draft.tokens[i]] for i in range(start, stop)]).sum().exp()
            # Equation 2, then Equation 1 for the n-gram.
            first = int(table.direct[draft.tokens[start]])
            if first >= 0:
                probabilities[first] -= path
            probabilities[token] = path
        proposals.append(Proposed(token, probabilities))
    return proposals
