"""The decoder: a round drafts, translates, verifies and learns spellings, until the answer is complete.

    1. the drafter continues its spelling of the text by k draft tokens
    2. they are translated to m <= k target tokens: n-grams of the cache, else direct counterparts
    3. the target looks at all of them in one pass, keeps a beginning of them and adds one token of its own
    4. these are spelled for the drafter; what it spells with several tokens becomes an n-gram of the cache

With ``verify="exact"`` the text does not depend on 1, 2 and 4 at all: each token is the one that the target
draws with the noise of (seed, position), or its most probable one. Drafter, cache and length decide how many
tokens one pass yields. `generate_target_only` is the same loop without 1 and 2. With "path_revealed" or
"point_mass" sampled text is another one from the same law; with "ratio" the law is another one too.

Papers: OmniDraft, arXiv 2507.02659, Algorithm 1; Daliri, Musco, Suresh 2024, arXiv 2408.07978 (shared noise).
A packed target computes a token's logits to the same bits however many are verified beside it, in float32
and bfloat16, so this holds for floating-point numbers as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from draftlib.arguments import (
    OnText,
    ngram_cache,
    text_model,
    text_sink,
)
from draftlib.drafting.propose import (
    Coupled,
    Draft,
    Draw,
    FixedLength,
    Length,
    as_length,
    draw_greedy,
    draw_independent,
    propose,
)
from draftlib.metrics import Seconds, Stats, Step
from draftlib.prompt import Prompt, Read, draft_tokens, read_prompt, several_prompts, target_tokens
from draftlib.settings import Settings
from draftlib.sides import DraftSide, TargetSide
from draftlib.verification.noise import GumbelNoise, RandomDraws
from draftlib.verification.verify import (
    Verdict,
    verify_exact,
    verify_greedy,
    verify_path_revealed,
    verify_point_mass,
    verify_ratio,
)
from draftlib.vocabulary.mapping import VocabularyMap
from draftlib.vocabulary.ngram_cache import NGramCache
from draftlib.vocabulary.ngram_table import NGramTable
from draftlib.vocabulary.translate import ReverseTranslator, Translation, translate
from draftlib.writer import Finish, Writer
from qlib.errors import DraftError, did_you_mean, list_names
from qlib.models.text import TextModel

if TYPE_CHECKING:
    from typing import Unpack

    from draftlib.settings import Options

log = logging.getLogger(__name__)
Verify = Literal["exact", "path_revealed", "point_mass", "ratio"]
_FIVE = FixedLength(5)


@dataclass(frozen=True)
class Output:
    """One answer.

    Attributes
    ----------
    text : str
        Without special tokens and stop strings.
    tokens : tuple of int
        Target tokens, the ending one included.
    stats : Stats
        Rounds, acceptance, times.
    finish : str
        "stop token", "stop string", or "length" where the tokens or the target's positions ran out.
    """

    text: str
    tokens: tuple[int, ...]
    stats: Stats
    finish: Finish

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        calls = f"{self.stats.tokens_per_target_call:.2f} a target call"
        return f"<Output: {len(self.tokens)} tokens, {calls}, ended by {self.finish}: {text!r}>"


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
        "exact": sampled text is so too. "path_revealed": it is another draw from the target's law, by the
        classic rule of rejection. "point_mass": the same, and the drafter proposes its most probable
        tokens. "ratio": the paper's rule, which changes the law; for comparison.

    Attributes
    ----------
    cache, length, verify
        As given; may be set to something else at any time, and hold from the next round on.
    target, draft : TextModel
        The packed models.
    vocabulary : VocabularyMap
        Which draft token is which target token; print it for the coverage.

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
        _check_pair(target, draft)
        assert target.tokenizer is not None and draft.tokenizer is not None
        self._target_tokenizer, self._draft_tokenizer = target.tokenizer, draft.tokenizer
        self._vocabulary = VocabularyMap.of(self._draft_tokenizer, self._target_tokenizer)
        log.info("%s", self.vocabulary)
        self._device = target.model.embed_tokens.weight.device
        self._sizes = draft.config.vocab_size, target.config.vocab_size
        self.cache = cache
        self._target = target if target.packed else target.packed_copy(stable=True)
        # The drafter may see other bits beside other rows; nothing depends on what it says.
        self._draft = draft if draft.packed else draft.packed_copy()
        self._plain: Stats = Stats()

    # --- what it consists of

    @property
    def target(self) -> TextModel:
        """The target, packed."""
        return self._target

    @property
    def draft(self) -> TextModel:
        """The drafter, packed."""
        return self._draft

    @property
    def vocabulary(self) -> VocabularyMap:
        """Which draft token is which target token."""
        return self._vocabulary

    @property
    def cache(self) -> NGramCache | None:
        """The n-grams."""
        return self._cache

    @cache.setter
    def cache(self, cache: NGramCache | None) -> None:
        cache = ngram_cache(cache)
        if cache is not None:
            cache.bind(self.vocabulary)
        self._cache = cache
        ngrams = None if cache is None else cache.ngrams
        self._keys = NGramTable.of_pair(self.vocabulary, ngrams, *self._sizes, device=self._device)

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
        names = (f"{type(model).__name__} of {_millions(model)}" for model in (self.target, self.draft))
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
        output = self._finish(_Answer(self, prompt, settings, on_text, drafting=True))
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
        output = self._finish(_Answer(self, prompt, settings, on_text, drafting=False))
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
        return _Answer(self, prompt, Settings.of(options, "steps"), None, drafting=True).steps()

    @property
    def plain_seconds(self) -> float | None:
        """Seconds a token of the target alone, over all calls of `generate_target_only`; None before."""
        plain = self._plain
        return plain.seconds.decoding / plain.tokens if plain.tokens else None

    # --- inside

    def _finish(self, answer: _Answer) -> Output:
        stats = Stats.of(answer.steps(), self.plain_seconds)
        writer = answer.writer
        assert writer.finish is not None
        return Output(writer.close(), tuple(writer.tokens), stats, writer.finish)

    def _target_prompt(self, prompt: Read, settings: Settings) -> list[int]:
        tokens = target_tokens(self.target, prompt, settings.raw)
        size, positions = self.target.config.vocab_size, self.target.config.max_position_embeddings
        if wrong := [str(token) for token in tokens if not 0 <= token < size]:
            raise DraftError(
                f"Prompt tokens {list_names(wrong)} are not in the target's vocabulary of {size}. Encode the "
                "prompt with the target's tokenizer, or pass it as a string."
            )
        if len(tokens) > positions:
            raise DraftError(
                f"The prompt has {len(tokens)} tokens and the target {positions} positions. Shorten it."
            )
        return tokens

    def _draft_text(self, prompt: Read, tokens: Sequence[int], settings: Settings) -> ReverseTranslator:
        """Return the drafter's view of the prompt: by its own template and with its own start token."""
        own, rest = draft_tokens(self.draft, self.target, prompt, tokens, settings.raw)
        text = ReverseTranslator(self.vocabulary, own)
        # What the prompt says is no n-gram yet: the cache holds what the target emits.
        text.append([token for token in rest if token < len(self.vocabulary.target_bytes)])
        return text


class _Answer:
    """One answer on its way."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        prompt: Prompt,
        settings: Settings,
        on_text: OnText | None,
        drafting: bool,
    ):
        self.decoder, self.settings = decoder, settings
        read, on_text = read_prompt(prompt), text_sink(on_text)
        self._prompt = decoder._target_prompt(read, settings)
        target = decoder.target
        # The last token of an answer needs no position: nothing is computed from it.
        room = target.config.max_position_embeddings - len(self._prompt) + 1
        self._limit = min(settings.max_new_tokens, room)
        size = target.config.vocab_size
        if wrong := [str(token) for token in settings.stop_tokens if token >= size]:
            raise DraftError(
                f"stop: tokens {list_names(wrong)} are not in the target's vocabulary of {size}: they would "
                "never stop an answer."
            )
        ends = {*target.generation.eos, *settings.stop_tokens}
        pieces = decoder.vocabulary.target_bytes
        self.writer = Writer(pieces, ends, settings.stop_strings, self._limit, on_text)
        self._text = decoder._draft_text(read, self._prompt, settings) if drafting else None
        seed, device = settings.seed, decoder._device
        self._noise = GumbelNoise(seed, target.config.vocab_size, device=device)
        self._own = GumbelNoise(seed, decoder.draft.config.vocab_size, stream=1, device=device)
        self._dice = RandomDraws(seed)

    def steps(self) -> Iterator[Step]:
        clock = _Clock()
        target, drafter = self._start()
        clock.lap("prompt")
        for number in count(1):
            position = len(target.tokens)
            draft, translation = self._propose(drafter, position, clock)
            verdict = self._judge(target, draft, translation, clock)
            accepted, tokens = self._emit(translation.tokens, verdict)
            target.append(tokens)
            learned = self._learn(tokens, accepted, draft, translation)
            clock.lap("update")
            yield Step(
                number,
                position,
                draft.tokens if draft else (),
                translation.tokens,
                tuple(zip(translation.starts, translation.stops, strict=True)),
                accepted,
                tuple(tokens),
                learned,
                clock.read(),
                self.decoder.vocabulary,
            )
            if self.writer.finish:
                return
            clock.start()

    @torch.inference_mode()
    def _start(self) -> tuple[TargetSide, DraftSide | None]:
        room = len(self._prompt) + self._limit - 1
        target = TargetSide(self.decoder.target, self._prompt, room)
        if self._text is None:
            return target, None
        # Four draft tokens for one of the target are plenty; if not, the drafter forgets its older half.
        room = len(self._text.tokens) + 4 * self._limit + 2 * self.decoder.length.max_tokens
        drafter = DraftSide(self.decoder.draft, self._text, room)
        pending = drafter.prepare(self.decoder.length.max_tokens)
        if len(pending) > 1:
            drafter.step(pending[:-1])
        return target, drafter

    @torch.inference_mode()
    def _propose(
        self, drafter: DraftSide | None, position: int, clock: _Clock
    ) -> tuple[Draft | None, Translation]:
        """Draft and translate; no more target tokens than leave room for the target's own."""
        most = self._limit - len(self.writer.tokens) - 1
        pending = drafter.prepare(self.decoder.length.max_tokens) if drafter and most else []
        if drafter is None or not pending:
            return None, Translation((), (), ())
        keys, length = self.decoder._keys, self.decoder.length
        draft = propose(drafter.step, pending, length, self.settings.law, self._draw(position), keys.ended)
        clock.lap("draft")
        found = translate(draft.tokens, self.decoder.vocabulary, self.decoder.cache)
        # A model may have fewer outputs than its tokenizer has tokens.
        size = self.decoder.target.config.vocab_size
        most = next((i for i, token in enumerate(found.tokens[:most]) if token >= size), most)
        found = Translation(found.tokens[:most], found.starts[:most], found.stops[:most])
        clock.lap("translate")
        return draft, found

    def _draw(self, position: int) -> Draw:
        if self.settings.greedy or self.decoder.verify == "point_mass":
            return draw_greedy
        if self.decoder.verify == "exact":
            return Coupled(position, self.decoder._keys, self._noise, self._own)
        return draw_independent(self._dice)

    @torch.inference_mode()
    def _judge(
        self, target: TargetSide, draft: Draft | None, translation: Translation, clock: _Clock
    ) -> Verdict:
        proposed = translation.tokens
        rows = target.rows(proposed)
        rows[0, 0].item()  # waits for the device: otherwise the pass would be counted as verification
        clock.lap("target")
        verdict = self._rule(draft, translation, len(target.tokens))(rows)
        clock.lap("verify")
        return verdict

    def _rule(
        self, draft: Draft | None, translation: Translation, position: int
    ) -> Callable[[Tensor], Verdict]:
        proposed, law = translation.tokens, self.settings.law
        if self.settings.greedy:
            return partial(verify_greedy, proposed)
        verify, keys, dice = self.decoder.verify, self.decoder._keys, self._dice
        if verify == "exact" or draft is None:
            noise = self._noise.rows(position, len(proposed) + 1)
            return lambda rows: verify_exact(proposed, law(rows), noise)
        if verify == "point_mass":
            return lambda rows: verify_point_mass(proposed, law(rows), dice)
        if verify == "path_revealed":
            return lambda rows: verify_path_revealed(draft, keys, law(rows), dice)
        spans = list(zip(translation.starts, translation.stops, strict=True))
        return lambda rows: verify_ratio(draft, keys, spans, law(rows), dice)

    def _emit(self, proposed: Sequence[int], verdict: Verdict) -> tuple[int, list[int]]:
        """Write the verdict's tokens up to where the answer ends; return how many were proposed, and all."""
        tokens = []
        for token in (*proposed[: verdict.accepted], verdict.token):
            tokens.append(token)
            if self.writer.add(token):
                break
        return min(verdict.accepted, len(tokens)), tokens

    def _learn(
        self, tokens: Sequence[int], accepted: int, draft: Draft | None, translation: Translation
    ) -> int:
        """Bring the drafter's text up to date and the n-grams of this round into the cache."""
        if self._text is None:
            return 0
        spelling = draft.tokens[: translation.stops[accepted - 1]] if draft and accepted else ()
        # The target may have outputs that its tokenizer has no tokens for; they say nothing.
        known = [token for token in tokens if token < len(self.decoder.vocabulary.target_bytes)]
        pairs = self._text.append(known, spelling)
        if self.decoder.cache is not None:
            for key, token in pairs:
                self.decoder.cache.add(key, token)
            self.decoder.cache.commit()
        return len(pairs)


class _Clock:
    """Time since the last lap, by name."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._laps: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def read(self) -> Seconds:
        return Seconds(**self._laps)


def as_verify(verify: Any) -> Verify:
    """Return the name of a rule; words may be joined by anything.

    Raises
    ------
    DraftError
        There is no such rule.
    """
    known = get_args(Verify)
    name = verify.lower().replace("-", "_").replace(" ", "_") if isinstance(verify, str) else None
    if name not in known:
        raise DraftError(
            f"verify={verify!r} is unknown. Use 'exact' (the target's own text), 'path_revealed' or "
            f"'point_mass' (its law), or 'ratio' (the paper's).{did_you_mean(name or '', known)}"
        )
    return name  # type: ignore[return-value]


def _check_pair(target: TextModel, draft: TextModel) -> None:
    """Refuse models that cannot work together; warn of a drafter that costs more than it can save."""
    devices = [model.model.embed_tokens.weight.device for model in (target, draft)]
    if devices[0] != devices[1]:
        raise DraftError(
            f"The target is on {devices[0]} and the draft model on {devices[1]}. Load both on the same "
            "device: load_model(..., device=...)."
        )
    if target.packed and not target.stable:
        raise DraftError(
            "The target is packed for speed only: a token's logits may differ in the last bits with the "
            "number of tokens verified beside it. Pass it unpacked, or pack it with pack(stable=True)."
        )
    if _weights(draft) > _weights(target):
        log.warning(
            "The draft model (%s) is larger than the target (%s). Are they swapped? The first one decides "
            "the text.",
            _millions(draft),
            _millions(target),
        )


def _weights(model: TextModel) -> int:
    """Return about how many weights the layers multiply by, packed or not."""
    config = model.config
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * config.hidden_size * heads * config.head_dim
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def _millions(model: TextModel) -> str:
    """Return the size of a model, its embedding included, in words."""
    count = _weights(model) + model.config.vocab_size * model.config.hidden_size
    return f"{count / 1e6:.3g} million weights"
