"""Speech to text: greedy, batched, any length.

    recordings -> windows of at most 30 s, cut at pauses -> sorted by length -> batches
    batch -> encoder, window by window -> greedy decoding, all windows side by side
    texts of a recording's windows, joined in order -> Transcript

Windows of like length stand in one batch, because a batch runs until its longest text ends. A text that
has ended leaves the batch at once, so the others get faster.

Recordings are read in blocks, and their windows wait until `SECONDS_TOGETHER` of sound are there to be
sorted. So the memory does not grow with the number of recordings, nor with their length. A window of
digital silence is not sent through the model: its text is empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qlib.asr.audio import is_silent, stream_windows
from qlib.asr.datasets import Utterance, check_utterances, require_text
from qlib.asr.languages import language_code
from qlib.asr.recordings import Recording, Source, as_sources
from qlib.asr.wer import WerResult, score
from qlib.errors import DataError, ModelError, describe, whole_number
from qlib.models.fast.products import reordered_product
from qlib.models.progress import progress_bar
from qlib.models.speech import SpeechModel
from qlib.models.speech_layers import SpeechCache
from qlib.models.structure import Model
from qlib.models.tokenizer import Tokenizer, need_tokenizer
from qlib.models.waveform import CHUNK_SECONDS, SAMPLE_RATE

SECONDS_TOGETHER = 1800  # of sound in memory at once, 115 MB, whose windows are sorted by length
DEFAULT_LANGUAGE = "en"

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Transcript:
    """The text that the model wrote for a recording."""

    text: str  # as written by the model, without the leading space
    tokens: tuple[int, ...]  # without prompt and end; the windows of a long recording one after another
    seconds: float  # length of the recording

    def __str__(self) -> str:
        return self.text


@torch.inference_mode()
def transcribe(
    model: Model,
    recordings: Iterable[Recording],
    *,
    batch_size: int = 8,
    language: str | None = None,
    task: str = "transcribe",
    progress: bool = True,
) -> list[Transcript]:
    """Transcribe recordings greedily, without timestamps.

    Parameters
    ----------
    model : Model
        A Whisper or Moonshine with its tokenizer, float or quantized.
    recordings : iterable
        Paths, utterances, waveforms ``[samples]`` at 16 kHz (tensors, or NumPy arrays of floats or int16), or
        ``{"array": samples, "sampling_rate": rate}``; see `qlib.asr.recordings`. Longer than 30 s is cut at
        pauses. A list is checked before the work begins, a generator as it goes.
    batch_size : int
        Windows decoded side by side. More is faster and takes more memory.
    language : str, optional
        For multilingual checkpoints: a code (``"de"``) or an English name (``"german"``). If not given, each
        utterance's own, and English where it has none.
    task : str
        For multilingual checkpoints: ``"transcribe"``, or ``"translate"`` to English.
    progress : bool
        Show a progress bar over the recordings.

    Returns
    -------
    list of Transcript
        One for each recording, in order. No samples give an empty text, and so does digital silence.

    Raises
    ------
    DataError
        A recording cannot be read; where it is of the wrong kind, the message names its position.
    ModelError
        The model is no speech recognizer, has no tokenizer, or does not know the language or task.
    """
    batch_size = whole_number(batch_size, "batch_size", DataError, 1, remedy="It counts windows: 8 is usual.")
    speech_model, tokenizer = as_speech_model(model)
    seconds = speech_model.window_seconds
    prompts = _Prompts(speech_model, language, task)
    sources = as_sources(recordings, "transcribe")
    if isinstance(sources, Sized):  # a list: errors come before the work
        for source in sources:
            prompts.of(source)
    total = len(sources) if isinstance(sources, Sized) else None
    with progress_bar(show=progress, total=total, desc="transcribe", unit="clip") as bar:
        queue = _Queue(speech_model, batch_size, bar)
        samples: list[int] = []  # of each recording
        for number, source in enumerate(sources):
            prompt = prompts.of(source)
            samples.append(0)
            queue.begin(number)
            for window in stream_windows(source.blocks(), seconds):
                samples[-1] += len(window)
                if not is_silent(window):
                    queue.add(number, window, prompt)
            queue.finish(number)
        queue.decode()
    return [_join(tokenizer, length, queue.texts.get(number, [])) for number, length in enumerate(samples)]


def evaluate_wer(
    model: Model,
    utterances: Iterable[Utterance],
    *,
    batch_size: int = 8,
    language: str | None = None,
    progress: bool = True,
) -> WerResult:
    """Transcribe utterances and score the texts against their references.

    Parameters
    ----------
    model : Model
        The model to judge, a Whisper or Moonshine.
    utterances : iterable of Utterance
        Each with a reference text; those whose reference is empty are left out of the score.
    batch_size, progress
        As for `transcribe`.
    language : str, optional
        As for `transcribe`. It also decides how a text is normalized and whether words or characters are
        counted: see `qlib.asr.wer.score`.

    Raises
    ------
    DataError
        No utterances, an entry that is none, one without a reference, or all references empty.
    """
    as_speech_model(model)
    listed = check_utterances(utterances, "evaluate_wer")
    references = require_text(listed)
    transcripts = transcribe(model, listed, batch_size=batch_size, language=language, progress=progress)
    return score(
        references,
        [transcript.text for transcript in transcripts],
        languages=[language_of(each, language) for each in listed],
        ids=[each.id for each in listed],
    )


def as_speech_model(model: object) -> tuple[SpeechModel, Tokenizer]:
    """Return the model as what it is, and its tokenizer.

    Raises
    ------
    ModelError
        The model does not transcribe speech, or has no tokenizer.
    """
    if not isinstance(model, SpeechModel):
        kind = describe(model) if isinstance(model, str | None) else f"A {type(model).__name__}"
        remedy = "Load a Whisper or Moonshine checkpoint, for example qlib.load_model('whisper-tiny.en')."
        if isinstance(getattr(model, "model", None), SpeechModel):
            remedy = "Pass its .model."
        raise ModelError(f"{kind[0].upper()}{kind[1:]} does not transcribe speech. {remedy}")
    return model, need_tokenizer(model.tokenizer)


def language_of(source: Source, language: str | None = None) -> str:
    """Return the code of a recording's language: the one asked for, else its own, else English.

    Raises
    ------
    ModelError
        The language asked for is unknown.
    DataError
        The recording's own is unknown; the message names its place in the list.
    """
    if language is not None:
        return language_code(language, error=ModelError)
    return language_code(source.language, source.place) if source.language else DEFAULT_LANGUAGE


def greedy(
    model: SpeechModel,
    head: Head,
    cache: SpeechCache,
    prompt: Sequence[int] | Sequence[Sequence[int]],
    limits: Sequence[int],
) -> list[list[int]]:
    """Decode by always taking the most probable token.

    Parameters
    ----------
    model : Whisper or Moonshine
        Whose decoder writes.
    head : callable
        Hidden states [B, D] to logits [B, V]: `model.proj_out`, or the same map prepacked.
    cache : SpeechCache
        New, over the encoder states of B windows; used up.
    prompt : sequence of int
        What every text begins with; or one such sequence for each row, all equally long.
    limits : sequence of int
        The most new tokens of each row, 1 or more.

    Returns
    -------
    list of list of int
        The new tokens of each row, without the end token; a row ends there or at its limit.
    """
    generation, device = model.generation, model.model.decoder.embed_tokens.weight.device
    banned = torch.tensor(generation.suppress, dtype=torch.long, device=device)
    banned_first = torch.tensor(generation.suppress_first, dtype=torch.long, device=device)
    texts: list[list[int]] = [[] for _ in limits]
    alive = list(range(len(texts)))  # which text each row of the batch belongs to
    tokens = torch.tensor(prompt, device=device).expand(len(texts), -1)
    begun = tokens.shape[1]
    while alive:
        logits = head(model.decode(tokens, cache)[:, -1])
        logits.index_fill_(1, banned, -torch.inf)
        if cache.length == begun:
            logits.index_fill_(1, banned_first, -torch.inf)
        chosen = logits.argmax(-1).tolist()
        for row in reversed(range(len(alive))):
            text = alive[row]
            ended = chosen[row] in generation.ends
            if not ended:
                texts[text].append(chosen[row])
            if ended or len(texts[text]) == limits[text]:
                cache.drop(row)  # the last row moves here, in the cache and in both lists
                alive[row], chosen[row] = alive[-1], chosen[-1]
                alive.pop()
                chosen.pop()
        tokens = torch.tensor(chosen, device=device)[:, None]
    return texts


class _Prompts:
    """The prompt of each language that occurs."""

    def __init__(self, model: SpeechModel, language: str | None, task: str) -> None:
        self.model, self.language, self.task = model, language, task
        self.known: dict[str, list[int]] = {}
        if language is not None:
            model.generation.prompt(language_code(language, error=ModelError), task)

    def of(self, source: Source) -> list[int]:
        """Return the tokens that a recording's texts begin with."""
        code = language_of(source, self.language)
        if code not in self.known:
            try:
                self.known[code] = self.model.generation.prompt(code, self.task)
            except ModelError as error:
                own = self.language is None and source.language
                raise ModelError(f"{source.place}: {error}" if own else str(error)) from error
        return self.known[code]


@dataclass
class _Window:
    """A piece of a recording that waits to be decoded, and then its text."""

    recording: int
    samples: Tensor
    prompt: Sequence[int]
    tokens: list[int] = field(default_factory=list)


class _Queue:
    """Windows that wait until enough are there to be sorted by length."""

    def __init__(self, model: SpeechModel, batch_size: int, bar: tqdm[object]) -> None:
        self.model, self.batch_size, self.bar = model, batch_size, bar
        # Every step runs through the large head. This layout takes no time to make, so any call profits.
        self.head: Head = model.proj_out
        if isinstance(model.proj_out, nn.Linear):
            self.head = reordered_product(model.proj_out.weight, None) or model.proj_out
        self.texts: dict[int, list[list[int]]] = {}  # of each recording, one for each of its windows
        self._waiting: list[_Window] = []
        self._held = 0  # samples
        self._room = SAMPLE_RATE * max(SECONDS_TOGETHER, batch_size * CHUNK_SECONDS)
        self._open: Counter[int] = Counter()  # of each recording: its windows here, and 1 while it is read

    def begin(self, recording: int) -> None:
        """Note that a recording's windows are to come."""
        self._open[recording] += 1

    def add(self, recording: int, window: Tensor, prompt: Sequence[int]) -> None:
        """Take the next window of a recording; decode all that wait if there is no room for more."""
        self._waiting.append(_Window(recording, window, prompt))
        self._open[recording] += 1
        self._held += len(window)
        if self._held >= self._room:
            self.decode()

    def finish(self, recording: int) -> None:
        """Count one window of a recording as decoded, or its reading as done; the bar counts recordings."""
        self._open[recording] -= 1
        if not self._open[recording]:
            self.bar.update()

    def decode(self) -> None:
        """Decode all windows that wait; those of like length go together."""
        order = sorted(self._waiting, key=lambda window: len(window.samples), reverse=True)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            waveforms, prompts = [each.samples for each in batch], [each.prompt for each in batch]
            limits = self.model.token_limits(waveforms, len(prompts[0]))
            states, mask = self.model.encode_speech(waveforms)
            cache = self.model.start(states, len(prompts[0]) + max(limits), mask)
            for window, tokens in zip(
                batch, greedy(self.model, self.head, cache, prompts, limits), strict=True
            ):
                window.tokens = tokens
                self.finish(window.recording)
        for window in self._waiting:
            self.texts.setdefault(window.recording, []).append(window.tokens)
        self._waiting, self._held = [], 0


def _join(tokenizer: Tokenizer, samples: int, parts: list[list[int]]) -> Transcript:
    """Put the tokens of a recording's windows together."""
    text = " ".join(filter(None, (tokenizer.decode(tokens).strip() for tokens in parts)))
    return Transcript(text, tuple(token for tokens in parts for token in tokens), samples / SAMPLE_RATE)
