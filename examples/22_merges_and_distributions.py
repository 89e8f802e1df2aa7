"""Lesson 22: merged tokens, and what their distribution is.

What you will learn
- verification must know the distribution of the *proposed* token. Merging "a" "b" into "ab" looks ahead, so
  an "a" that stays single is rarer than the drafter's probability of "a" says;
- the paper's rule corrects for the merge that was drafted, and not for the one that was not: on the smallest
  example it gives 1/6, 1/3, 1/2 instead of 1/3 each;
- a rule is exact if it takes the distribution *given what it has looked at*. "Path revealed" looks at a draft
  token where a longer n-gram is still possible, and not at the one that decides; point mass looks at all of
  them. Who looks at more stays exact and accepts less.

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
from qlib.models.table import align

SMALLEST = {(0,): 0, (1,): 1, (0, 1): 2}  # a -> A, b -> B, ab -> AB


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


def drafts(q: Tensor, k: int) -> list[Draft]:
    """Return all drafts of k tokens. In use, q [D] depends on the text; here it is the same everywhere."""
    found = itertools.product(range(len(q)), repeat=k)
    return [Draft(tokens, q.log().expand(k, -1), (0.0,) * k, horizon=k) for tokens in found]


def by_hand(q: Tensor, names: list[str], table: NGramTable) -> None:
    """Print, for drafts of two tokens, from which distribution each rule takes the first to be drawn."""
    rows = [("draft", "proposed first", *RULES)]
    for draft in drafts(q, 2):
        found = [rule(draft, table, len(names))[0] for rule in RULES.values()]
        values = [" ".join(f"{share:.2f}" for share in each.probabilities.tolist()) for each in found]
        rows.append(("".join("ab"[token] for token in draft.tokens), names[found[0].token], *values))
    print(f"Probabilities of {', '.join(names)} as the first proposed token\n\n{align(rows)}\n")
    print("Path revealed: an a may still become ab, so it is looked at. The second token decides between A")
    print("and AB; it is not looked at, and its q is shared out among the two. A first b is not looked at")
    print("either: it was no a, so it is b for certain. The paper takes A to be as probable as a, unless ab")
    print("was drafted.\n")


def first_token(q: Tensor, p: Tensor, table: NGramTable, k: int, rule: Any) -> tuple[Tensor, float]:
    """Return the exact distribution of the first token, and how often it is the proposed one."""
    out, accepted = torch.zeros_like(p), 0.0
    for draft in drafts(q, k):
        chance = float(q[list(draft.tokens)].prod())
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
    """Print three tables, draw one picture."""
    # %% 1. The smallest example, draft by draft
    torch.set_default_dtype(torch.float64)
    by_hand(torch.tensor([1 / 2, 1 / 2]), ["A", "B", "AB"], NGramTable.of(SMALLEST, 2))

    # %% 2. Two examples, three rules: what is written
    examples = [  # title, target tokens, n-grams, k: length of a draft, q, p
        ("The smallest example", ["A", "B", "AB"], SMALLEST, 2,
         [1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3]),
        ("Six tokens", ["A", "B", "C", "AB", "BC", "ABC"],
         {(0,): 0, (1,): 1, (2,): 2, (0, 1): 3, (1, 2): 4, (0, 1, 2): 5}, 3,
         [0.5, 0.3, 0.2], [0.25, 0.1, 0.15, 0.2, 0.1, 0.2]),
    ]  # fmt: skip
    figure = canvas(12, 4)
    for axes, (title, names, ngrams, k, draft, target) in zip(figure.subplots(1, 2), examples, strict=True):
        q, p, table = torch.tensor(draft), torch.tensor(target), NGramTable.of(ngrams, len(draft))
        print(f"{title}: all {len(q) ** k} drafts of length {k}, all decisions\n")
        show(names, p, {name: first_token(q, p, table, k, rule) for name, rule in RULES.items()}, axes, title)
        print()
    print("distance: total variation from the target. accepted: how often the first proposed token is.")
    save(figure, "22_merges_and_distributions")


# %% Try this: predict first, then run
# 1. k = 1 in `examples`, for 2 and for 3: no merge can be drafted. Which rules differ now?
# 2. A drafter that always writes a, then b: why can it not be given as q here? What would each rule accept?
# 3. The smallest example with p = [1/4, 1/2, 1/4], how often each token is proposed: why does "path revealed"
#    not accept all of them?

if __name__ == "__main__":
    main()
