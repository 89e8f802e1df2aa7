"""Transcription with timestamps: window after window, each from where the one before ended its last segment.

Paper: Radford et al. 2022, arXiv 2212.04356, section 3.8. Left out: the temperature fallback, and the text of
earlier windows in the prompt. A recording's windows depend on one another, so a batch takes the next window
of several recordings.

The features are those that transformers computes: of a recording of up to 30 s padded with silence, of a
longer one as a whole. What a window lacks at its end is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from qlib.asr.audio import is_silent
from qlib.asr.greedy import Head, decoding_head, greedy
from qlib.asr.prompts import Language, Prompts, row_languages
from qlib.asr.recordings import Source
from qlib.asr.timestamps import STEP_SECONDS, Piece, cut_into_pieces
from qlib.asr.transcript import Segment, Transcript
from qlib.errors import ModelError
from qlib.models.log_mel import FRAMES_PER_SECOND, HOP, log_mel_batch, log_mel_recording
from qlib.models.speech import SpeechModel
from qlib.models.tokenizer import Tokenizer, need_tokenizer
from qlib.models.waveform import SAMPLE_RATE
from qlib.models.whisper import Whisper

FRAMES_PER_STEP = round(STEP_SECONDS * FRAMES_PER_SECOND)  # frames of features in a timestamp's 20 ms


@dataclass
class _Recording:
    """A recording that is being transcribed."""

    number: int
    samples: Tensor  # [samples]
    features: Tensor  # [mels, frames]
    language: Language | None
    seek: int = 0  # the frame where its next window starts
    segments: list[Segment] = field(default_factory=list)

    @property
    def frames_left(self) -> int:
        """How many frames of sound are still to be heard; the padding has none."""
        sound = max(len(self.samples) // HOP, 1) if len(self.samples) else 0
        return max(sound - self.seek, 0)

    def skip_silence(self, frames: int) -> None:
        """Move on to the next window with sound."""
        while self.frames_left and is_silent(self.samples[self.seek * HOP : (self.seek + frames) * HOP]):
            self.seek += frames

    def window(self, frames: int) -> Tensor:
        """Return the features of the next window, ``[1, mels, frames]``."""
        part = self.features[None, :, self.seek : self.seek + frames]
        return pad(part, (0, frames - part.shape[2]))


def transcribe_long_form(
    model: Whisper, sources: Iterable[Source], prompts: Prompts, batch_size: int, bar: tqdm[object]
) -> list[Transcript]:
    """Transcribe recordings with timestamps.

    Parameters
    ----------
    model : Whisper
        One that `timestamp_model` lets pass, with a tokenizer.
    sources : iterable of Source
        `batch_size` of them are in memory at once, each as a whole: an hour takes 350 MB.
    prompts : Prompts
        Of the call.
    batch_size : int
        Windows decoded side by side, each of another recording.
    bar : tqdm
        Counts recordings.

    Returns
    -------
    list of Transcript
        One for each source, in order.
    """
    head, tokenizer, frames = decoding_head(model), need_tokenizer(model.tokenizer), model.frames
    waiting = enumerate(sources)
    recordings: list[_Recording] = []
    transcripts: dict[int, Transcript] = {}
    while True:
        # 1. As many recordings as a batch has rows.
        for number, source in islice(waiting, batch_size - len(recordings)):
            recordings.append(_open(model, number, source, prompts.language(source)))
        if not recordings:
            return [transcripts[number] for number in range(len(transcripts))]
        # 2. The text of each one's next window.
        for each in recordings:
            each.skip_silence(frames)
        heard = [each for each in recordings if each.frames_left]
        texts = _decode_windows(model, head, heard, prompts) if heard else []
        # 3. Its segments, and where the window after it starts.
        for each, tokens in zip(heard, texts, strict=True):
            sound_steps = min(each.frames_left, frames) // FRAMES_PER_STEP
            pieces, seek_steps = cut_into_pieces(tokens, model.generation.no_timestamps, sound_steps)
            each.segments += [_segment(model, tokenizer, each.seek, piece) for piece in pieces]
            each.seek += frames if seek_steps is None else seek_steps * FRAMES_PER_STEP
        # 4. Those that are heard to the end make room.
        for each in recordings:
            if not each.frames_left:
                transcripts[each.number] = _transcript(model, tokenizer, each)
                bar.update()
        recordings = [each for each in recordings if each.frames_left]


def timestamp_model(model: SpeechModel) -> Whisper:
    """Return a model that writes timestamps as what it is.

    Raises
    ------
    ModelError
        It is no Whisper, or its vocabulary has no timestamps.
    """
    if not isinstance(model, Whisper):
        raise ModelError(
            f"timestamps=True: a {type(model).__name__} writes no timestamps. Take a Whisper checkpoint, for "
            "example whisper-tiny.en, or leave timestamps=False: --output-format txt needs none."
        )
    found = model.config.vocab_size - model.generation.no_timestamps - 1
    needed = model.config.max_source_positions + 1
    if found < needed:
        raise ModelError(
            f"timestamps=True: the vocabulary has {found} tokens after <|notimestamps|> "
            f"({model.generation.no_timestamps}), and the timestamps of a window are {needed}. Take an "
            "original checkpoint, for example whisper-tiny.en, or leave timestamps=False."
        )
    return model


def _open(model: Whisper, number: int, source: Source, language: Language | None) -> _Recording:
    """Read a recording and compute its features."""
    blocks = list(source.blocks())
    samples = blocks[0] if len(blocks) == 1 else torch.cat([torch.zeros(0), *blocks])
    bins = model.config.num_mel_bins
    if len(samples) <= model.frames * HOP:
        return _Recording(number, samples, log_mel_batch([samples], bins, model.frames)[0], language)
    return _Recording(number, samples, log_mel_recording(samples, bins), language)


def _decode_windows(
    model: Whisper, head: Head, recordings: Sequence[_Recording], prompts: Prompts
) -> list[list[int]]:
    """Return the text of each recording's next window, as tokens without prompt and end."""
    weight, no_timestamps = model.model.decoder.embed_tokens.weight, model.generation.no_timestamps
    windows = [each.window(model.frames).to(weight.device, weight.dtype) for each in recordings]
    cache = model.start(torch.cat([model.encode(window) for window in windows]))
    languages = row_languages(model, head, cache, [each.language for each in recordings])
    for each, language in zip(recordings, languages, strict=True):
        each.language = language
    prompt = [[t for t in prompts.of(each.code) if t != no_timestamps] for each in languages]
    limits = [model.positions - len(tokens) for tokens in prompt]
    return greedy(model, head, cache, prompt, limits, no_timestamps)


def _segment(model: Whisper, tokenizer: Tokenizer, seek: int, piece: Piece) -> Segment:
    """Return a segment of the window that starts at frame `seek`."""
    start, end = ((seek + steps * FRAMES_PER_STEP) / FRAMES_PER_SECOND for steps in (piece.start, piece.end))
    return Segment(start, end, _text(model, tokenizer, piece.tokens), piece.tokens)


def _transcript(model: Whisper, tokenizer: Tokenizer, recording: _Recording) -> Transcript:
    """Put a recording's segments together; those without a text are left out."""
    segments = tuple(segment for segment in recording.segments if segment.text)
    tokens = tuple(token for segment in segments for token in segment.tokens)
    # At once: a character may reach into the next segment.
    text = _text(model, tokenizer, tokens)
    code, probability = recording.language or (None, None)
    return Transcript(text, tokens, len(recording.samples) / SAMPLE_RATE, code, probability, segments)


def _text(model: Whisper, tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text without timestamps: newer files spell them out."""
    return tokenizer.decode(token for token in tokens if token < model.generation.no_timestamps).strip()
