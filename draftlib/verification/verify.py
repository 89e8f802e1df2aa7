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
          from max(p_i - Q_i, 0), where Q_i is the law of the proposed token given all that is known before
          position i. Q_i comes from `path_revealed` (exact) or `ratio` (the paper's, approximate).
Lossless  Choices: what is emitted is y_i, and the proposal decides only how many of them one pass yields.
          Rejection: P(y) = min(p, Q)(y) + (1 - sum min(p, Q)) (p - Q)^+(y) / sum (p - Q)^+ = p(y), for the
          two sums are equal. True if Q_i is the law of t_i, and only then: merging looks ahead, so that law
          is not q.
Shapes    m: proposed tokens, V: target's vocabulary, D: drafter's vocabulary, k: drafted tokens.
Left out  Trees of proposals; the full marginal law, which needs drafter steps off the drafted path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.verification.noise import Chance
from draftlib.verification.revealed import Proposed, path_revealed
from draftlib.vocabulary.dictionary import Dictionary, Keys
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


def verify_point_mass(proposed: Sequence[int], logprobs: Tensor, chance: Chance) -> Verdict:
    """Accept while the proposed token is the one that the target happens to draw. Lossless.

    It needs no law of the proposal. The same as rejection with Q_i all on t_i: accept with probability
    p(t_i), else draw from p without t_i.

    Parameters
    ----------
    proposed : sequence of int
        m target tokens, found in any way whatever.
    logprobs : Tensor
        [m + 1, V], of the target, from `warp`.
    chance : Chance
        Draws the target's tokens.
    """
    _check(proposed, logprobs)
    return _follow(proposed, lambda i: chance.draw(logprobs[i].exp()))


def _follow(proposed: Sequence[int], choice: Callable[[int], int]) -> Verdict:
    for i, token in enumerate(proposed):
        chosen = choice(i)
        if chosen != token:
            return Verdict(i, chosen)
    return Verdict(len(proposed), choice(len(proposed)))


# --- rejection, and the laws it can be given


def residual(p: Tensor, law: Tensor) -> Tensor:
    """Return what is left to draw from after a rejection: max(p - Q, 0), [V], not normalised.

    Where rounding leaves nothing, it is p: then Q was p, and the rejection should not have happened.

    >>> residual(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])).tolist()
    [0.0, 0.25]
    """
    left = (p - law).clamp(min=0)
    return left if float(left.sum()) > 0 else p


def verify_rejection(proposals: Iterable[Proposed], logprobs: Tensor, chance: Chance) -> Verdict:
    """Accept t_i with probability min(1, p_i(t_i) / Q_i(t_i)), else draw from the residual.

    Lossless if each Q_i is the law of t_i given what is known before position i.

    Parameters
    ----------
    proposals : iterable of Proposed
        m target tokens t_i, each with the law Q_i [V] it came from.
    logprobs : Tensor
        [m + 1, V], of the target, from `warp`.
    chance : Chance
        Decides about acceptance and draws the token. It must not be the drafter's own sequence repeated.
    """
    proposals = list(proposals)
    _check([token for token, _ in proposals], logprobs)
    for i, (token, law) in enumerate(proposals):
        p = logprobs[i].exp()
        if not chance.happens(float(p[token] / law[token])):
            return Verdict(i, chance.draw(residual(p, law.to(p))))
    return Verdict(len(proposals), chance.draw(logprobs[-1].exp()))


def verify_path_revealed(draft: Draft, dictionary: Dictionary, logprobs: Tensor, chance: Chance) -> Verdict:
    """Rejection with the exact law of the merged tokens, as far as the drafted path reveals it. Lossless.

    Parameters
    ----------
    draft : Draft
        Tokens drawn independently from the kept laws (`draw_independent`).
    dictionary : Dictionary
        Direct map and n-grams as they were when the round began.
    logprobs : Tensor
        [m + 1, V], of the target; row i after the first i translated tokens. What the draft translates to
        beyond m tokens is left out; m may depend on anything but these tokens.
    chance : Chance
        Decides and draws.
    """
    proposals = path_revealed(draft, dictionary, logprobs.shape[-1])[: len(logprobs) - 1]
    return verify_rejection(proposals, logprobs, chance)


def verify_ratio(
    draft: Draft, dictionary: Keys, spans: Sequence[tuple[int, int]], logprobs: Tensor, chance: Chance
) -> Verdict:
    """Rejection with the paper's law, Equations 1 and 2. NOT lossless when sampling: for comparison only.

    Parameters
    ----------
    draft, dictionary, logprobs, chance
        As in `verify_path_revealed`.
    spans : sequence of (int, int)
        For each proposed token the draft tokens [start, stop) it translates.
    """
    return verify_rejection(ratio(draft, dictionary, spans, logprobs.shape[-1]), logprobs, chance)


def ratio(draft: Draft, dictionary: Keys, spans: Iterable[tuple[int, int]], size: int) -> list[Proposed]:
    """Return the proposed tokens with the law that the paper takes them to have.

    1. Equation 1: q'(t) = q(d) for a direct image, and prod_j q(d_j) for the n-gram that was drafted and
       merged.
    2. Equation 2: q'(t) = q(d_1) - prod_j q(d_j) for the direct image of that n-gram's first token.

    It is not the law of t: n-grams that were *not* drafted also take mass from their first tokens; "not
    merged" says something about the next token; near the end of a draft fewer merges are possible; other keys
    may have the same value.

    Parameters
    ----------
    draft, dictionary, spans
        As in `verify_ratio`.
    size : int
        The target's vocabulary, V.
    """
    known = dictionary.direct >= 0
    proposals = []
    for start, stop in spans:
        q = draft.logprobs[start].exp()
        law = q.new_zeros(size).index_add_(0, dictionary.direct[known], q[known])
        token = dictionary.target(draft.tokens[start:stop])
        if token is None:
            raise DraftError(
                f"draft tokens {draft.tokens[start:stop]} at {start}..{stop} spell no target token of the "
                "dictionary. Pass the spans and the dictionary of the same translation."
            )
        if stop - start > 1:
            path = torch.stack([draft.logprobs[i, draft.tokens[i]] for i in range(start, stop)]).sum().exp()
            first = int(dictionary.direct[draft.tokens[start]])
            if first >= 0:
                law[first] -= path
            law[token] = path
        proposals.append(Proposed(token, law))
    return proposals


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
