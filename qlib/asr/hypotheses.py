"""What a recognizer wrote, as JSON lines: one object a line, with the fields of the open ASR leaderboard.

    {"audio_filepath": "a.flac", "duration": 4.1, "time": 0.2, "text": "as said", "pred_text": "as written"}

`time` is what the recognizer took, in seconds; of a batch, each utterance's share by its length. `id` stands
there too, and `language` where it is known; scorers that do not know them leave them alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from qlib.asr.manifest_rows import rows_of_json
from qlib.asr.prompts import told
from qlib.asr.transcribe import transcribe
from qlib.asr.utterance import Utterance
from qlib.asr.wer import WerResult, score
from qlib.errors import DataError, describe
from qlib.models.files import atomic_file
from qlib.models.structure import Model

GREEDY = "greedy"  # how `recognize` decodes, in the signature of a result


@dataclass(frozen=True)
class Hypothesis:
    """One utterance: what was said, and what was written.

    Attributes
    ----------
    id, audio_filepath : str
        Of the utterance.
    duration, time : float
        Length of the recording, and time to write its text; seconds.
    text, pred_text : str
        What was said, and what was written, as they are.
    language : str
        A code or a name; empty where it is not known, and then it counts as English.
    """

    id: str
    audio_filepath: str
    duration: float
    time: float
    text: str
    pred_text: str
    language: str = ""

    def row(self) -> dict[str, object]:
        """Return it as a JSON object."""
        named = {"language": self.language} if self.language else {}
        return {
            "id": self.id,
            "audio_filepath": self.audio_filepath,
            "duration": round(self.duration, 3),
            "time": round(self.time, 4),
            "text": self.text,
            "pred_text": self.pred_text,
            **named,
        }


def recognize(
    model: Model,
    utterances: Sequence[Utterance],
    *,
    batch_size: int = 8,
    language: str | None = None,
    progress: bool = True,
) -> list[Hypothesis]:
    """Return what a model writes, with the time that it took; arguments and errors are `evaluate_wer`'s.

    Windows are decoded side by side, so the time of an utterance is its share by length.
    """
    started = perf_counter()
    heard = [told(each, language) for each in utterances]
    found = transcribe(model, heard, batch_size=batch_size, language=language, progress=progress)
    share = (perf_counter() - started) / max(sum(each.seconds for each in found), 1e-9)
    return [
        Hypothesis(
            id=each.id,
            audio_filepath=str(each.audio) if isinstance(each.audio, Path) else "",
            duration=text.seconds,
            time=share * text.seconds,
            text=each.text or "",
            pred_text=text.text,
            language=each.language,
        )
        for each, text in zip(utterances, found, strict=True)
    ]


def write_hypotheses(hypotheses: Iterable[Hypothesis], path: Path) -> None:
    """Write JSON lines; the file is the old one or the new one."""
    with atomic_file(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        for each in hypotheses:
            file.write(json.dumps(each.row(), ensure_ascii=False) + "\n")


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read JSON lines with `text` and `pred_text`; the other fields may be missing.

    Raises
    ------
    DataError
        The file cannot be read, is empty, or a line lacks a field; names file and line.
    """
    found = []
    for number, (where, row) in enumerate(rows_of_json(path), 1):
        texts = [row.get(name) for name in ("text", "pred_text")]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: 'text' and 'pred_text' must be texts (found: {', '.join(row)}).")
        audio = str(row.get("audio_filepath", ""))
        found.append(
            Hypothesis(
                id=str(row.get("id") or Path(audio).stem or number),
                audio_filepath=audio,
                duration=_seconds(row.get("duration", 0.0), "duration", where),
                time=_seconds(row.get("time", 0.0), "time", where),
                text=str(texts[0]),
                pred_text=str(texts[1]),
                language=str(row.get("language") or ""),
            )
        )
    if not found:
        raise DataError(f"{path}: no line in it. A scored recognizer writes one JSON object an utterance.")
    return found


def _seconds(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {name} is {describe(value)}. It is a number of seconds, or is left out.")
    return float(value)


def score_hypotheses(
    hypotheses: Sequence[Hypothesis], language: str | None = None, decoding: str = "unknown"
) -> WerResult:
    """Return the word error rate of hypotheses; see `qlib.asr.wer.score`."""
    return score(
        [each.text for each in hypotheses],
        [each.pred_text for each in hypotheses],
        languages=[language or each.language or "en" for each in hypotheses],
        ids=[each.id for each in hypotheses],
        decoding=decoding,
    )
