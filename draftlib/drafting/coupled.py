"""Drawing draft tokens with the target's own noise, so that both models often take the same token.

Rule      For verification by shared noise the drafter draws y = argmax(log q + g) with the target's noise g.
          The closer q and p, the more often both take the same token. `coupled_noise` says which g belongs to
          a draft token.
Shapes    D: drafter's vocabulary, V: target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftlib.verification.noise import GumbelNoise
from draftlib.vocabulary.ngram_table import NGramTable
from draftlib.vocabulary.ngram_trie import Tokens


@dataclass(frozen=True)
class Coupled:
    """A `Draw` with the target's own noise, for verification by shared noise.

    Attributes
    ----------
    position : int
        Position in the target's text of the first token of this round.
    table : NGramTable
        Direct counterparts and n-grams of this round.
    noise : GumbelNoise
        The target's noise, rows [V].
    own : GumbelNoise
        Other noise, rows [D], for the draft tokens that have no target token of their own.
    candidates : int
        How many of the likeliest tokens are looked up as the end of an n-gram. It changes only how often
        proposals are accepted. Over 20 prompts (SmolLM2-135M, drafter-7m, temperature 0.8, a warm cache) 2
        and 1024 gave the same accepted tokens, and with 1024 a draft token took a tenth longer than with 32.
    """

    position: int
    table: NGramTable
    noise: GumbelNoise
    own: GumbelNoise
    candidates: int = 32

    def __call__(self, logprobs: Tensor, drafted: Sequence[int]) -> int:
        """Return argmax(log q + g)."""
        return int((logprobs + coupled_noise(self, logprobs, drafted)).argmax())


def coupled_noise(coupled: Coupled, logprobs: Tensor, drafted: Sequence[int]) -> Tensor:
    """Return for every draft token the noise of the target token that it would bring about, [D].

    Positions are counted in target tokens. With w the drafted tokens whose translation is still open:

    1. w is empty: token x begins target position j, and takes g_j[direct(x)].
    2. w is not empty: a token that makes a key of w takes g_j[merged token]. Any other token leaves w to its
       longest match, and is looked up in what then remains of w, at position j + 1.
    3. A token without a target token of its own takes other noise, so that q is still what is drawn from.

    `logprobs` [D] says which tokens are worth the look-up.
    """
    return _noise_after(coupled, logprobs, tuple(drafted), coupled.position)


def _noise_after(coupled: Coupled, logprobs: Tensor, w: Tokens, position: int) -> Tensor:
    if not w:
        return _fresh_noise(coupled, position)
    match = coupled.table.longest(w)
    # Without a match nothing after w can be proposed, unless w becomes a key: any noise will do.
    rest = w[match[0] :] if match else ()
    noise = _noise_after(coupled, logprobs, rest, position + 1)
    if coupled.table.extends(w):
        for token in logprobs.topk(min(coupled.candidates, len(logprobs))).indices.tolist():
            merged = coupled.table.target((*w, token))
            if merged is not None:
                noise[token] = coupled.noise.row(position)[merged]
    return noise


def _fresh_noise(coupled: Coupled, position: int) -> Tensor:
    """Return the noise for tokens that begin a target token, [D], a new tensor."""
    direct = coupled.table.direct
    shared = coupled.noise.row(position)[direct.clamp(min=0)]
    return torch.where(direct >= 0, shared, coupled.own.row(position))
