"""The n-gram cache: what the target writes as one token and the drafter as several.

    draft tokens (" tra", "ve", "led")  ->  target token " traveled"

It fills from what the target emits, so it holds what this target says on these tasks, and is looked up by
greedy longest match in a trie. It is bounded: the least often (LFU) or least recently (LRU) emitted go.

Paper: "OmniDraft: A cross-vocabulary, online adaptive drafter", section 3.1 and appendix D, arXiv 2507.02659.
Left out there and decided here: the longest match from left to right; what a round adds counts from the next
round on, so that one round is translated by one dictionary.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from draftlib import ngram_file
from draftlib.ngram_file import Table
from draftlib.trie import Trie
from draftlib.vocab import VocabularyMap
from qlib.errors import DraftError

Policy = Literal["lfu", "lru"]


@dataclass(frozen=True)
class NGram:
    """One entry: the target emitted `target_token` `count` times where the drafter spells `draft_tokens`."""

    draft_tokens: tuple[int, ...]
    target_token: int
    count: int


class NGramCache:
    """Draft n-gram -> target token, bounded, for one pair of vocabularies.

    Parameters
    ----------
    max_entries : int
        Most entries kept. When there are more, the least useful sixteenth goes at once.
    policy : {"lfu", "lru"}
        Least useful: the least often emitted, of those the longest ago; or the longest ago.
    max_length : int
        Longest n-gram in draft tokens; longer spellings are not kept.

    Attributes
    ----------
    lookups, hits : int
        How often `longest` was asked, and how often it found something.
    evicted : int
        Entries that had to go.
    """

    def __init__(self, max_entries: int = 50_000, policy: Policy = "lfu", max_length: int = 8):
        for name, value, least in (("max_entries", max_entries, 1), ("max_length", max_length, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DraftError(f"NGramCache: {name}={value!r} must be a whole number of {least} or more.")
        if policy not in ("lfu", "lru"):
            raise DraftError(f"NGramCache: policy={policy!r} is unknown. Use 'lfu' or 'lru'.")
        self.max_entries, self.policy, self.max_length = max_entries, policy, max_length
        self.lookups = self.hits = self.evicted = 0
        self._map: VocabularyMap | None = None
        self._pending: list[tuple[tuple[int, ...], int]] = []
        self._clock = 0
        self._clear()

    def _clear(self) -> None:
        self._trie = Trie()
        # One place each: node of the trie (-1: free), target token, times emitted, clock when last emitted.
        self._node, self._target = array("i"), array("i")
        self._count, self._last = array("q"), array("q")
        self._free = array("i")

    def bind(self, vocabulary_map: VocabularyMap) -> None:
        """Tie the cache to a pair of vocabularies, for good.

        Raises
        ------
        DraftError
            It belongs to another pair.
        """
        if self._map is not None and self._map.fingerprint != vocabulary_map.fingerprint:
            raise DraftError(
                f"This n-gram cache of {len(self)} entries belongs to another pair of vocabularies "
                f"({self._map.fingerprint[:12]}, not {vocabulary_map.fingerprint[:12]}). "
                "Make a new NGramCache for each pair of tokenizers."
            )
        self._map = vocabulary_map

    def __len__(self) -> int:
        """Return the number of entries that look-ups see."""
        return len(self._node) - len(self._free)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the cache's arrays."""
        arrays = (self._node, self._target, self._count, self._last, self._free)
        return self._trie.memory_bytes + sum(each.__sizeof__() for each in arrays)

    def __str__(self) -> str:
        found = f"{self.hits / self.lookups:.1%}" if self.lookups else "none"
        return (
            f"{len(self):,} of at most {self.max_entries:,} n-grams ({self.policy}), "
            f"{self.memory_bytes / 1e6:.1f} MB; {found} of {self.lookups:,} look-ups found one; "
            f"{self.evicted:,} evicted"
        )

    # --- use

    def longest(self, draft_tokens: Sequence[int], start: int) -> tuple[int, int] | None:
        """Return the longest entry that matches from `start` on, in time proportional to its length.

        Parameters
        ----------
        draft_tokens : sequence of int
            Draft tokens.
        start : int
            Where the match must begin.

        Returns
        -------
        (int, int) or None
            Number of draft tokens, at least 2, and the target token that they stand for.
        """
        self.lookups += 1
        found, node, trie = None, 0, self._trie
        for at in range(start, len(draft_tokens)):
            node = trie.child(node, draft_tokens[at])
            if node < 0:
                break
            if (place := trie.value(node)) >= 0:
                found = at + 1 - start, self._target[place]
        self.hits += found is not None
        return found

    def count(self, draft_tokens: Sequence[int]) -> int:
        """Return how often the target emitted what these draft tokens stand for; 0 if there is no entry."""
        place = self._place(draft_tokens)
        return 0 if place < 0 else self._count[place]

    @property
    def trie(self) -> Trie:
        """The keys, to be read only."""
        return self._trie

    def target(self, draft_tokens: Sequence[int]) -> int | None:
        """Return the target token that exactly these draft tokens stand for, if they are an entry."""
        place = self._place(draft_tokens)
        return None if place < 0 else self._target[place]

    def extends(self, prefix: Sequence[int]) -> bool:
        """Return whether some longer entry begins with these draft tokens."""
        node = self._trie.find(prefix)
        return node >= 0 and self._trie.has_children(node)

    def __iter__(self) -> Iterator[NGram]:
        """Yield all entries, the most useful first."""
        for place in reversed(self._by_use()):
            key = self._trie.key(self._node[place])
            yield NGram(key, self._target[place], self._count[place])

    # --- fill

    def add(self, draft_tokens: Sequence[int], target_token: int) -> None:
        """Note that the target emitted a token that the drafter spells so; it takes effect at `commit`.

        Single tokens (they need no entry) and spellings longer than `max_length` are passed over.

        Raises
        ------
        DraftError
            The cache is not bound, or the spelling has other bytes than the token, or one is a special token.
        """
        key = tuple(draft_tokens)
        self._check(key, target_token)
        if 2 <= len(key) <= self.max_length:
            self._pending.append((key, target_token))

    def commit(self) -> None:
        """Let the additions take effect, then let entries go if there are too many."""
        for key, target in self._pending:
            self._clock += 1
            place = self._put(key, target)
            self._count[place] += 1
            self._last[place] = self._clock
        self._pending.clear()
        if len(self) > self.max_entries:
            self._evict()

    def warm_start(self, vocabulary_map: VocabularyMap) -> int:
        """Add every target token that the drafter spells with several tokens, as if emitted zero times.

        They go before anything that the target really said. Early tokens of a vocabulary are the frequent
        ones: they are taken first, while there is room, and stay longest.

        Returns
        -------
        int
            How many entries came in.
        """
        self.bind(vocabulary_map)
        self.commit()
        before = len(self)
        for number, piece in enumerate(vocabulary_map.target_bytes):
            if len(self) == self.max_entries:
                break
            key = tuple(vocabulary_map.speller.spell(piece)[0]) if piece else ()
            fits = 2 <= len(key) <= self.max_length and self._spelled(key) == piece
            if fits and self._place(key) < 0:
                self._last[self._put(key, number)] = -1 - number
        return len(self) - before

    def merge(self, other: NGramCache) -> None:
        """Take the entries of another cache of the same pair: counts add up, its entries are the newer ones.

        What waits for the other's `commit` is not taken.

        Raises
        ------
        DraftError
            The other belongs to another pair of vocabularies.
        """
        if other._map is None:
            return
        self.bind(other._map)
        self.commit()
        mine = self._table()
        theirs = other._table()
        clock = self._clock
        self._clear()
        # Only the survivors are put together, so that memory stays bounded as well.
        merged: dict[tuple[int, ...], tuple[int, int, int]] = {}
        for key, target, count, last in mine.rows():
            merged[key] = target, count, last
        for key, target, count, last in theirs.rows():
            if len(key) <= self.max_length:
                before = merged.get(key, (target, 0, last))
                merged[key] = target, before[1] + count, last + clock if last > 0 else before[2]
        self._clock = clock + other._clock
        self._restore(Table.of((key, *row) for key, row in merged.items()))

    # --- keep

    def save(self, folder: str | Path) -> None:
        """Write the entries to a folder (`ngrams.safetensors`, `ngrams.json`), after a `commit`.

        Raises
        ------
        DraftError
            The cache is not bound to a pair of vocabularies, or the folder holds other files and no cache.
        FileError
            The disk is full, or may not be written.
        """
        vocabulary_map = self._bound()
        self.commit()
        settings = {"max_entries": self.max_entries, "policy": self.policy, "max_length": self.max_length}
        ngram_file.write(Path(folder), self._table(), settings, self._clock, vocabulary_map)

    @classmethod
    def load(cls, folder: str | Path, vocabulary_map: VocabularyMap) -> NGramCache:
        """Read what `save` wrote; counts, order of use and settings come back.

        Raises
        ------
        DraftError
            A file is missing or damaged, or the cache belongs to another pair of vocabularies.
        """
        table, settings, clock = ngram_file.read(Path(folder), vocabulary_map)
        cache = cls(**settings)
        cache.bind(vocabulary_map)
        for key, target, _, _ in table.rows():
            try:
                cache._check(key, target)
            except DraftError as error:
                raise DraftError(f"{folder} is damaged: {error} Delete the folder.") from error
        cache._restore(table)
        cache._clock = clock
        return cache

    # --- inside

    def _bound(self) -> VocabularyMap:
        if self._map is None:
            raise DraftError("This n-gram cache knows no vocabularies yet. Call bind(vocabulary_map) first.")
        return self._map

    def _spelled(self, key: tuple[int, ...]) -> bytes | None:
        """Return the bytes of draft tokens, or None if one of them is special or unknown."""
        table = self._bound().draft_bytes
        pieces = [table[token] if 0 <= token < len(table) else None for token in key]
        whole = [piece for piece in pieces if piece is not None]
        return b"".join(whole) if len(whole) == len(pieces) else None

    def _check(self, key: tuple[int, ...], target: int) -> None:
        spelled, table = self._spelled(key), self._bound().target_bytes
        wanted = table[target] if 0 <= target < len(table) else None
        if spelled is None or wanted != spelled:
            say = {True: "no text (a special token or an unknown id)"}
            raise DraftError(
                f"Draft tokens {list(key)} stand for {say.get(spelled is None, repr(spelled))}, target token "
                f"{target} for {say.get(wanted is None, repr(wanted))}: an n-gram must not change text."
            )

    def _place(self, key: Sequence[int]) -> int:
        """Return the place of an entry, or -1."""
        node = self._trie.find(key)
        return -1 if node < 0 else self._trie.value(node)

    def _put(self, key: tuple[int, ...], target: int) -> int:
        """Return the place of an entry, a new one with count 0 if need be."""
        place = self._place(key)
        if place < 0 and self._free:
            place = self._free.pop()
            self._node[place] = self._trie.insert(key, place)
            self._count[place] = 0
        elif place < 0:
            place = len(self._node)
            self._node.append(self._trie.insert(key, place))
            self._target.append(target)
            self._count.append(0)
            self._last.append(0)
        # Two target tokens may have the same bytes: the one emitted last is the better guess.
        self._target[place] = target
        return place

    def _by_use(self) -> list[int]:
        """Return the places of all entries, the least useful first."""
        used = np.flatnonzero(np.array(self._node) >= 0)
        count, last = np.array(self._count)[used], np.array(self._last)[used]
        order = np.lexsort((last, count) if self.policy == "lfu" else (last,))
        return [int(place) for place in used[order]]

    def _evict(self) -> None:
        """Remove a sixteenth at once: sorting for every single one would cost more than it is worth."""
        keep = self.max_entries - self.max_entries // 16
        for place in self._by_use()[: len(self) - keep]:
            self._trie.remove(self._node[place])
            self._node[place] = -1
            self._free.append(place)
            self.evicted += 1

    def _table(self) -> Table:
        places = self._by_use()
        return Table.of(
            (self._trie.key(self._node[at]), self._target[at], self._count[at], self._last[at])
            for at in places
        )

    def _restore(self, table: Table) -> None:
        """Fill an empty cache with rows, as many of the most useful as may stay."""
        rows = list(table.rows())
        rows.sort(key=(lambda row: row[2:]) if self.policy == "lfu" else (lambda row: row[3]))
        if len(rows) > self.max_entries:
            gone = len(rows) - (self.max_entries - self.max_entries // 16)
            self.evicted += gone
            rows = rows[gone:]
        for key, target, count, last in rows:
            place = self._put(key, target)
            self._count[place], self._last[place] = count, last
