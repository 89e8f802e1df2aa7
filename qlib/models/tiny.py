"""Seeded miniatures: whole models of a few thousand parameters, for tests and first steps.

Norm weights and biases are random too: with the usual ones and zeros, a scale folded into the wrong
place would change nothing and go unseen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from torch import nn

from qlib.models.disk.folders import atomic_folder
from qlib.models.gemma3 import Gemma3
from qlib.models.gemma3_config import Gemma3Config
from qlib.models.hub.formats.tokenizer_bin import tokenizer_json
from qlib.models.llama import Llama
from qlib.models.llama_config import LlamaConfig
from qlib.models.moonshine import Moonshine
from qlib.models.moonshine_config import MoonshineConfig, MoonshineGeneration
from qlib.models.rotary import Rope
from qlib.models.structure import Model
from qlib.models.text_config import FULL, SLIDING, TextGeneration
from qlib.models.tokenizer import Tokenizer
from qlib.models.whisper import Whisper
from qlib.models.whisper_config import WhisperConfig, WhisperGeneration

CHAT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIALS = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
FILES = (  # that `write_folder` may write
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
)


def tiny_tokenizer(specials: tuple[str, ...] = SPECIALS) -> Tokenizer:
    """Return a tokenizer of 256 bytes, three merges (" t", " a", "he") and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġ", "a"), ("h", "e")]
    pieces = [*alphabet, *("".join(merge) for merge in merges)]
    raw = RawTokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return Tokenizer(raw)


def tiny_whisper(
    seed: int = 0, width: int = 16, layers: int = 2, heads: int = 2, frames: int = 1500, mels: int = 80
) -> Whisper:
    """Return an English-only Whisper of `layers` + `layers` layers with random weights.

    Parameters
    ----------
    seed : int
        Same seed, same weights, on every machine.
    width, layers, heads : int
        Sizes; the feed-forward layers are four times as wide.
    frames : int
        Encoder positions; 1500 reads real 30 s features, fewer make a test faster.
    mels : int
        Bins of the log-mel spectrogram.
    """
    tokenizer = tiny_tokenizer()
    config = WhisperConfig(
        vocab_size=tokenizer.vocab_size,
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_layers=layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=4 * width,
        max_source_positions=frames,
        max_target_positions=64,
    )
    end, start, no_timestamps = (tokenizer.token_id(token) for token in SPECIALS)
    generation = WhisperGeneration(
        start, end, no_timestamps, suppress=(start, no_timestamps), suppress_first=(end,)
    )
    model = Whisper(config, generation, tokenizer)
    randomize(model, seed)
    return model.eval()


def tiny_byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of the SentencePiece kind: markers, 256 bytes, a few letters and merges.

    What no piece spells goes by bytes.
    """
    pieces = ("\u2581", *"aehrt", "he", "\u2581t", "\u2581a", "\u2581the", "<<ST_0>>")
    records = [b"<unk>", b"<s>", b"</s>", *(bytes([number]) for number in range(256))]
    table = tokenizer_json([*records, *(piece.encode() for piece in pieces)])
    return Tokenizer(RawTokenizer.from_str(json.dumps(table)))


def tiny_moonshine(seed: int = 0, width: int = 16, layers: int = 2, heads: int = 2) -> Moonshine:
    """Return a Moonshine of `layers` + `layers` layers with random weights.

    Parameters
    ----------
    seed : int
        Same seed, same weights, on every machine.
    width, layers, heads : int
        Sizes; 288 and 8 heads are those of the smallest published model. The feed-forward layers are four
        times as wide. Some channels of each head are rotated and some pass through, as in the real ones.
    """
    tokenizer = tiny_byte_tokenizer()
    config = MoonshineConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        encoder_num_hidden_layers=layers,
        encoder_num_attention_heads=heads,
        decoder_num_hidden_layers=layers,
        decoder_num_attention_heads=heads,
        max_position_embeddings=64,
        partial_rotary_factor=0.8,
    )
    generation = MoonshineGeneration(tokenizer.token_id("<s>"), tokenizer.token_id("</s>"))
    model = Moonshine(config, generation, tokenizer)
    randomize(model, seed)
    return model.eval()


def tiny_llama(
    seed: int = 0, width: int = 16, layers: int = 2, heads: int = 4, kv_heads: int = 2, **changes: Any
) -> Llama:
    """Return a Llama with random weights.

    Parameters
    ----------
    seed : int
        Same seed, same weights, on every machine.
    width, layers, heads, kv_heads : int
        Sizes; `heads` / `kv_heads` query heads share a key head, the feed-forward layers are twice as wide.
    **changes
        Other fields of `LlamaConfig`, for example ``model_type="qwen3"`` or ``tie_word_embeddings=False``.
    """
    tokenizer = tiny_tokenizer(CHAT_SPECIALS)
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    model = Llama(LlamaConfig(**{**sizes, **changes}), _chat_generation(tokenizer), tokenizer)
    randomize(model, seed)
    return model.eval()


def tiny_gemma3(seed: int = 0, width: int = 16, layers: int = 3, window: int = 4, **changes: Any) -> Gemma3:
    """Return a Gemma 3 text model with random weights; every second layer sees the whole text.

    Parameters
    ----------
    seed : int
        Same seed, same weights, on every machine.
    width, layers : int
        Sizes; 4 query heads on 2 key heads.
    window : int
        Tokens that the other layers see.
    **changes
        Other fields of `Gemma3Config`.
    """
    tokenizer = tiny_tokenizer(CHAT_SPECIALS)
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 6,
        "sliding_window": window,
        "layer_types": tuple(FULL if i % 2 else SLIDING for i in range(layers)),
        "rope": Rope(1e6),
        "local_rope": Rope(1e4),
    }
    model = Gemma3(Gemma3Config(**{**sizes, **changes}), _chat_generation(tokenizer), tokenizer)
    randomize(model, seed)
    return model.eval()


def _chat_generation(tokenizer: Tokenizer) -> TextGeneration:
    start, _, end = (tokenizer.token_id(token) for token in CHAT_SPECIALS)
    return TextGeneration(bos=start, eos=(end,), pad=start)


def randomize(model: nn.Module, seed: int) -> None:
    """Fill every parameter from one seeded generator: norm weights around 1, matrices scaled by fan-in."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            value = 0.2 * noise + (1.0 if name.endswith("norm.weight") else 0.0)
        else:
            value = noise * parameter[0].numel() ** -0.5
        parameter.data.copy_(value)
    model.requires_grad_(False)


def write_folder(model: Model, folder: str | Path) -> Path:
    """Write a model as a folder in Hugging Face layout and return the folder; other files in it stay."""
    folder = Path(folder)
    with atomic_folder(folder, lambda _: FILES) as fresh:
        model.save_description(fresh)
        state = {
            name: value.contiguous() for name, value in model.state_dict().items() if name not in model.tied
        }
        save_file(state, fresh / "model.safetensors", metadata={"format": "pt"})
    return folder
