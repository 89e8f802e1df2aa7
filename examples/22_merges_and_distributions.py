"""Lesson 22: merged tokens, and what their distribution is.

What you will learn
- verification must know the distribution of the *proposed* token. Merging "a" "b" into "ab" looks ahead, so
  an "a" that stays single is rarer than the drafter's probability of "a" says;
- the paper's rule corrects for the merge that was drafted, and not for the one that was not: on the smallest
  example it gives 1/6, 1/3, 1/2 instead of 1/3 each;
- a rule that reveals more of the draft stays exact and accepts less.

Paper: OmniDraft (arXiv 2507.02659), equations 1 and 2. Page: docs/drafting/lossless.md
Source: draftlib/verification/revealed.py, rejection.py
Exercise: examples/exercises/ex13_merging_an_ngram.py
Run: python examples/22_merges_and_distributions.py        (seconds)
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from drawing import BLUE, GREEN, GREY, ORANGE, canvas, save
from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.verification.rejection import ratio, residual
from draftlib.verification.revealed import Proposed, path_revealed
from draftlib.vocabulary.ngram_table import NGramTable


# %% What is computed
def spans(draft: Draft, table: NGramTable) -> list[tuple[int, int]]:
    """Return the draft tokens that each target token stands for: greedy longest match."""
    found, start = [], 0
    while start < len(draft.tokens) and (match := table.longest(draft.tokens[start:])):
        found.append((start, start + match[0]))
        start += match[0]
    return found


def paper(draft: Draft, table: NGramTable, size: int) -> list[Proposed]:
    """Return the proposed tokens with the paper's distributions: approximate."""
    return ratio(draft, table, spans(draft, table), size)


def point_mass(draft: Draft, table: NGramTable, size: int) -> list[Proposed]:
    """Return them with distributions that know everything, and so have one token only: exact."""
    tokens = [table.longest(draft.tokens[start:stop]) for start, stop in spans(draft, table)]
    return [Proposed(match[1], torch.eye(size)[match[1]]) for match in tokens if match]


RULES = {"point mass": point_mass, "path revealed": path_revealed, "the paper's": paper}


def first_token(q: Tensor, p: Tensor, table: NGramTable, k: int, rule: Any) -> tuple[Tensor, float]:
    """Return the exact distribution of the first token, and how often it is the proposed one."""
    # q [D] and p [V] are the same at every position here; the library lets them depend on the text.
    out, accepted = torch.zeros_like(p), 0.0
    for tokens in itertools.product(range(len(q)), repeat=k):
        chance = float(q[list(tokens)].prod())
        draft = Draft(tokens, q.log().expand(k, -1), (0.0,) * k, k)
        token, proposal = rule(draft, table, len(p))[0]
        keep = min(1.0, float(p[token] / proposal[token]))
        left = residual(p, proposal)
        out[token] += chance * keep
        out += chance * (1 - keep) * left / left.sum()
        accepted += chance * keep
    return out, accepted


def show(names: list[str], p: Tensor, found: dict[str, tuple[Tensor, float]], axes: Any, title: str) -> None:
    """Print and draw the distribution of the first token under every rule."""
    print(f"{'':16}" + "".join(f"{name:>8}" for name in names) + "  distance  accepted")
    print(f"{'target':16}" + "".join(f"{value:8.3f}" for value in p.tolist()))
    for name, (output, accepted) in found.items():
        distance = float((output - p).abs().sum() / 2)
        values = "".join(f"{value:8.3f}" for value in output.tolist())
        print(f"{name:16}{values}{distance:10.1e}{accepted:10.3f}")
    bars = {"target": p, **{name: output for name, (output, _) in found.items()}}
    for i, ((name, output), color) in enumerate(zip(bars.items(), (GREY, GREEN, BLUE, ORANGE), strict=True)):
        places = [number + 0.2 * (i - 1.5) for number in range(len(names))]
        axes.bar(places, output.tolist(), 0.2, color=color, label=name)
    axes.set_xticks(range(len(names)), names)
    axes.set(title=title, xlabel="first token of the text", ylabel="probability")
    axes.legend()


def main() -> None:
    """Print two tables, draw one picture."""
    # %% 1. Two examples, three rules
    torch.set_default_dtype(torch.float64)
    examples = [
        ("The smallest example", ["A", "B", "AB"], {(0,): 0, (1,): 1, (0, 1): 2}, 2,
         [1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3]),
        ("Six tokens, drafts of three", ["A", "B", "C", "AB", "BC", "ABC"],
         {(0,): 0, (1,): 1, (2,): 2, (0, 1): 3, (1, 2): 4, (0, 1, 2): 5}, 3,
         [0.5, 0.3, 0.2], [0.25, 0.1, 0.15, 0.2, 0.1, 0.2]),
    ]  # fmt: skip
    figure = canvas(12, 4)
    for axes, (title, names, ngrams, k, draft, target) in zip(figure.subplots(1, 2), examples, strict=True):
        q, p, table = torch.tensor(draft), torch.tensor(target), NGramTable.of(ngrams, len(draft))
        print(f"{title}: all {len(q) ** k} drafts, all decisions\n")
        show(names, p, {name: first_token(q, p, table, k, rule) for name, rule in RULES.items()}, axes, title)
        print()
    print("distance: total variation from the target. accepted: how often the first proposed token stands.")
    save(figure, "22_merges_and_distributions")


# %% Try this: predict first, then run
# 1. k = 1: no merge can be drafted. Which rules differ now?
# 2. Make the n-gram (0, 1) certain, q = [1, 0] after which only b can follow: can it be written with this q?
# 3. p equal to the distribution that "path revealed" proposes: how often does the first token stand?

if __name__ == "__main__":
    main()
