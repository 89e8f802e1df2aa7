"""Calibration data for a text model: texts as it reads them, start token included, one a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from qlib.errors import DataError
from qlib.models.text import TextModel
from qlib.models.text_structure import TextBatch
from qlib.models.tokenizer import need_tokenizer

LENGTH = 512  # tokens of a text that count, its start token included; the rest is cut off


def text_batches(model: TextModel, texts: Sequence[str]) -> list[TextBatch]:
    """Return texts as token batches, each cut at `LENGTH` tokens.

    Parameters
    ----------
    model : TextModel
        Gives the tokenizer and the device.
    texts : sequence of str
        Like what the model will read and write in use: prompts together with good answers. The tokenizer
        puts its start token in front, as it does in use.

    Raises
    ------
    DataError
        No texts, or one without a token; the message counts from 1.
    ModelError
        The model has no tokenizer.
    """
    if not texts:
        raise DataError("The calibration list is empty. Pass some texts: 128 of 512 tokens are usual.")
    tokenizer = need_tokenizer(model.tokenizer)
    device = next(model.parameters()).device
    batches = []
    for number, text in enumerate(texts, start=1):
        ids = tokenizer.encode(text, special=True)
        if len(ids) <= len(tokenizer.start) + len(tokenizer.end):
            raise DataError(f"Calibration text {number} of {len(texts)} is empty. Leave it out.")
        tokens = torch.tensor([ids[:LENGTH]], dtype=torch.long, device=device)
        batches.append(TextBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), f"text {number}"))
    return batches


def fingerprint_texts(texts: Sequence[str]) -> str:
    """Return a sha256 over the texts, in order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
