"""What transcription and calibration must know of each family of recognizers, and nothing else knows.

                        Whisper                             Moonshine
    hears               log-mel features, padded to 30 s    the waveform as it is
    a batch of windows  all alike                           states of unequal length, under a mask
    longest text        the decoder's positions             6.5 tokens a second as well
    a text begins with  a blank                             what its tokenizer puts there by itself

Moonshine's limit is its authors': on silence and noise it may repeat itself without end, and no speech has
more tokens a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from qlib.asr.audio import CHUNK_SAMPLES, SAMPLE_RATE, log_mel_batch
from qlib.errors import ModelError
from qlib.models.moonshine import MIN_SAMPLES, Moonshine, count_frames
from qlib.models.speech import SpeechCache
from qlib.models.structure import Model
from qlib.models.tokenizer import Tokenizer, need_tokenizer
from qlib.models.whisper import Whisper

Recognizer = Whisper | Moonshine

WHISPER_POSITIONS = CHUNK_SAMPLES // 320  # of 20 ms each
TOKENS_PER_SECOND = 6.5  # at most, of a Moonshine transcript
SILENCE_STRIDE = 4  # chosen on whisper-tiny.en: none of the silence and all of it are both worse


def as_recognizer(model: Model) -> tuple[Recognizer, Tokenizer]:
    """Return the model as what it is, and its tokenizer.

    Raises
    ------
    ModelError
        The model does not transcribe speech, has no tokenizer, or does not hear windows of 30 s.
    """
    if not isinstance(model, Whisper | Moonshine):
        raise ModelError(
            f"A {type(model).__name__} does not transcribe speech. Load a Whisper or Moonshine checkpoint, "
            "for example whisper-tiny.en."
        )
    if isinstance(model, Whisper) and (heard := model.config.max_source_positions) != WHISPER_POSITIONS:
        raise ModelError(
            f"This Whisper's encoder has {heard} positions (max_source_positions) and hears {heard / 50:g} "
            f"s; recordings are heard in windows of 30 s, which take {WHISPER_POSITIONS}. Use a checkpoint "
            "with that number; no cutting of the audio helps."
        )
    return model, need_tokenizer(model.tokenizer)


def positions(model: Recognizer) -> int:
    """Return how many tokens the decoder has positions for, prompt included."""
    if isinstance(model, Whisper):
        return model.config.max_target_positions
    return model.config.max_position_embeddings


def token_limits(model: Recognizer, windows: Sequence[Tensor], prompt_length: int) -> list[int]:
    """Return how many tokens each window's transcript may have, without prompt and end."""
    room = positions(model) - prompt_length
    if isinstance(model, Whisper):
        return [room] * len(windows)
    return [min(room, math.ceil(len(window) * TOKENS_PER_SECOND / SAMPLE_RATE)) for window in windows]


def encoder_input(model: Recognizer, windows: Sequence[Tensor]) -> list[Tensor]:
    """Return what the encoder reads of each window ``[samples]`` of up to 30 s: ``[1, ...]``."""
    weight = model.model.decoder.embed_tokens.weight
    if isinstance(model, Whisper):
        features = log_mel_batch(windows, model.config.num_mel_bins)
        return [each[None] for each in features.to(weight.device, weight.dtype)]
    waveforms = (pad(window, (0, max(0, MIN_SAMPLES - len(window)))) for window in windows)
    return [waveform[None].to(weight.device, weight.dtype) for waveform in waveforms]


def encode_speech(model: Recognizer, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return encoder states ``[B, S, D]`` of windows, and the mask ``[B, S]`` of what is not filled up.

    The mask is None where all states are data. One window at a time: the activations of a window fit the
    processor's cache, those of a batch do not; and Moonshine's stem must not see padding.
    """
    states = [model.encode(each)[0] for each in encoder_input(model, windows)]
    lengths = torch.tensor([len(each) for each in states], device=states[0].device)
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    return pad_sequence(states, batch_first=True), None if bool(mask.all()) else mask


def start_decoding(model: Recognizer, states: Tensor, mask: Tensor | None, capacity: int) -> SpeechCache:
    """Return the cache of a decoding that writes up to `capacity` tokens, prompt included."""
    if isinstance(model, Whisper):
        return model.start(states, capacity)
    return model.start(states, capacity, mask)


def counted_frames(model: Recognizer, samples: int) -> Tensor:
    """Return which encoder frames of a window of so many samples count in statistics, bool ``[S]``.

    Moonshine hears no padding: all count. Of Whisper's frames behind the end one in `SILENCE_STRIDE` does.
    """
    if isinstance(model, Moonshine):
        return torch.ones(count_frames(max(samples, MIN_SAMPLES)), dtype=torch.bool)
    places = torch.arange(model.config.max_source_positions)
    heard = -(-samples // (CHUNK_SAMPLES // len(places)))
    return (places < heard) | (places % SILENCE_STRIDE == 0)


def transcript_tokens(model: Recognizer, tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a reference text as the model would write it."""
    return tokenizer.encode(f" {text.strip()}" if isinstance(model, Whisper) else text.strip())
