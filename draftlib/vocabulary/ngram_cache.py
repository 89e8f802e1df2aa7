"""The n-gram cache: what the target writes as one token and the drafter as several.

    draft tokens (" tra", "ve", "led")  ->  target token " traveled"

It fills from what the target emits, so it holds what this target says on these tasks, and is looked up by
greedy longest match in a trie. It is bounded: the least often (LFU) or least recently (LRU) emitted go.

Plain LFU never forgets: what was said a hundred times on one subject stays when the subject has changed, and
what the new one needs goes again before it is said twice. So an entry counts by its emissions *plus the age
of the cache when it was last emitted*, and the cache is as old as the best entry that it ever let go counted.
This costs nothing, and has nothing to tune (LFU-DA: Arlitt et al., "Evaluating content management techniques
for web proxy caches", 2000).

Paper: "OmniDraft: A cross-vocabulary, online adaptive drafter", section 3.1 and appendix D, arXiv 2507.02659.
Left out there and decided here: the longest match from left to right; what a round adds counts from the next
round on, so that one round is translated by one dictionary.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from draftlib.vocabulary import ngram_file
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_file import Table
from draftlib.vocabulary.trie import Trie
from qlib.errors import DraftError, describe, did_you_mean, whole_number

Policy = Literal["lfu", "lru"]
Numbers = NDArray[Any]


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
        Least useful: the least often emitted, old favourites ageing, and of equals the longest ago; or simply
        the longest ago.
    max_length : int
        Longest n-gram in draft tokens; longer spellings are not kept.

    Attributes
    ----------
    lookups, hits : int
        How often `longest` was asked, and how often it found something.
    evicted : int
        Entries that had to go.

    Raises
    ------
    DraftError
        A setting is of the wrong type or out of its range.
    """

    def __init__(self, max_entries: int = 50_000, policy: Policy = "lfu", max_length: int = 8):
        self.max_entries = whole_number(
            max_entries, "NGramCache: max_entries", DraftError, 1, remedy="It is the most n-grams kept."
        )
        self.max_length = whole_number(
            max_length,
            "NGramCache: max_length",
            DraftError,
            2,
            remedy="An n-gram has 2 draft tokens or more.",
        )
        name = policy.lower() if isinstance(policy, str) else ""
        if name not in get_args(Policy):
            raise DraftError(
                f"NGramCache: policy={policy!r} is unknown. Use 'lfu' or 'lru'."
                f"{did_you_mean(name, get_args(Policy))}"
            )
        self.policy = cast(Policy, name)
        self.lookups = self.hits = self.evicted = 0
        self._map: VocabularyMap | None = None
        self._pending: list[tuple[tuple[int, ...], int]] = []
        self._clock = 0
        self._clear()

    def _clear(self) -> None:
        self._trie = Trie()
        # One place each: node of the trie (-1: free), target token, times emitted, clock when last emitted,
        # age of the cache when last emitted.
        self._node, self._target = array("i"), array("i")
        self._count, self._last, self._aged = array("q"), array("q"), array("q")
        self._free = array("i")
        self._age = 0

    def bind(self, vocabulary_map: VocabularyMap) -> None:
        """Tie the cache to a pair of vocabularies, for good.

        Raises
        ------
        DraftError
            It belongs to another pair.
        """
        if not isinstance(vocabulary_map, VocabularyMap):
            raise DraftError(
                f"A cache is bound to a VocabularyMap, not to {describe(vocabulary_map)}. Pass "
                "decoder.vocabulary, or VocabularyMap.of(draft.tokenizer, target.tokenizer)."
            )
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
        arrays = (self._node, self._target, self._count, self._last, self._aged, self._free)
        return self._trie.memory_bytes + sum(each.__sizeof__() for each in arrays)

    def __str__(self) -> str:
        found = f"{self.hits / self.lookups:.1%}" if self.lookups else "none"
        return (
            f"{len(self):,} of at most {self.max_entries:,} n-grams ({self.policy}), "
            f"{self.memory_bytes / 1e6:.1f} MB; {found} of {self.lookups:,} look-ups found one; "
            f"{self.evicted:,} evicted"
        )

    def __repr__(self) -> str:
        return f"<NGramCache: {len(self):,} of at most {self.max_entries:,} n-grams, {self.policy}>"

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

    def target(self, draft_tokens: Sequence[int]) -> int | None:
        """Return the target token that exactly these draft tokens stand for, if they are an entry."""
        place = self._place(draft_tokens)
        return None if place < 0 else self._target[place]

    def extends(self, prefix: Sequence[int]) -> bool:
        """Return whether some longer entry begins with these draft tokens."""
        node = self._trie.find(prefix)
        return node >= 0 and self._trie.has_children(node)

    def children(self, prefix: Sequence[int]) -> list[int]:
        """Return the draft tokens that lead from `prefix` towards a longer entry."""
        node = self._trie.find(prefix)
        return self._trie.children(node) if node >= 0 else []

    def missing(self, prefix: Sequence[int]) -> int:
        """Return the fewest further tokens that make a longer entry of `prefix`; 0 if none does."""
        node = self._trie.find(prefix)
        return self._trie.missing(node) if node >= 0 else 0

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
            self._last[place], self._aged[place] = self._clock, self._age
        self._pending.clear()
        if self._surplus(len(self)):
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
        if not isinstance(other, NGramCache):
            raise DraftError(
                f"merge takes another NGramCache, not {describe(other)}. NGramCache.load reads one."
            )
        if other._map is None:
            return
        self.bind(other._map)
        self.commit()
        mine = self._table()
        theirs = other._table()
        clock = self._clock
        self._clear()
        # Only the survivors are put together, so that memory stays bounded as well.
        merged = {row[0]: row[1:] for row in mine.rows()}
        for key, target, count, last, aged in theirs.rows():
            if len(key) <= self.max_length:
                _, counted, *when = merged.get(key, (target, 0, last, aged))
                if last > 0:  # emitted, and so the newer
                    when = [last + clock, aged]
                merged[key] = target, counted + count, when[0], when[1]
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
        for key, target, *_ in table.rows():
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
            self._count[place] = self._aged[place] = 0
        elif place < 0:
            place = len(self._node)
            self._node.append(self._trie.insert(key, place))
            self._target.append(target)
            self._count.append(0)
            self._last.append(0)
            self._aged.append(0)
        # Two target tokens may have the same bytes: the one emitted last is the better guess.
        self._target[place] = target
        return place

    def _by_use(self) -> list[int]:
        """Return the places of all entries, the least useful first."""
        used = np.flatnonzero(np.array(self._node) >= 0)
        count, last, aged = (np.array(each)[used] for each in (self._count, self._last, self._aged))
        return used[self._order(count, last, aged)].tolist()  # type: ignore[no-any-return]

    def _order(self, count: Numbers, last: Numbers, aged: Numbers) -> Numbers:
        """Return the indices of some entries, the least useful first."""
        return np.lexsort((last, count + aged) if self.policy == "lfu" else (last,))

    def _evict(self) -> None:
        """Remove a sixteenth at once: sorting for every single one would cost more than it is worth."""
        for place in self._by_use()[: self._surplus(len(self))]:
            self._grow_older(self._count[place] + self._aged[place])
            self._trie.remove(self._node[place])
            self._node[place] = -1
            self._free.append(place)

    def _surplus(self, entries: int) -> int:
        """Return how many of so many entries have to go."""
        return 0 if entries <= self.max_entries else entries - self.max_entries + self.max_entries // 16

    def _grow_older(self, gone: int) -> None:
        """Take note of an entry that goes, and what it counted."""
        self.evicted += 1
        if self.policy == "lfu":
            self._age = max(self._age, gone)

    def _table(self) -> Table:
        """Return all entries; their ages are counted from today's, which is 0 where the table is read."""
        return Table.of(
            (
                self._trie.key(self._node[at]),
                self._target[at],
                self._count[at],
                self._last[at],
                self._aged[at] - self._age,
            )
            for at in self._by_use()
        )

    def _restore(self, table: Table) -> None:
        """Fill an empty cache with rows, as many of the most useful as may stay."""
        rows = list(table.rows())
        order = self._order(table.counts, table.last, table.aged).tolist()
        surplus = self._surplus(len(rows))
        for at in order[:surplus]:
            self._grow_older(rows[at][2] + rows[at][4])
        for at in order[surplus:]:
            key, target, *numbers = rows[at]
            place = self._put(key, target)
            self._count[place], self._last[place], self._aged[place] = numbers
