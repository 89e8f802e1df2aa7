"""The cost of token tables and of short scales: the bytes of the file, to the last one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

import qlib
from qlib.models.tiny import tiny_llama, tiny_moonshine, tiny_whisper


@pytest.mark.parametrize("scales", [{}, {"scale_bits": 16}, {"scale_bits": 3}], ids=str)
@pytest.mark.parametrize("make", [tiny_whisper, tiny_moonshine, tiny_llama])
def test_bytes_of_a_file_with_a_quantized_table(make: Any, scales: dict[str, int], tmp_path: Path) -> None:
    grid = qlib.Grid(4, 8, **scales)
    result = qlib.quantize(make(3), weight={"*": grid, "embed_tokens": grid}, progress=False)
    result.save(tmp_path / "out")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    assert qlib.cost(result.model, tokens=4).size.file_bytes == len(content) - 8 - header
