"""The n-grams of one round, frozen: draft tokens that together spell one target token.

A key is a tuple of draft tokens; its value is the target token of the same bytes. Keys of one token are the
direct map. The questions that proposing and verifying ask about *longer* keys are answered here, each in one
look-up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from qlib.errors import DraftError

Tokens = tuple[int, ...]


class Keys(Protocol):
    """What drawing with the target's noise needs to know of the direct map and the n-grams."""

    direct: Tensor
    """Target token of each draft token, int64 [D]; -1 where there is none."""

    def target(self, tokens: Tokens) -> int | None:
        """Return the target token that exactly these draft tokens spell, if they are a key."""
        ...

    def extends(self, prefix: Tokens) -> bool:
        """Return whether some longer key begins with `prefix`."""
        ...


class Dictionary(Keys, Protocol):
    """What the exact law of a merged token needs to know beyond that."""

    def children(self, prefix: Tokens) -> Collection[int]:
        """Return the draft tokens that lead from `prefix` towards a key of two tokens or more."""
        ...

    def missing(self, prefix: Tokens) -> int:
        """Return the fewest further tokens that make a longer key of `prefix`; 0 if none does."""
        ...


class Snapshot:
    """A snapshot of a plain mapping from draft tokens to target tokens.

    Parameters
    ----------
    keys : Mapping of tuple of int to int
        Draft tokens to target token. Keys of one token are the direct map.
    draft_size : int
        Size of the drafter's vocabulary.

    Raises
    ------
    DraftError
        A key is empty, or holds a token that is not in the drafter's vocabulary.

    >>> keys = Snapshot({(0,): 5, (1,): 6, (0, 1, 1): 7}, draft_size=2)
    >>> keys.direct.tolist(), keys.target((0, 1)), keys.target((0, 1, 1))
    ([5, 6], None, 7)
    >>> list(keys.children(())), keys.missing((0,)), keys.missing((1,))
    ([0], 2, 0)
    """

    def __init__(self, keys: Mapping[Tokens, int], draft_size: int) -> None:
        self.direct = torch.full((draft_size,), -1)
        self._targets = dict(keys)
        self._children: dict[Tokens, dict[int, None]] = {}  # a dict, for a set has no fixed order
        self._missing: dict[Tokens, int] = {}
        for key, target in keys.items():
            if not key or not all(0 <= token < draft_size for token in key):
                raise DraftError(
                    f"dictionary key {key} of target token {target}: a key has at least one token, each from "
                    f"0 to {draft_size - 1}. Was the dictionary made for another drafter?"
                )
            if len(key) == 1:
                self.direct[key[0]] = target
            else:
                self._insert(key)

    def _insert(self, key: Tokens) -> None:
        for n in range(len(key)):
            prefix, left = key[:n], len(key) - n
            self._children.setdefault(prefix, {})[key[n]] = None
            self._missing[prefix] = min(left, self._missing.get(prefix, left))

    def target(self, tokens: Tokens) -> int | None:
        """Return the target token that exactly these draft tokens spell, if they are a key."""
        return self._targets.get(tokens)

    def extends(self, prefix: Tokens) -> bool:
        """Return whether some longer key begins with `prefix`."""
        return prefix in self._missing

    def children(self, prefix: Tokens) -> Collection[int]:
        """Return the draft tokens that lead from `prefix` towards a key of two tokens or more."""
        return self._children.get(prefix, {})

    def missing(self, prefix: Tokens) -> int:
        """Return the fewest further tokens that make a longer key of `prefix`; 0 if none does."""
        return self._missing.get(prefix, 0)


def longest_match(keys: Keys, tokens: Sequence[int]) -> tuple[int, int] | None:
    """Return length and target token of the longest key that `tokens` begin with, or None."""
    best, n = None, 0
    while n < len(tokens):
        n += 1
        target = keys.target(tuple(tokens[:n]))
        best = best if target is None else (n, target)
        if not keys.extends(tuple(tokens[:n])):
            break
    return best
