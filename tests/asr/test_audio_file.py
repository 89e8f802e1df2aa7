"""Files that are not what their header says, segments, and what is no audio."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from qlib.asr.audio import read_audio, split_windows, stream_windows
from qlib.asr.audio_file import BLOCK_SECONDS, SAMPLE_RATE, audio_blocks, audio_seconds
from qlib.errors import DataError


def sound(seconds: float, rate: int = SAMPLE_RATE, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return (0.1 * noise).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    soundfile.write(path, samples, rate)
    return path


def with_sizes(path: Path, riff: int, data: int, behind: bytes = b"") -> Path:
    """Write other sizes into a wav's header: its own, and its data's."""
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    path.write_bytes(content + behind)
    return path


# --- headers


@pytest.mark.parametrize("riff", [0, 8, 36, 32_036])
@pytest.mark.parametrize("data", [0, 1000, 16_000])
def test_what_a_stopped_recorder_left_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, riff: int, data: int
) -> None:
    path = write(tmp_path / "a.wav", sound(1))
    expected = read_audio(path)
    with_sizes(path, riff, data)
    assert torch.equal(read_audio(path), expected)
    assert audio_seconds(path) == 1
    assert f"says {data / 32_000:.2f} s, the file holds 1.00 s" in caplog.text


@pytest.mark.parametrize("data", [0xFFFF_FFFF, 0x7FFF_FFFF])
def test_a_stream_of_unknown_length_is_read_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: int
) -> None:
    path = with_sizes(write(tmp_path / "a.wav", sound(1)), data, data)
    assert len(read_audio(path)) == SAMPLE_RATE
    assert not caplog.records


@pytest.mark.parametrize("behind", [b"LIST\x04\0\0\0abcd", b"TAG" + b" " * 125, b"\0" * 100])
def test_what_stands_behind_the_samples_is_no_sound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, behind: bytes
) -> None:
    path = with_sizes(write(tmp_path / "a.wav", sound(1)), 32_036 + len(behind), 32_000, behind)
    assert len(read_audio(path)) == SAMPLE_RATE
    assert not caplog.records


@pytest.mark.parametrize("ending", ["wav", "mp3", "ogg", "aiff", "au"])
def test_a_file_that_broke_off_says_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    path = write(tmp_path / f"a.{ending}", sound(10))
    assert len(read_audio(path)) == 10 * SAMPLE_RATE and not caplog.records
    content = path.read_bytes()
    path.write_bytes(content[: int(0.6 * len(content))])
    there = len(read_audio(path)) / SAMPLE_RATE
    assert 5 < there < 7
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "qlib"
    assert f"a.{ending}: the file breaks off. It has {there:.2f} s and should have" in caplog.text
    assert ending == "ogg" or "should have 10.00 s" in caplog.text


def test_a_flac_that_broke_off_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sound(10))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"a\.flac: cannot be read as audio.*damaged: copy it again"):
        read_audio(path)


def test_a_flac_of_unknown_length_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sound(1))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the number of samples: 36 bits that end at byte 26
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"does not say how long it is.*ffmpeg"):
        read_audio(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.raw", b"\1\2" * 100, "no header.*rate, width and channels.*-f s16le"),
        ("a.pcm", b"\1\2" * 100, "no header.*-ar 16000"),
        ("a.m4a", b"\0\0\0\x20ftypM4A ", r"Convert it to wav or flac.*ffmpeg"),
        ("a.wav", b"", "0 bytes"),
        ("a.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_is_no_audio_file_says_what_to_do(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: cannot be read as audio.*{message}"):
        read_audio(tmp_path / name)


@pytest.mark.parametrize(("samples", "rate"), [(1, 48_000), (2, 48_000), (1, 192_000), (1, 8000)])
def test_a_single_sample_stays_a_recording(tmp_path: Path, samples: int, rate: int) -> None:
    assert len(read_audio(write(tmp_path / "a.wav", np.full(samples, 0.3), rate))) >= 1


@pytest.mark.parametrize("rate", [11_025, 12_345, 44_056, 96_000])
def test_odd_rates(tmp_path: Path, rate: int) -> None:
    audio = read_audio(write(tmp_path / "a.wav", sound(0.5, rate), rate))
    assert len(audio) == pytest.approx(SAMPLE_RATE / 2, abs=2)


def test_a_rate_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav: a sampling rate of 100 Hz"):
        read_audio(write(tmp_path / "a.wav", sound(1, 100), 100))


# --- blocks and segments


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 8000])
def test_blocks_are_the_whole_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    path = write(tmp_path / "a.wav", sound(7.3, rate), rate)
    whole = read_audio(path)
    monkeypatch.setattr("qlib.asr.audio_file.BLOCK_SECONDS", 2)
    blocks = list(audio_blocks(path))
    assert len(blocks) == 4
    assert torch.equal(torch.cat(blocks), whole), "to the last bit, also resampled"


def test_windows_of_blocks_are_those_of_the_whole() -> None:
    audio = torch.from_numpy(sound(25))
    for size in (1000, 40_000, 90_000):
        windows = list(stream_windows(audio.split(size), seconds=3))
        for found, expected in zip(windows, split_windows(audio, seconds=3), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_segment_is_its_own_samples_and_nothing_else_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = write(tmp_path / f"a.{ending}", sound(20))
    whole, asked = read_audio(path), []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda file, n, **rest: asked.append(n) or read(file, n, **rest)
    )
    assert torch.equal(read_audio(path, 12.5, 3.25), whole[200_000:252_000])
    assert torch.equal(read_audio(path, 19), whole[304_000:])
    assert asked == [52_000, 16_000]
    assert torch.equal(read_audio(path, 15, 5.05), whole[240_000:]), "rounded up a little"
    assert torch.equal(read_audio(path, 15, 4.97), whole[240_000:319_520]), "with an offset: exactly"


def test_a_duration_without_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", sound(2))
    assert len(read_audio(path, duration=1.5)) == 24_000, "NeMo's meaning: the first seconds"
    assert len(read_audio(path, duration=1.95)) == len(read_audio(path, duration=2.05)) == 32_000


@pytest.mark.parametrize(
    ("offset", "duration", "message"),
    [
        (2.0, None, r"offset 2 s is not before the end, the file has 2\.00 s"),
        (9.0, 1.0, r"offset 9 s is not before the end"),
        (1.5, 1.0, r"offset 1\.5 s and duration 1 s are more than the file has, 2\.00 s"),
        (None, 2.5, r"duration 2\.5 s is more than the file has, 2\.00 s"),
    ],
)
def test_a_segment_that_is_not_there(
    tmp_path: Path, offset: float | None, duration: float | None, message: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.wav: {message}"):
        read_audio(write(tmp_path / "a.wav", sound(2)), offset, duration)


def test_the_place_of_a_bad_sample_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sound(5)
    samples[60_000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    monkeypatch.setattr("qlib.asr.audio_file.BLOCK_SECONDS", 2)
    with pytest.raises(DataError, match=r"a\.wav: 1 of 32000 samples from 2 s on are NaN"):
        read_audio(tmp_path / "a.wav")


def test_blocks_are_short() -> None:
    assert BLOCK_SECONDS * SAMPLE_RATE * 4 < 4_000_000, "bytes"
