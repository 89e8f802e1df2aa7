"""Lesson 26: how many tokens to draft.

What you will learn
- if each draft token is accepted with probability a, a round of k yields 1 + a + ... + a^k tokens on average,
  and takes 1 + k (c + r) passes of the target: c for a step of the drafter, r for one more row to verify;
- so there is a best k. But a differs from token to token, and the drafter has an idea of it. Stop when it
  doubts the whole draft (Confidence), hesitates at the newest token (Entropy), when a trained head expects a
  rejection, 1 - product of P_i > gamma (AcceptanceHead), or when one more token gains less than it costs
  (CostAware, the default);
- a rule may look at what was drafted and at earlier rounds: the text stays the target's, whatever it decides.

Papers: Leviathan et al. (arXiv 2211.17192), equation 1; OmniDraft (arXiv 2507.02659), equations 5 to 7; SVIP
(arXiv 2411.18462). Page: docs/drafting/learning.md#how-far-to-draft
Source: draftlib/drafting/length.py, cost_aware.py, draftlib/learning/acceptance.py
Exercise: examples/exercises/ex14_a_lossless_length_rule.py
Run: python examples/26_how_far_to_draft.py      (under a minute; with SmolLM2 if it was fetched)
"""

from __future__ import annotations

from collections.abc import Sequence

from drafting_pictures import draw_lengths
from shorter_drafts import Recorded, cut, record

from draftlib import AcceptanceHead, Confidence, CostAware, Entropy, FixedLength
from draftlib.drafting.cost_aware import fates
from draftlib.drafting.length import Length

MOST = 8  # draft tokens
# Of a pass: c as in docs/drafting/speed.md, r as in the replays of docs/drafting/learning.md.
C, R = 0.1, 0.03


# %% 1. What is known of each draft token: the drafter's probability of it, and whether it was accepted
def known_tokens(rounds: Sequence[Recorded]) -> list[tuple[float, bool]]:
    """Return both for all tokens up to the first that was rejected; behind it nobody knows."""
    return [
        (one.confidence, gain > 0)
        for drafted, round in rounds
        for one, gain in zip(drafted, fates(round), strict=True)
        if gain is not None
    ]


def share(known: Sequence[tuple[float, bool]], low: float = 0, high: float = 1) -> float:
    """Return how often tokens of such confidence were accepted."""
    fate = [accepted for confidence, accepted in known if low <= confidence <= high]
    return sum(fate) / max(len(fate), 1)


# %% 2. The formula
def tokens_per_round(a: float, k: int) -> float:
    """Return 1 + a + ... + a^k: the target's own token, and token i if it and all before it are accepted."""
    return sum(a**i for i in range(k + 1))


# %% 3. A rule at work: it sees the draft grow, and then the round that came of it
def replay(rule: Length, rounds: Sequence[Recorded]) -> tuple[float, float, float]:
    """Return draft tokens per round, tokens per round, and tokens in the time of one pass."""
    chosen = []
    for drafted, round in rounds:
        lengths = range(1, min(len(drafted), rule.max_tokens) + 1)
        k = next((k for k in lengths if rule.stop(drafted[:k])), lengths[-1])
        chosen.append(cut(round, k, C, R))
        rule.learn(chosen[-1])
    late = chosen[len(chosen) // 2 :]  # some rules learn: the first half of the rounds is for them
    drafts, tokens = sum(len(each.draft.tokens) for each in late), sum(len(each.tokens) for each in late)
    return drafts / len(late), tokens / len(late), tokens / sum(each.seconds.decoding for each in late)


RULES = {
    "Confidence(0.4)": Confidence(0.4, MOST),
    "Entropy(0.6)": Entropy(0.6, MOST),
    "Entropy(2.0)": Entropy(2.0, MOST),
    "AcceptanceHead(0.9)": AcceptanceHead(0.9, MOST),
    "CostAware()": CostAware(MOST),
}


# %% 4. All rules
def main() -> None:
    """Print tables, draw one picture."""
    rounds = record(MOST)
    known = known_tokens(rounds)
    a = share(known)
    print(
        f"{len(rounds)} rounds of {MOST} draft tokens each; of those whose fate is known {a:.0%} accepted\n"
    )
    print("the drafter's probability of a token, and how often such tokens were accepted")
    for low, high in ((0, 0.3), (0.3, 0.6), (0.6, 0.9), (0.9, 1)):
        print(f"{low:5} to {high:<5}{share(known, low, high):8.2f}")
    print("\nrule                  drafted   tokens per round   tokens in the time of one pass")
    fixed = [replay(FixedLength(k), rounds) for k in range(1, MOST + 1)]
    for k, (drafted, tokens, speed) in enumerate(fixed, 1):
        formula = f"(formula {tokens_per_round(a, k):.2f})"
        print(f"FixedLength({k}){drafted:15.2f}{tokens:9.2f} {formula:18}{speed:9.2f}")
    found = {name: replay(rule, rounds) for name, rule in RULES.items()}
    for name, (drafted, tokens, speed) in found.items():
        print(f"{name:21}{drafted:8.2f}{tokens:9.2f}{speed:28.2f}")
    draw_lengths([each[::2] for each in fixed], {name: each[::2] for name, each in found.items()})


# %% Try this: predict first, then run
# 1. C = 0.3: a drafter of three times the size. Which fixed length is best now? Which rules notice?
#    And R = 0.08, which docs/drafting/speed.md has for one thread?
# 2. `tokens_per_round(a, 8)` and the counted tokens differ: why, if a is right on average?
# 3. A further line in RULES, "AcceptanceHead(0.3)": AcceptanceHead(0.3, MOST), the paper's other gamma:
#    longer or shorter drafts than with 0.9?

if __name__ == "__main__":
    main()
