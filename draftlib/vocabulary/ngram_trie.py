"""A trie of draft n-grams: nested dictionaries, one for each prefix, that lead from token to token.

    insert (5, 6, 7) and (5, 8):     root -5-> . -6-> . -7-> n-gram
                                               . -8-> n-gram

Each node also knows how near the next n-gram below it is. A prefix of an n-gram may still become that n-gram
only if as many tokens can still be drafted; this is what verification asks for at every token, so that it is
kept up at every change and not searched for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

Tokens = tuple[int, ...]


class Node:
    """A prefix of n-grams, and an n-gram itself where it has a target token.

    Attributes
    ----------
    children : dict of int to Node
        One for each token that leads on towards a longer n-gram. Not to be changed.
    missing : int
        Fewest further tokens to an n-gram below; 0 if there is none.
    target : int or None
        The target token that the draft tokens from the root to here spell; None for a mere prefix.
    count : int
        How often the target emitted it.
    last : int
        Clock of the cache when it was last emitted; below 0 if it never was.
    aged : int
        Age of the cache when it was last emitted.
    """

    __slots__ = ("aged", "children", "count", "last", "missing", "target")

    def __init__(self) -> None:
        self.children: dict[int, Node] = _NO_CHILDREN
        self.target: int | None = None
        self.missing = self.count = self.last = self.aged = 0


_NO_CHILDREN: dict[int, Node] = {}  # shared by all leaves, which are most of the nodes; never written to


class NGramTrie:
    """N-grams by their draft tokens.

    >>> trie = NGramTrie()
    >>> for key, target in (((5, 6, 7), 1), ((5, 8), 2)):
    ...     _ = trie.insert(key, target)
    >>> trie.children((5,)), trie.children(()), trie.extends((5, 8))
    ({6: 1, 8: 0}, {5: 1}, False)
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all n-grams."""
        self._root, self._length = Node(), 0

    def __len__(self) -> int:
        """Return the number of n-grams."""
        return self._length

    # --- look up

    def get(self, tokens: Sequence[int]) -> Node | None:
        """Return the n-gram of exactly these tokens, or None."""
        node = self._find(tokens)
        return None if node is None or node.target is None else node

    def extends(self, prefix: Sequence[int]) -> bool:
        """Return whether some longer n-gram begins with `prefix`."""
        node = self._find(prefix)
        return node is not None and bool(node.children)

    def children(self, prefix: Sequence[int]) -> Mapping[int, int]:
        """Return the tokens that lead on from `prefix`, each with the fewest further tokens to an n-gram.

        0 stands for none: the token completes an n-gram, and no longer one begins so.
        """
        node = self._find(prefix)
        return {} if node is None else {token: child.missing for token, child in node.children.items()}

    def longest(self, tokens: Sequence[int], start: int = 0) -> tuple[int, int] | None:
        """Return length and target token of the longest n-gram that stands at `start`, or None."""
        found, node = None, self._root
        for at in range(start, len(tokens)):
            child = node.children.get(tokens[at])
            if child is None:
                break
            node = child
            if node.target is not None:
                found = at + 1 - start, node.target
        return found

    def __iter__(self) -> Iterator[tuple[Tokens, Node]]:
        """Yield every n-gram with its tokens, in no order that means anything."""
        waiting: list[tuple[Tokens, Node]] = [((), self._root)]
        for prefix, node in waiting:  # it grows meanwhile
            for token, child in node.children.items():
                tokens = (*prefix, token)
                if child.target is not None:
                    yield tokens, child
                if child.children:
                    waiting.append((tokens, child))

    @property
    def memory_bytes(self) -> int:
        """Bytes of all nodes, their dictionaries and the numbers in them; counted anew at each call."""
        total, waiting = 0, [self._root]
        while waiting:
            node = waiting.pop()
            held = [node, *node.children]
            held += [node.children] if node.children else []
            held += [] if node.target is None else [node.target, node.last]
            total += sum(map(sys.getsizeof, held))
            waiting += node.children.values()
        return total

    # --- change

    def insert(self, tokens: Sequence[int], target: int) -> Node:
        """Add an n-gram of at least one token, or give the one that is there this target; return it."""
        node, further = self._root, len(tokens)
        for token in tokens:
            node.missing = min(node.missing or further, further)
            child = node.children.get(token)
            if child is None:
                child = Node()
                if node.children:
                    node.children[token] = child
                else:
                    node.children = {token: child}
            node, further = child, further - 1
        self._length += node.target is None
        node.target = target
        return node

    def remove(self, tokens: Sequence[int]) -> None:
        """Remove an n-gram that is there, and the nodes that lead to it alone."""
        way = [self._root]
        for token in tokens:
            way.append(way[-1].children[token])
        ngram = way[-1]
        ngram.target, ngram.count, ngram.last, ngram.aged = None, 0, 0, 0
        self._length -= 1
        for at in reversed(range(len(tokens))):
            node, child, distance = way[at], way[at + 1], len(tokens) - at
            if child.target is None and not child.children:
                del node.children[tokens[at]]
                node.children = node.children or _NO_CHILDREN
            if node.missing == distance:  # what was removed was the nearest n-gram, or one of the nearest
                node.missing = _missing(node, distance)
            if node.children and node.missing <= distance:
                return  # another one is as near: nothing changes further up

    def _find(self, tokens: Sequence[int]) -> Node | None:
        node: Node | None = self._root
        for token in tokens:
            node = node.children.get(token) if node is not None else None
        return node


def _missing(node: Node, least: int) -> int:
    """Return the fewest tokens from a node to an n-gram below it, not under `least`; 0 if there is none."""
    nearest = 0
    for child in node.children.values():
        distance = 1 if child.target is not None else 1 + child.missing
        if distance == least:
            return least
        nearest = min(nearest or distance, distance)
    return nearest
