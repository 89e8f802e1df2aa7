"""Lesson 20: shared noise against rejection.

What you will learn
- argmax(log p + g), with a standard Gumbel number g for each token, is a draw from p;
- let drafter and target draw with the *same* g, and they mostly draw the same token. A draft token is
  accepted if it is the one that the target draws; nothing else is compared;
- that happens with probability sum_i 1 / sum_j max(p_j / p_i, q_j / q_i), at least (1 - TV) / (1 + TV).
  Rejection accepts 1 - TV, the most that any rule can, where TV = 1/2 sum |p - q|;
- in return the text depends on the seed alone: it is token for token what the target writes without drafter.

Papers: Daliri, Musco, Suresh 2024 (arXiv 2408.07978), theorem 3; Leviathan et al. (2211.17192), theorem 3.5.
Page: docs/drafting/lossless.md    Source: draftlib/verification/noise.py, verify.py, rejection.py
Exercise: examples/exercises/ex12_gumbel_coupling.py
Run: python examples/20_shared_noise.py        (seconds)
"""

from __future__ import annotations

import torch
from speculation_pictures import draw_noise
from torch import Tensor

from draftlib.verification.noise import gumbel
from draftlib.verification.verify import verify_exact
from qlib.models.table import align

P = torch.tensor([0.5, 0.25, 0.15, 0.1])
Q = torch.tensor([0.3, 0.4, 0.2, 0.1])
NAMES = "abcd"[: len(P)]
SEED = 7


# %% What is computed
def rejection(p: Tensor, q: Tensor) -> float:
    """Return how often a draft token, drawn from q, is accepted: sum min(p, q) = 1 - TV."""
    return float(torch.minimum(p, q).sum())


def shared(p: Tensor, q: Tensor) -> float:
    """Return how often both draw the same token with the same noise.

    log p_i + g_i is the largest of its row, and log q_i + g_i of its, if g_j - g_i is smaller than both
    log(p_i / p_j) and log(q_i / q_j) for all other j. With e = exp(-g), for which P(e > x) = exp(-x), this
    is e_j > m_j e_i with m_j = max(p_j / p_i, q_j / q_i). For a given e_i its probability is the product of
    exp(-m_j e_i) over the other j; the mean over e_i is 1 / (1 + sum of these m_j), and the 1 is m_i.
    """
    ratios = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])  # [i, j]
    return float((1 / ratios.sum(1)).sum())


def independent(p: Tensor, q: Tensor) -> float:
    """Return how often two draws with noises of their own agree."""
    return float((p * q).sum())


def pair(generator: torch.Generator, size: int = 50) -> tuple[Tensor, Tensor]:
    """Return two distributions that resemble each other more or less."""
    logits = 2 * torch.randn(size, generator=generator)
    other = logits + 4 * torch.rand((), generator=generator) * torch.randn(size, generator=generator)
    return logits.softmax(0), other.softmax(0)


def write(count: int, drafter: Tensor | None) -> tuple[list[int], int]:
    """Return a text of `count` tokens from P, and the rounds it took; three draft tokens per round."""
    text: list[int] = []
    rounds = 0
    while len(text) < count:
        noise = torch.stack([gumbel(SEED, len(text) + i, len(P)) for i in range(4)])
        drafted = [] if drafter is None else (drafter.log() + noise[:3]).argmax(1).tolist()
        noise = noise[: len(drafted) + 1]
        accepted, token = verify_exact(drafted, P.log().expand(len(noise), -1), noise)
        text += [*drafted[:accepted], token]
        rounds += 1
    return text[:count], rounds


def main() -> None:
    """Print three tables, draw one picture."""
    # %% 1. One position: what each adds up, and who wins
    noise = gumbel(SEED, position=0, count=len(P))
    rows = [("token", "g", "log p + g", "log q + g")]
    rows += [
        (name, *(f"{float(each[i]):.2f}" for each in (noise, P.log() + noise, Q.log() + noise)))
        for i, name in enumerate(NAMES)
    ]
    print(align(rows))

    # %% 2. Many positions: draws from p, and how often both draw the same
    many = torch.stack([gumbel(SEED, position, len(P)) for position in range(20_000)])
    target, drafter = (P.log() + many).argmax(1), (Q.log() + many).argmax(1)
    drawn = (target.bincount(minlength=len(P)) / len(target)).tolist()
    print("\nprobabilities of the target ", *(f"{each:6.3f}" for each in P.tolist()))
    print("drawn 20,000 times          ", *(f"{each:6.3f}" for each in drawn))
    rows = [("rule", "accepted"), ("rejection, 1 - TV", f"{rejection(P, Q):.3f}"),
            ("shared noise, formula", f"{shared(P, Q):.3f}"),
            ("shared noise, counted", f"{float((target == drafter).float().mean()):.3f}"),
            ("at least (1 - TV) / (1 + TV)", f"{rejection(P, Q) / (2 - rejection(P, Q)):.3f}"),
            ("independent draws", f"{independent(P, Q):.3f}")]  # fmt: skip
    print(f"\n{align(rows)}")

    # %% 3. The text depends on the seed alone
    alone, rounds = write(200, None)
    print(f"\n{'drafter':24}{'rounds':>7}  same text")
    print(f"{'none':24}{rounds:7}")
    for name, drafter_q in (("Q", Q), ("P itself", P), ("Q the other way round", Q.flip(0))):
        text, rounds = write(200, drafter_q)
        print(f"{name:24}{rounds:7}  {text == alone}")

    # %% 4. Three hundred pairs: acceptance against TV
    generator = torch.Generator().manual_seed(0)
    pairs = [pair(generator) for _ in range(300)]
    points = [(1 - rejection(p, q), shared(p, q), independent(p, q)) for p, q in pairs]
    lost = [1 - tv - each for tv, each, _ in points]
    print(f"\n300 pairs: shared noise accepts {sum(lost) / 300:.3f} less than rejection on average, "
          f"{max(lost):.3f} at most")  # fmt: skip
    draw_noise(points, {"target": P.log() + noise, "drafter": Q.log() + noise}, NAMES)


# %% Try this: predict first, then run
# 1. Q = P: what do the three rules accept? Which of them is not 1, and why?
# 2. Two tokens, P = torch.tensor([x, 1 - x]) and Q = torch.tensor([y, 1 - y]) with numbers of
#    your own: when do shared noise and rejection accept equally often?
# 3. temperature 0: what is left of g? Compare with `verify_greedy` in verify.py.

if __name__ == "__main__":
    main()
