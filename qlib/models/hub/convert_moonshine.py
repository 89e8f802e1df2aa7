"""A Moonshine model out of the files of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.hub.converted_files import save_tensors, write_json
from qlib.models.hub.formats import (
    ort,
    ort_moonshine,
    tokenizer_bin,
)
from qlib.models.moonshine_config import MoonshineConfig, MoonshineGeneration

EMBEDDING = "model.decoder.embed_tokens.weight"


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
    tensors = ort_moonshine.moonshine_state_dict(
        encoder, "model.encoder."
    ) | ort_moonshine.moonshine_state_dict(decoder, "")
    head, embedding = tensors.pop("proj_out.weight", None), tensors.get(EMBEDDING)
    if head is None or embedding is None or not torch.equal(head, embedding):
        raise ModelError(
            f"{source / 'decoder.ort'}: the head is not the embedding. Is it Moonshine's decoder?"
        )
    config = _moonshine_config(tensors)
    for graphs in (encoder, decoder):
        _check_rotary(config, ort_moonshine.rotary_frequencies(graphs), graphs[0].path)
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
