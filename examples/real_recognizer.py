"""A recognizer and recordings for the lessons that need words."""

from __future__ import annotations

from pathlib import Path

import qlib
from qlib.errors import ModelError
from qlib.models.structure import Model
from qlib.models.tiny import tiny_whisper

SPEECH = Path(__file__).parent / "data" / "speech" / "manifest.jsonl"
NAME = "whisper-tiny.en"


def real_recognizer() -> tuple[Model, list[qlib.Utterance], list[qlib.Utterance], bool]:
    """Return a model, recordings to calibrate with, others to test on, and whether the model is a real one.

    Where whisper-tiny.en was not fetched, a miniature with random weights stands in: it shows how to measure,
    and its figures mean nothing.
    """
    speech = qlib.read_manifest(SPEECH)
    try:
        model = qlib.load_model(NAME)
    except ModelError:
        print(f"{NAME} is not here (python -m qlib.models fetch {NAME}): a miniature with random weights.\n")
        short = [each for each in speech if len(each.text or "") < 50]
        return tiny_whisper(width=64), short[:6:2], short[1:6:2], False
    print(f"{NAME}\n")
    calib = [each for each in speech if each.split == "calibration"]
    return model, calib, [each for each in speech if each.split == "test"], True
