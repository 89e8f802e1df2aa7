"""Speech to text: greedy, batched, any length.

    recordings -> windows of at most 30 s, cut at pauses -> sorted by length -> batches
    batch -> encoder, window by window -> greedy decoding, all windows side by side
    texts of a recording's windows, joined in order -> Transcript

Windows of like length stand in one batch, because a batch runs until its longest text ends. A text that
has ended leaves the batch at once, so the others get faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qlib.asr.audio import SAMPLE_RATE, read_audio, split_windows
from qlib.asr.datasets import Utterance, require_text
from qlib.asr.recognizer import Recognizer, as_recognizer, encode_speech, start_decoding, token_limits
from qlib.asr.wer import WerResult, score
from qlib.errors import DataError
from qlib.models.packed import reordered_product
from qlib.models.speech import SpeechCache
from qlib.models.structure import Model
from qlib.models.tokenizer import Tokenizer

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
    model: Model,
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
    model : Model
        A Whisper or Moonshine with its tokenizer, float or quantized.
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
        The model is no speech recognizer, has no tokenizer, or does not know the language or task.
    """
    if isinstance(recordings, str | Path | Tensor | Utterance):
        raise DataError("transcribe takes a list of recordings: put the single one into a list.")
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size} is not a number of windows. Use 1 or more.")
    recognizer, tokenizer = as_recognizer(model)
    prompt = recognizer.generation.prompt(language, task)
    # Every step runs through the large head. This layout takes no time to make, so any call profits.
    head: Head = recognizer.proj_out
    if isinstance(head, nn.Linear):
        head = reordered_product(head.weight, None) or head
    transcripts: list[Transcript] = []
    with tqdm(total=len(recordings), desc="transcribe", unit="clip", disable=not progress) as bar:
        for start in range(0, len(recordings), SORTED_TOGETHER * batch_size):
            audios = [read(each) for each in recordings[start : start + SORTED_TOGETHER * batch_size]]
            heard = _transcribe_waveforms(recognizer, head, audios, batch_size, prompt)
            transcripts += [_join(tokenizer, *each) for each in zip(audios, heard, strict=True)]
            bar.update(len(audios))
    return transcripts


def evaluate_wer(
    model: Model,
    utterances: Sequence[Utterance],
    *,
    batch_size: int = 8,
    language: str = "en",
    progress: bool = False,
) -> WerResult:
    """Transcribe utterances and score the texts against their references.

    Parameters
    ----------
    model : Model
        The model to judge, a Whisper or Moonshine.
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


def greedy(
    model: Recognizer, head: Head, cache: SpeechCache, prompt: Sequence[int], limits: Sequence[int]
) -> list[list[int]]:
    """Decode by always taking the most probable token.

    Parameters
    ----------
    model : Whisper or Moonshine
        Whose decoder writes.
    head : callable
        Hidden states [B, D] to logits [B, V]: `model.proj_out`, or the same map prepacked.
    cache : SpeechCache
        New, over the encoder states of B windows; used up.
    prompt : sequence of int
        What each text begins with.
    limits : sequence of int
        The most new tokens of each row, 1 or more.

    Returns
    -------
    list of list of int
        The new tokens of each row, without the end token; a row ends there or at its limit.
    """
    generation, device = model.generation, model.model.decoder.embed_tokens.weight.device
    banned = torch.tensor(generation.suppress, dtype=torch.long, device=device)
    banned_first = torch.tensor(generation.suppress_first, dtype=torch.long, device=device)
    texts: list[list[int]] = [[] for _ in limits]
    alive = list(range(len(texts)))  # which text each row of the batch belongs to
    tokens = torch.tensor([list(prompt)] * len(texts), device=device)
    while alive:
        logits = head(model.decode(tokens, cache)[:, -1])
        logits.index_fill_(1, banned, -torch.inf)
        if cache.length == len(prompt):
            logits.index_fill_(1, banned_first, -torch.inf)
        chosen = logits.argmax(-1).tolist()
        for row in reversed(range(len(alive))):
            text = alive[row]
            ended = chosen[row] in generation.ends
            if not ended:
                texts[text].append(chosen[row])
            if ended or len(texts[text]) == limits[text]:
                cache.drop(row)  # the last row moves here, in the cache and in both lists
                alive[row], chosen[row] = alive[-1], chosen[-1]
                alive.pop()
                chosen.pop()
        tokens = torch.tensor(chosen, device=device)[:, None]
    return texts


def _transcribe_waveforms(
    model: Recognizer, head: Head, audios: Sequence[Tensor], batch_size: int, prompt: Sequence[int]
) -> list[list[list[int]]]:
    """Return each recording's texts, one for each of its windows; windows of like length go together."""
    windows = [
        (i, window) for i, audio in enumerate(audios) for window in split_windows(audio) if len(window)
    ]
    heard: list[list[int]] = [[] for _ in windows]
    order = sorted(range(len(windows)), key=lambda w: len(windows[w][1]), reverse=True)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        waveforms = [windows[w][1] for w in batch]
        limits = token_limits(model, waveforms, len(prompt))
        states, mask = encode_speech(model, waveforms)
        cache = start_decoding(model, states, mask, len(prompt) + max(limits))
        for w, tokens in zip(batch, greedy(model, head, cache, prompt, limits), strict=True):
            heard[w] = tokens
    mine: list[list[list[int]]] = [[] for _ in audios]
    for (i, _), tokens in zip(windows, heard, strict=True):
        mine[i].append(tokens)
    return mine


def _join(tokenizer: Tokenizer, audio: Tensor, parts: list[list[int]]) -> Transcript:
    """Put the tokens of a recording's windows together."""
    text = " ".join(filter(None, (tokenizer.decode(tokens).strip() for tokens in parts)))
    return Transcript(text, tuple(token for tokens in parts for token in tokens), len(audio) / SAMPLE_RATE)
