"""Miniatures written by transformers, edited, and their logits there and here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from text_oracles import exact_norms
from torch import Tensor

from qlib.models.hub.load import load_model
from qlib.models.structure import Model

TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", TEXT),
    "mistral": ("Mistral", TEXT | {"sliding_window": None}),
    "qwen2": ("Qwen2", TEXT),
    "qwen3": ("Qwen3", TEXT | {"head_dim": 8}),
    "gemma3_text": ("Gemma3", TEXT | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}),
    "whisper": (
        "Whisper",
        {
            "vocab_size": 60,
            "num_mel_bins": 8,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 20,
            "max_source_positions": 10,
            "max_target_positions": 20,
            "decoder_start_token_id": 50,
            "eos_token_id": 51,
            "bos_token_id": 51,
            "pad_token_id": 51,
        },
    ),
    "moonshine": (
        "Moonshine",
        {
            "vocab_size": 60,
            "hidden_size": 16,
            "intermediate_size": 24,
            "encoder_num_hidden_layers": 1,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 2,
            "decoder_num_attention_heads": 4,
            "max_position_embeddings": 32,
        },
    ),
}
TEXTS = [name for name in FAMILIES if name not in ("whisper", "moonshine")]
EMBEDDING = {"whisper": "model.decoder.embed_tokens.weight", "moonshine": "model.decoder.embed_tokens.weight"}
HEAD = {"whisper": "proj_out.weight", "moonshine": "proj_out.weight"}

Edit = Callable[[dict[str, Tensor], dict[str, Any]], None]


def make(folder: Path, family: str, **changes: Any) -> Path:
    """Write a random miniature as transformers saves it."""
    import transformers

    name, sizes = FAMILIES[family]
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(
        **(sizes | changes)
    )
    kind = "ForConditionalGeneration" if family in ("whisper", "moonshine") else "ForCausalLM"
    model = getattr(transformers, name + kind)(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    if family == "whisper":
        steering = folder / "generation_config.json"
        steering.write_text(json.dumps(json.loads(steering.read_text()) | {"no_timestamps_token_id": 52}))
    return folder


def edit(folder: Path, change: Edit) -> Path:
    """Change a folder's tensors and config.json."""
    tensors, config = (
        load_file(folder / "model.safetensors"),
        json.loads((folder / "config.json").read_text()),
    )
    change(tensors, config)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def set_json(folder: Path, file: str, **values: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def inputs(family: str) -> tuple[Tensor | None, Tensor]:
    """What the encoder hears, and tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 50, (2, 12), generator=generator)
    if family == "whisper":
        return torch.randn(2, 8, 20, generator=generator).double(), tokens
    if family == "moonshine":
        return torch.randn(2, 2000, generator=generator).double() * 0.1, tokens
    return None, tokens


def ours(model: Model, family: str) -> Tensor:
    heard, tokens = inputs(family)
    with torch.no_grad():
        return model(tokens) if heard is None else model(heard, tokens)


def theirs(folder: Path, family: str) -> Tensor:
    import transformers

    kind = "AutoModelForSpeechSeq2Seq" if family in ("whisper", "moonshine") else "AutoModelForCausalLM"
    loader = getattr(transformers, kind)
    model = loader.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    exact_norms(model)
    heard, tokens = inputs(family)
    with torch.no_grad():
        if heard is None:
            return model(tokens).logits  # type: ignore[no-any-return]
        name = "input_features" if family == "whisper" else "input_values"
        return model(**{name: heard}, decoder_input_ids=tokens).logits  # type: ignore[no-any-return]


def agree(folder: Path, family: str) -> Model:
    """Load a folder with both, and compare."""
    model = load_model(folder, torch.float64)
    expected = theirs(folder, family)
    assert expected.abs().max() > 0.5
    assert (ours(model, family) - expected).abs().max() < 1e-9
    return model
