"""What draft tokens stand for: direct counterparts of single tokens, and n-grams that spell one target token.

Drawing, translating and verifying ask the same questions of it. It is a view: where its n-grams are those of
a cache, it follows them. A cache takes additions up between rounds only (`NGramCache.commit`), so that the
table of a round stands still, and one round is translated and verified by the same n-grams.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_trie import NGramTrie, Tokens
from qlib.errors import DraftError


class NGramTable:
    """Draft tokens -> target token.

    `NGramTable.of` makes one of a few n-grams, `NGramTable.of_pair` one of two vocabularies and a cache.

    Parameters
    ----------
    direct : Tensor
        int64 [D], the target token of each draft token; -1 where there is none.
    ngrams : NGramTrie, optional
        N-grams of two draft tokens or more. None: only single tokens have a target token.
    ends : collection of int
        Draft tokens that end the text.

    >>> table = NGramTable.of({(0,): 5, (1,): 6, (0, 1, 1): 7}, draft_size=2)
    >>> table.direct.tolist(), table.target((0, 1)), table.target((0, 1, 1))
    ([5, 6], None, 7)
    >>> table.longest((0, 1, 1, 1)), table.longest((0, 1, 0))
    ((3, 7), (1, 5))
    """

    def __init__(self, direct: Tensor, ngrams: NGramTrie | None = None, ends: Collection[int] = ()) -> None:
        self.direct = direct
        self._direct: list[int] = direct.tolist()  # the same, for one token at a time
        self._ngrams = NGramTrie() if ngrams is None else ngrams
        self._ends = ends

    @classmethod
    def of(cls, ngrams: Mapping[Tokens, int], draft_size: int) -> NGramTable:
        """Return a table of a few n-grams; those of one token are the direct counterparts.

        Parameters
        ----------
        ngrams : Mapping of tuple of int to int
            Draft tokens to target token.
        draft_size : int
            Size of the drafter's vocabulary, D.

        Raises
        ------
        DraftError
            An n-gram is empty, or holds a token that is not in the drafter's vocabulary.
        """
        direct, longer = torch.full((draft_size,), -1), NGramTrie()
        for tokens, target in ngrams.items():
            if not tokens or not all(0 <= token < draft_size for token in tokens):
                raise DraftError(
                    f"n-gram {tokens} of target token {target}: an n-gram has at least one token, each from "
                    f"0 to {draft_size - 1}. Was the table made for another drafter?"
                )
            if len(tokens) == 1:
                direct[tokens[0]] = target
            else:
                longer.insert(tokens, target)
        return cls(direct, longer)

    @classmethod
    def of_pair(
        cls,
        vocabulary_map: VocabularyMap,
        ngrams: NGramTrie | None,
        draft_size: int,
        target_size: int,
        device: torch.device | str = "cpu",
    ) -> NGramTable:
        """Return the table of two models.

        Parameters
        ----------
        vocabulary_map : VocabularyMap
            The direct counterparts.
        ngrams : NGramTrie, optional
            `NGramCache.ngrams` of a cache that is bound to the same pair; None without a cache.
        draft_size, target_size : int
            Number of outputs of each model; it may differ from the number of tokens of its tokenizer.
        device : torch.device or str
            Where the models are.
        """
        direct = torch.full((draft_size,), -1)
        known = vocabulary_map.direct[:draft_size]
        # A target token that the model has no output for counts as none.
        direct[: len(known)] = known.masked_fill(known >= target_size, -1)
        return cls(direct.to(device), ngrams, vocabulary_map.ends)

    def target(self, tokens: Tokens) -> int | None:
        """Return the target token that exactly these draft tokens spell, or None."""
        if len(tokens) == 1:
            found = self._direct[tokens[0]]
            return found if found >= 0 else None
        ngram = self._ngrams.get(tokens)
        return None if ngram is None else ngram.target

    def longest(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Return length and target token of the longest beginning of `tokens` that spells one, or None."""
        if found := self._ngrams.longest(tokens):
            return found
        target = self.target(tuple(tokens[:1]))
        return None if target is None else (1, target)

    def extends(self, prefix: Sequence[int]) -> bool:
        """Return whether some longer n-gram begins with `prefix`."""
        return self._ngrams.extends(prefix)

    def children(self, prefix: Sequence[int]) -> Mapping[int, int]:
        """Return the draft tokens that lead from `prefix` towards an n-gram of two tokens or more.

        Each comes with the fewest further tokens after it that make a longer n-gram; 0 if none does.

        >>> NGramTable.of({(0,): 5, (0, 1, 1): 7, (0, 2): 8}, draft_size=3).children((0,))
        {1: 1, 2: 0}
        """
        return self._ngrams.children(prefix)

    def ended(self, drafted: Sequence[int]) -> bool:
        """Return whether nothing that is drafted after these tokens could be proposed to the target.

        That is so after a token that ends the text, and after one that nothing translates.
        """
        if drafted and drafted[-1] in self._ends:
            return True
        tokens = tuple(drafted)
        while tokens and not self.extends(tokens):
            match = self.longest(tokens)
            if match is None:
                return True
            tokens = tokens[match[0] :]
        return False
