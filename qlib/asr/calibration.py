"""Calibration data for an encoder-decoder: what its encoder reads and its decoder writes.

The decoder is fed the prompt and the reference transcript ("teacher forcing"), so its layers see what
they see while the model transcribes correctly, at every position in one pass.

One utterance a batch: a text has no padding then, and an error can name the utterance. A batch's masks say
what counts. All tokens do; of the encoder's frames, those that `SpeechModel.counted_frames` marks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qlib.asr.audio import stream_windows
from qlib.asr.parquet import StoredSound
from qlib.asr.prompts import language_of
from qlib.asr.transcribe import as_speech_model, transcribe
from qlib.asr.utterance import Utterance
from qlib.errors import DataError, ModelError
from qlib.models.speech import SpeechModel
from qlib.models.speech_structure import SpeechBatch
from qlib.models.structure import Model


@torch.no_grad()  # not inference mode: methods that learn need tensors that autograd may keep
def speech_batches(
    model: Model, utterances: Sequence[Utterance], language: str | None = None
) -> list[SpeechBatch]:
    """Return teacher-forced batches, one for each utterance or window of one.

    Parameters
    ----------
    model : Model
        A Whisper or Moonshine with its tokenizer. Where an utterance has no text, the model transcribes it.
    utterances : sequence of Utterance
        One longer than 30 s is cut at pauses; its text cannot be cut along without timestamps, so the
        model transcribes each window.
    language : str, optional
        Of a multilingual checkpoint's prompt; if not given, each utterance's own, English where it has none.

    Raises
    ------
    DataError
        No utterances, one that is unreadable or empty, or a text longer than the decoder's positions; the
        message names the manifest's line.
    ModelError
        The model is no speech recognizer, has no tokenizer, or does not know the language.
    """
    if not utterances:
        raise DataError("The calibration list is empty. Pass some transcribed recordings: 32 are usual.")
    speech_model, _ = as_speech_model(model)
    prompts = [_prompt(speech_model, each, language) for each in utterances]
    return [
        _batch(speech_model, audio, [*prompt, *tokens], where)
        for utterance, (code, prompt) in zip(utterances, prompts, strict=True)
        for audio, tokens, where in _pieces(speech_model, utterance, len(prompt), code)
    ]


def _prompt(model: SpeechModel, utterance: Utterance, language: str | None) -> tuple[str, list[int]]:
    """Return an utterance's language and the prompt in it."""
    code = language_of(utterance, language)
    try:
        return code, model.generation.prompt(code)
    except ModelError as error:
        raise ModelError(f"{utterance.place}: {error}") from error


def _pieces(
    model: SpeechModel, utterance: Utterance, prompt_length: int, language: str
) -> Iterator[tuple[Tensor, Sequence[int], str]]:
    """Yield waveform, transcript and name of each window, one for up to 30 s."""
    where = utterance.place
    windows = list(stream_windows(utterance.blocks(), model.window_seconds))
    if len(windows) == 1 and utterance.text is not None:
        tokens = model.transcript_tokens(utterance.text)
        room = model.positions - prompt_length
        if len(tokens) > room:
            raise DataError(
                f"{where}: the text has {len(tokens)} tokens, the decoder has room for {room}. "
                "Does the text belong to this recording?"
            )
        yield windows[0], tokens, where
        return
    transcripts = transcribe(model, windows, language=language, progress=False)
    for number, (window, each) in enumerate(zip(windows, transcripts, strict=True), 1):
        yield window, each.tokens, where if len(windows) == 1 else f"{where}, window {number}"


def _batch(model: SpeechModel, audio: Tensor, tokens: Sequence[int], where: str) -> SpeechBatch:
    (features,) = model.encoder_input([audio])
    row = torch.tensor([list(tokens)], device=features.device)
    return SpeechBatch(
        features=features,
        frame_mask=model.counted_frames(len(audio))[None].to(features.device),
        tokens=row,
        token_mask=torch.ones_like(row, dtype=torch.bool),
        where=where,
    )


def fingerprint(utterances: Sequence[Utterance]) -> str:
    """Return a sha256 over all that calibration depends on, in order: texts, languages, segments and sound.

    Of the sound, files are hashed as they are and not decoded, each once. A file that is not there is another
    one than any that is; `speech_batches` says what is wrong with it.
    """
    digest = hashlib.sha256()
    hashes: dict[Path | StoredSound | Tensor, str] = {}
    for each in utterances:
        if each.audio not in hashes:
            hashes[each.audio] = each.sound_hash()
        known = [each.id, each.text, each.language, each.offset, each.duration, hashes[each.audio]]
        digest.update(json.dumps(known).encode())
    return digest.hexdigest()
