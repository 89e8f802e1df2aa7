"""N-grams with a limit: which ones go when there are too many.

The least often (LFU) or the least recently (LRU) emitted ones go. Plain LFU never forgets: what was said a
hundred times on one subject stays when the subject has changed, and what the new one needs goes again before
it is said twice. So an n-gram is worth its emissions *plus the age of the cache when it was last emitted*,
and the cache is as old as the best n-gram that ever had to go was worth. This costs nothing, and has nothing
to tune (LFU-DA: Arlitt et al., "Evaluating content management techniques for web proxy caches", 2000).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from draftlib.vocabulary.ngram_trie import NGramTrie, Tokens

Policy = Literal["lfu", "lru"]


class Row(NamedTuple):
    """An n-gram with all that is kept of it: the numbers of `ngram_trie.Node`, `emitted` is its count."""

    tokens: Tokens
    target: int
    emitted: int
    last: int
    aged: int


class BoundedNGrams:
    """N-grams of which the least useful ones go when there are too many.

    Attributes
    ----------
    ngrams : NGramTrie
        The n-grams. It is the same object for as long as the cache lives; whoever holds it sees every change.
    max_entries : int
        Most n-grams kept.
    policy : {"lfu", "lru"}
        Least useful: the least often emitted, with ageing, and of equals the longest ago; or simply the
        longest ago.
    evicted : int
        N-grams that had to go.
    """

    def __init__(self, max_entries: int, policy: Policy) -> None:
        self.ngrams = NGramTrie()
        self.max_entries, self.policy, self.evicted = max_entries, policy, 0
        self._clock = 0  # emissions so far
        self._age = 0  # the most that an n-gram which had to go was worth (LFU)

    def __len__(self) -> int:
        """Return the number of n-grams that look-ups see."""
        return len(self.ngrams)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the n-grams take."""
        return self.ngrams.memory_bytes

    def _emitted(self, tokens: Tokens, target: int) -> None:
        """Count one emission of an n-gram, which may be new."""
        self._clock += 1
        # Two target tokens may have the same bytes: the one emitted last is the better guess.
        ngram = self.ngrams.insert(tokens, target)
        ngram.count += 1
        ngram.last, ngram.aged = self._clock, self._age

    def _evict(self) -> None:
        """Let the least useful go if there are too many."""
        surplus = self._surplus(len(self))
        for row in self._rows()[:surplus] if surplus else ():
            self._grow_older(row.emitted + row.aged)
            self.ngrams.remove(row.tokens)

    def _surplus(self, entries: int) -> int:
        """Return how many of so many have to go.

        A sixteenth more than must: sorting all of them for every single one would cost more than it is
        worth.
        """
        return 0 if entries <= self.max_entries else entries - self.max_entries + self.max_entries // 16

    def _grow_older(self, worth: int) -> None:
        """Take note of an n-gram that goes."""
        self.evicted += 1
        if self.policy == "lfu":
            self._age = max(self._age, worth)

    def _rows(self) -> list[Row]:
        """Return all n-grams, the least useful first."""
        return self._in_order(
            Row(tokens, node.target, node.count, node.last, node.aged)
            for tokens, node in self.ngrams
            if node.target is not None
        )

    def _in_order(self, rows: Iterable[Row]) -> list[Row]:
        """Return rows, the least useful first."""
        if self.policy == "lfu":
            return sorted(rows, key=lambda row: (row.emitted + row.aged, row.last))
        return sorted(rows, key=lambda row: row.last)

    def _aged_from_now(self) -> list[Row]:
        """Return all n-grams, their ages less the age of now, which is 0 where the rows are read."""
        return [row._replace(aged=row.aged - self._age) for row in self._rows()]

    def _restore(self, rows: Iterable[Row]) -> None:
        """Hold these n-grams and no others, as many of the most useful as may stay."""
        self.ngrams.clear()
        self._age = 0
        ordered = self._in_order(rows)
        surplus = self._surplus(len(ordered))
        for row in ordered[:surplus]:
            self._grow_older(row.emitted + row.aged)
        for tokens, target, count, last, aged in ordered[surplus:]:
            ngram = self.ngrams.insert(tokens, target)
            ngram.count, ngram.last, ngram.aged = count, last, aged
