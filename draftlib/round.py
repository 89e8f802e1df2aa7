"""One round of an answer as a record: who took part, what each of its steps found, and who may look at it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from draftlib.drafting.guess import Guess
from draftlib.drafting.propose import Draft
from draftlib.seconds import Seconds
from draftlib.step import Step
from draftlib.verification.verify import Verdict
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache
from draftlib.vocabulary.ngram_table import NGramTable
from draftlib.vocabulary.translate import Translation
from qlib.models.text import TextModel


@dataclass(frozen=True)
class Pair:
    """A target, perhaps a drafter, and what lies between their vocabularies.

    Attributes
    ----------
    target : TextModel
        The packed target.
    draft : TextModel, optional
        The packed drafter.
    vocabulary : VocabularyMap
        Which draft token is which target token; without a drafter the target's vocabulary and itself.
    cache : NGramCache, optional
        What several draft tokens are together; bound to `vocabulary`.
    """

    target: TextModel
    draft: TextModel | None
    vocabulary: VocabularyMap
    cache: NGramCache | None

    @property
    def device(self) -> torch.device:
        """Of both models."""
        return self.target.model.embed_tokens.weight.device

    @cached_property
    def table(self) -> NGramTable:
        """Direct counterparts and n-grams as one table."""
        ngrams = None if self.cache is None else self.cache.ngrams
        sizes = (self.draft or self.target).config.vocab_size, self.target.config.vocab_size
        return NGramTable.of_pair(self.vocabulary, ngrams, *sizes, device=self.device)


# What the parts of a round are before their step.
_NOTHING, _NO_ROWS = Translation((), (), ()), torch.empty(0)


_NO_VERDICT, _NO_TIME = Verdict(0, 0), Seconds()


@dataclass(frozen=True)
class Round:
    """One round. Each step returns a copy in which one more field is set; until then a field is empty.

    Tensors are made in inference mode: clone them before they take part in training.

    Attributes
    ----------
    number : int
        From 1.
    context, draft_context : tuple of int
        The text before the round in target tokens, prompt included, and the drafter's spelling of it.
    draft : Draft, optional
        Draft tokens, with their log-probabilities and the drafter's hidden states. None where nothing was
        drafted: a source proposes or nobody does, only one more token may be added, there is no text to
        continue, or the target writes alone.
    translation : Translation
        The proposed target tokens, and which draft tokens each of them stands for; none for a guess.
    rows : Tensor
        [m + 1, V]; logits of the target after the context and after each proposed token.
    verdict : Verdict
        How many proposed tokens are accepted, and the target's own token.
    tokens : tuple of int
        The tokens added to the answer: those of the verdict, up to the one that ends it.
    learned : tuple of (tuple of int, int)
        Draft tokens and the target token that they spell together.
    seconds : Seconds
        Time by phase; that of reading the prompt is in the first round.
    answer : int
        Which answer it belongs to; no two of a process have the same.
    guesses : tuple of Guess
        What the sources without a drafter guessed, proposed or not.
    source : str
        Who proposes: "draft", the name of a source, or "" for nobody.
    ended : bool
        Whether the answer ends with these tokens.
    spelled : tuple of int
        The drafter's spelling of the text after the round; empty where there is no drafter.
    """

    number: int
    context: tuple[int, ...]
    draft_context: tuple[int, ...]
    draft: Draft | None = None
    translation: Translation = _NOTHING
    rows: Tensor = _NO_ROWS
    verdict: Verdict = _NO_VERDICT
    tokens: tuple[int, ...] = ()
    learned: tuple[tuple[tuple[int, ...], int], ...] = ()
    seconds: Seconds = _NO_TIME
    answer: int = 0
    guesses: tuple[Guess, ...] = ()
    source: str = ""
    ended: bool = False
    spelled: tuple[int, ...] = ()

    @property
    def position(self) -> int:
        """Index in the target's text of the first token of this round."""
        return len(self.context)

    @property
    def proposed(self) -> tuple[int, ...]:
        """Target tokens, m of them."""
        return self.translation.tokens

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The draft tokens, from and up to, that each proposed token stands for."""
        return tuple(zip(self.translation.starts, self.translation.stops, strict=True))

    @property
    def accepted(self) -> int:
        """How many proposed tokens are in the answer."""
        return min(self.verdict.accepted, len(self.tokens))

    def step(self, vocabulary: VocabularyMap) -> Step:
        """Return what the user sees of this round."""
        return Step(
            self.number,
            self.position,
            self.draft.tokens if self.draft else (),
            self.proposed,
            self.spans,
            self.accepted,
            self.tokens,
            len(self.learned),
            self.seconds,
            vocabulary,
            self.source,
        )


class RoundObserver(Protocol):
    """Whoever wants to see every finished round, for example to learn from it."""

    def observe(self, round: Round) -> None:
        """Take notice of a round. What is kept of it stays in memory, its rows of logits too."""
        ...
