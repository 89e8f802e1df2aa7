"""Blocks of a small Whisper as learning problems, for the tests of what learns from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from qlib.block_task import block_task
from qlib.calibrate import Visit, walk_blocks
from qlib.grid import Grid
from qlib.methods.contracts import BlockTask, Needs
from qlib.models.speech_structure import SpeechBatch
from qlib.models.structure import Model

ENCODER, DECODER = "model.encoder.layers.0", "model.decoder.layers.0"
FRAMES = 20


def heard(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[SpeechBatch]:
    """Utterances of random features and tokens for `tiny_whisper(frames=FRAMES)`; the ends do not count."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(count):
        frame_mask = (torch.arange(FRAMES) < 12 + number % 4)[None]
        token_mask = (torch.arange(9) < 8 - number % 3)[None]
        features = torch.randn(1, 80, 2 * FRAMES, generator=generator).to(dtype)
        tokens = torch.randint(0, 200, (1, 9), generator=generator)
        batches.append(SpeechBatch(features, frame_mask, tokens, token_mask, where=f"utterance {number}"))
    return batches


def task_of(visit: Visit, activation: Callable[[Tensor], Tensor] | None = None) -> BlockTask:
    """The problem of one visited block, all of its layers to be rounded."""
    stats = visit.collect(Needs.RANGE)
    task = block_task(visit, dict.fromkeys(stats, Grid(4)), stats, dict.fromkeys(stats, activation))
    return replace(task, grids={})  # the one that `fit` is given counts


def find_task(
    model: Model, batches: list[SpeechBatch], name: str, activation: Callable[[Tensor], Tensor] | None = None
) -> BlockTask:
    """The problem of one block, in the float model."""
    for visit in walk_blocks(model, batches, model):
        if visit.name == name:
            return task_of(visit, activation)
    raise LookupError(name)
