"""A trie of token sequences in flat arrays: about 30 bytes a node where nested dicts take some hundreds.

Node 0 is the root. Each other node knows its parent and its token; one hash table finds the child of a node:

    table[hash(parent, token)] -> node        open addressing, linear probing, 0 = empty

A node may carry a value. Nodes without one lie on the way to others that have one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

_EMPTY = 0  # the root is nobody's child, so its number marks a free place of the table
_NOTHING = -1


class Trie:
    """Maps sequences of tokens to numbers; all ways from the root are walked token by token.

    >>> trie = Trie()
    >>> nodes = [trie.insert(key, 0) for key in ([5, 6, 7], [5, 8])]
    >>> trie.children(trie.find([5])), trie.missing(0), trie.missing(nodes[0])
    ([6, 8], 2, 0)
    """

    def __init__(self) -> None:
        self._outline: Outline | None = None  # of the keys as they are now; forgotten when one comes or goes
        self._parent = array("i", [_NOTHING])
        self._token = array("i", [_NOTHING])
        self._children = array("i", [0])
        self._value = array("i", [_NOTHING])
        self._free = array("i")  # nodes that were removed, to be used again
        self._table = array("i", bytes(4 * 16))

    def __len__(self) -> int:
        """Return the number of nodes, the root included."""
        return len(self._parent) - len(self._free)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self._parent, self._token, self._children, self._value, self._free, self._table)
        return sum(each.__sizeof__() for each in arrays)

    def child(self, node: int, token: int) -> int:
        """Return the child of a node, or -1."""
        place = self._place(node, token)
        return self._table[place] or _NOTHING

    def value(self, node: int) -> int:
        """Return the value of a node, or -1."""
        return self._value[node]

    def has_children(self, node: int) -> bool:
        """Return whether some key goes on behind a node."""
        return self._children[node] > 0

    def find(self, key: Sequence[int]) -> int:
        """Return the node of a whole key, or -1; it may be without a value."""
        node = 0
        for token in key:
            node = self.child(node, token)
            if node < 0:
                return _NOTHING
        return node

    def insert(self, key: Sequence[int], value: int) -> int:
        """Give a key a value (0 or more) and return its node, which stays the same until it is removed."""
        self._outline = None
        node = 0
        for token in key:
            place = self._place(node, token)
            node = self._table[place] or self._add(node, token, place)
        self._value[node] = value
        return node

    def remove(self, node: int) -> None:
        """Take the value of a node away, and the nodes that nothing needs any more."""
        self._outline = None
        self._value[node] = _NOTHING
        while node and not self._children[node] and self._value[node] < 0:
            parent = self._parent[node]
            self._vacate(self._place(parent, self._token[node]))
            self._children[parent] -= 1
            self._parent[node] = _NOTHING
            self._free.append(node)
            node = parent

    def key(self, node: int) -> tuple[int, ...]:
        """Return the tokens on the way to a node."""
        tokens = []
        while node:
            tokens.append(self._token[node])
            node = self._parent[node]
        return tuple(reversed(tokens))

    def children(self, node: int) -> list[int]:
        """Return the tokens that lead on from a node."""
        return self._current().children(node)

    def missing(self, node: int) -> int:
        """Return the fewest further tokens to a node with a value; 0 if there is none below."""
        return self._current().missing(node)

    def _current(self) -> Outline:
        if self._outline is None:
            self._outline = Outline(self)
        return self._outline

    def _add(self, parent: int, token: int, place: int) -> int:
        if self._free:
            node = self._free.pop()
            self._parent[node], self._token[node] = parent, token
        else:
            node = len(self._parent)
            for column, number in (
                (self._parent, parent),
                (self._token, token),
                (self._children, 0),
                (self._value, _NOTHING),
            ):
                column.append(number)
        self._children[parent] += 1
        self._table[place] = node
        if 4 * len(self) > 3 * len(self._table):
            self._grow()
        return node

    def _grow(self) -> None:
        """Double the table and find every node its place again."""
        nodes = [node for node in self._table if node != _EMPTY]
        self._table = array("i", bytes(8 * len(self._table)))
        for node in nodes:
            self._table[self._place(self._parent[node], self._token[node])] = node

    def _home(self, parent: int, token: int) -> int:
        # Fibonacci hashing: neighbouring numbers, as tokens and nodes are, land far apart.
        mixed = ((parent << 20) ^ token) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        return (mixed >> 32) & (len(self._table) - 1)

    def _place(self, parent: int, token: int) -> int:
        """Return where the table holds a child, or the free place where it belongs."""
        table, mask = self._table, len(self._table) - 1
        place = self._home(parent, token)
        while (node := table[place]) != _EMPTY:
            if self._parent[node] == parent and self._token[node] == token:
                break
            place = (place + 1) & mask
        return place

    def _vacate(self, hole: int) -> None:
        """Free a place and move up those behind it that would be cut off from their home by the hole."""
        table, mask = self._table, len(self._table) - 1
        place = hole
        while (node := table[place := (place + 1) & mask]) != _EMPTY:
            home = self._home(self._parent[node], self._token[node])
            if (place - home) & mask >= (place - hole) & mask:
                table[hole] = node
                hole = place
        table[hole] = _EMPTY


class Outline:
    """All children of every node, and how far below it the nearest value is: what a hash table cannot tell.

    It is made for all nodes at once, and its node numbers mean what they mean now: only its trie keeps it.
    """

    def __init__(self, trie: Trie) -> None:
        parent, value = np.array(trie._parent), np.array(trie._value)
        nodes = np.flatnonzero(parent >= 0)  # neither the root nor removed
        nodes = nodes[np.argsort(parent[nodes], kind="stable")]
        self._parents = parent[nodes]
        self._tokens = np.array(trie._token)[nodes]
        never = np.iinfo(np.int32).max - 1
        here = np.where(value >= 0, 0, never)
        below = np.full(len(parent), never)
        while True:  # as often as the longest key has tokens
            nearer = below.copy()
            np.minimum.at(nearer, self._parents, 1 + np.minimum(here, below)[nodes])
            if (nearer == below).all():
                break
            below = nearer
        self._missing = np.where(below < never, below, 0)

    def children(self, node: int) -> list[int]:
        """Return the tokens that lead on from a node."""
        first, last = np.searchsorted(self._parents, [node, node + 1])
        return self._tokens[first:last].tolist()  # type: ignore[no-any-return]

    def missing(self, node: int) -> int:
        """Return the fewest further tokens to a node with a value; 0 if there is none below."""
        return int(self._missing[node])
