"""The cost of a real checkpoint: sizes that are known from elsewhere, and the file to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import qlib

pytestmark = pytest.mark.weights


def test_whisper_tiny(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = qlib.load_model(checkpoint("whisper-tiny.en"))
    found = qlib.cost(model)
    assert found.size.parameters == 37_184_256 + 1500 * 384  # as published, and the encoder's fixed positions
    # The weights came in 16 bits; positions that a formula gives are not stored.
    assert found.size.file_bytes == 2 * (found.size.parameters - 1500 * 384)
    # 51,864 tokens of 384 numbers: read by the head for each token, 32 bits each
    assert found.sum_of("token", "head").weight_bytes == 40 * 51_864 * 384 * 4

    quantized = qlib.quantize(model, weight=qlib.Grid(4, 64), progress=False)
    content = (quantized.save(tmp_path / "w4") / "model.safetensors").read_bytes()
    data = len(content) - 8 - int.from_bytes(content[:8], "little")
    assert qlib.cost(quantized.model).size.file_bytes == data
