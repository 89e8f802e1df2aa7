"""Lesson 19: speculative decoding with one vocabulary, every outcome counted.

What you will learn
- a drafter q guesses k tokens; the target p keeps a beginning of them and adds one token: a pass of the
  target yields 1 to k + 1 tokens;
- a guess x is accepted with probability min(1, p(x) / q(x)), else the token is drawn from max(p - q, 0):
  then the text has exactly the target's distribution. All outcomes are counted, with their probabilities;
- if a guess is accepted with probability a, a round gives (1 - a^(k+1)) / (1 - a) tokens, and takes 1 + ck
  passes: so there is a best k. A better drafter makes it larger, and so does a cheaper one.

Papers: Leviathan et al. (arXiv 2211.17192), algorithm 1, equation 1, theorem 3.8; Chen et al. (2302.01318).
Page: docs/drafting/one_vocabulary.md    Source: draftlib/plain.py
Exercise: examples/exercises/ex11_accept_and_residual.py
Run: python examples/19_speculative_decoding.py        (seconds)
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable

import torch
from speculation_pictures import draw_speculation
from torch import Tensor

from draftlib.plain import residual, speculative_decode
from qlib.models.table import align

V = "abc"
# Row i: what follows token i. Two models that know one token of the text before, and do not agree.
P = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], dtype=torch.float64)
Q = torch.tensor([[0.3, 0.5, 0.2], [0.2, 0.3, 0.5], [0.3, 0.4, 0.3]], dtype=torch.float64)
Outcomes = dict[tuple[int, ...], float]


# %% What is computed
def one_round(last: int, k: int) -> Outcomes:
    """Return every list of tokens that a round after the token `last` can add, and its probability."""
    found: Outcomes = defaultdict(float)
    for x in itertools.product(range(3), repeat=k):
        before = (last, *x)  # before[i] is what guess i and its verification look at
        chance = 1.0
        for i, guess in enumerate(x):
            chance *= float(Q[before[i], guess])
        # `reached`: the chance that this draft was made and its first n guesses were accepted.
        reached = chance
        for n, guess in enumerate(x):
            p, q = P[before[n]], Q[before[n]]
            keep = min(1.0, float(p[guess] / q[guess]))
            if keep < 1:
                for token, share in enumerate((residual(p, q) / residual(p, q).sum()).tolist()):
                    found[(*x[:n], token)] += reached * (1 - keep) * share
            reached *= keep
        for token, share in enumerate(P[before[k]].tolist()):
            found[(*x, token)] += reached * share
    return found


def texts(last: int, length: int, k: int) -> Outcomes:
    """Return the distribution of the next `length` tokens, written in rounds."""
    found: Outcomes = defaultdict(float)
    for tokens, chance in one_round(last, k).items():
        if len(tokens) >= length:
            found[tokens[:length]] += chance
        else:
            for rest, share in texts(tokens[-1], length - len(tokens), k).items():
                found[(*tokens, *rest)] += chance * share
    return found


def alone(model: Tensor, last: int, length: int) -> Outcomes:
    """Return the distribution of the next tokens of one model alone."""
    chains = itertools.product(range(3), repeat=length)
    return {
        x: float(torch.stack([model[i, j] for i, j in itertools.pairwise((last, *x))]).prod()) for x in chains
    }


def tokens_per_round(a: float, k: int) -> float:
    """Return 1 + a + ... + a^k: the target's own token, and guess i if all up to it are accepted."""
    return sum(a**i for i in range(k + 1))  # (1 - a^(k+1)) / (1 - a), and k + 1 for a = 1


def speed(a: float, k: int, c: float) -> float:
    """Return tokens in the time of one pass of the target; a step of the drafter takes c of it."""
    return tokens_per_round(a, k) / (1 + c * k)


def as_model(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a model for `speculative_decode`: tokens [1, T] to logits [1, T, V]."""
    return lambda tokens: rows.log()[tokens]


def main() -> None:
    """Print tables, draw one picture."""
    # %% 1. The distribution of the first two tokens after "a", for the target, the drafter, and both together
    found = {"target": alone(P, 0, 2), "drafter": alone(Q, 0, 2), "both, k = 3": texts(0, 2, k=3)}
    names = {x: V[x[0]] + V[x[1]] for x in found["target"]}
    rows = [("", *names.values())]
    rows += [(name, *(f"{outcomes[x]:.3f}" for x in names)) for name, outcomes in found.items()]
    print(f"probabilities of the next two tokens, all drafts and decisions counted\n\n{align(rows)}")
    worst = max(abs(found["both, k = 3"][x] - found["target"][x]) for x in names)
    print(f"largest difference between both and the target: {worst:.0e}")

    # %% 2. Rejected guesses: without the residual the text would be another one
    p, q = P[0], Q[0]
    naive = torch.minimum(p, q) + (1 - torch.minimum(p, q).sum()) * p
    print(
        f"\na rejected token drawn from p: {[round(each, 3) for each in naive.tolist()]}, wanted {p.tolist()}"
    )

    # %% 3. Drawn instead of counted: the same algorithm of draftlib/plain.py
    generator, after = torch.Generator().manual_seed(0), []
    for _ in range(40):
        text = speculative_decode(as_model(P), as_model(Q), [0], 3, 100, 1.0, generator)
        after += [token for last, token in itertools.pairwise(text) if last == 0]
    shares = [round(after.count(token) / len(after), 3) for token in range(3)]
    print(f"drawn, {len(after):,} tokens after a: {shares}")

    # %% 4. Tokens per round: the formula is exact where all guesses are accepted equally often
    a = float(torch.minimum(p, q).sum())
    rows = [("draft tokens k", *map(str, range(1, 6)))]
    rows.append(
        ("counted", *(f"{sum(len(x) * s for x, s in one_round(0, k).items()):.3f}" for k in range(1, 6)))
    )
    rows.append((f"formula, a = {a:.2f}", *(f"{tokens_per_round(a, k):.3f}" for k in range(1, 6))))
    print(f"\ntokens per round after the token a\n\n{align(rows)}")
    print("(after b and c guesses may be accepted more or less often)")

    # %% 5. The best k
    costs, acceptances = (0.02, 0.05, 0.1, 0.3), (0.5, 0.7, 0.8, 0.9)
    rows = [("c \\ a", *map(str, acceptances))]
    for c in costs:
        cells = []
        for acceptance in acceptances:
            best = max(range(30), key=lambda k: speed(acceptance, k, c))
            cells.append(f"k = {best}, {speed(acceptance, best, c):.2f}x")
        rows.append((str(c), *cells))
    print("\nbest k and speed-up, by acceptance a and cost c of a draft token in passes of the target\n")
    print(align(rows))
    draw_speculation(
        {name: {names[x]: outcomes[x] for x in names} for name, outcomes in found.items()},
        {a: [tokens_per_round(a, k) for k in range(11)] for a in (0.5, 0.7, 0.8, 0.9)},
        {c: [speed(0.8, k, c) for k in range(16)] for c in (0.02, 0.1, 0.3)},
    )


# %% Try this: predict first, then run
# 1. Q = P: how many tokens does a round of three give? Q = P[[1, 2, 0]]: is the text still the target's?
# 2. A 1 more in `costs`: a drafter as slow as the target. At which a does one draft token pay? And at a = 1?
# 3. Why is "counted" above the formula for k > 1? `torch.minimum(P, Q).sum(1)` is a after a, b and c.

if __name__ == "__main__":
    main()
