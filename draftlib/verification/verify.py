"""The target's side of a round: which proposed tokens stand, and which one token follows them.

Papers    Leviathan et al. 2022 (arXiv 2211.17192, Algorithm 1: acceptance by min(1, p/q) and the residual);
          Daliri, Musco and Suresh 2024 (arXiv 2408.07978: shared noise); OmniDraft 2025 (arXiv 2507.02659,
          Equations 1, 2).
Problem   m target tokens t_1..t_m are proposed. One pass of the target gives p_i = p(. | prefix, t_<i) for i
          = 1..m+1. Accept a beginning of them and add one token, so that the text is distributed as the
          target's own.
Rules     `verify_greedy`, `verify_exact`, `verify_point_mass`: the target makes its own choice y_i, by
          argmax, by argmax(log p_i + g_i) or by a draw; t_i stands while y_i = t_i; the first other y_i is
          the token. `verify_rejection`: accept t_i with probability min(1, p_i(t_i) / Q_i(t_i)), else draw
          from max(p_i - Q_i, 0), where Q_i is the distribution of the proposed token given all that is known
          before position i. Q_i comes from `path_revealed` (exact) or `ratio` (the paper's, approximate).
Lossless  Choices: what is emitted is y_i, and the proposal decides only how many of them one pass yields.
          Rejection: P(y) = min(p, Q)(y) + (1 - sum min(p, Q)) (p - Q)^+(y) / sum (p - Q)^+ = p(y), for the
          two sums are equal. True if Q_i is the distribution of t_i, and only then: merging looks ahead, so
          that it is not q.
Shapes    m: proposed tokens, V: target's vocabulary, D: drafter's vocabulary, k: drafted tokens.
Left out  Trees of proposals; the full marginal distribution, which needs drafter steps off the drafted path.

Each rule is a function of plain tensors. `RULES` has all of them by name, with one signature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.verification.noise import GumbelNoise, RandomDraws
from draftlib.verification.revealed import Proposed, path_revealed
from draftlib.vocabulary.ngram_table import NGramTable
from qlib.errors import DraftError


class Verdict(NamedTuple):
    """The outcome of a round: the first `accepted` proposed tokens stand, then comes `token`."""

    accepted: int
    token: int


# --- the choices: greedy, shared noise, point mass


def choose(logprobs: Tensor, noise: Tensor) -> Tensor:
    """Draw from log-probabilities by given Gumbel noise: argmax(log p + g), [..., V] -> int64 [...].

    >>> choose(torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.0, 0.0, 2.0])).item()
    2
    """
    return (logprobs + noise).argmax(-1)


def verify_greedy(proposed: Sequence[int], logits: Tensor) -> Verdict:
    """Accept while the proposed token is the target's most probable one. Lossless for greedy decoding.

    Parameters
    ----------
    proposed : sequence of int
        m target tokens.
    logits : Tensor
        [m + 1, V], of the target after the prefix and after each proposed token. Log-probabilities do as
        well.

    Raises
    ------
    DraftError
        The number of rows is not m + 1, or a proposed token is not in the vocabulary (here and in all rules).

    >>> verify_greedy([2, 0], torch.tensor([[0.0, 1.0, 5.0], [0.0, 3.0, 1.0], [9.0, 0.0, 0.0]]))
    Verdict(accepted=1, token=1)
    """
    _check(proposed, logits)
    choices = logits.argmax(-1).tolist()
    return _follow(proposed, lambda i: choices[i])


def verify_exact(proposed: Sequence[int], logprobs: Tensor, noise: Tensor) -> Verdict:
    """Accept while the proposed token is the one that the target draws with its noise. Lossless.

    The emitted tokens do not depend on the proposal at all, so they are the very tokens that the target alone
    draws with the same noise. A drafter that draws with this noise too agrees with probability (1 - TV) / (1
    + TV) or more.

    Parameters
    ----------
    proposed : sequence of int
        m target tokens.
    logprobs : Tensor
        [m + 1, V], of the target, from `warp`.
    noise : Tensor
        [m + 1, V], Gumbel noise at the positions of the rows.
    """
    _check(proposed, logprobs)
    if noise.shape != logprobs.shape:
        raise DraftError(
            f"noise {list(noise.shape)} for log-probabilities {list(logprobs.shape)}: both need a row for "
            f"each of the {len(proposed)} proposed tokens and one more, as wide as the target's vocabulary."
        )
    choices = choose(logprobs, noise).tolist()
    return _follow(proposed, lambda i: choices[i])


def verify_point_mass(proposed: Sequence[int], logprobs: Tensor, draws: RandomDraws) -> Verdict:
    """Accept while the proposed token is the one that the target draws. Lossless.

    It does not need to know how the proposal was drawn. The same as rejection with Q_i all on t_i: accept
    with probability p(t_i), else draw from p without t_i.

    Parameters
    ----------
    proposed : sequence of int
        m target tokens, found in any way whatever.
    logprobs : Tensor
        [m + 1, V], of the target, from `warp`.
    draws : RandomDraws
        Draws the target's tokens.
    """
    _check(proposed, logprobs)
    return _follow(proposed, lambda i: draws.categorical(logprobs[i].exp()))


def _follow(proposed: Sequence[int], choice: Callable[[int], int]) -> Verdict:
    for i, token in enumerate(proposed):
        chosen = choice(i)
        if chosen != token:
            return Verdict(i, chosen)
    return Verdict(len(proposed), choice(len(proposed)))


# --- rejection, and the distributions it can be given


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
    _check([token for token, _ in proposals], logprobs)
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


# --- all rules by name


@dataclass(frozen=True)
class VerifyInputs:
    """What a round has for its verification; each rule takes what it needs.

    Attributes
    ----------
    proposed : tuple of int
        m target tokens.
    spans : tuple of (int, int)
        For each of them the draft tokens [start, stop) that it translates.
    draft : Draft or None
        What was drafted; None if nothing was. Without a draft there are "greedy", "exact" and "point_mass".
    table : NGramTable
        Direct counterparts and n-grams of this round.
    logprobs : Tensor
        [m + 1, V], of the target, from `warp`. For "greedy" logits do as well.
    position : int
        Index of the first proposed token in the target's text.
    noise : GumbelNoise
        The target's noise, rows [V].
    draws : RandomDraws
        Decides and draws, for the rules by chance.
    """

    proposed: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    draft: Draft | None
    table: NGramTable
    logprobs: Tensor
    position: int
    noise: GumbelNoise
    draws: RandomDraws


def _greedy(inputs: VerifyInputs) -> Verdict:
    return verify_greedy(inputs.proposed, inputs.logprobs)


def _exact(inputs: VerifyInputs) -> Verdict:
    noise = inputs.noise.rows(inputs.position, len(inputs.proposed) + 1)
    return verify_exact(inputs.proposed, inputs.logprobs, noise)


def _point_mass(inputs: VerifyInputs) -> Verdict:
    return verify_point_mass(inputs.proposed, inputs.logprobs, inputs.draws)


def _path_revealed(inputs: VerifyInputs) -> Verdict:
    assert inputs.draft is not None
    return verify_path_revealed(inputs.draft, inputs.table, inputs.logprobs, inputs.draws)


def _ratio(inputs: VerifyInputs) -> Verdict:
    assert inputs.draft is not None
    return verify_ratio(inputs.draft, inputs.table, inputs.spans, inputs.logprobs, inputs.draws)


RULES: dict[str, Callable[[VerifyInputs], Verdict]] = {
    "greedy": _greedy,
    "exact": _exact,
    "point_mass": _point_mass,
    "path_revealed": _path_revealed,
    "ratio": _ratio,
}


def _check(proposed: Sequence[int], rows: Tensor) -> None:
    if rows.dim() != 2 or len(rows) != len(proposed) + 1:
        raise DraftError(
            f"{len(proposed)} proposed tokens, and the target's rows are {list(rows.shape)}: it takes "
            f"{len(proposed) + 1} rows, after the prefix and after each proposed token."
        )
    if proposed and not 0 <= min(proposed) <= max(proposed) < rows.shape[1]:
        raise DraftError(
            f"proposed tokens {list(proposed)} for a target of {rows.shape[1]} tokens: pass tokens of the "
            "target, translated, and not those of the drafter."
        )
