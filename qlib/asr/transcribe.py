"""Speech to text: greedy, batched, any length.

    recordings -> windows of at most 30 s, cut at pauses -> sorted by length -> batches
    batch -> log-mel features -> encoder -> greedy decoding, all windows side by side
    texts of a recording's windows, joined in order -> Transcript

Windows of like length stand in one batch, because a batch runs until its longest text ends. A text that
has ended leaves the batch at once, so the others get faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from qlib.asr.audio import SAMPLE_RATE, log_mel_batch, read_audio, split_windows
from qlib.asr.datasets import Utterance, require_text
from qlib.asr.wer import WerResult, score
from qlib.errors import DataError, ModelError
from qlib.models.packed import packed_linear
from qlib.models.whisper import Whisper

SORTED_TOGETHER = 32  # batches whose waveforms are in memory at once and share out their windows by length

Recording = str | Path | Tensor | Utterance
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Transcript:
    """What the model heard."""

    text: str  # as written by the model, without the leading space
    tokens: tuple[int, ...]  # without prompt and end; the windows of a long recording one after another
    seconds: float  # length of the recording

    def __str__(self) -> str:
        return self.text


@torch.inference_mode()
def transcribe(
    model: Whisper,
    recordings: Sequence[Recording],
    *,
    batch_size: int = 8,
    language: str = "en",
    task: str = "transcribe",
    progress: bool = False,
) -> list[Transcript]:
    """Transcribe recordings greedily, without timestamps.

    Parameters
    ----------
    model : Whisper
        With its tokenizer.
    recordings : sequence
        Paths, utterances, or waveforms ``[samples]`` at 16 kHz. Longer than 30 s is cut at pauses.
    batch_size : int
        Windows decoded side by side. More is faster and takes more memory.
    language, task : str
        For multilingual checkpoints, for example ``"en"`` and ``"transcribe"``.
    progress : bool
        Show a progress bar over the windows.

    Returns
    -------
    list of Transcript
        One for each recording, in order. No samples give an empty text.

    Raises
    ------
    DataError
        A recording cannot be read.
    ModelError
        The model has no tokenizer, or does not know the language or task.
    """
    if isinstance(recordings, str | Path | Tensor | Utterance):
        raise DataError("transcribe takes a list of recordings: put the single one into a list.")
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size} is not a number of windows. Use 1 or more.")
    if model.tokenizer is None:
        raise ModelError("The model has no tokenizer: its folder lacks tokenizer.json. Copy it there.")
    prompt = model.generation.prompt(language, task)
    head = packed_linear(model.proj_out.weight, batch_size)
    transcripts: list[Transcript] = []
    with tqdm(total=len(recordings), desc="transcribe", unit="clip", disable=not progress) as bar:
        for start in range(0, len(recordings), SORTED_TOGETHER * batch_size):
            audios = [read(each) for each in recordings[start : start + SORTED_TOGETHER * batch_size]]
            transcripts += _transcribe_waveforms(model, head, audios, batch_size, prompt)
            bar.update(len(audios))
    return transcripts


def evaluate_wer(
    model: Whisper,
    utterances: Sequence[Utterance],
    *,
    batch_size: int = 8,
    language: str = "en",
    progress: bool = False,
) -> WerResult:
    """Transcribe utterances and score the texts against their references.

    Parameters
    ----------
    model : Whisper
        The model to judge.
    utterances : sequence of Utterance
        Each with a reference text; those whose reference is empty are left out of the score.
    batch_size, language, progress
        As for `transcribe`.

    Raises
    ------
    DataError
        No utterances, one without a reference, or all references empty.
    """
    references = require_text(utterances)
    transcripts = transcribe(model, utterances, batch_size=batch_size, language=language, progress=progress)
    return score(references, [transcript.text for transcript in transcripts])


def read(recording: Recording) -> Tensor:
    """Return the waveform of a recording, `[samples]` at 16 kHz."""
    if isinstance(recording, Utterance):
        return recording.read()
    return recording if isinstance(recording, Tensor) else read_audio(recording)


def encode_speech(model: Whisper, windows: Sequence[Tensor]) -> Tensor:
    """Return encoder states [B, S, D] of waveforms that are at most 30 s long."""
    weight = model.proj_out.weight
    features = log_mel_batch(windows, model.config.num_mel_bins).to(weight.device, weight.dtype)
    # One at a time: the activations of a window fit the processor's cache, those of a batch do not.
    return torch.cat([model.encode(window[None]) for window in features])


def greedy(model: Whisper, head: Head, states: Tensor, prompt: Sequence[int]) -> list[list[int]]:
    """Decode encoder states [B, S, D] by always taking the most probable token.

    `head` turns hidden states [B, D] into logits [B, V]: `model.proj_out`, or the same map prepacked.
    Returns the new tokens of each row, without the end token. A row ends there or when the decoder's
    positions are used up.
    """
    generation = model.generation
    room = model.config.max_target_positions - len(prompt)
    banned = torch.tensor(generation.suppress, dtype=torch.long, device=states.device)
    banned_first = torch.tensor(generation.suppress_first, dtype=torch.long, device=states.device)
    texts: list[list[int]] = [[] for _ in range(states.shape[0])]
    alive = list(range(len(texts)))  # which text each row of the batch belongs to
    cache = model.start(states)
    tokens = torch.tensor([list(prompt)] * len(texts), device=states.device)
    while alive:
        logits = head(model.decode(tokens, cache)[:, -1])
        logits.index_fill_(1, banned, -torch.inf)
        if cache.length == len(prompt):
            logits.index_fill_(1, banned_first, -torch.inf)
        chosen = logits.argmax(-1).tolist()
        for row in reversed(range(len(alive))):
            if chosen[row] != generation.end:
                texts[alive[row]].append(chosen[row])
            if chosen[row] == generation.end or len(texts[alive[row]]) == room:
                cache.drop(row)  # the last row moves here, in the cache and in both lists
                alive[row], chosen[row] = alive[-1], chosen[-1]
                alive.pop()
                chosen.pop()
        tokens = torch.tensor(chosen, device=states.device)[:, None]
    return texts


def _transcribe_waveforms(
    model: Whisper, head: Head, audios: Sequence[Tensor], batch_size: int, prompt: Sequence[int]
) -> list[Transcript]:
    """Transcribe waveforms of any length, windows of like length together."""
    windows = [
        (i, window) for i, audio in enumerate(audios) for window in split_windows(audio) if len(window)
    ]
    heard: list[list[int]] = [[] for _ in windows]
    order = sorted(range(len(windows)), key=lambda w: len(windows[w][1]), reverse=True)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        states = encode_speech(model, [windows[w][1] for w in batch])
        for w, tokens in zip(batch, greedy(model, head, states, prompt), strict=True):
            heard[w] = tokens
    mine: list[list[list[int]]] = [[] for _ in audios]
    for (i, _), tokens in zip(windows, heard, strict=True):
        mine[i].append(tokens)
    return [_join(model, audio, parts) for audio, parts in zip(audios, mine, strict=True)]


def _join(model: Whisper, audio: Tensor, parts: list[list[int]]) -> Transcript:
    """Put the tokens of a recording's windows together."""
    assert model.tokenizer is not None
    text = " ".join(filter(None, (model.tokenizer.decode(tokens).strip() for tokens in parts)))
    return Transcript(text, tuple(token for tokens in parts for token in tokens), len(audio) / SAMPLE_RATE)
