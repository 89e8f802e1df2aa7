"""Calibration data for an encoder-decoder: what its encoder hears and its decoder writes, in batches.

The decoder is fed the prompt and the reference transcript ("teacher forcing"), so its layers see what
they see while the model transcribes correctly, at every position in one pass.

Two masks say what counts. Tokens behind the end of a text are padding: no layer's result depends on them, so
they never count. Frames behind the end of the audio are different: Whisper has no mask for them, its encoder
and its decoder attend to all 1500, so a layer that is wrong on silence harms the words. But in short clips
they would outvote the speech. One in `SILENCE_STRIDE` counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from qlib.asr.audio import CHUNK_SAMPLES, log_mel_batch, split_windows
from qlib.asr.datasets import Utterance
from qlib.asr.transcribe import transcribe
from qlib.errors import DataError, ModelError
from qlib.models.speech import SpeechBatch
from qlib.models.whisper import Whisper

BATCH_SIZE = 8
SILENCE_STRIDE = 4  # chosen on whisper-tiny.en: none of the silence and all of it are both worse


@torch.inference_mode()
def speech_batches(
    model: Whisper, utterances: Sequence[Utterance], language: str = "en"
) -> list[SpeechBatch]:
    """Return teacher-forced batches of utterances.

    Parameters
    ----------
    model : Whisper
        Gives features, tokenizer and prompt. Where an utterance has no text, the model transcribes it.
    utterances : sequence of Utterance
        One longer than 30 s is cut at pauses; its text cannot be cut along without timestamps, so the
        model transcribes each window.
    language : str
        Of a multilingual checkpoint's prompt.

    Raises
    ------
    DataError
        No utterances, one that is unreadable or empty, or a text longer than the decoder's positions; the
        message names the manifest's line.
    """
    if not utterances:
        raise DataError("The calibration list is empty. Pass some transcribed recordings: 32 are usual.")
    if model.tokenizer is None:
        raise ModelError("The model has no tokenizer: its folder lacks tokenizer.json. Copy it there.")
    prompt = model.generation.prompt(language)
    pieces = (piece for utterance in utterances for piece in _pieces(model, utterance, prompt, language))
    batches = []
    while chunk := list(islice(pieces, BATCH_SIZE)):
        batches.append(_batch(model, chunk))
    return batches


def _pieces(
    model: Whisper, utterance: Utterance, prompt: list[int], language: str
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield waveform and decoder input of each window, one for up to 30 s."""
    audio = utterance.read()
    windows = split_windows(audio)
    if len(windows) == 1 and utterance.text is not None:
        yield audio, prompt + _text_tokens(model, utterance, len(prompt))
        return
    for window, heard in zip(windows, transcribe(model, windows, language=language), strict=True):
        yield window, [*prompt, *heard.tokens]


def _batch(model: Whisper, pieces: Sequence[tuple[Tensor, list[int]]]) -> SpeechBatch:
    audios, rows = [audio for audio, _ in pieces], [tokens for _, tokens in pieces]
    weight = model.proj_out.weight
    features = log_mel_batch(audios, model.config.num_mel_bins).to(weight.device, weight.dtype)
    frames = torch.arange(model.config.max_source_positions)
    per_frame = CHUNK_SAMPLES // len(frames)
    lengths = torch.tensor([-(-len(audio) // per_frame) for audio in audios])
    frame_mask = (frames < lengths[:, None]) | (frames % SILENCE_STRIDE == 0)
    tokens, token_mask = pad_rows(rows, model.generation.end)
    return SpeechBatch(
        features=features,
        frame_mask=frame_mask.to(weight.device),
        tokens=tokens.to(weight.device),
        token_mask=token_mask.to(weight.device),
    )


def _text_tokens(model: Whisper, utterance: Utterance, prompt_length: int) -> list[int]:
    """Tokens of the transcript; the blank in front is how Whisper begins every text."""
    assert model.tokenizer is not None and utterance.text is not None
    tokens = model.tokenizer.encode(" " + utterance.text.strip())
    room = model.config.max_target_positions - prompt_length
    if len(tokens) > room:
        raise DataError(
            f"{utterance.where or utterance.audio}: the text has {len(tokens)} tokens, the decoder has "
            f"room for {room}. Does the text belong to this recording?"
        )
    return tokens


def pad_rows(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Return rows of unequal length as int64 [B, T], filled up at the end, and the mask of what is data."""
    length = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
    mask = torch.tensor([[i < len(row) for i in range(length)] for row in rows])
    return tokens, mask


def fingerprint(utterances: Sequence[Utterance]) -> str:
    """Return a sha256 over ids and texts, in order: the same list gives the same calibration."""
    lines = "\n".join(f"{each.id}\t{each.text}" for each in utterances)
    return hashlib.sha256(lines.encode()).hexdigest()
