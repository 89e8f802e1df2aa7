"""The settings behind a figure in one line, as sacrebleu writes them: equal lines, comparable figures."""

from __future__ import annotations

from collections.abc import Mapping

from qlib.version import library_version

SHOWN = 8  # hexadecimal digits of a hash: enough to tell the lists of one user apart


def signature(measure: str, settings: dict[str, object]) -> str:
    """Return measure, settings and this library's version; equal settings give an equal line.

    >>> signature("wer", {"norm": "whisper-english", "clips": 50}).rpartition("|")[0]
    'wer|norm:whisper-english|clips:50'
    """
    parts = [f"{name}:{value}" for name, value in settings.items()]
    return "|".join([measure, *parts, f"qlib:{library_version() or 'unknown'}"])


def has_settings(line: str, settings: Mapping[str, object]) -> bool:
    """Return whether a signature has these settings.

    >>> has_settings("wer|jiwer:4.0.0|dec:greedy", {"jiwer": "4.0"})
    False
    """
    return {f"{name}:{value}" for name, value in settings.items()} <= set(line.split("|"))


def short(sha256: str) -> str:
    """Return the beginning of a hash."""
    return sha256[:SHOWN]
