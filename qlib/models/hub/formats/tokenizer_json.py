"""Edits of `tokenizer.json` (byte-level BPE), as plain dictionaries: mend a table that lost merges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

Pair = tuple[str, str]


def mend_merges(tokenizer: dict[str, Any]) -> list[Pair]:
    """Put back, in place, the merges that vocabulary entries need and the merge list lacks.

    In a table of the GPT-2 kind every entry of two or more characters is made by one merge, and merges are in
    the order of the entries' ids. An entry that no merge makes can never be encoded, and nothing built on it
    can either; its merge is what is left when all earlier merges have been applied to it.

    Parameters
    ----------
    tokenizer : dict
        Content of a `tokenizer.json`. Tables of other kinds are left alone.

    Returns
    -------
    list of tuple of str
        The merges put back, in the order of their ids. Entries that do not end in two pieces are skipped.

    Examples
    --------
    >>> table = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3}, "merges": ["ab a"]}}
    >>> mend_merges(table)
    [('a', 'b')]
    >>> table["model"]["merges"]
    ['a b', 'ab a']
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return []
    vocabulary: dict[str, int] = model["vocab"]
    spelled = bool(model["merges"]) and isinstance(model["merges"][0], str)  # "a b", or a list of two
    merges = [_pair(merge) for merge in model["merges"]]
    specials = {entry["content"] for entry in tokenizer.get("added_tokens", [])}
    made = {left + right for left, right in merges}
    lost = [token for token in vocabulary if len(token) > 1 and token not in made and token not in specials]
    mended = []
    for token in sorted(lost, key=vocabulary.__getitem__):
        earlier = [pair for pair in merges if vocabulary.get("".join(pair), 0) < vocabulary[token]]
        pieces = apply_merges(token, earlier)
        if len(pieces) == 2:
            merges.insert(len(earlier), (pieces[0], pieces[1]))
            mended.append((pieces[0], pieces[1]))
    model["merges"] = [" ".join(pair) if spelled else list(pair) for pair in merges]
    return mended


def apply_merges(word: str, merges: list[Pair]) -> list[str]:
    """Split a word into the pieces that byte pair encoding makes of it: the earliest merge first.

    >>> apply_merges("aba", [("b", "a"), ("a", "ba")])
    ['aba']
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    pieces = list(word)
    while len(pieces) > 1:
        best = min(_neighbours(pieces), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined: list[str] = []
        while pieces:
            width = 2 if tuple(pieces[:2]) == best else 1
            joined.append("".join(pieces[:width]))
            pieces = pieces[width:]
        pieces = joined
    return pieces


def _neighbours(pieces: list[str]) -> Iterator[Pair]:
    return itertools.pairwise(pieces)


def _pair(merge: str | list[str]) -> Pair:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
