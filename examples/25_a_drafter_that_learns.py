"""Lesson 25: a drafter that learns from its target while it is used.

What you will learn
- the target's probabilities are computed anyway, to verify. They say what the drafter should have said;
- the vocabularies differ. Where the target's token is one draft token, the paper compares distributions
  (reverse KL); where it is several, an n-gram, it makes the pieces that were written more likely (NLL):
      L = KL(q' || p) at direct tokens  +  lambda * (-log q(piece)) at pieces,  lambda = 0.2
- or minimise the probability of a rejection itself, 1 - sum of min(p~, q), with p~ the target's distribution
  spelled in draft tokens: the default of `OnlineAdapter`;
- online, acceptance doubles within 16 similar prompts, and the text stays the target's.

Paper: OmniDraft (arXiv 2507.02659), equations 3 and 4, algorithm 2. Page: docs/drafting/learning.md
Source: draftlib/learning/distill.py, spelled.py, online.py
Exercise: examples/exercises/ex15_reverse_kl.py
Run: python examples/25_a_drafter_that_learns.py      (half a minute; both models are in this repository)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from drafting_pictures import draw_learning
from torch import Tensor

from draftlib import NGramCache, OnlineAdapter, SpeculativeDecoder, Stats
from draftlib.learning.distill import Written, compress, hybrid_loss, reverse_kl
from draftlib.learning.spelled import Soft, acceptance_loss, next_pieces
from qlib.models import load_model

# %% 1. One position, by hand: the target writes " on", " traveled" or " went"
DRAFT = [" on", " tra", "veled", " went"]
SPELLING = {0: (0,), 1: (1, 2), 2: (3,)}  # of the target's three tokens, in draft tokens
DIRECT = torch.tensor([0, -1, -1, 2])  # the target token with the same bytes as each draft token
P, Q = torch.tensor([0.2, 0.6, 0.2]), torch.tensor([0.4, 0.1, 0.1, 0.4])  # of the target, of the drafter
# One position of each of five texts. They go on as P says: " on", three times " tra" of " traveled", " went".
WRITTEN = Written(
    tokens=torch.tensor([0, 1, 1, 1, 3]),  # in draft tokens
    owners=torch.tensor([0, 1, 1, 1, 2]),  # the target token that each of them is a piece of
    # Pieces of that token from this one on; 0 where its last piece ("veled") is not among the positions.
    left=torch.tensor([1, 0, 0, 0, 1]),
)


def spelled(before: list[int]) -> Tensor:
    """Return p~: the target's distribution as one over the next draft token, behind some pieces."""
    found, _ = next_pieces(range(3), P.tolist(), before, SPELLING.__getitem__)
    return torch.tensor([found.get(piece, 0.0) for piece in range(4)])


def descend(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the drafter's distribution at which gradient descent ends, from Q on."""
    logits = Q.log()
    for _ in range(2000):
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits.expand(5, 4)), logits)
        logits = logits.detach() - 0.05 * gradient
    return logits.softmax(0)


def one_position() -> None:
    """Print what each loss makes of the drafter."""
    rows, wanted = compress(P.log().expand(5, 3), 3), spelled([])  # P at all five positions; p~
    soft = Soft(torch.arange(4).expand(5, 4), wanted.expand(5, 4))  # p~ there, as tokens and probabilities
    found = {
        "wanted, p~": wanted,
        "before learning": Q,
        "reverse KL only": descend(lambda q: reverse_kl(q, rows, DIRECT, 3).mean()),
        "hybrid": descend(lambda q: hybrid_loss(q, WRITTEN, rows, DIRECT, 3, ngram_weight=0.2)),
        "acceptance": descend(lambda q: acceptance_loss(q, soft).mean()),
    }
    print("One position: probabilities of the next draft token; how often it is accepted at best\n")
    print(f"{'':18}" + "".join(f"{piece!r:>10}" for piece in DRAFT) + "  accepted")
    for name, q in found.items():
        figures = *q.tolist(), float(torch.minimum(q, wanted).sum())
        print(f"{name:18}" + "".join(f"{figure:10.2f}" for figure in figures))
    print(f"\nAfter ' tra' the target wants 'veled': p~ = {float(spelled([1])[2]):.2f}")


# %% 2. Online: questions of one kind, an update after every eight of them
NAMES, GOODS = ("Anna", "Tom", "Maria", "Omar", "Lucy"), ("apples", "books", "coins", "pens", "eggs", "cards")
QUESTIONS = [
    f"{NAMES[i % 5]} has {7 + 3 * i % 41} {GOODS[i % 6]} and sells {2 + i % 5} of them. How many are left?"
    for i in range(24)
]
TEST, STREAM, COUNTS = QUESTIONS[:8], QUESTIONS[8:], (0, 8, 16)


def learn(adapter: OnlineAdapter) -> list[float]:
    """Answer the stream; return what is accepted per round of the test questions, every 8 prompts."""
    curve, (target, draft) = [], map(load_model, ("drafter-7m", "drafter-generic-7m"))
    decoder = SpeculativeDecoder(target, draft, cache=NGramCache(), length=4, adapter=adapter)
    for start in COUNTS:
        adapter.frozen = True  # nothing is learned from the test questions
        tests = [list(decoder.steps(prompt, max_new_tokens=32)) for prompt in TEST]
        curve.append(sum(map(Stats.of, tests), Stats()).accepted_per_round)
        adapter.frozen = False
        for prompt in STREAM[start : start + 8]:
            list(decoder.steps(prompt, max_new_tokens=32))
    alone = decoder.generate_target_only(TEST[-1], max_new_tokens=32).tokens
    assert alone == tuple(token for step in tests[-1] for token in step.tokens)  # the target's own text
    return curve


# %% 3. Both
def main() -> None:
    """Print two tables, draw one picture."""
    one_position()
    print("\nOnline: accepted tokens per round of four draft tokens, on 8 questions not learned from\n")
    print(f"{'prompts learned from':22}" + "".join(f"{count:8}" for count in COUNTS))
    curves = {}
    for loss in ("acceptance", "hybrid"):
        curves[loss] = learn(OnlineAdapter(loss=loss, share=math.inf))
        print(f"{loss:22}" + "".join(f"{value:8.2f}" for value in curves[loss]))
    print("\nThe two models are equally large, so nothing gets faster here: look at what is accepted.")
    draw_learning(COUNTS, curves)


# %% Try this: predict first, then run
# 1. Q = [0.2, 0.3, 0.3, 0.2]. How far does reverse KL alone move it? It sees tra and veled as one event.
# 2. ngram_weight=2 in `one_position`: what becomes of " on" and " went"?
# 3. learning_rate=1e-2 in `main` is ten times the default. Why does it still learn? (FACTORS in online.py)

if __name__ == "__main__":
    main()
