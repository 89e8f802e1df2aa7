"""Which draft tokens of a round the target accepted, and the loss of a guess at it.

Papers    SpecDec++ (arXiv 2405.19715: the weighted loss); OmniDraft (arXiv 2507.02659).
Problem   Two vocabularies: the drafter decides after every draft token whether to go on, but target tokens
          are accepted; one of them may stand for several draft tokens, and for some draft tokens none does.
Rule      The unit is the draft token. Its label says whether it was accepted, given that all before it were.
Why       The label is the outcome of the round, not the target's probability p of the token, because the
          outcome follows the rule of verification and the temperature, whatever they are. Greedy, a token
          with p = 0.4 may be certain of its acceptance; with shared noise the drafter takes a token *because*
          the target is likely to, so that p is too low. SpecDec++ has min(1, p/q), right for rejection alone.
          Heads that learned p ranked draft tokens as well, and chose worse lengths: with the rule and the
          drafters of `acceptance.py` speed-ups of 1.82 instead of 1.94, at temperature 0.8 1.62 instead of
          1.67.
Shapes    n: draft tokens with a label, width: of the drafter's hidden state.
Left out  Labels after the first rejection: the target's rows there could tell what it would have said. And
          the room of an answer, which no round knows: where it cuts off just the last token, that one has 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qlib.errors import DraftError

if TYPE_CHECKING:
    from draftlib.round import Round


class Examples(NamedTuple):
    """Draft tokens whose label is known.

    Attributes
    ----------
    hidden : Tensor
        [n, width]; the drafter's last hidden states from which they were predicted.
    confidences : Tensor
        [n]; the drafter's own probabilities of them, at temperature 1.
    labels : Tensor
        [n]; from 0 (rejected) to 1 (accepted).
    """

    hidden: Tensor
    confidences: Tensor
    labels: Tensor


def labels_of(round: Round) -> list[float | None]:
    """Return for every draft token of a round whether it was accepted, 1 or 0, or None if nobody knows.

    1. A proposed token that is accepted gives 1 to each of the draft tokens that it stands for; the first
       that is rejected gives 0 to each of its own.
    2. Behind the first rejection nothing is known: a label is conditional on all earlier tokens.
    3. If all are accepted and nothing translates the last draft token, that one gets 0: it was in vain. Where
       several are left over, the answer had no room for them, or they began an n-gram that did not come:
       None.

    1 for each of n pieces, or 0: their product is the label of the group either way.

    >>> from draftlib.drafting.propose import Draft
    >>> from draftlib.round import Round
    >>> from draftlib.verification.verify import Verdict
    >>> from draftlib.vocabulary.translate import Translation
    >>> draft = Draft((5, 6, 7, 8), torch.empty(4, 9), (0.5,) * 4, horizon=4)
    >>> spans = Translation(tokens=(20, 21, 22), starts=(0, 2, 3), stops=(2, 3, 4))  # 20 is 5 and 6 together
    >>> labels_of(Round(1, (), (), draft, spans, verdict=Verdict(1, 30)))
    [1.0, 1.0, 0.0, None]
    """
    if round.draft is None:
        return []
    labels: list[float | None] = [None] * len(round.draft.tokens)
    accepted = round.verdict.accepted
    for j, (start, stop) in enumerate(round.spans[: accepted + 1]):
        labels[start:stop] = [float(j < accepted)] * (stop - start)
    translated = round.spans[-1][1] if round.spans else 0
    if accepted == len(round.proposed) and translated == len(labels) - 1:
        labels[-1] = 0.0
    return labels


def examples_of(round: Round) -> Examples | None:
    """Return the draft tokens of a round that have a label; None if there are none, or no hidden states."""
    labels = labels_of(round)
    known = [i for i, label in enumerate(labels) if label is not None]
    if round.draft is None or not round.draft.hidden or not known:
        return None
    return Examples(
        torch.stack([round.draft.hidden[i] for i in known]).to("cpu", torch.float32),
        torch.tensor([round.draft.confidences[i] for i in known]),
        torch.tensor([labels[i] for i in known]),
    )


def weighted_bce(logits: Tensor, labels: Tensor, reject_weight: float = 6.0) -> Tensor:
    """Return the weighted binary cross-entropy, a scalar.

    sum(y (-log P) + r (1 - y) (-log(1 - P))) / sum(y + r (1 - y)), with P = sigmoid(logits).

    Parameters
    ----------
    logits : Tensor
        [n]; log-odds of acceptance.
    labels : Tensor
        [n]; y, from 0 to 1.
    reject_weight : float
        r; an acceptance weighs 1. Of a token that is accepted with probability p, the network then learns
        P = p / (p + r (1 - p)), so that drafts are shorter the larger r is.

    Raises
    ------
    DraftError
        There is no label.

    >>> round(float(weighted_bce(torch.zeros(2), torch.tensor([1.0, 0.0]))), 4)  # (1 + 6) ln 2 / (1 + 6)
    0.6931
    """
    if not len(labels):
        raise DraftError(
            "no draft token has a label: there is nothing to train on. Wait for a finished round."
        )
    reject = reject_weight * (1 - labels)
    loss = labels * F.softplus(-logits) + reject * F.softplus(logits)
    return loss.sum() / (labels + reject).sum()
