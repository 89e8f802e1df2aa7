"""A speech model as transcription and calibration see it, whatever its family.

`SpeechModel` is what a family implements: how sound gets into its encoder, how a decoding begins, how long a
text may be. A third family is one more class. How its blocks are run one by one, for calibration, is in
`speech_structure.py`.

B batch, S encoder states, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from qlib.models.call import call
from qlib.models.fast.packed import pack_linears
from qlib.models.quantized_linear import QuantizedLinear
from qlib.models.speech_layers import SpeechCache, start_cache
from qlib.models.structure import Model
from qlib.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import Self


class Generation(Protocol):
    """Token ids that steer decoding."""

    @property
    def start(self) -> int:
        """Id that every prompt begins with."""
        ...

    @property
    def languages(self) -> tuple[tuple[str, int], ...]:
        """Language tokens and their ids, ``("<|en|>", id)``; empty where there is one language."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text."""
        ...

    @property
    def suppress(self) -> tuple[int, ...]:
        """Ids that are never chosen."""
        ...

    @property
    def suppress_first(self) -> tuple[int, ...]:
        """Ids that are never chosen as the first of a text."""
        ...

    def prompt(self, language: str = "en", task: str = "transcribe") -> list[int]:
        """Return the tokens that every transcript begins with."""
        ...


class SpeechModel(Model):
    """Speech to text: `model.encoder` reads sound, `model.decoder` writes tokens, `proj_out` is its head.

    What transcription and calibration must know of a family, and nothing else knows:

                              Whisper                             Moonshine
        encoder_input         log-mel features, padded to 30 s    the waveform as it is
        encode_speech         states all of one length            states of unequal length, under a mask
        window_seconds        30, or what its positions say       30
        token_limits          the decoder's positions             6.5 tokens per second as well
        counted_frames        the speech, 1 in 4 of the padding   all
        transcript_tokens     the text after a space             the text; its tokenizer adds a mark itself

    A window is a waveform ``[samples]`` at 16 kHz, at most `window_seconds` long. Of the networks themselves
    this class needs that `model.encoder` can be called, and that `model.decoder` has `embed_tokens` and
    `layers`, each with a `SpeechAttention` called `encoder_attn`.
    """

    model: Any
    proj_out: nn.Module
    generation: Generation
    tokenizer: Tokenizer | None
    tied: Mapping[str, str] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

    @property
    def positions(self) -> int:
        """How many tokens the decoder has positions for, prompt included."""
        raise NotImplementedError

    @property
    def window_seconds(self) -> float:
        """How many seconds of sound the encoder can read at once.

        Raises
        ------
        ModelError
            Less than a second.
        """
        raise NotImplementedError

    def token_limits(self, windows: Sequence[Tensor], prompt_length: int) -> list[int]:
        """Return how many tokens each window's transcript may have, without prompt and end."""
        return [self.positions - prompt_length] * len(windows)

    def encoder_input(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Return what the encoder reads of each window: ``[1, ...]``, in the model's dtype."""
        raise NotImplementedError

    def counted_frames(self, samples: int) -> Tensor:
        """Return which encoder states of a window of so many samples count in statistics, bool ``[S]``."""
        raise NotImplementedError

    def transcript_tokens(self, text: str) -> list[int]:
        """Return the tokens of a reference text as the model would write it."""
        raise NotImplementedError

    def encode(self, features: Tensor) -> Tensor:
        """Return the states ``[B, S, D]`` of what the encoder reads, ``[B, ...]`` (`encoder_input`)."""
        return call(self.model.encoder, features)

    def encode_speech(self, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the states ``[B, S, D]`` of windows, and the mask ``[B, S]`` of what is not filled up.

        The mask is None where all states are data. One window at a time: the activations of a window fit the
        processor's cache, those of a batch do not; and Moonshine's stem must not see padding.
        """
        states = [self.encode(each)[0] for each in self.encoder_input(windows)]
        lengths = torch.tensor([len(each) for each in states], device=states[0].device)
        mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        return pad_sequence(states, batch_first=True), None if bool(mask.all()) else mask

    def start(
        self, states: Tensor, capacity: int | None = None, state_mask: Tensor | None = None
    ) -> SpeechCache:
        """Return the cache of a new decoding over encoder states.

        Parameters
        ----------
        states : Tensor
            ``[B, S, D]``; those of recordings of different length filled up at the end.
        capacity : int, optional
            Number of tokens that the cache can hold, prompt included; by default all of the decoder's
            positions.
        state_mask : Tensor, optional
            bool ``[B, S]``, False where states are filled up; None where none are.
        """
        return start_cache(self.model.decoder.layers, states, capacity or self.positions, state_mask)

    def decode(self, tokens: Tensor, cache: SpeechCache) -> Tensor:
        """Feed tokens [B, T] after those in the cache; return their final hidden states [B, T, D]."""
        raise NotImplementedError

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V] of tokens [B, T] for what the encoder reads, [B, ...]."""
        return call(self.proj_out, self.decode(tokens, self.start(self.encode(features), tokens.shape[1])))

    def pack(self) -> Self:
        """Lay the decoder's linear layers out for inference, in place; see `Model.pack`.

        Those that read all of the encoder's states at once stay as they are: packing is for few rows.
        """
        self.require_unpacked("packed once more")
        decoder: nn.Module = self.model.decoder
        for path, module in list(decoder.named_modules()):
            parent, _, name = path.rpartition(".")
            reads_states = parent.endswith("encoder_attn") and name in ("k_proj", "v_proj")
            if not reads_states and isinstance(module, nn.Linear | QuantizedLinear):
                setattr(decoder.get_submodule(parent), name, pack_linears([module]))
        self.proj_out = pack_linears([self.proj_out])
        self.packed = True
        return self
