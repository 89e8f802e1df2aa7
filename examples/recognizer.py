"""A recognizer and recordings for the lessons that need words."""

from __future__ import annotations

import argparse
from pathlib import Path

import qlib
from qlib.models.structure import Model
from qlib.models.tiny import tiny_whisper

SPEECH = Path(__file__).parent / "data" / "speech" / "manifest.jsonl"


def chosen_recognizer() -> tuple[Model, list[qlib.Utterance], list[qlib.Utterance], bool]:
    """Return the model that the command line names, recordings to calibrate and to test, and if it is real.

    Without `--model` it is a miniature with random weights: good to see how it is done, not for its words.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a fetched model or a folder; without it, a miniature")
    name = parser.parse_args().model
    speech = qlib.read_manifest(SPEECH)
    if not name:  # a miniature spells its texts letter by letter and has room for 63
        short = [each for each in speech if len(each.text or "") < 50]
        return tiny_whisper(width=64), short[:6:2], short[1:6:2], False
    calib, test = ([each for each in speech if each.split == split] for split in ("calibration", "test"))
    return qlib.load_model(name), calib, test, True
