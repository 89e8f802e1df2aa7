"""The decoder: a target, a drafter that saves it passes, and what they learn from answer to answer.

What happens in a round stands in `draftlib/answer.py`; the same algorithm in its plainest form, with one
vocabulary, in `draftlib/plain.py`.

With ``verify="exact"`` the text does not depend on drafter, cache and length at all: each token is the one
that the target draws with the noise of (seed, position), or its most probable one. Drafter, cache and length
decide how many tokens one pass of the target yields. With "path_revealed" or "point_mass" sampled text is
another one from the same distribution; with "ratio" the distribution is another one too.
`generate_target_only` is the same loop without a drafter.

Papers: OmniDraft, arXiv 2507.02659, Algorithm 1; Daliri, Musco, Suresh 2024, arXiv 2408.07978 (shared noise).
A packed target computes a token's logits to the same bits however many are verified beside it, in float32
and bfloat16, so this holds for floating-point numbers as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from draftlib.answer import Answer
from draftlib.arguments import (
    OnText,
    Verify,
    as_verify,
    check_pair,
    millions,
    ngram_cache,
    text_model,
    text_sink,
)
from draftlib.drafting.length import FixedLength, Length, as_length
from draftlib.metrics import Stats
from draftlib.output import Output
from draftlib.prompt import Prompt, several_prompts
from draftlib.round import Pair, RoundObserver
from draftlib.settings import Settings
from draftlib.step import Step
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache
from qlib.errors import DraftError
from qlib.models.text import TextModel

if TYPE_CHECKING:
    from typing import Unpack

    from draftlib.settings import Options

log = logging.getLogger(__name__)
_FIVE = FixedLength(5)


class SpeculativeDecoder:
    """A target and a drafter that saves it passes.

    Parameters
    ----------
    target, draft : TextModel
        Two text models with their tokenizers, on the same device. Their vocabularies may differ. The decoder
        works on packed copies (`TextModel.packed_copy`); hand packed models in where memory is short.
    cache : NGramCache, optional
        Spellings learned on the way, kept from answer to answer. None: direct counterparts only.
    length : Length or int
        How many tokens a round drafts; 5 if not given. A number is `FixedLength`.
    verify : {"exact", "path_revealed", "point_mass", "ratio"}
        Which rule accepts sampled tokens; greedy text is the target's own, token for token, with any.
        "exact": sampled text is so too. "path_revealed": it is another text from the target's distribution,
        by the classic rule of rejection. "point_mass": the same, and the drafter proposes its most probable
        tokens. "ratio": the paper's rule, which changes the distribution; for comparison.

    Attributes
    ----------
    cache, length, verify
        As given; may be set to something else at any time, and hold from the next round on.
    target, draft : TextModel
        The packed models.
    trainable_draft : TextModel or None
        The drafter as it was given; None if it was packed already.
    vocabulary : VocabularyMap
        Which draft token is which target token; print it for the coverage.
    observers : list of RoundObserver
        They see every finished round of an answer with drafts; empty at first.

    Raises
    ------
    DraftError
        The pair cannot work, the cache belongs to another pair, or a setting is unknown.
    """

    def __init__(
        self,
        target: TextModel,
        draft: TextModel,
        *,
        cache: NGramCache | None = None,
        length: Length | int = _FIVE,
        verify: Verify = "exact",
    ):
        target, draft = text_model(target, "target"), text_model(draft, "draft")
        ngram_cache(cache)  # types first: comparing the vocabularies takes a while
        self._positions = draft.config.max_position_embeddings
        self.length, self.verify = length, verify
        check_pair(target, draft)
        assert target.tokenizer is not None and draft.tokenizer is not None
        vocabulary = VocabularyMap.of(draft.tokenizer, target.tokenizer)
        log.info("%s", vocabulary)
        if cache is not None:
            cache.bind(vocabulary)
        packed = target if target.packed else target.packed_copy(stable=True)
        # The drafter's bits may depend on what is computed beside a token; the text does not depend on them.
        packed_draft = draft if draft.packed else draft.packed_copy()
        self._pair = Pair(packed, packed_draft, vocabulary, cache)
        self._trainable_draft = None if draft.packed else draft
        self._plain = Stats()
        self.observers: list[RoundObserver] = []

    # --- what it consists of

    @property
    def target(self) -> TextModel:
        """The target, packed."""
        return self._pair.target

    @property
    def draft(self) -> TextModel:
        """The drafter, packed."""
        return self._pair.draft

    @property
    def trainable_draft(self) -> TextModel | None:
        """The drafter as it was given, with weights that can be trained; None if a packed one was given."""
        return self._trainable_draft

    def repack_draft(self) -> None:
        """Draft with the present weights of `trainable_draft`, from the next round on.

        Raises
        ------
        DraftError
            There is none.
        """
        if self._trainable_draft is None:
            raise DraftError(
                "The draft model was given packed, and packed weights cannot be trained. Make the decoder "
                "with an unpacked one."
            )
        self._pair = replace(self._pair, draft=self._trainable_draft.packed_copy())

    @property
    def vocabulary(self) -> VocabularyMap:
        """Which draft token is which target token."""
        return self._pair.vocabulary

    @property
    def cache(self) -> NGramCache | None:
        """The n-grams."""
        return self._pair.cache

    @cache.setter
    def cache(self, cache: NGramCache | None) -> None:
        cache = ngram_cache(cache)
        if cache is not None:
            cache.bind(self.vocabulary)
        self._pair = replace(self._pair, cache=cache)

    @property
    def length(self) -> Length:
        """How many tokens a round drafts."""
        return self._length

    @length.setter
    def length(self, length: Length | int) -> None:
        rule = as_length(length)
        if rule.max_tokens >= self._positions:
            raise DraftError(
                f"length: drafts of {rule.max_tokens} tokens do not fit into the draft model's "
                f"{self._positions} positions. Draft fewer."
            )
        self._length = rule

    @property
    def verify(self) -> Verify:
        """Which rule accepts sampled tokens."""
        return self._verify

    @verify.setter
    def verify(self, verify: Verify) -> None:
        self._verify: Verify = as_verify(verify)

    def __repr__(self) -> str:
        names = (f"{type(model).__name__} of {millions(model)}" for model in (self.target, self.draft))
        return (
            f"<SpeculativeDecoder: {' drafted for by '.join(names)}, {self.vocabulary.coverage:.1%} of the "
            f"drafter's tokens are the target's; cache={self.cache!r}, length={self.length!r}, "
            f"verify={self.verify!r}>"
        )

    # --- whole answers

    def generate(
        self, prompt: Prompt, *, on_text: OnText | None = None, **options: Unpack[Options]
    ) -> Output:
        """Answer a prompt.

        Parameters
        ----------
        prompt : str, sequence of messages, or sequence of int
            A user's words, or a conversation such as ``[{"role": "user", "content": "Hello"}]``, put into
            the checkpoint's chat template. With ``raw=True`` (or where the model has no template) a text,
            continued behind the start token that the tokenizer puts in front of it. Or target tokens (a
            list, or a tensor or array of one dimension), continued as they stand.
        on_text : callable, optional
            Gets the text piece by piece, as soon as nothing can change it any more.
        **options
            See `Options`: max_new_tokens, temperature, top_k, top_p, seed, stop, raw.

        Raises
        ------
        DraftError
            The prompt is empty, too long or not in the vocabulary; an option is unknown, of the wrong type
            or out of its range.
        ModelError
            The chat template does not take the conversation, or is damaged.
        """
        settings = Settings.of(options, "generate", ["on_text"])
        output = self._finish(Answer(self._pair, prompt, settings, on_text, drafting=True))
        if output.stats.warning:
            log.warning(output.stats.warning)
        return output

    def generate_target_only(
        self, prompt: Prompt, *, on_text: OnText | None = None, **options: Unpack[Options]
    ) -> Output:
        """Answer with the target alone and the same noise: the baseline of every claim.

        Parameters and errors are those of `generate`. Its speed is remembered, for the speed-ups in the
        statistics of later answers.
        """
        settings = Settings.of(options, "generate_target_only", ["on_text"])
        output = self._finish(Answer(self._pair, prompt, settings, on_text, drafting=False))
        self._plain += output.stats
        return output

    def generate_many(
        self, prompts: Iterable[Prompt], *, on_text: OnText | None = None, **options: Unpack[Options]
    ) -> Iterator[Output]:
        """Answer prompts one after another, each as by `generate`; the n-gram cache goes with them.

        Add their `stats` up for those of all.

        Parameters
        ----------
        prompts : iterable of (str or sequence of int)
            As for `generate`; a list, a generator, or anything else that yields them.
        on_text : callable, optional
            Gets the texts of all answers, one after another.
        **options
            See `Options`; they hold for all prompts.

        Raises
        ------
        DraftError
            As by `generate`. What can be said of options, and of prompts in a list, is said at once.
        """
        Settings.of(options, "generate_many", ["on_text"])
        sink, each = text_sink(on_text), several_prompts(prompts)
        return (self.generate(prompt, on_text=sink, **options) for prompt in each)

    # --- round by round

    def steps(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Step]:
        """Yield one round at a time, with everything that happened in it; `generate` does just this.

        Parameters and errors are those of `generate`; the errors come before the first round.
        """
        settings = Settings.of(options, "steps")
        return self._rounds(Answer(self._pair, prompt, settings, None, drafting=True))

    @property
    def plain_seconds(self) -> float | None:
        """Seconds a token of the target alone, over all calls of `generate_target_only`; None before."""
        plain = self._plain
        return plain.seconds.decoding / plain.tokens if plain.tokens else None

    # --- the loop

    def _rounds(self, answer: Answer) -> Iterator[Step]:
        """Go through the rounds of an answer; whoever learns from rounds with a drafter sees each of them."""
        while answer.writer.finish is None:
            length = self.length
            found = answer.next_round(self._pair, length, self.verify)
            if answer.drafting:
                if hasattr(length, "learn"):  # a rule that does not inherit from `Length` may lack it
                    length.learn(found)
                for observer in self.observers:
                    observer.observe(found)
            yield found.step(self.vocabulary)

    def _finish(self, answer: Answer) -> Output:
        stats = Stats.of(self._rounds(answer), self.plain_seconds)
        writer = answer.writer
        assert writer.finish is not None
        return Output(writer.close(), tuple(writer.tokens), stats, writer.finish)
