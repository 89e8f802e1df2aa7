"""Speculative decoding in its plainest form: one vocabulary, k draft tokens per round, no cache.

A small model (the drafter) guesses the next k tokens one by one. The large model (the target) looks at all
guesses in one pass, keeps the first n of them and adds one token. The text has the distribution that it would
have if the target had written it alone; a round costs one pass of the target and yields 1 to k + 1 tokens.

Papers    Leviathan, Kalman, Matias 2023 (arXiv 2211.17192, Algorithm 1) and Chen et al. 2023 (arXiv
          2302.01318, Algorithm 2). p is the target's distribution, q the drafter's, x the guesses. Leviathan
          et al. write gamma for k, Chen et al. K, and the latter swap p and q.
Lossless  A token y comes out because it was guessed and accepted, which has the probability min(p(y), q(y)),
          or because another guess was rejected and y was drawn from max(p - q, 0), normalised. That has the
          probability p(y) - min(p(y), q(y)). The sum is p(y).
Shapes    V: vocabulary, T: tokens of the text, k: guesses of a round.
Left out  What `draftlib.SpeculativeDecoder` adds: two vocabularies, key/value caches, drafts that stop early,
          top-k and top-p, endings, and texts that equal the target's own token for token also when sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LanguageModel = Callable[[Tensor], Tensor]
"""Tokens [1, T] to logits [1, T, V], row i predicting token i + 1: a `TextModel`, or any function like it."""


@torch.inference_mode()
def speculative_decode(
    target: LanguageModel,
    draft: LanguageModel,
    tokens: Sequence[int],
    k: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Continue a text by `max_new_tokens` tokens.

    Parameters
    ----------
    target, draft : callable
        Two models with the same vocabulary.
    tokens : sequence of int
        The text so far, at least one token.
    k : int
        Guesses of a round.
    max_new_tokens : int
        How many tokens to add.
    temperature : float
        0 takes the most probable token everywhere; the text is then the target's own, token for token.
    generator : torch.Generator, optional
        Source of the random numbers.
    """
    text, end = list(tokens), len(tokens) + max_new_tokens
    while len(text) < end:
        # 1. The drafter guesses k tokens: x_i ~ q_i = q(. | text, x_1 .. x_(i-1)).
        x: list[int] = []
        q: list[Tensor] = []
        for _ in range(k):
            q.append(distributions(draft, text + x, temperature)[-1])
            x.append(sample(q[-1], generator))
        # 2. One pass of the target gives p_1 .. p_(k+1): after the text and after each guess.
        p = distributions(target, text + x, temperature)[-(k + 1) :]
        # 3. Accept x_i with probability min(1, p_i(x_i) / q_i(x_i)), up to the first rejection. n are kept.
        n = 0
        while n < k and happens(float(p[n][x[n]] / q[n][x[n]]), generator):
            n += 1
        # 4. The target adds one token: in place of the rejected guess, or after all k of them.
        last = residual(p[n], q[n]) if n < k else p[k]
        text += [*x[:n], sample(last, generator)]
    return text[len(tokens) : end]


def distributions(model: LanguageModel, text: Sequence[int], temperature: float) -> Tensor:
    """Return the probabilities [T, V] of what follows each token; at temperature 0 they are 0 or 1."""
    logits = model(torch.tensor([list(text)]))[0]
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return (logits / temperature).softmax(-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return what a token is drawn from after a rejection, [V]: max(p - q, 0), not normalised."""
    return (p - q).clamp(min=0)


def happens(probability: float, generator: torch.Generator | None) -> bool:
    """Decide about an event of this probability; 1 or more always happens."""
    return float(torch.rand((), generator=generator)) < probability


def sample(weights: Tensor, generator: torch.Generator | None) -> int:
    """Draw a token, each with a probability proportional to its weight, [V]."""
    return int(torch.multinomial(weights, 1, generator=generator))
