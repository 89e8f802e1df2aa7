"""Speech to text: greedy, batched, any length.

Without timestamps:

    recordings -> windows of at most 30 s, cut at pauses -> sorted by length -> batches
    batch -> encoder, window by window -> greedy decoding, all windows side by side
    texts of a recording's windows, joined in order -> Transcript

The windows of all recordings wait in one queue (`window_queue.py`), which sorts and decodes them
(`greedy.py`). A window of digital silence is not sent through the model: its text is empty.

With timestamps the windows cannot be cut beforehand: `long_form.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized

import torch

from qlib.asr.audio import is_silent, stream_windows
from qlib.asr.datasets import check_utterances, require_text
from qlib.asr.long_form import timestamp_model, transcribe_long_form
from qlib.asr.prompts import Language, Prompts, language_of, told
from qlib.asr.recordings import Recording, as_sources
from qlib.asr.transcript import Transcript
from qlib.asr.utterance import Utterance
from qlib.asr.wer import WerResult, check_scorable, score
from qlib.asr.window_queue import WindowQueue
from qlib.errors import DataError, ModelError, describe, whole_number
from qlib.models.fast.laid_out import laid_out
from qlib.models.progress import progress_bar
from qlib.models.speech import SpeechModel
from qlib.models.structure import Model
from qlib.models.tokenizer import Tokenizer, need_tokenizer
from qlib.models.waveform import SAMPLE_RATE


@torch.inference_mode()
def transcribe(
    model: Model,
    recordings: Iterable[Recording],
    *,
    batch_size: int = 8,
    language: str | None = None,
    task: str = "transcribe",
    timestamps: bool = False,
    progress: bool = True,
) -> list[Transcript]:
    """Transcribe recordings greedily.

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
        utterance's own; where it has none, the most probable language of the first window with sound.
    task : str
        For multilingual checkpoints: ``"transcribe"``, or ``"translate"`` to English.
    timestamps : bool
        Also say when each segment is spoken (Whisper only). Windows then start where the last segment of the
        one before ended, instead of at pauses, so the text of a long recording may differ. `batch_size`
        recordings are held in memory at once, 350 MB an hour.
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
        The model is no speech recognizer, has no tokenizer, does not know the language or task, or writes no
        timestamps.
    """
    batch_size = whole_number(batch_size, "batch_size", DataError, 1, remedy="It counts windows: 8 is usual.")
    speech_model, tokenizer = as_speech_model(model)
    seconds = speech_model.window_seconds
    timed = timestamp_model(speech_model) if timestamps else None
    prompts = Prompts(speech_model, language, task)
    sources = as_sources(recordings, "transcribe")
    if isinstance(sources, Sized):  # a list: errors come before the work
        for source in sources:
            prompts.language(source)
    total = len(sources) if isinstance(sources, Sized) else None
    with (
        progress_bar(show=progress, total=total, desc="transcribe", unit="clip") as bar,
        laid_out(speech_model.model),  # the head not: `decoding_head` lays it out
    ):
        if timed is not None:
            return transcribe_long_form(timed, sources, prompts, batch_size, bar)
        queue = WindowQueue(speech_model, prompts, batch_size, bar)
        samples: list[int] = []  # of each recording
        for number, source in enumerate(sources):
            samples.append(0)
            queue.begin(number, prompts.language(source))
            for window in stream_windows(source.blocks(), seconds):
                samples[-1] += len(window)
                if not is_silent(window):
                    queue.add(number, window)
            queue.finish(number)
        queue.decode()
    return [
        _join(tokenizer, length, queue.texts.get(number, []), queue.languages.get(number))
        for number, length in enumerate(samples)
    ]


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
        Each with a reference text; those whose reference is empty are left out of the score. A list is
        checked before the work begins. A generator is checked as it goes, and only its texts are kept.
    batch_size, progress
        As for `transcribe`.
    language : str, optional
        If not given, each utterance's own, and English where it has none: nothing is detected. It also
        decides how a text is normalized and whether words or characters count: see `qlib.asr.wer.score`.

    Raises
    ------
    DataError
        No utterances, an entry that is none, one without a reference, or all references empty.
    """
    as_speech_model(model)
    rows: list[tuple[str, str, str]] = []  # id, reference and language of each utterance
    if isinstance(utterances, Iterator):
        heard: Iterable[Recording] = _noted(utterances, rows, language)
    else:
        listed = check_utterances(utterances, "evaluate_wer")
        rows.extend(_row(each, language) for each in listed)
        heard = [told(each, language) for each in listed]
        check_scorable([text for _, text, _ in rows], [code for _, _, code in rows])
    transcripts = transcribe(model, heard, batch_size=batch_size, language=language, progress=progress)
    if not rows:
        raise DataError("evaluate_wer: the generator gave no utterance. Is it used up? Make it again.")
    ids, references, languages = zip(*rows, strict=True)
    texts = [transcript.text for transcript in transcripts]
    return score(references, texts, languages=languages, ids=ids, decoding="greedy")


def _noted(
    utterances: Iterator[Utterance], rows: list[tuple[str, str, str]], language: str | None
) -> Iterator[Utterance]:
    """Pass utterances on one by one, and note of each what its score needs, not its sound."""
    for number, each in enumerate(utterances, 1):
        if not isinstance(each, Utterance):
            raise DataError(
                f"evaluate_wer: entry {number} of the generator is {describe(each)}, not an utterance: what "
                'is said must be known. Yield qlib.Utterance("a.wav", "what is said").'
            )
        rows.append(_row(each, language))
        yield told(each, language)


def _row(utterance: Utterance, language: str | None) -> tuple[str, str, str]:
    (text,) = require_text([utterance])
    return utterance.id, text, language_of(utterance, language)


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
        elif isinstance(model, str):
            remedy = f"Load it first: qlib.load_model({model!r})."
        raise ModelError(f"{kind[0].upper()}{kind[1:]} does not transcribe speech. {remedy}")
    return model, need_tokenizer(model.tokenizer)


def _join(
    tokenizer: Tokenizer, samples: int, parts: list[list[int]], language: Language | None
) -> Transcript:
    """Put the tokens of a recording's windows together."""
    text = " ".join(filter(None, (tokenizer.decode(tokens).strip() for tokens in parts)))
    tokens = tuple(token for tokens in parts for token in tokens)
    code, probability = language or (None, None)
    return Transcript(text, tokens, samples / SAMPLE_RATE, code, probability)
