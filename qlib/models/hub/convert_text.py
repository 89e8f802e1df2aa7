"""A text model out of a GGUF file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.hub.converted_files import save_tensors, write_json
from qlib.models.hub.formats import (
    gguf,
    gguf_config,
    gguf_tensors,
)
from qlib.models.hub.formats.gguf_tokenizer import tokenizer_json
from qlib.models.hub.formats.tokenizer_json import mend_merges
from qlib.models.progress import progress_bar

MENDED = ("gpt-2", "smollm", None)  # splitting rules of tables in which every entry is made by one merge


def llama_from_gguf(source: Path, target: Path, *, progress: bool = False) -> None:
    """Convert `model.gguf` of a Llama model; the dequantized weights are rounded to bfloat16.

    Parameters
    ----------
    source, target : Path
        Folder with the file; existing folder that receives `model.safetensors`, `config.json`,
        `generation_config.json`, `tokenizer.json` and, where the file has one, `chat_template.jinja`.
    progress : bool
        Show a bar.

    Raises
    ------
    ModelError
        The file is damaged, of another architecture, or its tokenizer cannot be rebuilt.
    MissingExtraError
        The `gguf` package is not installed.
    """
    text_from_gguf(source / "model.gguf", target, dtype=torch.bfloat16, progress=progress)


def text_from_gguf(
    path: Path, target: Path, *, dtype: torch.dtype | None = None, progress: bool = False
) -> None:
    """Convert a GGUF file of the Llama, Qwen 2, Qwen 3 or Gemma 3 architecture.

    Parameters
    ----------
    path, target : Path
        The file; existing folder that receives `model.safetensors`, `config.json`, `generation_config.json`,
        `tokenizer.json` and, where the file has one, `chat_template.jinja`.
    dtype : torch.dtype, optional
        Type of all tensors. By default each keeps its own, and dequantized ones become float16.
    progress : bool
        Show a bar.

    Raises
    ------
    ModelError
        The file is damaged, of another architecture, or its tokenizer cannot be rebuilt.
    MissingExtraError
        The `gguf` package is not installed.
    """
    file = gguf.GgufFile(path)
    config = gguf_config.text_config(file)
    try:
        table = tokenizer_json(file.metadata)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if file.metadata.get("tokenizer.ggml.pre") in MENDED:
        mend_merges(table)
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", gguf_config.token_ids(file))
    write_json(target / "tokenizer.json", table)
    if isinstance(template := file.metadata.get("tokenizer.chat_template"), str):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    found = gguf_tensors.text_tensors(file, config)
    bar = progress_bar(found, show=progress, desc="converting", total=len(file.tensors))
    tensors = {name: _shorten(tensor, dtype or file.dtype(stored)) for name, stored, tensor in bar}
    save_tensors(tensors, target / "model.safetensors")


def _shorten(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another type, or as it is where that type does not reach its largest value."""
    short = tensor.to(dtype).contiguous()
    return short if short.isfinite().all() else tensor.contiguous()
