"""Manifests and folders: every layout, every alias, and every way in which a list can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qlib.asr.datasets import Utterance, read_librispeech, read_manifest, require_text
from qlib.errors import DataError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a manifest of the given lines beside a.flac, b.flac and c.flac."""

    def make(*lines: object, name: str = "list.jsonl", ending: str = "\n") -> Path:
        for letter in "abc":
            soundfile.write(tmp_path / f"{letter}.flac", np.full(160, 0.5), 16_000)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / name).write_bytes("".join(text + ending for text in texts).encode())
        return tmp_path / name

    return make


def test_a_full_line(write: Write, tmp_path: Path) -> None:
    path = write(
        {
            "audio": "a.flac",
            "text": "Hi.",
            "id": "x",
            "source": "s",
            "split": "test",
            "duration": 0.01,
            "z": 0,
        }
    )
    assert read_manifest(path) == [
        Utterance(tmp_path / "a.flac", "Hi.", "x", "s", "test", 0.01, f"{path}, line 1")
    ]


def test_a_bare_line(write: Write, tmp_path: Path) -> None:
    (utterance,) = read_manifest(write({"audio": "a.flac"}))
    assert (utterance.text, utterance.id, utterance.source, utterance.duration) == (None, "a", "", None)


@pytest.mark.parametrize("audio", ["audio", "audio_filepath", "path"])
@pytest.mark.parametrize("text", ["text", "sentence", "transcript"])
@pytest.mark.parametrize("name", ["list.jsonl", "list.json", "list.tsv", "LIST.TSV"])
def test_aliases_in_both_layouts(write: Write, audio: str, text: str, name: str) -> None:
    lines = ["\t".join([text, "up_votes", audio]), "so it is\t2\ta.flac"]
    if "json" in name:
        lines = [json.dumps({text: "so it is", audio: "a.flac"})]
    (utterance,) = read_manifest(write(*lines, name=name))
    assert (utterance.audio.name, utterance.text) == ("a.flac", "so it is")


def test_the_first_alias_counts(write: Write) -> None:
    (utterance,) = read_manifest(write({"path": "b.flac", "audio": "a.flac", "text": None, "sentence": "s"}))
    assert (utterance.audio.name, utterance.text) == ("a.flac", "s")


def test_blank_lines_a_byte_order_mark_and_windows_line_ends(write: Write) -> None:
    path = write('\ufeff{"audio": "a.flac", "text": "one\u2028two"}', "", {"path": "b.flac"}, ending="\r\n")
    utterances = read_manifest(path)
    assert [u.where for u in utterances] == [f"{path}, line 1", f"{path}, line 3"]
    assert utterances[0].text == "one\u2028two"


def test_tsv_quotes_and_optional_columns(write: Write) -> None:
    rows = ["path\tsentence\tduration\tid", 'a.flac\t"No," he said\t0.01\t7', "b.flac\t\t\t"]
    first, second = read_manifest(write(*rows, name="list.tsv", ending="\r\n"))
    assert (first.text, first.duration, first.id) == ('"No," he said', 0.01, "7")
    assert (second.text, second.duration, second.id) == ("", None, "b")


def test_limit_takes_the_first(write: Write) -> None:
    path = write({"audio": "c.flac"}, {"audio": "a.flac"}, "not even JSON")
    assert [u.id for u in read_manifest(path, limit=2)] == ["c", "a"]


def test_audio_root_replaces_the_manifests_folder(write: Write, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    path = write({"audio": "a.flac"}, name="lists/list.jsonl")
    assert read_manifest(path, audio_root=tmp_path)[0].audio == tmp_path / "a.flac"
    with pytest.raises(DataError, match="no such audio file"):
        read_manifest(path)


def test_an_absolute_path_stays(write: Write, tmp_path: Path) -> None:
    path = write({"audio": str(tmp_path / "a.flac")})
    assert read_manifest(path, audio_root="/elsewhere")[0].audio == tmp_path / "a.flac"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"list\.jsonl: no utterance in it"),
        (["", "  "], "no utterance in it"),
        ([{"audio": "a.flac"}, '{"audio": '], r"list\.jsonl, line 2: not JSON .* one object a line"),
        (['["a.flac"]'], "line 1: a list, not an object"),
        ([{"file": "a.flac", "txt": "x"}], r"line 1: no audio path \(found: file, txt\).*'audio'"),
        ([{}], r"line 1: no audio path \(found: nothing\)"),
        ([{"audio": ""}], "line 1: the audio path is empty"),
        ([{"audio": 7}], "line 1: 7 is not text"),
        ([{"audio": {"path": "a.flac"}}], "line 1: .*is not text"),
        ([{"audio": "a.flac", "text": ["a", "b"]}], "line 1: .* is not text.*in quotes"),
        ([{"audio": "a.flac", "duration": "long"}], "line 1: duration 'long' is not a number"),
        (
            [{"audio": "a.flac"}, {"audio": "x.flac"}, {"audio": "y.flac"}],
            r"line 2: no such audio file .*x\.flac \(2 of 3 are missing\)\. Check the paths",
        ),
    ],
)
def test_json_lines_that_are_refused(write: Write, lines: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_manifest(write(*lines))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no utterance in it"),
        (["path\tsentence"], "no utterance in it"),
        (["path\tsentence", "a.flac"], "line 2: 1 columns, the header has 2"),
        (["file\tsentence", "a.flac\tx"], r"line 2: no audio path \(found: file, sentence\)"),
        (["path\tsentence", "\tx"], r"line 2: no audio path \(found: sentence\)"),
        (["path\tsentence", "a.flac\tx", "x.flac\ty"], r"line 3: no such audio file .*\(1 of 2"),
    ],
)
def test_tables_that_are_refused(write: Write, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_manifest(write(*lines, name="list.tsv"))


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: there is no such file"):
        read_manifest(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("name", ["list.parquet", "list"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"is not a manifest. Use \.jsonl, \.json, \.csv or \.tsv"):
        read_manifest(tmp_path / name)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes('{"audio": "caf\u00e9.flac"}'.encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read_manifest(path)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing_is_refused(write: Write, limit: int) -> None:
    with pytest.raises(DataError, match=f"limit={limit}"):
        read_manifest(write({"audio": "a.flac"}), limit=limit)


def test_reading_returns_the_audio(write: Write) -> None:
    assert read_manifest(write({"audio": "a.flac"}))[0].read().tolist() == [0.5] * 160


def test_an_unreadable_file_is_named_with_its_line(write: Write, tmp_path: Path) -> None:
    path = write({"audio": "a.flac"}, {"audio": "b.flac"})
    (tmp_path / "b.flac").write_text("damaged")
    with pytest.raises(DataError, match=r"list\.jsonl, line 2: .*b\.flac: cannot be read as audio"):
        read_manifest(path)[1].read()


def test_an_utterance_of_no_list_names_its_file_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path / 'a.flac'}: there is no such"):
        Utterance(tmp_path / "a.flac", None, "a").read()


def test_require_text_names_the_line_without(write: Write) -> None:
    utterances = read_manifest(write({"audio": "a.flac", "text": "x"}, {"audio": "b.flac"}))
    assert require_text(utterances[:1]) == ["x"]
    with pytest.raises(DataError, match=r"list\.jsonl, line 2: no transcript.*text, sentence, transcript"):
        require_text(utterances)


# --- LibriSpeech


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for chapter, lines in (
        ("84/121123", ["84-121123-0000 GO ON", "84-121123-0001 YES"]),
        ("61/7", ["61-7-0 A"]),
    ):
        folder = tmp_path / "test-clean" / chapter
        folder.mkdir(parents=True)
        (folder / f"{chapter.replace('/', '-')}.trans.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            soundfile.write(folder / f"{line.split()[0]}.flac", np.zeros(160), 16_000)
    return tmp_path


def test_librispeech_is_read_in_order(corpus: Path) -> None:
    utterances = read_librispeech(corpus)
    assert [(u.id, u.text) for u in utterances] == [
        ("61-7-0", "A"),
        ("84-121123-0000", "GO ON"),
        ("84-121123-0001", "YES"),
    ]
    assert utterances[1].audio == corpus / "test-clean/84/121123/84-121123-0000.flac"
    assert utterances[2].where.endswith("84-121123.trans.txt, line 2")
    assert read_librispeech(corpus / "test-clean", limit=1) == utterances[:1]


def test_librispeech_names_a_missing_recording(corpus: Path) -> None:
    (corpus / "test-clean/84/121123/84-121123-0001.flac").unlink()
    with pytest.raises(DataError, match=r"84-121123\.trans\.txt, line 2: no such audio file .*\(1 of 3"):
        read_librispeech(corpus)


def test_librispeech_refuses_a_folder_without_transcripts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.trans\.txt"):
        read_librispeech(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_librispeech(tmp_path / "gone")
