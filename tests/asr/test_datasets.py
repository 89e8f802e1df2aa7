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
    (tmp_path / name).touch()
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


# --- segments


LONG = 2.0  # seconds of long.wav


@pytest.fixture
def long(tmp_path: Path) -> np.ndarray:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, int(LONG * 16_000)).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, 16_000, subtype="FLOAT")
    return samples


def test_each_segment_of_a_recording_has_its_own_id_and_samples(write: Write, long: np.ndarray) -> None:
    rows = [
        {"audio_filepath": "long.wav", "offset": 0, "duration": 0.5, "text": "one"},
        {"audio_filepath": "long.wav", "offset": 0.5, "duration": 1.25, "text": "two"},
        {"audio_filepath": "long.wav", "offset": 1.75, "text": "three"},
        {"audio_filepath": "long.wav", "offset": 1.75, "duration": 0.25, "id": "own", "text": "four"},
    ]
    found = read_manifest(write(*rows))
    assert [each.id for each in found] == ["long@0.000+0.500", "long@0.500+1.250", "long@1.750", "own"]
    for each, (first, last) in zip(
        found, [(0, 8000), (8000, 28_000), (28_000, 32_000), (28_000, 32_000)], strict=True
    ):
        assert each.read().tolist() == long[first:last].tolist()


def test_segments_of_a_table(write: Write, long: np.ndarray) -> None:
    lines = ["path,offset,duration,text", "long.wav,0.5,1,yes", "long.wav,,,all of it"]
    part, whole = read_manifest(write(*lines, name="list.csv"))
    assert part.read().tolist() == long[8000:24_000].tolist()
    assert (len(whole.read()), whole.id) == (32_000, "long")


def test_a_shorter_duration_without_offset_is_told(
    write: Write, long: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    path = write({"audio": "long.wav", "duration": 1.5}, {"audio": "a.flac", "duration": 0.01})
    assert len(read_manifest(path)[0].read()) == 24_000
    (record,) = caplog.records
    assert "1 of 2 utterances have a duration shorter than their file" in record.getMessage()
    assert f"{path}, line 1: 1.5 of 2.00 s" in record.getMessage()


def test_a_duration_that_is_the_files_changes_nothing(
    write: Write, long: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    for seconds in (1.95, 2, 2.05, "2.0"):
        (each,) = read_manifest(write({"audio": "long.wav", "duration": seconds}))
        assert (len(each.read()), each.id) == (32_000, "long")
    assert not caplog.records


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"offset": "late"}, "line 2: offset 'late' is not a number"),
        ({"offset": [1]}, r"line 2: offset \[1\] is not a number"),
        ({"offset": True}, "line 2: offset True is not a number"),
        ({"offset": float("nan")}, "line 2: offset nan is not a number"),
        ({"offset": -1}, "line 2: offset -1 is no length of time.*0 or more"),
        ({"offset": float("inf")}, "line 2: offset inf is no length of time"),
        ({"offset": 2.0}, r"line 2: .*offset 2 s is not before the end, the file has 2\.00 s"),
        ({"offset": 1.5, "duration": 1}, r"line 2: .*offset 1\.5 s and duration 1 s are more"),
        ({"duration": 2.5}, r"line 2: .*duration 2\.5 s is more than the file has, 2\.00 s"),
        ({"duration": 0}, "line 2: duration 0 is no length of time.*above 0"),
        ({"duration": -1}, "line 2: duration -1 is no length of time"),
        ({"duration": {}}, r"line 2: duration \{\} is not a number"),
        ({"language": 7}, "line 2: language is the int 7"),
    ],
)
def test_segments_that_are_refused(write: Write, long: np.ndarray, row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_manifest(write({"audio": "a.flac"}, {"audio": "long.wav", **row}))


def test_a_segment_of_what_is_no_audio_is_named(write: Write, tmp_path: Path) -> None:
    path = write({"audio": "a.flac", "duration": 0.01})
    (tmp_path / "a.flac").write_text("damaged")
    with pytest.raises(DataError, match=r"line 1: .*a\.flac: cannot be read as audio"):
        read_manifest(path)


def test_one_recording_with_two_texts_is_refused(write: Write, long: np.ndarray) -> None:
    rows = [
        {"audio": "long.wav", "text": "one", "start": 0},
        {"audio": "long.wav", "text": "two", "start": 1},
    ]
    with pytest.raises(
        DataError, match=r"line 2: the same recording long\.wav as in .*line 1.*offset and duration"
    ):
        read_manifest(write(*rows))
    assert len(read_manifest(write(rows[0], rows[0]))) == 2, "the same clip twice is one's own choice"


# --- CSV, languages, utterances by hand


def test_csv_has_quotes_and_line_numbers(write: Write, tmp_path: Path) -> None:
    lines = ["file_name,transcription,lang", 'a.flac,"No, ""he"" said\nso",de', "", "b.flac,yes,"]
    first, second = read_manifest(write(*lines, name="list.csv", ending="\r\n"))
    assert (first.text, first.language) == ('No, "he" said\nso', "de")
    assert (second.text, second.language) == ("yes", "")
    assert [each.where for each in (first, second)] == [f"{tmp_path / 'list.csv'}, line {n}" for n in (2, 5)]


def test_csv_of_a_spreadsheet(write: Write) -> None:
    (found,) = read_manifest(write("\ufeffaudio;text;duration", "a.flac;Ja, so;0.01", name="list.csv"))
    assert (found.audio.name, found.text, found.duration) == ("a.flac", "Ja, so", 0.01)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["audio,text", "a.flac,yes, no"], "line 2: 3 columns, the header has 2.*double quotes"),
        (["audio,text", 'a.flac,"yes'], "line 2: not CSV"),
        (["audio,text", "a.flac,x", 'a.flac,"yes"no'], "line 3: not CSV"),
        (["audio,text,text", "a.flac,x,y"], "line 1: the header has 'text' more than once"),
        (
            ["a.flac,yes", "b.flac,no"],
            r"line 2: no audio path \(found: a\.flac, yes\).*first line of a table",
        ),
        (["audio,text", "x.flac,x"], r"line 2: no such audio file"),
        (["audio,text"], "no utterance in it"),
        ([], "no utterance in it"),
    ],
)
def test_csv_that_is_refused(write: Write, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_manifest(write(*lines, name="list.csv"))


@pytest.mark.parametrize("key", ["language", "lang", "locale"])
def test_a_language_is_kept(write: Write, key: str) -> None:
    assert read_manifest(write({"audio": "a.flac", key: " de-DE "}))[0].language == "de-DE"


def test_an_utterance_needs_a_path_only() -> None:
    each = Utterance("clips/a.b.wav", "so it is")
    assert (each.audio, each.id) == (Path("clips/a.b.wav"), "a.b")
    assert Utterance("a.wav", offset=1.0, duration=2.5).id == "a@1.000+2.500"
    assert Utterance(Path("a.wav"), None, "mine").id == "mine"


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (3, {}, "a manifest is the int 3"),
        (None, {}, "a manifest is None"),
        ("list.jsonl", {"limit": "5"}, "limit is the str '5', not a whole number"),
        ("list.jsonl", {"limit": 2.0}, "limit is the float 2.0"),
        ("list.jsonl", {"audio_root": 3}, "audio_root is the int 3"),
        (".", {}, "a folder, not a manifest.*read_corpus"),
    ],
)
def test_arguments_of_the_wrong_kind(
    write: Write, tmp_path: Path, path: object, options: dict, message: str
) -> None:
    write({"audio": "a.flac"})
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path / path if isinstance(path, str) else path, **options)  # type: ignore[arg-type]


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
