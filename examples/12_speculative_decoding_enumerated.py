"""Lesson 12: speculative decoding on a 6-token vocabulary, every outcome counted.

What you will learn
- a drafter proposes, the target accepts or replaces, and the text still has the target's own distribution
  (read `draftlib/plain.py` first, the whole algorithm for one vocabulary);
- for that, the rule must know the distribution of the *proposed* token. Merging "a" "b" into "ab" looks
  ahead, so an "a" that stays single is rarer than the drafter's probability of "a" says;
- the paper's rule (OmniDraft, equations 1 and 2) corrects for the merge that was drafted, and not for the one
  that was not: on the smallest example it gives 1/6, 1/3, 1/2 instead of 1/3 each;
- a rule that reveals more of the draft stays exact and accepts less.

Run: python examples/12_speculative_decoding_enumerated.py        (seconds)
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from drawing import BLUE, GREEN, GREY, ORANGE, canvas, save
from torch import Tensor

from draftlib.drafting.propose import Draft
from draftlib.plain import speculative_decode
from draftlib.verification.rejection import ratio, residual
from draftlib.verification.revealed import Proposed, path_revealed
from draftlib.vocabulary.ngram_table import NGramTable


def one_vocabulary(p: Tensor, q: Tensor) -> None:
    """Let a drafter q and a target p write 40 texts of 100 tokens; each token comes as often as p says."""
    target, draft = (lambda tokens, row=row: row.log().expand(1, tokens.shape[1], -1) for row in (p, q))
    generator = torch.Generator().manual_seed(0)
    texts = [speculative_decode(target, draft, [0], 2, 100, 1.0, generator) for _ in range(40)]
    text = torch.tensor(texts).flatten().bincount(minlength=len(p)) / 4000
    for name, shares in (("target", p), ("drafter", q), ("text of both", text)):
        print(f"{name:16}" + "".join(f"{share:8.3f}" for share in shares.tolist()))


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
    """Print three tables, draw one picture."""
    torch.set_default_dtype(torch.float64)
    print("One vocabulary: how often each of three tokens comes\n")
    one_vocabulary(p=torch.tensor([0.5, 0.3, 0.2]), q=torch.tensor([0.2, 0.3, 0.5]))
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
        print(f"\n{title}: all {len(q) ** k} drafts, all decisions\n")
        show(names, p, {name: first_token(q, p, table, k, rule) for name, rule in RULES.items()}, axes, title)
    print("\ndistance: total variation from the target. accepted: how often the first proposed token stands.")
    save(figure, "12_speculative_decoding_enumerated")


if __name__ == "__main__":
    main()
