"""What a model wrote for a recording: its text, and with timestamps its segments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording and what is said in it."""

    start: float  # seconds from the recording's beginning
    end: float
    text: str  # without the leading space
    tokens: tuple[int, ...]  # timestamps included

    def __str__(self) -> str:
        return f"[{self.start:.2f} --> {self.end:.2f}] {self.text}"


@dataclass(frozen=True)
class Transcript:
    """The text that the model wrote for a recording."""

    text: str  # as written by the model, without the leading space
    tokens: tuple[int, ...]  # without prompt and end; the windows of a long recording one after another
    seconds: float  # length of the recording
    language: str | None = None  # its code; None if it was to be detected and nothing was to be heard
    language_probability: float | None = None  # of a detected language, among all that the model knows
    segments: tuple[Segment, ...] | None = None  # in order; None without timestamps

    def __str__(self) -> str:
        return self.text
