"""The settings behind a figure in one line, as sacrebleu writes them: equal lines, comparable figures."""

from __future__ import annotations

from qlib.version import library_version

SHOWN = 8  # hexadecimal digits of a hash: enough to tell the lists of one user apart


def signature(measure: str, settings: dict[str, object]) -> str:
    """Return measure, settings and this library's version; equal settings give an equal line.

    >>> signature("wer", {"norm": "whisper-english", "clips": 50}).rpartition("|")[0]
    'wer|norm:whisper-english|clips:50'
    """
    parts = [f"{name}:{value}" for name, value in settings.items()]
    return "|".join([measure, *parts, f"qlib:{library_version() or 'unknown'}"])


def short(sha256: str) -> str:
    """Return the beginning of a hash."""
    return sha256[:SHOWN]
