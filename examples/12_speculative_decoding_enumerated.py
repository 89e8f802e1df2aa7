"""Lesson 12: speculative decoding on a 6-token vocabulary, every outcome counted.

What you will learn
- a drafter proposes, the target accepts or replaces, and the text can still be exactly the target's own;
- for that, the rule must know the law of the *proposed* token. Merging "a" "b" into "ab" looks ahead, so an
  "a" that stays single is rarer than the drafter's probability of "a" says;
- the paper's rule (OmniDraft, equations 1 and 2) corrects for the merge that was drafted, and not for the one
  that was not: on the smallest example it gives 1/6, 1/3, 1/2 instead of 1/3 each;
- a rule that reveals more of the draft stays exact and accepts less.

Run: python examples/12_speculative_decoding_enumerated.py        (seconds)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from drawing import BLUE, GREEN, GREY, ORANGE, canvas, save
from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.verification.revealed import Proposed, path_revealed
from draftlib.verification.verify import ratio, residual
from draftlib.vocabulary.ngram_table import NGramTable

Rule = Callable[[Draft, NGramTable, int], list[Proposed]]


def spans(draft: Draft, keys: NGramTable) -> list[tuple[int, int]]:
    """Return the draft tokens that each target token stands for: greedy longest match."""
    found, start = [], 0
    while start < len(draft.tokens) and (match := keys.longest(draft.tokens[start:])):
        found.append((start, start + match[0]))
        start += match[0]
    return found


def paper(draft: Draft, keys: NGramTable, size: int) -> list[Proposed]:
    """Return the proposed tokens with the paper's law: approximate."""
    return ratio(draft, keys, spans(draft, keys), size)


def point_mass(draft: Draft, keys: NGramTable, size: int) -> list[Proposed]:
    """Return them with a law that knows everything, and so has one token only: exact."""
    tokens = [keys.longest(draft.tokens[start:stop]) for start, stop in spans(draft, keys)]
    one = torch.eye(size, dtype=torch.float64)
    return [Proposed(match[1], one[match[1]]) for match in tokens if match]


RULES: dict[str, Rule] = {"point mass": point_mass, "path revealed": path_revealed, "the paper's": paper}


def first_token(q: Tensor, p: Tensor, keys: NGramTable, k: int, rule: Rule) -> tuple[Tensor, float]:
    """Return the exact law of the first token that comes out, and how often it is the proposed one.

    q [D] and p [V] are the same at every position here; the library lets them depend on the text.
    """
    out, accepted = torch.zeros_like(p), 0.0
    for tokens in itertools.product(range(len(q)), repeat=k):
        chance = float(q[list(tokens)].prod())
        draft = Draft(tokens, q.log().expand(k, -1), (0.0,) * k, k)
        token, law = rule(draft, keys, len(p))[0]
        keep = min(1.0, float(p[token] / law[token]))
        left = residual(p, law)
        out[token] += chance * keep
        out += chance * (1 - keep) * left / left.sum()
        accepted += chance * keep
    return out, accepted


def print_table(names: list[str], p: Tensor, laws: dict[str, tuple[Tensor, float]]) -> None:
    """Print the law under every rule."""
    print(f"{'':16}" + "".join(f"{name:>8}" for name in names) + "  distance  accepted")
    print(f"{'target':16}" + "".join(f"{value:8.3f}" for value in p.tolist()))
    for name, (law, accepted) in laws.items():
        distance = float((law - p).abs().sum() / 2)
        values = "".join(f"{value:8.3f}" for value in law.tolist())
        print(f"{name:16}{values}{distance:10.1e}{accepted:10.3f}")


def draw(axes: Any, title: str, names: list[str], p: Tensor, laws: dict[str, tuple[Tensor, float]]) -> None:
    """Draw the law of the first token, a bar for each rule."""
    bars = {"target": p, **{name: law for name, (law, _) in laws.items()}}
    for i, ((name, law), color) in enumerate(zip(bars.items(), (GREY, GREEN, BLUE, ORANGE), strict=True)):
        places = [number + 0.2 * (i - 1.5) for number in range(len(names))]
        axes.bar(places, law.tolist(), 0.2, color=color, label=name)
    axes.set_xticks(range(len(names)), names)
    axes.set(title=title, xlabel="first token of the text", ylabel="probability")
    axes.legend()


def main() -> None:
    """Print two tables, draw one picture."""
    double = torch.float64
    examples = [
        ("The smallest example", ["A", "B", "AB"], NGramTable.of({(0,): 0, (1,): 1, (0, 1): 2}, 2), 2,
         torch.full((2,), 1 / 2, dtype=double), torch.full((3,), 1 / 3, dtype=double)),
        ("Six tokens, drafts of three", ["A", "B", "C", "AB", "BC", "ABC"],
         NGramTable.of({(0,): 0, (1,): 1, (2,): 2, (0, 1): 3, (1, 2): 4, (0, 1, 2): 5}, 3), 3,
         torch.tensor([0.5, 0.3, 0.2], dtype=double),
         torch.tensor([0.25, 0.1, 0.15, 0.2, 0.1, 0.2], dtype=double)),
    ]  # fmt: skip
    figure = canvas(12, 4)
    for axes, (title, names, keys, k, q, p) in zip(figure.subplots(1, 2), examples, strict=True):
        laws = {name: first_token(q, p, keys, k, rule) for name, rule in RULES.items()}
        print(f"{title}: all {len(q) ** k} drafts, all decisions\n")
        print_table(names, p, laws)
        print()
        draw(axes, title, names, p, laws)
    print("distance: total variation from the target. accepted: how often the first proposed token stands.")
    save(figure, "12_speculative_decoding_enumerated")


if __name__ == "__main__":
    main()
