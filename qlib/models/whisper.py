"""Whisper: log-mel spectrogram in, text tokens out.

Paper: Radford et al. 2022, arXiv 2212.04356. Module and tensor names are those of Hugging Face
checkpoints, and every projection is a plain `nn.Linear`, so a quantizer finds and replaces them by name.

    features [B, mels, 2S] -> two convolutions -> [B, S, D] -> encoder layers -> layer norm
    tokens [B, T] -> embedding + position -> decoder layers (self-attention, cross-attention,
                     feed-forward) -> layer norm -> proj_out, tied to the embedding -> [B, T, V]

B batch, S = 1500 frames of 20 ms, T tokens, D width, H heads, V vocabulary. Layers are pre-norm.
Left out: timestamps, alignment heads and dropout, which greedy transcription does not use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlib.errors import ModelError, list_names
from qlib.models.cache import KVCache
from qlib.models.config_values import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
    ConfigValues,
    divide,
)
from qlib.models.hub.formats.whisper_config import MULTILINGUAL_VOCABULARY
from qlib.models.layers import embedding
from qlib.models.speech import (
    Cross,
    SpeechBatch,
    SpeechCache,
    SpeechDecoderStage,
    SpeechEncoderStage,
    SpeechModel,
    causal_mask,
    start_cache,
)
from qlib.models.structure import LayerGroup, QueryKey, Source, write_description
from qlib.models.tokenizer import Tokenizer

_SUPPORTED = {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True}
_MOST = {
    "vocab_size": MOST_TOKENS,
    "num_mel_bins": MOST_WIDTH,
    "d_model": MOST_WIDTH,
    "encoder_layers": MOST_LAYERS,
    "encoder_attention_heads": MOST_HEADS,
    "encoder_ffn_dim": MOST_WIDTH,
    "decoder_layers": MOST_LAYERS,
    "decoder_attention_heads": MOST_HEADS,
    "decoder_ffn_dim": MOST_WIDTH,
}
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
_TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes, named as in config.json."""

    vocab_size: int
    num_mel_bins: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    max_source_positions: int = 1500
    max_target_positions: int = 448

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | ConfigValues) -> WhisperConfig:
        """Read config.json; keys that this implementation cannot honour are errors."""
        values = ConfigValues.of(values)
        values.check(_SUPPORTED)
        values.require(_MOST, "a Whisper")
        sizes = {name: values.whole(name, most=most) for name, most in _MOST.items()}
        for side in ("encoder", "decoder"):
            divide(values, "d_model", f"{side}_attention_heads")
        return cls(
            **sizes,
            max_source_positions=values.whole("max_source_positions", 1500),
            max_target_positions=values.whole("max_target_positions", 448),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], **asdict(self)}


@dataclass(frozen=True)
class WhisperGeneration:
    """Token ids that steer decoding, from generation_config.json."""

    start: int  # <|startoftranscript|>
    end: int  # <|endoftext|>
    no_timestamps: int
    suppress: tuple[int, ...] = ()  # never chosen: symbols and special tokens
    suppress_first: tuple[int, ...] = ()  # never chosen first: a blank, the end
    languages: tuple[tuple[str, int], ...] = ()  # ("<|en|>", id); empty for English-only checkpoints
    tasks: tuple[tuple[str, int], ...] = ()
    other_ends: tuple[int, ...] = ()  # ids that end a text as well

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return (self.end, *self.other_ends)

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any] | ConfigValues,
        vocabulary: int = MOST_TOKENS,
        tokenizer: Tokenizer | None = None,
    ) -> WhisperGeneration:
        """Read generation_config.json, or a config.json that carries the same keys (older checkpoints).

        Parameters
        ----------
        values : mapping
            What the files state.
        vocabulary : int
            Tokens of the model; every id must be below.
        tokenizer : Tokenizer, optional
            Knows the special tokens that the files of 2022 and 2023 leave out.

        Raises
        ------
        ModelError
            An id is of another type or outside of the vocabulary, or a needed one is nowhere.
        """
        values = ConfigValues.of(values)
        special = _SpecialIds(values, vocabulary, tokenizer)
        ends = values.ids("eos_token_id", vocabulary) or (special.need("eos_token_id", "<|endoftext|>"),)
        many = bool(values.get("lang_to_id")) or MULTILINGUAL_VOCABULARY <= vocabulary < MOST_TOKENS
        multilingual = values.flag("is_multilingual", many)
        return cls(
            start=special.need("decoder_start_token_id", "<|startoftranscript|>"),
            end=ends[0],
            other_ends=ends[1:],
            no_timestamps=special.need("no_timestamps_token_id", "<|notimestamps|>"),
            suppress=values.suppressed("suppress_tokens", vocabulary),
            suppress_first=values.suppressed("begin_suppress_tokens", vocabulary),
            languages=special.languages() if multilingual else (),
            tasks=special.tasks() if multilingual else (),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of generation_config.json."""
        multilingual = {"lang_to_id": dict(self.languages), "task_to_id": dict(self.tasks)}
        return {
            "decoder_start_token_id": self.start,
            "eos_token_id": list(self.ends) if self.other_ends else self.end,
            "no_timestamps_token_id": self.no_timestamps,
            "suppress_tokens": list(self.suppress),
            "begin_suppress_tokens": list(self.suppress_first),
            "is_multilingual": bool(self.languages),
            **(multilingual if self.languages else {}),
        }

    def prompt(self, language: str = "en", task: str = "transcribe") -> list[int]:
        """Return the tokens that every transcript begins with.

        English-only checkpoints know no language or task tokens: there, anything but English
        transcription is an error.
        """
        if not self.languages:
            if (language, task) != ("en", "transcribe"):
                raise ModelError(
                    f"This checkpoint only transcribes English; language={language!r}, task={task!r} needs "
                    "a multilingual one, for example whisper-base."
                )
            return [self.start, self.no_timestamps]
        languages, tasks = dict(self.languages), dict(self.tasks)
        if f"<|{language}|>" not in languages:
            known = sorted(name.strip("<|>") for name in languages)
            raise ModelError(f"Unknown language {language!r}. Known: {list_names(known, 100)}.")
        if task not in tasks:
            raise ModelError(f"Unknown task {task!r}. Known: {list_names(tasks)}.")
        return [self.start, languages[f"<|{language}|>"], tasks[task], self.no_timestamps]


class _SpecialIds:
    """Ids of special tokens: as a configuration states them, else by their names in the tokenizer."""

    def __init__(self, values: ConfigValues, vocabulary: int, tokenizer: Tokenizer | None):
        self.values, self.vocabulary, self.tokenizer = values, vocabulary, tokenizer

    def need(self, key: str, token: str) -> int:
        """Return one id; that it is nowhere is an error."""
        stated = self.values.id(key, self.vocabulary)
        found = self._by_name(token) if stated is None else stated
        if found is None:
            raise ModelError(
                f"{self.values.file} lacks {key!r}, which Whisper's prompt needs, and no tokenizer.json "
                f"beside it has {token!r} below {self.vocabulary}. Copy both from where the weights came "
                "from."
            )
        return found

    def languages(self) -> tuple[tuple[str, int], ...]:
        """Return the language tokens, ``("<|en|>", id)``."""
        if stated := self.values.ids_by_name("lang_to_id", self.vocabulary):
            return stated
        ids = sorted(self.tokenizer.special_ids) if self.tokenizer else ()
        names = ((self.tokenizer.decode([i], skip_special=False), i) for i in ids if self.tokenizer)
        found = tuple((name, i) for name, i in names if _LANGUAGE.fullmatch(name) and i < self.vocabulary)
        if not found:
            raise ModelError(
                f"{self.values.file} is of a multilingual checkpoint and lacks 'lang_to_id', and no "
                "tokenizer.json beside it has language tokens, for example '<|en|>'. Copy both from where "
                "the weights came from."
            )
        return found

    def tasks(self) -> tuple[tuple[str, int], ...]:
        """Return the task tokens, ``("transcribe", id)``."""
        if stated := self.values.ids_by_name("task_to_id", self.vocabulary):
            return stated
        found = ((task, self._by_name(f"<|{task}|>")) for task in _TASKS)
        return tuple((task, number) for task, number in found if number is not None)

    def _by_name(self, token: str) -> int | None:
        try:
            number = self.tokenizer.token_id(token) if self.tokenizer else self.vocabulary
        except ModelError:  # the table has no such token
            return None
        return number if number < self.vocabulary else None


class Attention(nn.Module):
    """Multi-head attention whose keys and values may come from another stream. `k_proj` has no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, D/H]."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values `[B, H, T, D/H]` of the stream `x [B, T, D]`."""
        return self.split(self.k_proj(x)), self.split(self.v_proj(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from `x [B, T, D]` to the keys; `mask [T, keys]` is True where a query may look."""
        queries = self.split(self.q_proj(x))
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, both on a residual stream."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        width = config.d_model
        self.self_attn = Attention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, wanted: Tensor | None = None) -> Tensor:
        """[B, S, D] -> [B, S, D], or [B, n, D]: only the frames that are `wanted`, bool [S]."""
        x = self.self_attn_layer_norm(hidden)
        keys, values = self.self_attn.keys_values(x)
        if wanted is not None:
            hidden, x = hidden[:, wanted], x[:, wanted]
        hidden = hidden + self.self_attn(x, keys, values)
        x = self.final_layer_norm(hidden)
        return hidden + self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the encoder's output, feed-forward."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        width = config.d_model
        self.self_attn = Attention(width, config.decoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        hidden: Tensor,
        cross: Cross,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; `cross`: the encoder's keys and values for this layer."""
        x = self.self_attn_layer_norm(hidden)
        keys, values = self.self_attn.keys_values(x)
        if cache is not None:
            keys, values = cache.append(layer, torch.cat((keys, values), 1).transpose(1, 2))
        hidden = hidden + self.self_attn(x, keys, values, mask)
        hidden = hidden + self.encoder_attn(self.encoder_attn_layer_norm(hidden), *cross)
        x = self.final_layer_norm(hidden)
        return hidden + self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class WhisperEncoder(nn.Module):
    """Convolution stem, sinusoid positions (stored in the checkpoint), layers, final norm."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def stem(self, features: Tensor) -> Tensor:
        """[B, mels, 2S] -> [B, S, D], the first layer's input."""
        frames = 2 * self.embed_positions.num_embeddings
        if features.shape[1:] != (self.conv1.in_channels, frames):
            raise ModelError(
                f"Features have shape {tuple(features.shape)}; this checkpoint reads "
                f"[batch, {self.conv1.in_channels}, {frames}]: pad or cut the audio to {frames / 100:g} s."
            )
        x = F.gelu(self.conv2(F.gelu(self.conv1(features))))
        return x.transpose(1, 2) + self.embed_positions.weight

    def forward(self, features: Tensor) -> Tensor:
        """[B, mels, 2S] -> [B, S, D]."""
        hidden = self.stem(features)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.layer_norm(hidden)  # type: ignore[no-any-return]


class WhisperDecoder(nn.Module):
    """Token and position embeddings, layers, final norm."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        width = config.d_model
        self.embed_tokens = embedding(config.vocab_size, width)
        self.embed_positions = embedding(config.max_target_positions, width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """[B, T] -> [B, T, D], the first layer's input; the first token stands at position `start`."""
        end = start + tokens.shape[1]
        if end > self.embed_positions.num_embeddings:
            raise ModelError(
                f"{end} tokens are more than the decoder's {self.embed_positions.num_embeddings} positions."
            )
        return self.embed_tokens(tokens) + self.embed_positions.weight[start:end]  # type: ignore[no-any-return]


class WhisperCore(nn.Module):
    """Encoder and decoder without the output head, so that tensor names match the checkpoints'."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.decoder = WhisperDecoder(config)


class Whisper(SpeechModel):
    """A Whisper model of any size, with its tokenizer and decoding settings."""

    family: ClassVar[str] = "whisper"
    tied: Mapping[str, str] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

    def __init__(
        self, config: WhisperConfig, generation: WhisperGeneration, tokenizer: Tokenizer | None = None
    ):
        super().__init__()
        self.config = config
        self.generation = generation
        self.tokenizer = tokenizer
        self.model: WhisperCore = WhisperCore(config)
        self.proj_out: nn.Module = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.tie()

    def save_description(self, folder: Path) -> None:
        """Write all of a checkpoint but the weights: its two configurations and the tokenizer."""
        end, start, generation = self.generation.end, self.generation.start, self.generation.to_dict()
        ids = {"bos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
        ids["eos_token_id"] = generation["eos_token_id"]
        write_description(folder, {**self.config.to_dict(), **ids}, generation, self.tokenizer)

    def encode(self, features: Tensor) -> Tensor:
        """Log-mel features [B, mels, 2S] -> encoder states [B, S, D]."""
        return self.model.encoder(features)  # type: ignore[no-any-return]

    def start(self, states: Tensor, capacity: int | None = None) -> SpeechCache:
        """Return the cache of a new decoding over encoder states [B, S, D].

        `capacity` is the number of tokens that it can hold, by default all of the decoder's positions.
        """
        heads, room = self.config.decoder_attention_heads, self.config.max_target_positions
        return start_cache(self.model.decoder.layers, heads, states, capacity or room)

    def decode(self, tokens: Tensor, cache: SpeechCache) -> Tensor:
        """Feed tokens [B, T] behind those in the cache; return their final hidden states [B, T, D]."""
        decoder, start, new = self.model.decoder, cache.length, tokens.shape[1]
        hidden = decoder.embed(tokens, start)
        mask = causal_mask(new, start + new, hidden.device) if new > 1 else None
        for i, layer in enumerate(decoder.layers):
            hidden = layer(hidden, cache.cross(i), mask, cache.own, i)
        cache.own.advance(new)
        return decoder.layer_norm(hidden)  # type: ignore[no-any-return]

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V] of tokens [B, T] for features [B, mels, 2S]."""
        return self.proj_out(self.decode(tokens, self.start(self.encode(features), tokens.shape[1])))  # type: ignore[no-any-return]

    def stages(self) -> tuple[EncoderStage, DecoderStage]:
        """Return the two chains of blocks: the decoder reads what the finished encoder wrote."""
        return EncoderStage(self), DecoderStage(self)

    def groups(self) -> list[LayerGroup]:
        """Return every linear layer but the tied head, by the input that it reads, in order of use."""
        encoder = [
            group
            for i in range(self.config.encoder_layers)
            for group in _layer_groups(f"model.encoder.layers.{i}")
        ]
        cross = tuple(
            f"model.decoder.layers.{i}.encoder_attn.{name}"
            for i in range(self.config.decoder_layers)
            for name in ("k_proj", "v_proj")
        )
        shared = LayerGroup(cross, "model.encoder.layer_norm", source="encoder", shift=True)
        decoder = [
            group
            for i in range(self.config.decoder_layers)
            for group in _layer_groups(f"model.decoder.layers.{i}", cross=True)
        ]
        return [*encoder, shared, *decoder]

    def query_keys(self) -> list[QueryKey]:
        """Return q and k of every attention: without rotary embeddings each channel is free."""
        free = tuple(range(self.config.d_model))
        encoder = [f"model.encoder.layers.{i}.self_attn" for i in range(self.config.encoder_layers)]
        decoder = [
            f"model.decoder.layers.{i}.{kind}"
            for i in range(self.config.decoder_layers)
            for kind in ("self_attn", "encoder_attn")
        ]
        return [QueryKey(f"{a}.q_proj", f"{a}.k_proj", free, free) for a in (*encoder, *decoder)]


def _layer_groups(layer: str, cross: bool = False) -> list[LayerGroup]:
    """List the groups inside one layer. Cross-attention's k and v read the encoder: they are not here."""
    own, other = f"{layer}.self_attn", f"{layer}.encoder_attn"
    qkv = (f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj")
    # An offset may move too. k_proj has no bias to take it up, and needs none: a constant in all keys adds
    # the same number to all scores of a query, which the softmax takes away again. Attention weights sum to
    # 1, so an offset of the values passes through to out_proj unchanged.
    groups = [
        LayerGroup(qkv, f"{own}_layer_norm", shift=True),
        LayerGroup((f"{own}.out_proj",), f"{own}.v_proj", shift=True),
    ]
    if cross:
        groups += [
            LayerGroup((f"{other}.q_proj",), f"{other}_layer_norm", shift=True),
            LayerGroup((f"{other}.out_proj",), f"{other}.v_proj", shift=True),
        ]
    gelu = "GELU stands between fc1 and fc2, and gelu(x / s) is not gelu(x) / s"
    return [
        *groups,
        LayerGroup((f"{layer}.fc1",), f"{layer}.final_layer_norm", shift=True),
        LayerGroup((f"{layer}.fc2",), None, gelu),
    ]


class EncoderStage(SpeechEncoderStage):
    """The encoder's layers."""

    def __init__(self, whisper: Whisper):
        self.encoder = whisper.model.encoder
        self.blocks = tuple(f"model.encoder.layers.{i}" for i in range(len(self.encoder.layers)))

    def run(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch) -> Tensor:
        """One encoder layer."""
        return block(hidden)  # type: ignore[no-any-return]

    def counted(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch) -> Tensor:
        """One encoder layer; of a single utterance, only the frames that count: in 5 s of speech 4 in 10."""
        if len(hidden) > 1:
            return super().counted(block, hidden, batch)
        return block(hidden, batch.frame_mask[0])[0]  # type: ignore[no-any-return]

    def seen(self, inputs: Tensor, batch: SpeechBatch, source: Source) -> Tensor:
        """Return what is left of the input. `k_proj` and `v_proj` see all frames; q stands for the three."""
        return super().seen(inputs, batch, source) if len(inputs) > 1 else inputs[0]


class DecoderStage(SpeechDecoderStage):
    """The decoder's layers."""

    def __init__(self, whisper: Whisper):
        self.decoder = whisper.model.decoder
        self.norm = whisper.model.encoder.layer_norm
        self.blocks = tuple(f"model.decoder.layers.{i}" for i in range(len(self.decoder.layers)))

    def enter(self, batch: SpeechBatch) -> Tensor:
        """Token and position embeddings."""
        return self.decoder.embed(batch.tokens)

    def run(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch) -> Tensor:
        """One decoder layer. Padding stands behind the text, where the causal mask hides it."""
        assert isinstance(block, DecoderLayer) and batch.states is not None
        cross = (*block.encoder_attn.keys_values(self.norm(batch.states)), None)
        return block(hidden, cross, causal_mask(hidden.shape[1], hidden.shape[1], hidden.device))  # type: ignore[no-any-return]
