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

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import pad

from qlib.errors import ModelError
from qlib.models.cache import KVCache
from qlib.models.call import call
from qlib.models.layers import embedding
from qlib.models.moonshine_config import MoonshineConfig, MoonshineGeneration
from qlib.models.moonshine_rotary import Angles, rotary_angles, rotate
from qlib.models.moonshine_structure import DecoderStage, EncoderStage, moonshine_groups
from qlib.models.speech import SpeechModel
from qlib.models.speech_layers import Cross, SpeechAttention, SpeechCache, causal_mask
from qlib.models.structure import LayerGroup, TokenLayers, write_description
from qlib.models.tokenizer import Tokenizer, need_tokenizer
from qlib.models.waveform import CHUNK_SECONDS, SAMPLE_RATE

STEM = ((127, 64), (7, 3), (3, 2))  # kernel and stride of the three convolutions, in samples and frames
MIN_SAMPLES = 895  # 56 ms: what one frame is made of
# The most tokens of a transcript. The authors' limit: on silence and noise a Moonshine may repeat itself
# without end, and no speech has more tokens per second.
TOKENS_PER_SECOND = 6.5


def count_frames(samples: int) -> int:
    """Return how many frames the stem makes of a waveform: 0 below `MIN_SAMPLES`, then 1 per 384 samples.

    >>> count_frames(159_360)
    413
    """
    for kernel, stride in STEM:
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


class Attention(SpeechAttention):
    """Multi-head attention without biases; with angles, queries and keys are rotated by their positions."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def keys_values(self, x: Tensor, angles: Angles | None = None) -> tuple[Tensor, Tensor]:
        """Return keys and values `[B, H, T, D/H]` of the stream `x [B, T, D]`."""
        keys, values = super().keys_values(x)
        return keys if angles is None else rotate(keys, angles), values

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
        return call(self.o_proj, self.attend(queries, keys, values, mask))


class FeedForward(nn.Module):
    """The encoder's: fc1, GELU, fc2."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        return call(self.fc2, F.gelu(self.fc1(x)))


class GatedFeedForward(nn.Module):
    """The decoder's: fc1 makes hidden and gate side by side."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        hidden, gate = self.fc1(x).chunk(2, dim=-1)
        return call(self.fc2, hidden * F.silu(gate))


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
        return hidden + call(self.mlp, self.post_attention_layernorm(hidden))


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
        return hidden + call(self.mlp, self.final_layernorm(hidden))


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
        return call(self.layer_norm, hidden)


class MoonshineDecoder(nn.Module):
    """Token embedding, layers, final norm."""

    def __init__(self, config: MoonshineConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)

    def embed(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, D], the first layer's input."""
        return call(self.embed_tokens, tokens)

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
    token_layers = TokenLayers("model.decoder.embed_tokens", "model.decoder.norm", "proj_out")
    generation: MoonshineGeneration

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

    @property
    def positions(self) -> int:
        """How many tokens the decoder has positions for, prompt included."""
        return self.config.max_position_embeddings

    @property
    def window_seconds(self) -> float:
        """How many seconds the encoder is given at once: 30."""
        return CHUNK_SECONDS

    def token_limits(self, windows: Sequence[Tensor], prompt_length: int) -> list[int]:
        """Return how many tokens each transcript may have: `TOKENS_PER_SECOND`, if there is room for them."""
        room = self.positions - prompt_length
        return [min(room, math.ceil(len(window) * TOKENS_PER_SECOND / SAMPLE_RATE)) for window in windows]

    def encoder_input(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Return each waveform as it is, `[1, samples]`; one too short for a frame is filled up by zeros."""
        weight = self.model.decoder.embed_tokens.weight
        waveforms = (pad(window, (0, max(0, MIN_SAMPLES - len(window)))) for window in windows)
        return [waveform[None].to(weight.device, weight.dtype) for waveform in waveforms]

    def counted_frames(self, samples: int) -> Tensor:
        """Return which encoder states count in statistics, bool `[S]`: all, since there is no padding."""
        return torch.ones(count_frames(max(samples, MIN_SAMPLES)), dtype=torch.bool)

    def transcript_tokens(self, text: str) -> list[int]:
        """Return the tokens of a reference text as the model would write it."""
        return need_tokenizer(self.tokenizer).encode(text.strip())

    def decode(self, tokens: Tensor, cache: SpeechCache) -> Tensor:
        """Feed tokens [B, T] after those in the cache; return their final hidden states [B, T, D]."""
        decoder, start, new = self.model.decoder, cache.length, tokens.shape[1]
        hidden = decoder.embed(tokens)
        angles = decoder.angles(hidden, start)
        mask = causal_mask(new, start + new, hidden.device) if new > 1 else None
        for i, layer in enumerate(decoder.layers):
            hidden = layer(hidden, cache.cross(i), angles, mask, cache.own, i)
        cache.own.advance(new)
        return call(decoder.norm, hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        """Apply the final norm and the head to what the decoder's last layer writes."""
        return call(self.proj_out, call(self.model.decoder.norm, hidden))

    def groups(self) -> list[LayerGroup]:
        """Return every linear layer but the tied head, by the input that it reads, in order of use."""
        return moonshine_groups(self.config)

    def stages(self) -> tuple[EncoderStage, DecoderStage]:
        """Return the two chains of blocks: the decoder reads what the finished encoder wrote."""
        encoder, decoder = self.model.encoder, self.model.decoder
        return EncoderStage(encoder, self.config), DecoderStage(decoder, encoder.layer_norm, self.config)
