"""The target's side of a round: which proposed tokens are accepted, and which one token follows them.

Papers    Leviathan et al. 2023 (arXiv 2211.17192, Algorithm 1: acceptance by min(1, p/q) and the residual);
          Daliri, Musco and Suresh 2024 (arXiv 2408.07978: shared noise); OmniDraft 2025 (arXiv 2507.02659,
          Equations 1, 2).
Problem   m target tokens t_1..t_m are proposed. One pass of the target gives p_i = p(. | prefix, t_<i),
          i = 1..m+1. Accept a beginning of them and add one token, so that the text is distributed as the
          target's own.
Rules     `verify_greedy`, `verify_exact`, `verify_point_mass`: the target makes its own choice y_i, by
          argmax, by argmax(log p_i + g_i) or by a draw; t_i is accepted while y_i = t_i; the first other y_i
          is the token. `verify_rejection`: accept t_i with probability min(1, p_i(t_i) / Q_i(t_i)), else draw
          from max(p_i - Q_i, 0), where Q_i is the distribution of the proposed token given all that is known
          before position i. Q_i comes from `path_revealed` (exact) or `ratio` (the paper's, approximate).
Lossless  Choices: what is emitted is y_i, and the proposal decides only how many of them one pass yields.
          Rejection: P(y) = min(p, Q)(y) + (1 - sum min(p, Q)) (p - Q)^+(y) / sum (p - Q)^+ = p(y), for the
          two sums are equal. True if Q_i is the distribution of t_i, and only then: merging looks ahead, so
          that it is not q.
Shapes    m: proposed tokens, V: target's vocabulary, D: drafter's vocabulary, k: drafted tokens.
Left out  Trees of proposals; the full marginal distribution, which needs drafter steps off the drafted path.

The rules that reject are in `rejection.py`. Each rule is a function of plain tensors; `RULES` in `rules.py`
has all of them by name, with one signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from draftlib.verification.draws import RandomDraws
from qlib.errors import DraftError


class Verdict(NamedTuple):
    """The outcome of a round: the first `accepted` proposed tokens become text, then comes `token`."""

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
    check_rows(proposed, logits)
    choices = logits.argmax(-1).tolist()
    return _follow(proposed, lambda i: choices[i])


def verify_exact(proposed: Sequence[int], logprobs: Tensor, noise: Tensor) -> Verdict:
    """Accept while the proposed token is the one that the target draws with its noise. Lossless.

    The emitted tokens do not depend on the proposal at all, so they are the very tokens that the target alone
    draws with the same noise. A drafter that draws with this noise too agrees with the probability
    (1 - TV) / (1 + TV) or more.

    Parameters
    ----------
    proposed : sequence of int
        m target tokens.
    logprobs : Tensor
        [m + 1, V], of the target, from `warp`.
    noise : Tensor
        [m + 1, V], Gumbel noise at the positions of the rows.
    """
    check_rows(proposed, logprobs)
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
    check_rows(proposed, logprobs)
    return _follow(proposed, lambda i: draws.categorical(logprobs[i].exp()))


def _follow(proposed: Sequence[int], choice: Callable[[int], int]) -> Verdict:
    for i, token in enumerate(proposed):
        chosen = choice(i)
        if chosen != token:
            return Verdict(i, chosen)
    return Verdict(len(proposed), choice(len(proposed)))


# --- what all rules ask for


def check_rows(proposed: Sequence[int], rows: Tensor) -> None:
    """Refuse rows that are not one more than the proposed tokens."""
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
