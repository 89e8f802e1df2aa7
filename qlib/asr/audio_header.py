"""Recordings that were cut or never finished: what a header claims against what is there."""

from __future__ import annotations

import logging
import mmap
import struct
from pathlib import Path
from typing import Any

import soundfile

log = logging.getLogger("qlib")

TOLERANCE = 0.1  # seconds by which a list's duration may differ from the file's: rounding, padding of mp3

WAV_SIZE = struct.Struct("<I")


PLACEHOLDERS = 0x7FFF_0000  # bytes of data from here on: written by streams that do not know their length yet


OGG_END = 4  # flag of an ogg stream's last page


OGG_PAGE = 65_307  # bytes of the longest page


def unfinished_wav(raw: Any, path: Path, warn: bool) -> mmap.mmap | None:
    """Return a wav with a mended header, in memory (copy on write: the file stays as it is), or None.

    1. The header claims more than there is: the file broke off (a warning), or it was written by a stream
       that could not know its length. None: libsndfile reads what there is.
    2. The header claims all there is, or what follows is a list of other chunks: None, nothing is wrong.
    3. The header claims less: its recorder was stopped. The size is mended.
    """
    header = _wav_data(raw)
    if header is None:
        return None
    start, size, total, bytes_per_second = header
    there = total - start  # bytes
    if not size and not there:
        return None
    if size > there:
        if warn and size < PLACEHOLDERS and size - there > TOLERANCE * bytes_per_second:
            warn_cut(path, there / bytes_per_second, f"{size / bytes_per_second:.2f} s")
        return None  # libsndfile reads what is there
    if there - size <= TOLERANCE * bytes_per_second or (
        size and _is_chunks(raw, start + size + size % 2, total)  # chunks have an even length
    ):
        return None
    if warn:
        log.warning(
            "%s: its header says %.2f s, the file holds %.2f s, as when a recorder was stopped. All is read.",
            path, size / bytes_per_second, there / bytes_per_second,
        )  # fmt: skip
    mended = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
    largest = (1 << 32) - 1
    # The sizes of the RIFF header and of the data chunk.
    mended[4:8] = WAV_SIZE.pack(min(total - 8, largest))
    mended[start - 4 : start] = WAV_SIZE.pack(min(there, largest))
    return mended


def _wav_data(raw: Any) -> tuple[int, int, int, int] | None:
    """Return where a wav's data begins, its size as stated, the file's size, and bytes per second."""
    head = raw.read(12)
    total = raw.seek(0, 2)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    place, rate = 12, 0
    while place + 8 <= total:
        raw.seek(place)
        chunk = raw.read(8 + 12)
        (size,) = WAV_SIZE.unpack(chunk[4:8])
        if chunk[:4] == b"fmt " and len(chunk) == 20:
            (rate,) = WAV_SIZE.unpack(chunk[16:20])
        if chunk[:4] == b"data":
            return (place + 8, size, total, rate) if rate else None
        place += 8 + size + size % 2
    return None


def _is_chunks(raw: Any, place: int, total: int) -> bool:
    """Return whether a file's rest is chunks: names of four printable characters, and sizes that fit."""
    while place + 8 <= total:
        raw.seek(place)
        name, size = raw.read(4), WAV_SIZE.unpack(raw.read(4))[0]
        if not all(32 <= byte < 127 for byte in name):
            return False
        place += 8 + size + size % 2
    return place >= total - 8  # a few bytes after the last chunk are no recording


def check_end(file: soundfile.SoundFile, path: Path) -> None:
    """Warn where a file ends before its header says; of a wav and an mp3 that is found elsewhere."""
    seconds = file.frames / file.samplerate
    if file.format == "OGG" and not _ogg_ends(path):
        warn_cut(path, seconds, "more: the mark of the end is missing")
    if file.format in ("AIFF", "AU"):
        with path.open("rb") as raw:
            name, first, second = struct.unpack(">4sII", raw.read(12))
        claimed = first + 8 if name == b"FORM" else first + second  # an au has its data's begin and size
        there = path.stat().st_size
        if there < claimed < PLACEHOLDERS and seconds * (claimed / there - 1) > TOLERANCE:
            warn_cut(path, seconds, f"{seconds * claimed / there:.2f} s")


def _ogg_ends(path: Path) -> bool:
    """Return whether an ogg file's last page says that it is the last."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - OGG_PAGE))
        tail = file.read()
    page = tail.rfind(b"OggS")
    return page < 0 or page + 5 >= len(tail) or bool(tail[page + 5] & OGG_END)


def warn_cut(path: Path | str, there: float, claimed: str) -> None:
    """Warn of a file that holds less than it claims."""
    log.warning(
        "%s: the file breaks off. It has %.2f s and should have %s; what is there is read. Its text may be "
        "longer than its sound: copy the file again, or remove it from the list.",
        path, there, claimed,
    )  # fmt: skip
