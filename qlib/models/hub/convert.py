"""From the files of a package to a Hugging Face-layout folder: one function per source format."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.config_values import MOST_TOKENS, ConfigValues
from qlib.models.files import json_text, read_json
from qlib.models.hub.formats import ctranslate2, gguf, ort, tokenizer_bin, whisper_config
from qlib.models.hub.formats.gguf_tokenizer import tokenizer_json
from qlib.models.hub.formats.tokenizer_json import mend_merges
from qlib.models.moonshine_config import MoonshineConfig, MoonshineGeneration
from qlib.models.progress import progress_bar

VERSION = 1  # raise it when a conversion's result changes: folders made by another version are fetched again
EMBEDDING = "model.decoder.embed_tokens.weight"
MENDED = ("gpt-2", "smollm", None)  # splitting rules of tables in which every entry is made by one merge
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
    settings = ConfigValues(read_json(source / "config.json"), source / "config.json")
    lists = ("suppress_ids", "suppress_ids_begin", "lang_ids")
    ids = {key: list(settings.suppressed(key, MOST_TOKENS)) for key in lists}
    generation = whisper_config.whisper_generation_config(config, special, settings.values | ids)
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
    config = gguf.text_config(file)
    try:
        table = tokenizer_json(file.metadata)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if file.metadata.get("tokenizer.ggml.pre") in MENDED:
        mend_merges(table)
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", gguf.token_ids(file))
    write_json(target / "tokenizer.json", table)
    if isinstance(template := file.metadata.get("tokenizer.chat_template"), str):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    found = gguf.text_tensors(file, config)
    bar = progress_bar(found, show=progress, desc="converting", total=len(file.tensors))
    tensors = {name: _shorten(tensor, dtype or file.dtype(stored)) for name, stored, tensor in bar}
    save_tensors(tensors, target / "model.safetensors")


def _shorten(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another type, or as it is where that type does not reach its largest value."""
    short = tensor.to(dtype).contiguous()
    return short if short.isfinite().all() else tensor.contiguous()


def moonshine_from_ort(source: Path, target: Path, *, progress: bool = False) -> None:
    """Convert `encoder.ort`, `decoder.ort` and `tokenizer.bin` of a Moonshine model.

    The weights in the files are 8-bit codes; they become float32 on the same grid.

    Parameters
    ----------
    source, target : Path
        Folder with the files; existing folder that receives `model.safetensors`, `config.json`,
        `generation_config.json` and `tokenizer.json`.
    progress : bool
        Unused: this takes a second.

    Raises
    ------
    ModelError
        A file is missing or damaged, or this is no Moonshine model, or one with other sizes of heads.
    """
    encoder, decoder = (ort.read(source / f"{side}.ort") for side in ("encoder", "decoder"))
    tensors = ort.moonshine_state_dict(encoder, "model.encoder.") | ort.moonshine_state_dict(decoder, "")
    head, embedding = tensors.pop("proj_out.weight", None), tensors.get(EMBEDDING)
    if head is None or embedding is None or not torch.equal(head, embedding):
        raise ModelError(
            f"{source / 'decoder.ort'}: the head is not the embedding. Is it Moonshine's decoder?"
        )
    config = _moonshine_config(tensors)
    for graphs in (encoder, decoder):
        _check_rotary(config, ort.rotary_frequencies(graphs), graphs[0].path)
    records = tokenizer_bin.read(source / "tokenizer.bin")
    if len(records) != config.vocab_size:
        raise ModelError(
            f"{source / 'tokenizer.bin'} has {len(records)} tokens, the model {config.vocab_size}. "
            "Do the files belong together?"
        )
    ids = MoonshineGeneration(start=records.index(b"<s>"), end=records.index(b"</s>")).to_dict()
    write_json(target / "config.json", {**config.to_dict(), **ids})
    write_json(target / "generation_config.json", ids)
    write_json(target / "tokenizer.json", tokenizer_bin.tokenizer_json(records))
    save_tensors(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors"
    )


def _moonshine_config(tensors: dict[str, Tensor]) -> MoonshineConfig:
    """Return what the shapes tell; all published models have 8 heads."""
    vocabulary, width = tensors[EMBEDDING].shape
    fc1 = "model.encoder.layers.0.mlp.fc1.weight"
    if fc1 not in tensors:
        raise ModelError(f"The files hold no {fc1}. Are they Moonshine's encoder and decoder?")
    layers = {
        side: len({name.split(".")[3] for name in tensors if name.startswith(f"model.{side}.layers.")})
        for side in ("encoder", "decoder")
    }
    return MoonshineConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=len(tensors[fc1]),
        encoder_num_hidden_layers=layers["encoder"],
        encoder_num_attention_heads=8,
        decoder_num_hidden_layers=layers["decoder"],
        decoder_num_attention_heads=8,
    )


def _check_rotary(config: MoonshineConfig, found: ort.Array, path: Path) -> None:
    """Raise a ModelError unless the frequencies in a file are those of the configuration."""
    channels = int(config.hidden_size // 8 * config.partial_rotary_factor)
    expected = config.rope_theta ** -(np.arange(0, channels, 2) / channels)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-5, atol=0):
        raise ModelError(
            f"{path}: the rotary embedding has {found.size} frequencies, from {found.max():.4g} to "
            f"{found.min():.4g}, not those of 8 heads of {config.hidden_size // 8} channels. This model has "
            "other heads, which the file does not tell."
        )


CONVERTERS: dict[str, Callable[..., None]] = {
    "ctranslate2-whisper": whisper_from_ctranslate2,
    "gguf-llama": llama_from_gguf,
    "ort-moonshine": moonshine_from_ort,
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object into a folder that is still being made."""
    path.write_text(json_text(content), encoding="utf-8")
