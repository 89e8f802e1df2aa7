"""All rules of verification by name, with one signature: `SpeculativeDecoder(verify=...)` picks one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.verification.draws import RandomDraws
from draftlib.verification.noise import GumbelNoise
from draftlib.verification.rejection import verify_path_revealed, verify_ratio
from draftlib.verification.verify import Verdict, verify_exact, verify_greedy, verify_point_mass
from draftlib.vocabulary.ngram_table import NGramTable


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
