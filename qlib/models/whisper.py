"""Whisper: log-mel spectrogram in, text tokens out.

Paper: Radford et al. 2022, arXiv 2212.04356. Module and tensor names are those of Hugging Face
checkpoints, and every projection is a plain `nn.Linear`, so a quantizer finds and replaces them by name.

    features [B, mels, 2S] -> two convolutions -> [B, S, D] -> encoder layers -> layer norm
    tokens [B, T] -> embedding + position -> decoder layers (self-attention, cross-attention,
                     feed-forward) -> layer norm -> proj_out, tied to the embedding -> [B, T, V]

B batch, S = 1500 frames of 20 ms, T tokens, D width, H heads, V vocabulary. Layers are pre-norm.
Left out: alignment heads and dropout, which greedy transcription does not use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlib.errors import ModelError
from qlib.models.cache import KVCache
from qlib.models.call import call
from qlib.models.layers import embedding
from qlib.models.log_mel import FRAMES_PER_SECOND, HOP, log_mel_batch
from qlib.models.speech import SpeechModel
from qlib.models.speech_layers import Cross, SpeechAttention, SpeechCache, causal_mask
from qlib.models.structure import LayerGroup, TokenLayers, write_description
from qlib.models.tokenizer import Tokenizer, need_tokenizer
from qlib.models.whisper_config import WhisperConfig, WhisperGeneration
from qlib.models.whisper_structure import DecoderStage, EncoderStage, whisper_groups

# One padded frame in so many counts in statistics. Chosen by word errors of GPTQ at 3 bits on
# whisper-tiny.en: all of the padding (1) and none of it were both worse.
SILENCE_STRIDE = 4


class Attention(SpeechAttention):
    """Multi-head attention; `k_proj` has no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, bias=True)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from `x [B, T, D]` to the keys; `mask [T, keys]` is True where a query may look."""
        queries = self.split(self.q_proj(x))
        return call(self.out_proj, self.attend(queries, keys, values, mask))


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

    def forward(self, hidden: Tensor, only: Tensor | None = None) -> Tensor:
        """[B, S, D] -> [B, S, D]; with a mask `only`, bool [S], the frames that it marks, [B, n, D]."""
        x = self.self_attn_layer_norm(hidden)
        keys, values = self.self_attn.keys_values(x)  # of all frames
        if only is not None:
            hidden, x = hidden[:, only], x[:, only]
        hidden = hidden + self.self_attn(x, keys, values)
        x = self.final_layer_norm(hidden)
        return hidden + call(self.fc2, F.gelu(self.fc1(x)))


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
        return hidden + call(self.fc2, F.gelu(self.fc1(x)))


def sinusoids(positions: int, width: int) -> Tensor:
    """Return the encoder's position vectors [positions, width]: sines, then cosines, from fast to slow.

    The formula is that of Vaswani et al. 2017, arXiv 1706.03762, section 3.5, with the slowest period 10,000
    times the fastest. In float64, rounded to float16, they are those of OpenAI's checkpoints bit for bit.
    """
    speed = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2 - 1))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * speed
    return torch.cat([angles.sin(), angles.cos()], 1).half()


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
        return call(self.layer_norm, hidden)


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
        return call(self.embed_tokens, tokens) + self.embed_positions.weight[start:end]


class WhisperCore(nn.Module):
    """Encoder and decoder without the output head, so that tensor names match the checkpoints'."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.decoder = WhisperDecoder(config)


class Whisper(SpeechModel):
    """A Whisper model of any size, with its tokenizer and decoding settings."""

    family: ClassVar[str] = "whisper"
    token_layers = TokenLayers("model.decoder.embed_tokens", "model.decoder.layer_norm", "proj_out")
    generation: WhisperGeneration

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

    def computed(self) -> dict[str, Tensor]:
        """Return the encoder's positions, by name."""
        vectors = sinusoids(self.config.max_source_positions, self.config.d_model)
        return {"model.encoder.embed_positions.weight": vectors}

    def save_description(self, folder: Path) -> None:
        """Write all of a checkpoint but the weights: its two configurations and the tokenizer."""
        end, start, generation = self.generation.end, self.generation.start, self.generation.to_dict()
        ids = {"bos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
        ids["eos_token_id"] = generation["eos_token_id"]
        write_description(folder, {**self.config.to_dict(), **ids}, generation, self.tokenizer)

    @property
    def positions(self) -> int:
        """How many tokens the decoder has positions for, prompt included."""
        return self.config.max_target_positions

    @property
    def frames(self) -> int:
        """How many frames of features the encoder reads: two a position."""
        return 2 * self.config.max_source_positions

    @property
    def window_seconds(self) -> float:
        """How many seconds the encoder reads at once: 30, or what its positions say.

        Raises
        ------
        ModelError
            Less than a second.
        """
        seconds = self.frames / FRAMES_PER_SECOND
        if seconds < 1:
            raise ModelError(
                f"The encoder has {self.config.max_source_positions} positions and reads {seconds:g} s at "
                "once, too short for a word. Take a checkpoint with 50 or more; OpenAI's have 1500."
            )
        return seconds

    def encoder_input(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Return the log-mel features of each window, `[1, mels, 2S]`: all are padded to the same length."""
        weight = self.model.decoder.embed_tokens.weight
        features = log_mel_batch(windows, self.config.num_mel_bins, self.frames)
        return [each[None] for each in features.to(weight.device, weight.dtype)]

    def counted_frames(self, samples: int) -> Tensor:
        """Return which encoder states count in statistics, bool `[S]`: of the padding 1 in `SILENCE_STRIDE`.

        Encoder and decoder attend to the padding as well, so layers must be right on it; but in a short clip
        it is most of the window and would outvote the speech.
        """
        places = torch.arange(self.config.max_source_positions)
        speech = -(-samples // (2 * HOP))
        return (places < speech) | (places % SILENCE_STRIDE == 0)

    def transcript_tokens(self, text: str) -> list[int]:
        """Return the tokens of a reference text as the model would write it: after a space."""
        return need_tokenizer(self.tokenizer).encode(f" {text.strip()}")

    def decode(self, tokens: Tensor, cache: SpeechCache) -> Tensor:
        """Feed tokens [B, T] after those in the cache; return their final hidden states [B, T, D]."""
        decoder, start, new = self.model.decoder, cache.length, tokens.shape[1]
        hidden = decoder.embed(tokens, start)
        mask = causal_mask(new, start + new, hidden.device) if new > 1 else None
        for i, layer in enumerate(decoder.layers):
            hidden = layer(hidden, cache.cross(i), mask, cache.own, i)
        cache.own.advance(new)
        return call(decoder.layer_norm, hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        """Apply the final norm and the head to what the decoder's last layer writes."""
        return call(self.proj_out, call(self.model.decoder.layer_norm, hidden))

    def groups(self) -> list[LayerGroup]:
        """Return every linear layer but the tied head, by the input that it reads, in order of use."""
        return whisper_groups(self.config)

    def stages(self) -> tuple[EncoderStage, DecoderStage]:
        """Return the two chains of blocks: the decoder reads what the finished encoder wrote."""
        encoder, decoder = self.model.encoder, self.model.decoder
        return EncoderStage(encoder, self.config), DecoderStage(decoder, encoder.layer_norm, self.config)
