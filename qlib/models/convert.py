"""From the files of a package to a Hugging Face-layout folder: one function per source format."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from qlib.errors import ModelError
from qlib.models.formats import ctranslate2, gguf, whisper_config
from qlib.models.formats.gguf_tokenizer import tokenizer_json
from qlib.models.formats.tokenizer_json import mend_merges

VERSION = 1  # raise it when a conversion's result changes: folders made by another version are fetched again
log = logging.getLogger(__name__)


def whisper_from_ctranslate2(source: Path, target: Path, *, progress: bool = False) -> None:
    """Convert CTranslate2's `model.bin`, `config.json` and `tokenizer.json` of a Whisper model.

    Parameters
    ----------
    source : Path
        Folder with the three files.
    target : Path
        Existing folder that receives `model.safetensors` (in the stored dtype), `config.json`,
        `generation_config.json`, `tokenizer.json` and the processor's settings.
    progress : bool
        Unused: this takes a second.

    Raises
    ------
    ModelError
        A file is missing or damaged, or this is no Whisper model.
    """
    checkpoint = ctranslate2.read(source / "model.bin")
    if checkpoint.spec != "WhisperSpec":
        raise ModelError(
            f"{source / 'model.bin'} holds a {checkpoint.spec!r}; only 'WhisperSpec' is converted."
        )
    variables = checkpoint.variables
    tensors = ctranslate2.whisper_state_dict(variables)
    tokenizer = read_json(source / "tokenizer.json")
    special = whisper_config.special_tokens(tokenizer)
    try:
        heads = int(variables["encoder/num_heads"]), int(variables["decoder/num_heads"])
    except KeyError as error:
        raise ModelError(
            f"{source / 'model.bin'} lacks the variable {error}. Is it a Whisper model?"
        ) from error
    config = whisper_config.whisper_config(tensors, heads, special)
    generation = whisper_config.whisper_generation_config(config, special, read_json(source / "config.json"))
    if mended := mend_merges(tokenizer):
        log.info("tokenizer.json lacked %d merges, put back: %s", len(mended), mended)
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", generation)
    write_json(target / "tokenizer.json", tokenizer)
    for file, content in whisper_config.whisper_processor_files(config["num_mel_bins"]).items():
        write_json(target / file, content)
    save_tensors(tensors, target / "model.safetensors")


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
    file = gguf.GgufFile(source / "model.gguf")
    config, table = gguf.llama_config(file), tokenizer_json(file.metadata)
    mend_merges(table)
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", gguf.llama_token_ids(file))
    write_json(target / "tokenizer.json", table)
    if template := file.metadata.get("tokenizer.chat_template"):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    tensors = tqdm(gguf.llama_tensors(file, config), "converting", len(file.tensors), disable=not progress)
    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors}
    save_tensors(rounded, target / "model.safetensors")


CONVERTERS: dict[str, Callable[..., None]] = {
    "ctranslate2-whisper": whisper_from_ctranslate2,
    "gguf-llama": llama_from_gguf,
}


def convert(form: str, source: Path, target: Path, *, progress: bool = False) -> None:
    """Convert the files in `source` (`form` is a key of `CONVERTERS`) into the new folder `target`."""
    target.mkdir()
    CONVERTERS[form](source, target, progress=progress)
    if (source / "LICENSE").exists():
        shutil.copyfile(source / "LICENSE", target / "LICENSE")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that other users of the machine may read, like its neighbours."""
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # it is created for its owner only


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or malformed file is a ModelError that names it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing. A checkpoint folder in Hugging Face layout has it.") from error
    except ValueError as error:  # malformed JSON, or not UTF-8
        raise ModelError(f"Cannot read {path}: it is not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds a {type(values).__name__}, not a JSON object.")
    return values


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, UTF-8, indented."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
