"""Corpora by folder: every layout, what is held in memory, and every way in which a corpus can be wrong."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_fixtures import noise

import qlib
from qlib.asr.calibration import fingerprint
from qlib.asr.corpora import CORPORA, read_corpus
from qlib.asr.parquet import Shard
from qlib.asr.transcribe import evaluate_wer, transcribe
from qlib.asr.utterance import Utterance
from qlib.benchmark.cells import Data
from qlib.benchmark.config import Study
from qlib.command_line import utterances
from qlib.errors import DataError, MissingExtraError
from qlib.models.tiny import tiny_whisper

SCHEMA = pyarrow.schema(
    [
        ("audio", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        ("dataset", pyarrow.string()),
        ("text", pyarrow.string()),
        ("id", pyarrow.string()),
        ("audio_length_s", pyarrow.float64()),
    ]
)


def encoded(samples: Any, rate: int = 16_000, subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), rate, format="WAV", subtype=subtype)
    return file.getvalue()


def row(number: int, text: str | None = "the cat", **other: Any) -> dict[str, Any]:
    """Return a row whose first sample tells which one it is."""
    samples = np.full(160, number / 1000, np.float32)
    audio = {"bytes": encoded(samples), "path": f"{number}.wav"}
    known = {"audio": audio, "dataset": "ami", "text": text, "id": f"u{number}", "audio_length_s": 0.01}
    return {**known, **other}


def write(
    path: Path, rows: Sequence[dict[str, Any]], schema: pyarrow.Schema = SCHEMA, group: int = 3
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, row_group_size=group)
    return path


def numbers(found: Iterator[Utterance] | Sequence[Utterance]) -> list[int]:
    return [round(float(each.read()[0]) * 1000) for each in found]


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A leaderboard with two corpora: AMI in two shards, LibriSpeech in two splits."""
    write(tmp_path / "ami/test-00000-of-00002.parquet", [row(i) for i in range(4)])
    write(tmp_path / "ami/test-00001-of-00002.parquet", [row(i) for i in range(4, 7)])
    write(tmp_path / "librispeech/test.clean-00000-of-00001.parquet", [row(10)])
    write(tmp_path / "librispeech/test.other-00000-of-00001.parquet", [row(11), row(12)])
    return tmp_path


# --- parquet files


def test_a_row_becomes_an_utterance(board: Path) -> None:
    first, *_ = read_corpus(board, "ami")
    path = board / "ami/test-00000-of-00002.parquet"
    assert (first.text, first.id, first.source, first.split) == ("the cat", "u0", "ami", "test")
    assert (first.duration, first.where) == (0.01, f"{path}, row 1, id u0")
    assert first.read().tolist() == [0.0] * 160


def test_shards_come_in_order_by_name_or_by_folder(board: Path) -> None:
    for found in (
        read_corpus(board, "ami"),
        read_corpus(str(board / "ami"), "ami"),
        read_corpus(board / "ami"),
        read_corpus(board / "ami", split=None),
    ):
        assert numbers(found) == [0, 1, 2, 3, 4, 5, 6]
    assert numbers(read_corpus(board / "ami/test-00001-of-00002.parquet")) == [4, 5, 6]
    assert numbers(read_corpus(board, "ami", limit=5)) == [0, 1, 2, 3, 4]


def test_parts_of_librispeech(board: Path) -> None:
    assert numbers(read_corpus(board, "librispeech-clean")) == [10]
    assert numbers(read_corpus(board, "librispeech-other")) == [11, 12]
    assert numbers(read_corpus(board / "librispeech", split="test.other")) == [11, 12]
    assert numbers(read_corpus(board / "librispeech", split=None)) == [10, 11, 12]
    with pytest.raises(
        DataError, match=r"librispeech: 2 splits fit 'test'\. There: test\.clean, test\.other"
    ):
        read_corpus(board / "librispeech")


@pytest.mark.parametrize(
    "name",
    ["ami/test.parquet", "ami/test/0000.parquet", "ami/data/test-00000-of-00001-9f3b.parquet"],
)
def test_other_names_of_shards(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [row(1)])
    write(tmp_path / name.replace("test", "train"), [row(2)])
    assert numbers(read_corpus(tmp_path, "ami")) == [1]
    assert numbers(read_corpus(tmp_path, "ami", split="train")) == [2]


@pytest.mark.parametrize("column", ["text", "norm_text", "normalized_text", "sentence", "transcription"])
def test_names_of_the_text(tmp_path: Path, column: str) -> None:
    names = [column if name == "text" else name for name in SCHEMA.names]
    table = pyarrow.Table.from_pylist([row(1, "so it is")], SCHEMA).rename_columns(names)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (found,) = read_corpus(tmp_path / "a.parquet")
    assert found.text == "so it is"


def test_columns_that_may_be_missing_and_a_language(tmp_path: Path) -> None:
    schema = pyarrow.schema([SCHEMA.field("audio"), SCHEMA.field("text"), ("language", pyarrow.string())])
    (found,) = read_corpus(write(tmp_path / "b.parquet", [{**row(1), "language": "de"}], schema))
    assert (found.id, found.language, found.duration) == ("b-1", "de", None)


def test_numbers_are_ids_too(tmp_path: Path) -> None:
    schema = SCHEMA.set(3, pyarrow.field("id", pyarrow.int64()))
    (found,) = read_corpus(write(tmp_path / "b.parquet", [row(1, id=7)], schema))
    assert found.id == "7"


def test_another_rate_and_two_channels(tmp_path: Path) -> None:
    stereo = np.stack([np.full(800, 0.5), np.full(800, 0.1)], axis=1)
    path = write(tmp_path / "a.parquet", [row(0, audio={"bytes": encoded(stereo, 8000), "path": "a"})])
    (found,) = read_corpus(path)
    soundfile.write(tmp_path / "a.wav", stereo, 8000, subtype="FLOAT")
    assert torch.equal(found.read(), Utterance(tmp_path / "a.wav").read())


@given(st.integers(1, 5), st.lists(st.integers(0, 11), min_size=1, max_size=12), st.integers(1, 3))
def test_rows_are_read_in_any_order(group: int, order: list[int], at_once: int) -> None:
    file = io.BytesIO()
    rows = [row(i) for i in range(12)]
    table = pyarrow.Table.from_pylist(rows, SCHEMA)
    pyarrow.parquet.write_table(table, file, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlib.asr.parquet.SOUND_ROWS", at_once)
        patch.setattr(
            Shard, "_opened", lambda shard: pyarrow.parquet.ParquetFile(io.BytesIO(file.getvalue()))
        )
        shard = Shard(Path("x.parquet"))
        assert [shard.sound(i) for i in order] == [rows[i]["audio"]["bytes"] for i in order]


def test_in_order_each_row_group_is_read_once(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = list(read_corpus(board, "ami"))
    read, opened = [], pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "iter_batches",
        lambda file, size, **options: read.append(options["row_groups"]) or opened(file, size, **options),
    )
    numbers(listed)
    assert read == [[0], [1], [0]], "two groups of the first shard, one of the second"


def test_an_utterance_of_a_shard_is_as_one_of_a_file(board: Path, tmp_path: Path) -> None:
    (first, second, *_), (again, *_) = (list(read_corpus(board, "ami")) for _ in range(2))
    assert first == again and hash(first) == hash(again) and first != second
    assert fingerprint([first]) == fingerprint([again]) != fingerprint([second])
    numbers([second])
    copy = pickle.loads(pickle.dumps(second))
    assert copy == second and torch.equal(copy.read(), second.read())
    with pytest.raises(DataError, match="row 1, id u0: the sound is inside a data set"):
        _ = first.path


def test_a_segment_is_cut_and_a_length_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row(1, audio_length_s=0.005)])
    (found,) = read_corpus(path)
    assert len(found.read()) == 160, "the data set's length describes"
    part = Utterance(found.audio, "the", offset=0.0025, duration=0.005)
    assert (len(part.read()), part.id) == (80, "a-1@0.003+0.005")


# --- memory


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Texts grow by a few hundred bytes an utterance; sound, 64 kB each here, is let go."""
    sound = encoded(noise(1))
    peaks = []
    for count in (1, 8):  # shards of 5 row groups
        rows = [row(i, audio={"bytes": sound, "path": "a"}) for i in range(50)]
        for i in range(count):
            write(tmp_path / f"{count}/test-{i:05}-of-{count:05}.parquet", rows, group=10)
        before, arrow = pyarrow.total_allocated_bytes(), 0
        tracemalloc.start()
        for each in list(read_corpus(tmp_path / str(count))):
            each.read()
            arrow = max(arrow, pyarrow.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 350 * 1000 < 50 * len(sound)


def test_a_scored_generator_is_not_held() -> None:
    born: list[weakref.ref[Utterance]] = []
    alive: list[int] = []

    def clips() -> Iterator[Utterance]:
        for i in range(12):
            found = Utterance(noise(0.1, i), "the cat", str(i))
            born.append(weakref.ref(found))
            yield found
            del found
            alive.append(sum(each() is not None for each in born))

    model = tiny_whisper()
    result = evaluate_wer(model, clips(), batch_size=2, progress=False)
    assert len(alive) == 12 and max(alive) <= 2
    listed = [Utterance(noise(0.1, i), "the cat", str(i)) for i in range(12)]
    assert result == evaluate_wer(model, listed, batch_size=2, progress=False)
    assert result.ids == tuple(map(str, range(12)))


# --- as the rest of the library takes them


def test_scores_are_those_of_the_same_sound_in_memory(tmp_path: Path) -> None:
    texts = ["the cat", "a heath", "", "ignore time segment in scoring", "uh"]
    rows = [
        row(0, text, audio={"bytes": encoded(noise(0.5 + i / 10, i)), "path": ""}, id=f"c{i}")
        for i, text in enumerate(texts)
    ]
    write(tmp_path / "ami/test-00000-of-00001.parquet", rows, group=2)
    model = tiny_whisper()
    held = [Utterance(noise(0.5 + i / 10, i), text, f"c{i}") for i, text in enumerate(texts)]
    expected = evaluate_wer(model, held, progress=False)
    assert (expected.utterances, expected.dropped) == (2, 3), "the leaderboard's rule"
    for found in (read_corpus(tmp_path, "ami"), list(read_corpus(tmp_path, "ami"))):
        assert evaluate_wer(model, found, progress=False) == expected
    assert transcribe(model, read_corpus(tmp_path, "ami"), progress=False) == transcribe(
        model, held, progress=False
    )
    quantized = [
        qlib.quantize(model, [qlib.GPTQ()], weight=qlib.Grid(4, 8), calib=calib, progress=False).model
        for calib in (read_corpus(tmp_path, "ami", limit=2), held[:2])
    ]
    first, second = (each.state_dict() for each in quantized)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("texts", [["", "(coughs)"], ["ignore time segment in scoring"]])
def test_a_corpus_without_a_word_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    model = tiny_whisper()
    audio = {"bytes": encoded(noise(0.1)), "path": "a"}
    path = write(tmp_path / "a.parquet", [row(i, text, audio=audio) for i, text in enumerate(texts)])
    with pytest.raises(DataError, match=rf"all {len(texts)} references are empty after normalization"):
        evaluate_wer(model, read_corpus(path), progress=False)
    monkeypatch.setattr(model, "encode", None)  # of a list, nothing may be heard
    with pytest.raises(DataError, match=rf"all {len(texts)} references are empty after normalization"):
        evaluate_wer(model, list(read_corpus(path)), progress=False)


def test_a_corpus_without_references_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row(0, None)])
    for found in (read_corpus(path), list(read_corpus(path))):
        with pytest.raises(DataError, match=r"a\.parquet, row 1, id u0: no transcript"):
            evaluate_wer(tiny_whisper(), found, progress=False)


def test_generators_that_are_refused() -> None:
    model = tiny_whisper()
    with pytest.raises(DataError, match="the generator gave no utterance"):
        evaluate_wer(model, iter([]), progress=False)
    with pytest.raises(DataError, match="entry 2 of the generator is the int 3, not an utterance"):
        evaluate_wer(model, iter([Utterance(noise(0.1), "a"), 3]), progress=False)  # type: ignore[list-item]


def test_the_command_line_takes_corpora(board: Path) -> None:
    places = [f"{board}:ami", str(board / "librispeech/test.other-00000-of-00001.parquet")]
    assert numbers(utterances(places, None)) == [0, 1, 2, 3, 4, 5, 6, 11, 12]
    assert numbers(utterances(places, 1)) == [0, 11]
    with pytest.raises(DataError, match=r"no split 'train'\. There: test\."):
        utterances([str(board / "ami")], None, "train")


def test_rows_that_calibrate_a_study_are_in_no_test(board: Path) -> None:
    shard = str(board / "ami/test-00000-of-00002.parquet")
    study = Study(models=("m",), data={"ami": str(board / "ami")}, calib=shard, calib_limit=2)
    data = Data.of(study)
    assert numbers(data.calib or []) == [0, 1] and numbers(data.tests["ami"]) == [2, 3, 4, 5, 6]


# --- what is wrong with a corpus


def damaged(tmp_path: Path, part: slice, filler: bytes) -> Path:
    path = write(tmp_path / "bad.parquet", [row(i) for i in range(6)])
    data = bytearray(path.read_bytes())
    data[part] = filler
    path.write_bytes(bytes(data))
    return path


def test_a_file_that_is_no_parquet_is_named(board: Path) -> None:
    bad = board / "ami/test-00001-of-00002.parquet"
    for data in (b"", b"not parquet at all", bad.read_bytes()[:-100]):
        bad.write_bytes(data)
        with pytest.raises(DataError, match=r"00001-of-00002\.parquet: cannot be read as parquet.*fetch it"):
            read_corpus(board, "ami")


def test_a_page_that_is_damaged_is_named_with_its_row(tmp_path: Path) -> None:
    listed = list(read_corpus(damaged(tmp_path, slice(4, 60), b"\xff" * 56)))
    with pytest.raises(DataError, match=r"bad\.parquet, row 1, id u0: .*cannot be read as parquet"):
        listed[0].read()


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("audio", r"x\.parquet: no column 'audio' \(found: dataset, text, id, audio_length_s\)"),
        (
            "text",
            r"x\.parquet: no column with what is said \(found: audio, .*\)\. Name it one of .*norm_text",
        ),
    ],
)
def test_a_missing_column(tmp_path: Path, left_out: str, message: str) -> None:
    schema = SCHEMA.remove(SCHEMA.get_field_index(left_out))
    with pytest.raises(DataError, match=message):
        read_corpus(write(tmp_path / "x.parquet", [row(0)], schema))


def test_a_column_of_paths_is_no_sound(tmp_path: Path) -> None:
    schema = SCHEMA.set(0, pyarrow.field("audio", pyarrow.string()))
    with pytest.raises(DataError, match=r"column 'audio' is string, not struct\{bytes, path\}"):
        read_corpus(write(tmp_path / "x.parquet", [row(0, audio="a.wav")], schema))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ({"bytes": b"no sound", "path": "a"}, r"row 2, id u1: its sound: 8 bytes cannot be decoded as audio"),
        ({"bytes": b"", "path": "a"}, r"row 2, id u1: its sound: 0 bytes cannot be decoded"),
        ({"bytes": None, "path": "a"}, r"row 2, id u1: column 'audio' has no bytes in this row"),
        (None, r"row 2, id u1: column 'audio' has no bytes in this row"),
        ({"bytes": encoded([]), "path": "a"}, r"row 2, id u1: its sound: the recording is empty"),
        ({"bytes": encoded([9.0]), "path": "a"}, r"row 2, id u1: its sound: samples reach 9"),
    ],
)
def test_sound_that_cannot_be_used_is_named(tmp_path: Path, audio: Any, message: str) -> None:
    first, second = read_corpus(write(tmp_path / "x.parquet", [row(0), row(1, audio=audio)]))
    assert len(first.read()) == 160
    with pytest.raises(DataError, match=rf"x\.parquet, {message}"):
        second.read()


def test_values_that_are_no_text_and_no_length(tmp_path: Path) -> None:
    schema = SCHEMA.set(2, pyarrow.field("text", pyarrow.int64()))
    with pytest.raises(DataError, match=r"x\.parquet, row 1, id u0: text is the int 7, not a text"):
        list(read_corpus(write(tmp_path / "x.parquet", [row(0, 7)], schema)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"x\.parquet, row 1, id u0: duration -1\.0 is no length of time"):
        list(read_corpus(write(tmp_path / "x.parquet", [row(0, audio_length_s=-1.0)])))


def test_shards_that_are_missing_are_counted(board: Path) -> None:
    (board / "ami/test-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"ami: 1 of 2 shards of test are missing, numbers 0\. Fetch them"):
        read_corpus(board, "ami")
    assert numbers(read_corpus(board / "ami/test-00001-of-00002.parquet")) == [4, 5, 6], "asked for by name"


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("", {"name": "earnings-22"}, r"no corpus 'earnings-22'\. Did you mean 'earnings22'\? Known: ami, "),
        ("", {"name": "AMI"}, r"no corpus 'AMI'\. Did you mean 'ami'"),
        ("", {"name": "librispeech"}, r"no corpus 'librispeech'\. Did you mean 'librispeech-"),
        ("", {"name": 3}, r"no corpus 3\."),
        ("", {"name": "tedlium"}, r"no folder 'tedlium' in it \(there: ami, librispeech\)"),
        ("ami", {"name": "tedlium"}, r"no folder 'tedlium' in it \(there: ami\)"),
        ("", {}, r"parquet files of 2 data sets: ami, librispeech\. Give the folder of one"),
        ("ami", {"split": "train"}, r"ami: no split 'train'\. There: test\. Pass one"),
        (
            "",
            {"name": "librispeech-clean", "split": "dev"},
            r"no split 'dev' clean\. There: test\.clean, test",
        ),
        ("ami", {"split": 3}, r"split is the int 3"),
        ("ami", {"limit": 0}, r"limit=0 is not 1 or more"),
        ("ami", {"limit": "5"}, r"limit is the str '5'"),
        ("gone", {}, r"gone: there is no such file"),
        ("gone.parquet", {}, r"gone\.parquet: cannot be read as parquet"),
        ("empty", {}, r"empty: no corpus in it\. Looked for \*\.parquet, metadata\.csv"),
    ],
)
def test_what_is_asked_and_not_there(board: Path, path: str, options: dict[str, Any], message: str) -> None:
    (board / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        read_corpus(board / path, **options)


def test_a_path_of_another_kind() -> None:
    with pytest.raises(DataError, match="path is the int 3"):
        read_corpus(3)  # type: ignore[arg-type]


def test_no_row_at_all(tmp_path: Path) -> None:
    write(tmp_path / "ami/test-00000-of-00001.parquet", [])
    with pytest.raises(DataError, match=r"no utterance in it, 1 files have 0 rows"):
        read_corpus(tmp_path, "ami")


def test_the_extra_is_named(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"needs the package .*pip install 'quantdraft\[parquet\]'"):
        read_corpus(board, "ami")


def test_the_seven_corpora_and_their_eight_test_sets() -> None:
    assert len(CORPORA) == 8 and len({corpus.folder for corpus in CORPORA.values()}) == 7


# --- other layouts


def audio_folder(folder: Path, rows: Sequence[dict[str, Any]], name: str = "metadata.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for each in rows:
        soundfile.write(folder / each["file_name"], np.full(160, 0.5), 16_000)
    if name.endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(each.values()) for each in rows)]
    else:
        lines = [json.dumps(each) for each in rows]
    (folder / name).write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("split", ["", "test"])
def test_an_audio_folder(tmp_path: Path, name: str, split: str) -> None:
    audio_folder(tmp_path / split, [{"file_name": "a.wav", "transcription": "so it is"}], name)
    (found,) = read_corpus(tmp_path)
    assert (found.text, found.path) == ("so it is", tmp_path / split / "a.wav")


def test_splits_of_an_audio_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        audio_folder(tmp_path / split, [{"file_name": "a.wav", "text": split}])
    assert [each.text for each in read_corpus(tmp_path)] == ["test"]
    assert [each.text for each in read_corpus(tmp_path, split=None)] == ["test", "train"]
    assert [each.text for each in read_corpus(tmp_path / "train", split="train")] == ["train"]
    with pytest.raises(DataError, match=r"no split 'dev'\. There: test, train"):
        read_corpus(tmp_path, split="dev")


def test_two_lists_in_one_audio_folder(tmp_path: Path) -> None:
    for name in ("metadata.csv", "metadata.jsonl"):
        audio_folder(tmp_path, [{"file_name": "a.wav", "text": "x"}], name)
    with pytest.raises(DataError, match=r"both metadata\.csv and metadata\.jsonl"):
        read_corpus(tmp_path)


def test_splits_of_a_manifest(tmp_path: Path) -> None:
    rows = [{"file_name": f"{name}.wav", "text": name, "split": name} for name in ("test", "calibration")]
    audio_folder(tmp_path, [*rows, {"file_name": "c.wav", "text": "any"}], "list.jsonl")
    path = tmp_path / "list.jsonl"
    assert [each.text for each in read_corpus(path)] == ["test", "any"]
    assert [each.text for each in read_corpus(path, split=None)] == ["test", "calibration", "any"]
    audio_folder(tmp_path, rows, "list.jsonl")
    with pytest.raises(DataError, match=r"no line of split 'dev'\. There: calibration, test"):
        read_corpus(path, split="dev")


@pytest.mark.parametrize(
    ("splits", "test", "train"),
    [
        (["test", "calibration", ""], [0, 2], [1, 2]),  # lines that do not tell are in both
        (["train", "test", "test"], [1, 2], [0]),
        (["test", "train", "calibration"], [0], [2]),
        (["dev", "dev", ""], [0, 1, 2], [0, 1, 2]),  # one split: the file is the choice
        (["", "", ""], [0, 1, 2], [0, 1, 2]),
    ],
)
def test_the_command_line_chooses_among_the_lines_of_a_manifest(
    tmp_path: Path, splits: list[str], test: list[int], train: list[int]
) -> None:
    rows = [{"file_name": f"{i}.wav", "text": str(i), "split": split} for i, split in enumerate(splits)]
    audio_folder(tmp_path, rows, "list.jsonl")
    place = [str(tmp_path / "list.jsonl")]
    assert [int(each.text or "") for each in utterances(place, None)] == test
    assert [int(each.text or "") for each in utterances(place, None, "train")] == train
    assert [int(each.text or "") for each in utterances(place, 1, "train")] == train[:1]


@pytest.mark.parametrize(("split", "expected"), [("test", "test"), ("train", "calibration or train")])
def test_a_manifest_of_other_splits_is_refused(tmp_path: Path, split: str, expected: str) -> None:
    rows = [{"file_name": f"{name}.wav", "text": name, "split": name} for name in ("dev", "other")]
    audio_folder(tmp_path, rows, "list.jsonl")
    with pytest.raises(DataError, match=rf"of the splits dev, other; {expected} is expected here\. Put the"):
        utterances([str(tmp_path / "list.jsonl")], None, split)


def test_the_shipped_manifest_calibrates_with_no_recording_that_it_tests_with() -> None:
    place = [str(Path(__file__).parents[2] / "examples/data/speech/manifest.jsonl")]
    test, train = utterances(place, None), utterances(place, None, "train")
    assert (len(test), len(train)) == (13, 11)
    assert not {each.audio for each in test} & {each.audio for each in train}


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    for part in ("test-clean", "test-other", "dev-clean", "train-clean-100", "train-clean-360"):
        folder = tmp_path / part / "1/2"
        folder.mkdir(parents=True)
        (folder / "1-2.trans.txt").write_text(f"1-2-0 {part.upper()}\n")
        soundfile.write(folder / "1-2-0.flac", np.zeros(160), 16_000)
    return tmp_path


def test_librispeech_as_it_is_distributed(librispeech: Path) -> None:
    def texts(*path: str, **options: Any) -> list[str | None]:
        return [each.text for each in read_corpus(librispeech.joinpath(*path), **options)]

    assert texts(name="librispeech-other") == ["TEST-OTHER"]
    assert texts(name="librispeech-clean", split="dev") == ["DEV-CLEAN"]
    assert texts(split="train-clean-360") == ["TRAIN-CLEAN-360"]
    assert texts("train-clean-100") == ["TRAIN-CLEAN-100"], "a folder that is one split is read as it is"
    assert len(texts(split=None)) == 5
    with pytest.raises(DataError, match=r"2 splits fit 'test'\. There: dev-clean, test-clean, test-other"):
        texts()
