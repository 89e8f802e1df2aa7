"""Finished rounds made by hand, for what learns from rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.round import Round
from draftlib.verification.verify import Verdict
from draftlib.vocabulary.translate import Translation

Spans = Sequence[tuple[int, int]]


def round_of(spans: Spans, accepted: int, hidden: Tensor, confidences: Sequence[float] = ()) -> Round:
    """Return a round with hidden states [k, width] whose proposed tokens stand for `spans` of the draft."""
    k = len(hidden)
    draft = Draft(tuple(range(k)), torch.empty(k, 0), tuple(confidences or [0.5] * k), k, tuple(hidden))
    starts, stops = (tuple(each[end] for each in spans) for end in (0, 1))
    translation = Translation(tuple(range(len(spans))), starts, stops)
    return Round(1, (), (), draft, translation, verdict=Verdict(accepted, 0))


def singles(k: int) -> Spans:
    """Return the spans of k proposed tokens that stand for one draft token each."""
    return [(i, i + 1) for i in range(k)]
