"""Which language each recording is in, and the tokens that its texts begin with.

A recording's language is the one asked for, else its list's, else what a multilingual model hears in its
first window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from qlib.asr.greedy import Head
from qlib.asr.languages import language_code
from qlib.asr.recordings import Source
from qlib.asr.utterance import Utterance
from qlib.errors import ModelError
from qlib.models.speech import SpeechModel
from qlib.models.speech_layers import SpeechCache

DEFAULT_LANGUAGE = "en"


class Language(NamedTuple):
    """A recording's language."""

    code: str  # for example "de"
    probability: float | None = None  # among all that the model knows; None if it was told


class Prompts:
    """The prompts of a call, all equally long.

    Parameters
    ----------
    model : SpeechModel
        Which languages and tasks there are.
    language : str, optional
        What the caller asked for: it overrules what lists say.
    task : str
        ``"transcribe"`` or ``"translate"``.

    Raises
    ------
    ModelError
        The model does not know the language or the task.
    """

    def __init__(self, model: SpeechModel, language: str | None, task: str) -> None:
        self.model, self.task = model, task
        self.asked = None if language is None else language_code(language, error=ModelError)
        self._known: dict[str, list[int]] = {}
        some = next((name.strip("<|>") for name, _ in model.generation.languages), DEFAULT_LANGUAGE)
        self.length = len(self.of(self.asked or some))  # of all of them

    def of(self, code: str) -> list[int]:
        """Return the prompt of a language."""
        if code not in self._known:
            self._known[code] = self.model.generation.prompt(code, self.task)
        return self._known[code]

    def language(self, source: Source) -> Language | None:
        """Return a recording's language, or None where it must be heard.

        Raises
        ------
        DataError
            That of the list is unknown; the message names the recording's place there.
        ModelError
            The model does not know it.
        """
        if self.asked is not None:
            return Language(self.asked)
        if not source.language:
            return None if self.model.generation.languages else Language(DEFAULT_LANGUAGE)
        code = language_code(source.language, source.place)
        try:
            self.of(code)
        except ModelError as error:
            raise ModelError(f"{source.place}: {error}") from error
        return Language(code)


def detect_languages(model: SpeechModel, head: Head, cache: SpeechCache) -> list[Language]:
    """Return the language of each row: the most probable language token after ``<|startoftranscript|>``.

    Paper: Radford et al. 2022, arXiv 2212.04356, section 2.3.

    Parameters
    ----------
    model : SpeechModel
        A multilingual one.
    head : callable
        Hidden states [B, D] to logits [B, V].
    cache : SpeechCache
        New, over the encoder states of B windows; it is new again afterwards.
    """
    generation = model.generation
    start = torch.full((cache.rows, 1), generation.start, device=cache.cross_keys.device)
    logits = head(model.decode(start, cache)[:, -1])
    cache.truncate(0)
    names, ids = zip(*generation.languages, strict=True)
    best = logits[:, list(ids)].float().softmax(-1).max(-1)
    return [
        Language(names[i].strip("<|>"), probability)
        for i, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def row_languages(
    model: SpeechModel, head: Head, cache: SpeechCache, known: Sequence[Language | None]
) -> list[Language]:
    """Return the language of each row: the known one, else the detected; see `detect_languages`."""
    told = [language for language in known if language is not None]
    if len(told) == len(known):  # nothing is to be heard, and the decoder does not run
        return told
    detected = detect_languages(model, head, cache)
    return [language or heard for language, heard in zip(known, detected, strict=True)]


def told(utterance: Utterance, language: str | None = None) -> Utterance:
    """Return an utterance that says its language: what is counted as English is also read as English.

    Errors are those of `language_of`.
    """
    return replace(utterance, language=language_of(utterance, language))


def language_of(source: Source, language: str | None = None) -> str:
    """Return the code of a recording's language where nothing can be heard: English if nothing says it.

    Raises
    ------
    ModelError
        The given language is unknown.
    DataError
        That of the list is unknown; the message names the recording's place there.
    """
    if language is not None:
        return language_code(language, error=ModelError)
    return language_code(source.language, source.place) if source.language else DEFAULT_LANGUAGE
