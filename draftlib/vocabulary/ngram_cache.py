"""The n-gram cache: what the target writes as one token and the drafter as several.

    draft tokens (" tra", "ve", "led")  ->  target token " traveled"

It fills from what the target emits, so it holds what this target says on these tasks, and is looked up by
greedy longest match. It is bounded (`bounded_ngrams`), and belongs to one pair of vocabularies.

Paper: "OmniDraft: A cross-vocabulary, online adaptive drafter", section 3.1 and appendix D, arXiv 2507.02659.
Left out there and decided here: the longest match from left to right; what a round adds counts from the next
round on, so that one round is translated and verified by the same n-grams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from draftlib.vocabulary import ngram_file
from draftlib.vocabulary.bounded_ngrams import BoundedNGrams, Policy
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_trie import Tokens
from qlib.errors import DraftError, describe, did_you_mean, whole_number


@dataclass(frozen=True)
class NGram:
    """One entry: the target emitted `target_token` `count` times where the drafter spells `draft_tokens`."""

    draft_tokens: Tokens
    target_token: int
    count: int


class NGramCache(BoundedNGrams):
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
    ngrams : NGramTrie
        The entries, for `NGramTable.of_pair`.
    lookups, hits : int
        How often `longest` was called, and how often it found something.
    evicted : int
        Entries that had to go.

    Raises
    ------
    DraftError
        A setting is of the wrong type or out of its range.
    """

    def __init__(self, max_entries: int = 50_000, policy: Policy = "lfu", max_length: int = 8):
        max_entries = whole_number(
            max_entries,
            "NGramCache: max_entries",
            DraftError,
            1,
            remedy="So many n-grams are kept at most.",
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
        super().__init__(max_entries, cast(Policy, name))
        self.lookups = self.hits = 0
        self._map: VocabularyMap | None = None  # of the pair that the cache is bound to
        self._pending: list[tuple[Tokens, int]] = []  # added, and not yet seen by look-ups: see `commit`

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
        found = self.ngrams.longest(draft_tokens, start)
        self.hits += found is not None
        return found

    def __iter__(self) -> Iterator[NGram]:
        """Yield all entries, the most useful first."""
        for row in reversed(self._rows()):
            yield NGram(row.tokens, row.target, row.emitted)

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
        for tokens, target in self._pending:
            self._emitted(tokens, target)
        self._pending.clear()
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
            if fits and self.ngrams.get(key) is None:
                self.ngrams.insert(key, number).last = -1 - number
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
        theirs, clock = other._aged_from_now(), self._clock
        # Only the survivors are put together, so that memory stays bounded as well.
        merged = {row.tokens: row for row in self._aged_from_now()}
        for row in theirs:
            if len(row.tokens) > self.max_length:
                continue
            known = merged.get(row.tokens, row._replace(emitted=0))
            if row.last > 0:  # emitted, and so the newer
                known = known._replace(last=row.last + clock, aged=row.aged)
            merged[row.tokens] = known._replace(target=row.target, emitted=known.emitted + row.emitted)
        self._clock = clock + other._clock
        self._restore(merged.values())

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
        ngram_file.write(Path(folder), self._aged_from_now(), settings, self._clock, vocabulary_map)

    @classmethod
    def load(cls, folder: str | Path, vocabulary_map: VocabularyMap) -> NGramCache:
        """Read what `save` wrote; counts, order of use and settings come back.

        Raises
        ------
        DraftError
            A file is missing or damaged, or the cache belongs to another pair of vocabularies.
        """
        rows, settings, clock = ngram_file.read(Path(folder), vocabulary_map)
        cache = cls(**settings)
        cache.bind(vocabulary_map)
        for row in rows:
            try:
                cache._check(row.tokens, row.target)
            except DraftError as error:
                raise DraftError(f"{folder} is damaged: {error} Delete the folder.") from error
        cache._restore(rows)
        cache._clock = clock
        return cache

    # --- inside

    def _bound(self) -> VocabularyMap:
        if self._map is None:
            raise DraftError("This n-gram cache knows no vocabularies yet. Call bind(vocabulary_map) first.")
        return self._map

    def _spelled(self, key: Tokens) -> bytes | None:
        """Return the bytes of draft tokens, or None if one of them is special or unknown."""
        table = self._bound().draft_bytes
        pieces = [table[token] if 0 <= token < len(table) else None for token in key]
        whole = [piece for piece in pieces if piece is not None]
        return b"".join(whole) if len(whole) == len(pieces) else None

    def _check(self, key: Tokens, target: int) -> None:
        spelled, table = self._spelled(key), self._bound().target_bytes
        wanted = table[target] if 0 <= target < len(table) else None
        if spelled is None or wanted != spelled:
            say = {True: "no text (a special token or an unknown id)"}
            raise DraftError(
                f"Draft tokens {list(key)} stand for {say.get(spelled is None, repr(spelled))}, target token "
                f"{target} for {say.get(wanted is None, repr(wanted))}: an n-gram must not change text."
            )
