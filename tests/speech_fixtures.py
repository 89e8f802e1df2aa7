"""Short synthetic utterances on disk: seeded noise with a text, for tests that need no real speech."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import soundfile
import torch

from qlib.asr.datasets import Utterance
from qlib.models.tiny import randomize, tiny_whisper
from qlib.models.waveform import SAMPLE_RATE
from qlib.models.whisper import Whisper

TEXTS = ("the cat", "a heath", "sat", "at the heart of the matter")


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(seed))


def multilingual_whisper(seed: int = 5) -> Whisper:
    """A miniature whose prompt has a language and a task."""
    model = tiny_whisper(seed)
    languages, tasks = (("<|en|>", 3), ("<|de|>", 4)), (("transcribe", 7), ("translate", 8))
    model.generation = replace(model.generation, languages=languages, tasks=tasks)
    return model


def timed_whisper(seed: int, frames: int = 100) -> Whisper:
    """A miniature that writes timestamps and hears two languages; its window has 20 ms for each frame."""
    plain = tiny_whisper(frames=frames)
    languages, tasks = (("<|en|>", 3), ("<|de|>", 4)), (("transcribe", 7), ("translate", 8))
    timestamps = frames + 1
    model = Whisper(
        replace(plain.config, vocab_size=plain.config.vocab_size + timestamps),
        replace(plain.generation, languages=languages, tasks=tasks),
        plain.tokenizer,
    )
    randomize(model, seed)
    return model.eval()


def utterances(folder: Path, seconds: tuple[float, ...] = (0.5, 1.0, 0.3, 2.0)) -> list[Utterance]:
    found = []
    for i, (length, text) in enumerate(zip(seconds, TEXTS, strict=True)):
        path = folder / f"noise{i}.wav"
        soundfile.write(path, noise(length, i).numpy(), SAMPLE_RATE)
        found.append(Utterance(path, text, f"noise{i}", where=f"list.jsonl, line {i + 1}"))
    return found
