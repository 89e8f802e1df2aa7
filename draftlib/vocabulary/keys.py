"""The direct map and the n-grams of a cache as one dictionary, for drawing and verifying.

It is a view, not a copy: a cache takes additions up at `commit` only, so that it stands still during a round.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from draftlib.vocabulary.dictionary import Tokens, longest_match
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache


class RoundKeys:
    """What draft tokens stand for, as `draftlib.vocabulary.dictionary.Dictionary` asks for it.

    Parameters
    ----------
    vocabulary_map : VocabularyMap
        The keys of one token.
    cache : NGramCache, optional
        The longer ones; bound to the same pair.
    draft_size, target_size : int
        Outputs of the two models. They may have more of them, or fewer, than their tokenizers have tokens.
    device : torch.device or str
        Of the models.

    Attributes
    ----------
    direct : Tensor
        int64 [draft_size]; target token, or -1.
    """

    def __init__(
        self,
        vocabulary_map: VocabularyMap,
        cache: NGramCache | None,
        draft_size: int,
        target_size: int,
        device: torch.device | str = "cpu",
    ):
        self._map, self._cache, self._target_size = vocabulary_map, cache, target_size
        direct = torch.full((draft_size,), -1)
        known = vocabulary_map.direct[:draft_size]
        direct[: len(known)] = known.masked_fill(known >= target_size, -1)
        self.direct: Tensor = direct.to(device)

    def target(self, tokens: Tokens) -> int | None:
        """Return the target token that exactly these draft tokens spell, if they are a key."""
        if len(tokens) == 1:
            found = self._map.target_of(tokens[0])
            return found if 0 <= found < self._target_size else None
        return None if self._cache is None else self._cache.target(tokens)

    def extends(self, prefix: Tokens) -> bool:
        """Return whether some longer key begins with `prefix`."""
        return self._cache is not None and self._cache.extends(prefix)

    def children(self, prefix: Tokens) -> Collection[int]:
        """Return the draft tokens that lead from `prefix` towards a key of two tokens or more."""
        return () if self._cache is None else self._cache.children(prefix)

    def missing(self, prefix: Tokens) -> int:
        """Return the fewest further tokens that make a longer key of `prefix`; 0 if none does."""
        return 0 if self._cache is None else self._cache.missing(prefix)

    def ended(self, drafted: Sequence[int]) -> bool:
        """Return whether nothing drawn behind these tokens could be proposed to the target.

        That is so behind a token that ends the text, and behind one that nothing translates.
        """
        if drafted and drafted[-1] in self._map.ends:
            return True
        tokens = tuple(drafted)
        while tokens and not self.extends(tokens):
            match = longest_match(self, tokens)
            if match is None:
                return True
            tokens = tokens[match[0] :]
        return False
