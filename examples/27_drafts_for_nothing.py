"""Lesson 27: drafts for nothing: proposals without a step of the drafter.

What you will learn
- what the target writes was often written before. Three sources look it up: the longest suffix of the text
  that occurred before ("suffix"), the successor that the target last found most probable behind each token
  ("recycle"), and the rest of a draft that was rejected ("tail");
- in each round the one proposes that promises the most tokens per second: a guess of n tokens, each right
  with probability r, (1 + r + ... + r^n) / t(n); the drafter what its latest rounds gave; nobody 1 / t(0);
- a guess counts as certain (a point mass) in verification. It is accepted exactly as often as the target
  writes that token by itself, so no token changes. Who proposes depends on measured times and may differ from
  run to run; the text may not.

Papers: prompt lookup (Saxena 2023), SuffixDecoding (arXiv 2411.04975), Token Recycling (arXiv 2408.08696),
SpecASR (arXiv 2507.18181). Page: docs/drafting/learning.md#guesses-that-cost-nothing
Source: draftlib/drafting/lookup.py, recycle.py, tail.py, then choice.py
Exercise: examples/exercises/ex14_a_lossless_length_rule.py
Run: python examples/27_drafts_for_nothing.py      (half a minute; with SmolLM2 if it was fetched)
"""

from __future__ import annotations

from itertools import pairwise

import torch
from drafting_pictures import draw_proposers
from real_pair import real_pair

from draftlib import NGramCache, SpeculativeDecoder, Stats, Step
from draftlib.drafting.lookup import SuffixIndex
from draftlib.drafting.recycle import UNKNOWN, chain
from draftlib.drafting.tail import rejoin

# %% 1. Three sources, on words
TEXT = "the cat sat on the mat and the dog sat on the"


def three_sources() -> None:
    """Print what each of them proposes after the text."""
    words = sorted({*TEXT.split(), "rug"})
    text = [words.index(word) for word in TEXT.split()]
    index, successors = SuffixIndex(), [UNKNOWN] * len(words)
    index.extend(text)
    at, length = index.longest(text) or (0, 0)
    for token, after in pairwise(text):  # in use: the most probable one behind each verified token
        successors[token] = after
    found = {
        f"suffix: the last {length} words stood there before": index.following(at)[:3],
        "recycle: each word's last successor": chain(successors, text[-1], 3),
        "tail: 'mat and the' was rejected, 'rug' written": rejoin(text[5:8], words.index("rug"))[0],
    }
    print(f"{TEXT} ...\n")
    for name, guess in found.items():
        print(f"{name:50}{' '.join(words[token] for token in guess)}")


# %% 2. Who proposes: a round that verifies n tokens takes t(n) = 1 + n row passes of the target
def best_guess(r: float, row: float) -> tuple[float, int]:
    """Return the most tokens in the time of one pass that a guess promises, and how long it is then."""
    return max((sum(r**i for i in range(n + 1)) / (1 + n * row), n) for n in range(16))


def who_proposes(drafter: float, row: float) -> None:
    """Print the choice for guesses of several reliabilities."""
    print(f"\nt(n) = 1 + {row} n passes; the drafter's latest rounds gave {drafter} tokens per pass\n")
    print("a guessed token is right    best length    tokens per pass    proposes")
    for r in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95):
        rate, n = best_guess(r, row)
        without = "the guess" if n else "nobody"
        who = "the guess" if rate > drafter else f"the drafter (without one: {without})"
        print(f"{r:20.0%}{n:19}{rate:19.2f}    {who}")


# %% 3. Why no token changes: accept the guess with p(guess), else draw from p without it
def no_token_changes(p: torch.Tensor) -> None:
    """Print the distribution of what is written where a token is guessed, for each guess."""
    print("\nthe target alone writes A, B, C with:", *(f"{each:6.2f}" for each in p.tolist()))
    for guess, certain in enumerate(torch.eye(3)):  # certain: the point mass on the guess
        rest = p * (1 - certain)
        output = p[guess] * certain + (1 - p[guess]) * rest / rest.sum()
        shares = (f"{each:6.2f}" for each in output.tolist())
        print(f"with the guess {'ABC'[guess]}, accepted {p[guess]:4.0%}:     ", *shares)


# %% 4. In use: a prompt to copy from, and one without anything to copy
PROMPTS = {
    "copy": "Repeat this text: A small group has a small scale, and a small scale has a small error.",
    "free": "What is gravity?",
}


def in_use() -> dict[str, list[Step]]:
    """Print who proposed, with a drafter and without; return the rounds."""
    target, draft = real_pair()
    beside, alone = SpeculativeDecoder(target, draft, cache=NGramCache()), SpeculativeDecoder(target)
    answers = {}
    for name, decoder in (("with a drafter", beside), ("no drafter", alone)):
        for kind, prompt in PROMPTS.items():
            text = decoder.generate_target_only(prompt, max_new_tokens=96).tokens
            steps = answers[f"{kind}, {name}"] = list(decoder.steps(prompt, max_new_tokens=96))
            assert text == tuple(token for step in steps for token in step.tokens)  # the target's own text
            stats = Stats.of(steps)
            print(f"{kind}, {name}: {stats.tokens_per_target_call:.2f} tokens per pass")
            for who, each in stats.sources.items():
                print(f"    {who:8}{each.rounds:4} rounds, {each.accepted:3} of {each.proposed} accepted")
    return answers


def main() -> None:
    """Print four tables, draw one picture."""
    three_sources()
    who_proposes(drafter=1.6, row=0.03)
    no_token_changes(torch.tensor([0.5, 0.3, 0.2]))
    draw_proposers(in_use())


# %% Try this: predict first, then run
# 1. row=0.2 in `who_proposes`: a target on which more rows cost more. How long are good guesses then?
# 2. sources=("suffix", "tail") for `beside`, in `in_use`: how often does "tail" propose?
# 3. temperature=0.8 for `steps` and `generate_target_only`: do the texts still agree? What is accepted?

if __name__ == "__main__":
    main()
