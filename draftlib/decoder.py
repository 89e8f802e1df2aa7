"""The decoder: a target, what saves it passes, and what is learned from answer to answer.

What happens in a round stands in `draftlib/answer.py`; the same algorithm in its plainest form, with one
vocabulary, in `draftlib/plain.py`.

With ``verify="exact"`` the text does not depend on drafter, sources, cache and length at all: each token is
the one that the target draws with the noise of (seed, position), or its most probable one. Drafter, sources,
cache and length decide how many tokens one pass of the target yields. With "path_revealed" or "point_mass"
sampled text is another one from the same distribution; with "ratio" the distribution is another one too.
`generate_target_only` is the same loop without a drafter.

Papers: OmniDraft, arXiv 2507.02659, Algorithm 1; Daliri, Musco, Suresh 2024, arXiv 2408.07978 (shared noise).
A packed target computes a token's logits to the same bits however many are verified beside it, in float32
and bfloat16, so this holds for floating-point numbers as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from draftlib import state_folder
from draftlib.adapter import Adapter, check_adapter
from draftlib.answer import Answer
from draftlib.arguments import (
    OnText,
    Verify,
    as_folder,
    as_verify,
    check_observers,
    check_pair,
    millions,
    ngram_cache,
    text_model,
    text_sink,
)
from draftlib.drafting.choice import Choice
from draftlib.drafting.cost_aware import CostAware
from draftlib.drafting.guess import Source
from draftlib.drafting.length import FixedLength, Length, as_length
from draftlib.drafting.sources import as_sources
from draftlib.metrics import Stats
from draftlib.output import Output
from draftlib.prompt import Prompt, several_prompts
from draftlib.round import Pair, Round, RoundObserver
from draftlib.seconds import Seconds
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
# What is best where nothing is said. Beside a drafter "answers" was worth nothing on GSM8K and Alpaca.
WITH_DRAFTER, ALONE = ("suffix",), ("suffix", "answers", "recycle")


class SpeculativeDecoder:
    """A target and what saves it passes: a drafter, sources that guess for nothing, or both.

    Parameters
    ----------
    target : TextModel
        A text model with its tokenizer. The decoder works on a packed copy (`TextModel.packed_copy`); where
        memory is short, hand in one that `pack(stable=True)` has packed itself.
    draft : TextModel, optional
        A smaller one on the same device. Its vocabulary may be another one.
    cache : NGramCache, optional
        Spellings learned on the way, kept from answer to answer. None: direct counterparts only.
    length : Length or int, optional
        How many tokens a round drafts. A number is `FixedLength`. If not given, `CostAware`, and 5 where
        `verify` is not "exact".
    sources : sequence of (str or Source), optional
        Who guesses without a drafter: "suffix", "answers", "recycle", "tail"; () for none. If not given,
        "suffix", and without a drafter "answers" and "recycle" too; but beside a drafter none where a
        `length` is given, which then holds for every round, or where `verify` is not "exact".
    verify : {"exact", "path_revealed", "point_mass", "ratio"}
        Which rule accepts sampled tokens; greedy text is the target's own, token for token, with any.
        "exact": sampled text is so too. "path_revealed": it is another text from the target's distribution,
        by the classic rule of rejection. "point_mass": the same, and the drafter proposes its most probable
        tokens. "ratio": the paper's rule, which changes the distribution; for comparison. Text sampled by
        the last three depends on what is proposed: with sources or `CostAware`, which follow measured times,
        the same seed may give another text.
    adapter : Adapter, optional
        `draftlib.OnlineAdapter`, which teaches the drafter while it is used.
    state : str or Path, optional
        A folder that `save` wrote for the same pair of vocabularies: what was learned is taken up again. The
        target may be another model with its tokenizer. If the drafter had learned, pass the same one, and an
        `adapter` of the same `lora_rank`; what a rule or source had learned that this decoder does not have
        is left out, with a warning.

    Attributes
    ----------
    cache, length, sources, verify
        As given; may be set to something else at any time, and hold from the next round on.
    target, draft : TextModel
        The packed models; `draft` is None without a drafter.
    trainable_draft : TextModel or None
        The drafter as it was given; None if there is none, or it was packed already.
    adapter : Adapter or None
        As given.
    vocabulary : VocabularyMap
        Which draft token is which target token; print it for the coverage. Without a drafter it is that of
        the target's vocabulary and itself.
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
        draft: TextModel | None = None,
        *,
        cache: NGramCache | None = None,
        length: Length | int | None = None,
        sources: Sequence[str | Source] | None = None,
        verify: Verify = "exact",
        adapter: Adapter | None = None,
        state: str | Path | None = None,
    ):
        target = text_model(target, "target")
        draft = None if draft is None else text_model(draft, "draft")
        ngram_cache(cache)  # types first: comparing the vocabularies takes a while
        check_adapter(adapter)
        folder = None if state is None else as_folder(state, "state")
        self._positions = (draft or target).config.max_position_embeddings
        self._verify: Verify = as_verify(verify)
        if sources is None:
            free = length is None and self._verify == "exact"
            sources = ALONE if draft is None else WITH_DRAFTER if free else ()
        # Where the text depends on what is proposed, nothing follows measured times, if nothing is said.
        default = CostAware() if self._verify == "exact" else FixedLength(5)
        self._choice = Choice(default, as_sources(sources))
        if length is not None:
            self.length = length
        check_pair(target, draft)
        reader = (draft or target).tokenizer
        assert target.tokenizer is not None and reader is not None
        vocabulary = VocabularyMap.of(reader, target.tokenizer)
        log.info("%s", vocabulary)
        if cache is not None:
            cache.bind(vocabulary)
        packed = target if target.packed else target.packed_copy(stable=True)
        self._pair = Pair(packed, _packed(draft), vocabulary, cache)
        self._trainable_draft = None if draft is None or draft.packed else draft
        self._plain = Stats()
        self.observers: list[RoundObserver] = []
        self._adapter = adapter
        if adapter is not None:
            adapter.bind(self)
        if folder is not None:
            state_folder.load(self, folder)

    # --- what it consists of

    @property
    def target(self) -> TextModel:
        """The target, packed."""
        return self._pair.target

    @property
    def draft(self) -> TextModel | None:
        """The drafter, packed; None where there is none."""
        return self._pair.draft

    @property
    def trainable_draft(self) -> TextModel | None:
        """The drafter as it was given, with weights that can be trained; None if there is none."""
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
                "There is no draft model whose weights can be trained: it was given packed, or not at all. "
                "Make the decoder with an unpacked one."
            )
        self.replace_draft(self._trainable_draft)

    def replace_draft(self, draft: TextModel) -> None:
        """Draft with another model from the next round on; the text stays what it would have been.

        Parameters
        ----------
        draft : TextModel
            With the vocabulary of the drafter that the decoder has; packed, or a packed copy is made.

        Raises
        ------
        DraftError
            The decoder has no drafter, or this one has another vocabulary.
        """
        draft = text_model(draft, "draft")
        if self.draft is None:
            raise DraftError(
                "This decoder was made without a drafter. Make another: SpeculativeDecoder(t, d)."
            )
        sizes = [model.config.vocab_size for model in (self.draft, draft)]
        assert self.draft.tokenizer is not None and draft.tokenizer is not None
        same = draft.tokenizer is self.draft.tokenizer
        if sizes[0] != sizes[1] or not (same or draft.tokenizer.to_json() == self.draft.tokenizer.to_json()):
            raise DraftError(
                f"The new draft model has another vocabulary ({sizes[1]} tokens) than the one before "
                f"({sizes[0]}). Make a new decoder for it."
            )
        self._pair = replace(self._pair, draft=_packed(draft))

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
        return self._choice.length

    @length.setter
    def length(self, length: Length | int) -> None:
        rule = as_length(length)
        if rule.max_tokens >= self._positions:
            raise DraftError(
                f"length: drafts of {rule.max_tokens} tokens do not fit into the draft model's "
                f"{self._positions} positions. Draft fewer."
            )
        self._choice.length = rule

    @property
    def sources(self) -> tuple[Source, ...]:
        """Who guesses without a drafter."""
        return self._choice.sources

    @sources.setter
    def sources(self, sources: Sequence[str | Source]) -> None:
        self._choice.sources = as_sources(sources)

    @property
    def verify(self) -> Verify:
        """Which rule accepts sampled tokens."""
        return self._verify

    @verify.setter
    def verify(self, verify: Verify) -> None:
        self._verify = as_verify(verify)

    @property
    def adapter(self) -> Adapter | None:
        """Who teaches the drafter; it takes the drafter over when the decoder is made."""
        return self._adapter

    def __repr__(self) -> str:
        models = [model for model in (self.target, self.draft) if model is not None]
        names = " drafted for by ".join(f"{type(model).__name__} of {millions(model)}" for model in models)
        shared = f", {self.vocabulary.coverage:.1%} of the drafter's tokens are the target's"
        return (
            f"<SpeculativeDecoder: {names}{shared if self.draft is not None else ''}; cache={self.cache!r}, "
            f"length={self.length!r}, sources={tuple(source.name for source in self.sources)}, "
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
            continued after the start token that the tokenizer puts in front of it. Or target tokens (a
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
        check_observers(self.observers)
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
        prompts : iterable of (str, sequence of messages, or sequence of int)
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
        check_observers(self.observers)
        return self._rounds(Answer(self._pair, prompt, settings, None, drafting=True))

    @property
    def plain_seconds(self) -> float | None:
        """Seconds a token of the target alone, over all calls of `generate_target_only`; None before."""
        plain = self._plain
        return plain.seconds.decoding / plain.tokens if plain.tokens else None

    def save(self, folder: str | Path) -> None:
        """Write what was learned to a folder: drafter, n-grams, sources, length rule.

        Whatever happens meanwhile, the folder holds the old state or the new one. `state=` loads it.

        Raises
        ------
        DraftError
            The folder holds other files and no state, or what a part returns as its state cannot be written.
        FileError
            The disk is full, or may not be written.
        """
        state_folder.save(self, as_folder(folder, "folder"))

    # --- the loop

    def _rounds(self, answer: Answer) -> Iterator[Step]:
        """Go through the rounds of an answer; whoever learns from rounds sees each of them."""
        while answer.writer.finish is None:
            found = answer.next_round(self._pair, self._choice, self.verify)
            if answer.drafting:
                found = self._learn(found)
            yield found.step(self.vocabulary)

    def _learn(self, found: Round) -> Round:
        """Let all learn from a round; the time that it takes joins the round's."""
        started = perf_counter()
        self._choice.learn(found)
        found = _with_time(found, started)
        for observer in self.observers:
            observer.observe(found)
        if self.adapter is not None:
            started = perf_counter()
            self.adapter.observe(found)
            found = _with_time(found, started)
        return found

    def _finish(self, answer: Answer) -> Output:
        stats = Stats.of(self._rounds(answer), self.plain_seconds)
        writer = answer.writer
        assert writer.finish is not None
        return Output(writer.close(), tuple(writer.tokens), stats, writer.finish)


def _with_time(found: Round, started: float) -> Round:
    """Return a round with the time since then as time of learning."""
    return replace(found, seconds=found.seconds + Seconds(learn=perf_counter() - started))


def _packed(draft: TextModel | None) -> TextModel | None:
    """Return a packed drafter. Its bits may depend on what is computed beside a token; the text does not."""
    return draft if draft is None or draft.packed else draft.packed_copy()
