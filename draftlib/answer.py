"""One answer on its way: what a round does, in its order, and what it leaves behind.

    0. choose      who proposes: the drafter, a source that costs nothing, or nobody  drafting/choice.py
    1. draft       the drafter continues its spelling of the text by k draft tokens   drafting/propose.py
    2. translate   they become m <= k target tokens; a source has them ready          vocabulary/translate.py
    3. score       one pass of the target gives m + 1 rows of logits                  sides.py
    4. verify      a beginning of the m tokens is accepted, one token is added        verification/verify.py
    5. write       the new tokens join the answer, which may end with one of them     writer.py
    6. learn       they are spelled for the drafter; new n-grams go to the cache      vocabulary/reverse.py

`Answer.next_round` does these steps one after another; each fills a part of a `Round`. The models and the
cache are handed in for every round as a `Pair`, so that they can be exchanged between rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from draftlib.arguments import OnText, Verify, text_sink
from draftlib.drafting.choice import DRAFT, Choice
from draftlib.drafting.coupled import Coupled
from draftlib.drafting.length import Length, most_tokens
from draftlib.drafting.propose import Draw, draw_greedy, draw_independent, propose
from draftlib.prompt import Prompt, Read, read_prompt
from draftlib.prompt_tokens import draft_tokens, target_tokens
from draftlib.round import Pair, Round
from draftlib.seconds import Clock
from draftlib.settings import Settings
from draftlib.sides import DraftSide, TargetSide
from draftlib.verification.draws import RandomDraws
from draftlib.verification.noise import GumbelNoise
from draftlib.verification.rules import RULES, VerifyInputs
from draftlib.vocabulary.reverse import ReverseTranslator
from draftlib.vocabulary.translate import Translation, translate
from draftlib.writer import Writer
from qlib.errors import DraftError, list_names
from qlib.models.text import TextModel

_numbers = itertools.count(1)  # of the answers of this process


@dataclass(frozen=True)
class Randomness:
    """The random numbers of one answer, all from its seed.

    Attributes
    ----------
    noise : GumbelNoise
        Of the target's tokens, for "exact".
    draft_noise : GumbelNoise
        Of the draft tokens that have no target token of their own, for "exact".
    draws : RandomDraws
        Random decisions in order, for the other rules.
    """

    noise: GumbelNoise
    draft_noise: GumbelNoise
    draws: RandomDraws

    @classmethod
    def of(cls, seed: int, pair: Pair) -> Randomness:
        """Return those of a seed."""
        noise = GumbelNoise(seed, pair.target.config.vocab_size, device=pair.device)
        size = (pair.draft or pair.target).config.vocab_size
        draft_noise = GumbelNoise(seed, size, stream=1, device=pair.device)
        return cls(noise, draft_noise, RandomDraws(seed))


# --- the answer


class Answer:
    """One answer, which `next_round` continues until `writer.finish` says why it has ended.

    Parameters
    ----------
    pair : Pair
        The models.
    prompt : str, sequence of messages, or sequence of int
        As for `SpeculativeDecoder.generate`.
    settings : Settings
        Temperature, seed, endings and more.
    on_text : callable, optional
        Gets the text piece by piece.
    drafting : bool
        False for the target alone: steps 0, 1, 2 and 6 are left out.

    Attributes
    ----------
    writer : Writer
        Tokens and text so far.
    drafting : bool
        As given.

    Raises
    ------
    DraftError
        The prompt or a stop token does not suit the target.
    """

    def __init__(
        self, pair: Pair, prompt: Prompt, settings: Settings, on_text: OnText | None, *, drafting: bool
    ):
        read, on_text = read_prompt(prompt), text_sink(on_text)
        options, target = settings.options, pair.target
        self._settings, self.drafting = settings, drafting
        self._prompt = target_tokens(target, read, options["raw"])
        # The last token of an answer needs no position: nothing is computed from it.
        most = target.config.max_position_embeddings - len(self._prompt) + 1
        self._limit = min(options["max_new_tokens"], most)
        ends = {*target.generation.eos, *_stop_tokens(settings, target)}
        pieces = pair.vocabulary.target_bytes
        self.writer = Writer(pieces, ends, settings.stop_strings, self._limit, on_text)
        self._number = next(_numbers)
        self._draft_text: ReverseTranslator | None = None
        if drafting and pair.draft is not None:
            self._draft_text = _draft_text(pair, pair.draft, read, self._prompt, options["raw"])
        self._random = Randomness.of(options["seed"], pair)
        self._clock = Clock()
        self._rounds = 0
        self._target: TargetSide | None = None  # begins with the first round
        self._drafter: DraftSide | None = None

    def next_round(self, pair: Pair, choice: Choice, verify: Verify) -> Round:
        """Go one round further, with what holds at its beginning."""
        self._clock.start()
        with torch.inference_mode():
            target = self._target_side(pair)
            spelled = () if self._draft_text is None else tuple(self._draft_text.tokens)
            self._rounds += 1
            found = Round(self._rounds, tuple(target.tokens), spelled, answer=self._number)
            if self.drafting:
                found = self._choose(found, pair, choice)
            if found.source == DRAFT:
                drafter = self._draft_side(pair, choice.length)
                found = self._draft(found, drafter, pair, choice.length, verify)
                found = self._translate(found, pair)
            found = self._score(found, target)
            found = self._verify(found, pair, verify)
        found = self._write(found, target)
        found = self._learn(found, pair)
        self._clock.lap("update")
        return replace(found, seconds=self._clock.read())

    # --- 0. who takes part

    def _target_side(self, pair: Pair) -> TargetSide:
        """Return the target and its text; in the first round it reads the prompt."""
        if self._target is None:
            self._target = TargetSide(pair.target, self._prompt, len(self._prompt) + self._limit - 1)
            self._clock.lap("prompt")
        return self._target

    def _choose(self, found: Round, pair: Pair, choice: Choice) -> Round:
        """Let the sources guess, and decide who proposes."""
        guesses = choice.guesses(found.context)
        drafter = pair.draft is not None and bool(found.draft_context)
        chosen = choice.choose(guesses, self._room, self._number, drafter)
        self._clock.lap("translate")
        found = replace(found, guesses=guesses)
        if chosen is None or chosen == DRAFT:
            return replace(found, source=chosen or "")
        size = pair.target.config.vocab_size
        m = next((i for i, token in enumerate(chosen.tokens) if token >= size), len(chosen.tokens))
        translation = Translation(chosen.tokens[:m], (0,) * m, (0,) * m)
        return replace(found, source=chosen.source, translation=translation)

    def _draft_side(self, pair: Pair, length: Length) -> DraftSide:
        """Return the drafter and its text; one that is new in this answer has read all but its last token."""
        text = self._draft_text
        assert text is not None and pair.draft is not None
        if self._drafter is None or self._drafter.model is not pair.draft:
            began = self._drafter is not None
            # Four draft tokens for one of the target are plenty; if not, the drafter forgets its older half.
            room = len(text.tokens) + 4 * self._limit + 2 * most_tokens(length)
            self._drafter = DraftSide(pair.draft, text, room)
            pending = self._drafter.prepare(most_tokens(length))
            if len(pending) > 1:
                self._drafter.step(pending[:-1])
            self._clock.lap("learn" if began else "prompt")  # a drafter that has learned reads again
        return self._drafter

    # --- 1. to 6.

    def _draft(self, found: Round, drafter: DraftSide, pair: Pair, length: Length, verify: Verify) -> Round:
        pending = drafter.prepare(most_tokens(length))
        draw = self._draw(found, pair, verify)
        draft = propose(drafter.step, pending, length, self._settings.logprobs, draw, pair.table.ended)
        self._clock.lap("draft")
        return replace(found, draft=draft)

    def _draw(self, found: Round, pair: Pair, verify: Verify) -> Draw:
        """Return how the drafter chooses its tokens; this belongs to the rule of verification."""
        if self._settings.greedy or verify == "point_mass":
            return draw_greedy
        if verify == "exact":
            return Coupled(found.position, pair.table, self._random.noise, self._random.draft_noise)
        return draw_independent(self._random.draws)

    def _translate(self, found: Round, pair: Pair) -> Round:
        """Translate the draft, up to the room and up to a token that the target has no output for."""
        assert found.draft is not None
        whole = translate(found.draft.tokens, pair.vocabulary, pair.cache)
        size = pair.target.config.vocab_size
        tokens = whole.tokens[: self._room]
        m = next((i for i, token in enumerate(tokens) if token >= size), len(tokens))
        translation = Translation(tokens[:m], whole.starts[:m], whole.stops[:m])
        self._clock.lap("translate")
        return replace(found, translation=translation)

    def _score(self, found: Round, target: TargetSide) -> Round:
        rows = target.rows(found.proposed)
        rows[0, 0].item()  # waits for the device: otherwise the pass would be counted as verification
        self._clock.lap("target")
        return replace(found, rows=rows)

    def _verify(self, found: Round, pair: Pair, verify: Verify) -> Round:
        if self._settings.greedy:
            name, logprobs = "greedy", found.rows
        else:
            name = verify
            if found.draft is None:  # nothing is proposed, and the target only draws; or a point mass is
                name = "point_mass" if found.proposed and verify != "exact" else "exact"
            logprobs = self._settings.logprobs(found.rows)
        random = self._random
        inputs = VerifyInputs(
            found.proposed,
            found.spans,
            found.draft,
            pair.table,
            logprobs,
            found.position,
            random.noise,
            random.draws,
        )
        verdict = RULES[name](inputs)
        self._clock.lap("verify")
        return replace(found, verdict=verdict)

    def _write(self, found: Round, target: TargetSide) -> Round:
        """Add the verdict's tokens to the answer, up to where it ends."""
        accepted, own = found.verdict
        tokens: list[int] = []
        for token in (*found.proposed[:accepted], own):
            tokens.append(token)
            if self.writer.add(token):
                break
        target.append(tokens)
        return replace(found, tokens=tuple(tokens), ended=self.writer.finish is not None)

    def _learn(self, found: Round, pair: Pair) -> Round:
        """Spell the new tokens for the drafter, and add what takes several of its tokens to the cache."""
        if self._draft_text is None:
            return found
        spelling: Sequence[int] = ()
        if found.draft and found.accepted:
            spelling = found.draft.tokens[: found.translation.stops[found.accepted - 1]]
        # A target may have more outputs than its tokenizer has tokens; those outputs have no text.
        known = [token for token in found.tokens if token < len(pair.vocabulary.target_bytes)]
        learned = self._draft_text.append(known, spelling)
        if pair.cache is not None:
            for key, token in learned:
                pair.cache.add(key, token)
            pair.cache.commit()
        return replace(found, learned=tuple(learned), spelled=tuple(self._draft_text.tokens))

    @property
    def _room(self) -> int:
        """Most proposed tokens of a round: one place belongs to the target's own token."""
        return self._limit - len(self.writer.tokens) - 1


def _stop_tokens(settings: Settings, target: TextModel) -> Sequence[int]:
    size = target.config.vocab_size
    if wrong := [str(token) for token in settings.stop_tokens if token >= size]:
        raise DraftError(
            f"stop: tokens {list_names(wrong)} are not in the target's vocabulary of {size}: they would "
            "never stop an answer."
        )
    return settings.stop_tokens


def _draft_text(
    pair: Pair, draft: TextModel, prompt: Read, tokens: Sequence[int], raw: bool
) -> ReverseTranslator:
    """Return the drafter's view of the prompt: by its own template and with its own start token."""
    own, rest = draft_tokens(draft, pair.target, prompt, tokens, raw)
    text = ReverseTranslator(pair.vocabulary, own)
    # N-grams of the prompt are not added: the cache is for what the target writes.
    text.append([token for token in rest if token < len(pair.vocabulary.target_bytes)])
    return text
