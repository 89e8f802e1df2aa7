"""Moonshine: a waveform in, text tokens out.

Paper: Jeffries et al. 2024, arXiv 2410.15608. Module and tensor names are those of Hugging Face
checkpoints, and every projection is a plain `nn.Linear`, so a quantizer finds and replaces them by name.

    waveform [B, samples] -> three convolutions -> [B, S, D] -> encoder layers -> layer norm
    tokens [B, T] -> embedding -> decoder layers (self-attention, cross-attention, gated feed-forward)
                  -> layer norm -> proj_out, tied to the embedding -> [B, T, V]

B batch, S frames of 24 ms (384 samples), T tokens, D width, H heads, V vocabulary. What differs from Whisper:

- no spectrogram and no padding to 30 s: S follows the recording's length. The stem's group norm averages
  over the whole recording, so padding would change every frame: recordings of different length are encoded
  one by one, and only their states share a batch, under a mask;
- positions are rotations of queries and keys in self-attention (RoPE), of neighbouring channels and of the
  first `rotary_pairs` pairs of a head only; angles are computed in float32, whatever the weights are;
- the decoder's feed-forward is gated: `fc1` makes [hidden | gate], and `fc2` reads hidden * silu(gate);
- norms and attention have no biases.

Left out: grouped-query attention, scaled rotary embeddings, biases in attention; no published checkpoint has
them, and a configuration that asks for them is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlib.errors import ModelError
from qlib.models.cache import KVCache
from qlib.models.config_values import (
    MOST_HEADS,
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
    ConfigValues,
    divide,
)
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
from qlib.models.structure import LayerGroup, QueryKey, write_description
from qlib.models.tokenizer import Tokenizer

STEM = ((127, 64), (7, 3), (3, 2))  # kernel and stride of the three convolutions, in samples and frames
MIN_SAMPLES = 895  # 56 ms: what one frame hears

Angles = tuple[Tensor, Tensor]  # cosines and sines, [T, pairs]


_MOST = {
    "vocab_size": MOST_TOKENS,
    "hidden_size": MOST_WIDTH,
    "intermediate_size": MOST_WIDTH,
    "encoder_num_hidden_layers": MOST_LAYERS,
    "encoder_num_attention_heads": MOST_HEADS,
    "decoder_num_hidden_layers": MOST_LAYERS,
    "decoder_num_attention_heads": MOST_HEADS,
}


@dataclass(frozen=True)
class MoonshineConfig:
    """Sizes, named as in config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    encoder_num_hidden_layers: int
    encoder_num_attention_heads: int
    decoder_num_hidden_layers: int
    decoder_num_attention_heads: int
    max_position_embeddings: int = 512
    partial_rotary_factor: float = 0.9
    rope_theta: float = 10_000.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | ConfigValues) -> MoonshineConfig:
        """Read config.json; keys that this implementation cannot honour are errors."""
        values = ConfigValues.of(values)
        if rope := values.section("rope_parameters"):  # newer files keep the rotary settings together
            stated = {key: value for key, value in rope.values.items() if value is not None}
            values = ConfigValues({**values.values, **stated}, values.file)
        values.require(_MOST, "a Moonshine")
        sizes = {name: values.whole(name, most=most) for name, most in _MOST.items()}
        widths = {
            side: divide(values, "hidden_size", f"{side}_num_attention_heads")
            for side in ("encoder", "decoder")
        }
        values.check(
            {
                "encoder_hidden_act": "gelu",
                "decoder_hidden_act": "silu",
                "attention_bias": False,
                "tie_word_embeddings": True,
                "rope_scaling": "null",
                "rope_type": "default",
                "encoder_num_key_value_heads": sizes["encoder_num_attention_heads"],
                "decoder_num_key_value_heads": sizes["decoder_num_attention_heads"],
            }
        )
        config = cls(
            **sizes,
            max_position_embeddings=values.whole("max_position_embeddings", 512),
            partial_rotary_factor=values.number("partial_rotary_factor", 0.9, above=0, most=1),
            rope_theta=values.number("rope_theta", 10_000.0, above=0),
        )
        for side, width in widths.items():
            turned = 2 * config.rotary_pairs(sizes[f"{side}_num_attention_heads"])
            if not 0 < turned <= width:
                raise values.refusal(
                    "partial_rotary_factor",
                    f"a share of a head's {width} channels ({side}) in whole pairs; this one turns {turned}",
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        rotary = {key: getattr(self, key) for key in ("rope_theta", "partial_rotary_factor")}
        names = {"model_type": "moonshine", "architectures": ["MoonshineForConditionalGeneration"]}
        return {**names, **asdict(self), "rope_parameters": {"rope_type": "default", **rotary}}

    def rotary_pairs(self, heads: int) -> int:
        """Return how many pairs of channels of a head are rotated."""
        return -(-int(self.hidden_size // heads * self.partial_rotary_factor) // 2)


@dataclass(frozen=True)
class MoonshineGeneration:
    """Token ids that steer decoding, from generation_config.json."""

    start: int  # <s>
    end: int  # </s>
    suppress: tuple[int, ...] = ()  # never chosen; Moonshine has none
    suppress_first: tuple[int, ...] = ()
    other_ends: tuple[int, ...] = ()  # ids that end a text as well

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return (self.end, *self.other_ends)

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any] | ConfigValues, vocabulary: int = MOST_TOKENS
    ) -> MoonshineGeneration:
        """Read generation_config.json, or a config.json with the same keys; ids are below `vocabulary`."""
        values = ConfigValues.of(values)
        start = values.id("decoder_start_token_id", vocabulary)
        ends = values.ids("eos_token_id", vocabulary)
        if start is None or not ends:
            lacking = "decoder_start_token_id" if start is None else "eos_token_id"
            raise ModelError(
                f"{values.file} lacks {lacking!r}, which decoding needs. Copy the file from where the "
                "weights came from."
            )
        return cls(start, ends[0], other_ends=ends[1:])

    def to_dict(self) -> dict[str, Any]:
        """Return the content of generation_config.json."""
        return {
            "bos_token_id": self.start,
            "decoder_start_token_id": self.start,
            "eos_token_id": list(self.ends) if self.other_ends else self.end,
            "pad_token_id": self.end,
        }

    def prompt(self, language: str = "en", task: str = "transcribe") -> list[int]:
        """Return the tokens that every transcript begins with.

        There are no language or task tokens, so asking for anything but the default is an error.
        """
        if (language, task) != ("en", "transcribe"):
            raise ModelError(
                f"language={language!r}, task={task!r}: a Moonshine checkpoint writes the one language that "
                "it was trained on. Leave both out, or take a multilingual model, for example whisper-base."
            )
        return [self.start]


def count_frames(samples: int) -> int:
    """Return how many frames the stem makes of a waveform: 0 below `MIN_SAMPLES`, then 1 per 384 samples.

    >>> count_frames(159_360)
    413
    """
    for kernel, stride in STEM:
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


def rotary_angles(config: MoonshineConfig, heads: int, start: int, end: int, like: Tensor) -> Angles:
    """Return cosines and sines `[end - start, pairs]` of the positions from `start` to `end`.

    Pair i turns by theta^(-2i / n) a position, n = head width * `partial_rotary_factor`. In float32, then
    in the dtype of `like`, so that float64 weights give what the reference implementation gives.
    """
    channels = int(config.hidden_size // heads * config.partial_rotary_factor)
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=like.device) / channels
    positions = torch.arange(start, end, dtype=torch.float32, device=like.device)
    angles = positions[:, None] * (1.0 / config.rope_theta**exponents)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turn the channel pairs (0, 1), (2, 3), ... of `x [B, H, T, D/H]`; channels behind them pass through."""
    cos, sin = angles
    turned = 2 * cos.shape[-1]
    even, odd = x[..., 0:turned:2], x[..., 1:turned:2]
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2), x[..., turned:]), dim=-1)


class Attention(nn.Module):
    """Multi-head attention without biases; its keys and values may come from another stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, D/H]."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor, angles: Angles | None = None) -> tuple[Tensor, Tensor]:
        """Return keys and values `[B, H, T, D/H]` of the stream `x [B, T, D]`; with angles, keys turned."""
        keys = self.split(self.k_proj(x))
        return keys if angles is None else rotate(keys, angles), self.split(self.v_proj(x))

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        angles: Angles | None = None,
    ) -> Tensor:
        """Attend from `x [B, T, D]`; `mask` (broadcast to `[B, H, T, keys]`): True where a query may look."""
        queries = self.split(self.q_proj(x))
        if angles is not None:
            queries = rotate(queries, angles)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """The encoder's: fc1, GELU, fc2."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """The decoder's: fc1 makes hidden and gate side by side."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        hidden, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(hidden * F.silu(gate))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, both on a residual stream."""

    def __init__(self, config: MoonshineConfig):
        super().__init__()
        width = config.hidden_size
        self.self_attn = Attention(width, config.encoder_num_attention_heads)
        self.input_layernorm = nn.LayerNorm(width, bias=False)
        self.mlp = FeedForward(width, config.intermediate_size)
        self.post_attention_layernorm = nn.LayerNorm(width, bias=False)

    def forward(self, hidden: Tensor, angles: Angles) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn(x, *self.self_attn.keys_values(x, angles), None, angles)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the encoder's output, gated feed-forward."""

    def __init__(self, config: MoonshineConfig):
        super().__init__()
        width = config.hidden_size
        self.self_attn = Attention(width, config.decoder_num_attention_heads)
        self.input_layernorm = nn.LayerNorm(width, bias=False)
        self.encoder_attn = Attention(width, config.decoder_num_attention_heads)
        self.post_attention_layernorm = nn.LayerNorm(width, bias=False)
        self.mlp = GatedFeedForward(width, config.intermediate_size)
        self.final_layernorm = nn.LayerNorm(width, bias=False)

    def forward(
        self,
        hidden: Tensor,
        cross: Cross,
        angles: Angles,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; `cross`: the encoder's keys and values for this layer."""
        x = self.input_layernorm(hidden)
        keys, values = self.self_attn.keys_values(x, angles)
        if cache is not None:
            keys, values = cache.append(layer, torch.cat((keys, values), 1).transpose(1, 2))
        hidden = hidden + self.self_attn(x, keys, values, mask, angles)
        hidden = hidden + self.encoder_attn(self.post_attention_layernorm(hidden), *cross)
        return hidden + self.mlp(self.final_layernorm(hidden))  # type: ignore[no-any-return]


class MoonshineEncoder(nn.Module):
    """Convolution stem, layers, final norm."""

    def __init__(self, config: MoonshineConfig):
        super().__init__()
        self.config = config
        width, (first, second, third) = config.hidden_size, STEM
        self.conv1 = nn.Conv1d(1, width, *first, bias=False)
        self.conv2 = nn.Conv1d(width, 2 * width, *second)
        self.conv3 = nn.Conv1d(2 * width, width, *third)
        self.groupnorm = nn.GroupNorm(1, width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_num_hidden_layers))
        self.layer_norm = nn.LayerNorm(width, bias=False)

    def stem(self, waveforms: Tensor) -> Tensor:
        """[B, samples] -> [B, S, D], the first layer's input."""
        if waveforms.dim() != 2 or waveforms.shape[1] < MIN_SAMPLES:
            raise ModelError(
                f"Waveforms have shape {list(waveforms.shape)}; Moonshine reads [batch, samples] at 16 kHz, "
                f"at least {MIN_SAMPLES} samples (56 ms). Append silence to a shorter one."
            )
        x = self.groupnorm(self.conv1(waveforms[:, None]).tanh())
        return F.gelu(self.conv3(F.gelu(self.conv2(x)))).transpose(1, 2)

    def angles(self, hidden: Tensor) -> Angles:
        """Return the rotations of all frames of `hidden [B, S, D]`."""
        return rotary_angles(self.config, self.config.encoder_num_attention_heads, 0, hidden.shape[1], hidden)

    def forward(self, waveforms: Tensor) -> Tensor:
        """[B, samples] -> [B, S, D]."""
        hidden = self.stem(waveforms)
        angles = self.angles(hidden)
        for layer in self.layers:
            hidden = layer(hidden, angles)
        return self.layer_norm(hidden)  # type: ignore[no-any-return]


class MoonshineDecoder(nn.Module):
    """Token embedding, layers, final norm."""

    def __init__(self, config: MoonshineConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)

    def angles(self, hidden: Tensor, start: int = 0) -> Angles:
        """Return the rotations of `hidden [B, T, D]`, whose first token stands at position `start`."""
        end, room = start + hidden.shape[1], self.config.max_position_embeddings
        if end > room:
            raise ModelError(f"{end} tokens are more than the decoder's {room} positions.")
        return rotary_angles(self.config, self.config.decoder_num_attention_heads, start, end, hidden)


class MoonshineCore(nn.Module):
    """Encoder and decoder without the output head, so that tensor names match the checkpoints'."""

    def __init__(self, config: MoonshineConfig):
        super().__init__()
        self.encoder = MoonshineEncoder(config)
        self.decoder = MoonshineDecoder(config)


class Moonshine(SpeechModel):
    """A Moonshine model of any size, with its tokenizer and decoding settings."""

    family: ClassVar[str] = "moonshine"
    tied: Mapping[str, str] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

    def __init__(
        self, config: MoonshineConfig, generation: MoonshineGeneration, tokenizer: Tokenizer | None = None
    ):
        super().__init__()
        self.config = config
        self.generation = generation
        self.tokenizer = tokenizer
        self.model: MoonshineCore = MoonshineCore(config)
        self.proj_out: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    def save_description(self, folder: Path) -> None:
        """Write all of a checkpoint but the weights: its two configurations and the tokenizer."""
        ids = self.generation.to_dict()
        write_description(folder, {**self.config.to_dict(), **ids}, ids, self.tokenizer)

    def encode(self, waveforms: Tensor) -> Tensor:
        """Waveforms [B, samples] of one length -> encoder states [B, S, D]."""
        return self.model.encoder(waveforms)  # type: ignore[no-any-return]

    def start(
        self, states: Tensor, capacity: int | None = None, state_mask: Tensor | None = None
    ) -> SpeechCache:
        """Return the cache of a new decoding over encoder states.

        Parameters
        ----------
        states : Tensor
            ``[B, S, D]``; those of recordings of different length filled up at the end.
        capacity : int, optional
            Number of tokens that the cache can hold, by default all of the decoder's positions.
        state_mask : Tensor, optional
            bool ``[B, S]``, False where states are filled up; None where none are.
        """
        heads, room = self.config.decoder_num_attention_heads, self.config.max_position_embeddings
        return start_cache(self.model.decoder.layers, heads, states, capacity or room, state_mask)

    def decode(self, tokens: Tensor, cache: SpeechCache) -> Tensor:
        """Feed tokens [B, T] behind those in the cache; return their final hidden states [B, T, D]."""
        decoder, start, new = self.model.decoder, cache.length, tokens.shape[1]
        hidden = decoder.embed_tokens(tokens)
        angles = decoder.angles(hidden, start)
        mask = causal_mask(new, start + new, hidden.device) if new > 1 else None
        for i, layer in enumerate(decoder.layers):
            hidden = layer(hidden, cache.cross(i), angles, mask, cache.own, i)
        cache.own.advance(new)
        return decoder.norm(hidden)  # type: ignore[no-any-return]

    def forward(self, waveforms: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V] of tokens [B, T] for waveforms [B, samples]."""
        return self.proj_out(self.decode(tokens, self.start(self.encode(waveforms), tokens.shape[1])))  # type: ignore[no-any-return]

    def stages(self) -> tuple[EncoderStage, DecoderStage]:
        """Return the two chains of blocks: the decoder reads what the finished encoder wrote."""
        return EncoderStage(self), DecoderStage(self)

    def _layers(self, side: str) -> list[str]:
        count = getattr(self.config, f"{side}_num_hidden_layers")
        return [f"model.{side}.layers.{i}" for i in range(count)]

    def groups(self) -> list[LayerGroup]:
        """Return every linear layer but the tied head, by the input that it reads, in order of use.

        No offset may move: the norms have no bias to begin with, and the constant that an offset leaves in
        the keys of self-attention is turned by each position, so it would not cancel in the softmax.
        """
        encoder = [group for layer in self._layers("encoder") for group in _encoder_groups(layer)]
        cross = tuple(
            f"{layer}.encoder_attn.{name}"
            for layer in self._layers("decoder")
            for name in ("k_proj", "v_proj")
        )
        shared = LayerGroup(cross, "model.encoder.layer_norm", source="encoder")
        inner = self.config.intermediate_size
        decoder = [group for layer in self._layers("decoder") for group in _decoder_groups(layer, inner)]
        return [*encoder, shared, *decoder]

    def query_keys(self) -> list[QueryKey]:
        """Return q and k of every attention.

        A rotation mixes the two channels of a pair, so in self-attention they share a scale; channels that
        are not rotated, and all of cross-attention's, are free.
        """
        config = self.config
        tied = {
            side: _rotary_rows(config, getattr(config, f"{side}_num_attention_heads"))
            for side in ("encoder", "decoder")
        }
        free = tuple(range(config.hidden_size))
        attentions = [
            *((f"{layer}.self_attn", tied["encoder"]) for layer in self._layers("encoder")),
            *(
                (f"{layer}.{kind}", rows)
                for layer in self._layers("decoder")
                for kind, rows in (("self_attn", tied["decoder"]), ("encoder_attn", free))
            ),
        ]
        return [QueryKey(f"{name}.q_proj", f"{name}.k_proj", rows, rows) for name, rows in attentions]


def _rotary_rows(config: MoonshineConfig, heads: int) -> tuple[int, ...]:
    """Return the number of the free scale behind each row of q and k: one a rotated pair, one a channel."""
    width, turned = config.hidden_size // heads, 2 * config.rotary_pairs(heads)
    head = [c // 2 if c < turned else c - turned // 2 for c in range(width)]
    return tuple(h * (head[-1] + 1) + number for h in range(heads) for number in head)


def _attention_groups(attention: str, norm: str, own: bool) -> list[LayerGroup]:
    """List the groups of one attention. Cross-attention's k and v read the encoder: they are not here."""
    readers = ("q_proj", "k_proj", "v_proj") if own else ("q_proj",)
    return [
        LayerGroup(tuple(f"{attention}.{name}" for name in readers), norm),
        LayerGroup((f"{attention}.o_proj",), f"{attention}.v_proj"),
    ]


def _encoder_groups(layer: str) -> list[LayerGroup]:
    gelu = "GELU stands between fc1 and fc2, and gelu(x / s) is not gelu(x) / s"
    return [
        *_attention_groups(f"{layer}.self_attn", f"{layer}.input_layernorm", own=True),
        LayerGroup((f"{layer}.mlp.fc1",), f"{layer}.post_attention_layernorm"),
        LayerGroup((f"{layer}.mlp.fc2",), None, gelu),
    ]


def _decoder_groups(layer: str, inner: int) -> list[LayerGroup]:
    return [
        *_attention_groups(f"{layer}.self_attn", f"{layer}.input_layernorm", own=True),
        *_attention_groups(f"{layer}.encoder_attn", f"{layer}.post_attention_layernorm", own=False),
        LayerGroup((f"{layer}.mlp.fc1",), f"{layer}.final_layernorm"),
        # The first half of fc1 is multiplied by the gate, which lets a scale through; the gate would not.
        LayerGroup((f"{layer}.mlp.fc2",), f"{layer}.mlp.fc1", rows=tuple(range(inner))),
    ]


class EncoderStage(SpeechEncoderStage):
    """The encoder's layers."""

    encoder: MoonshineEncoder

    def __init__(self, moonshine: Moonshine):
        self.encoder = moonshine.model.encoder
        self.blocks = tuple(moonshine._layers("encoder"))

    def run(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch) -> Tensor:
        """One encoder layer."""
        return block(hidden, self.encoder.angles(hidden))  # type: ignore[no-any-return]


class DecoderStage(SpeechDecoderStage):
    """The decoder's layers."""

    def __init__(self, moonshine: Moonshine):
        self.decoder = moonshine.model.decoder
        self.norm = moonshine.model.encoder.layer_norm
        self.blocks = tuple(moonshine._layers("decoder"))

    def enter(self, batch: SpeechBatch) -> Tensor:
        """Token embeddings."""
        return self.decoder.embed_tokens(batch.tokens)  # type: ignore[no-any-return]

    def run(self, block: nn.Module, hidden: Tensor, batch: SpeechBatch) -> Tensor:
        """One decoder layer. Padding stands behind the text, where the causal mask hides it."""
        assert isinstance(block, DecoderLayer) and batch.states is not None
        cross = (*block.encoder_attn.keys_values(self.norm(batch.states)), None)
        mask = causal_mask(hidden.shape[1], hidden.shape[1], hidden.device)
        return block(hidden, cross, self.decoder.angles(hidden), mask)  # type: ignore[no-any-return]
