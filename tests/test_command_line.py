"""The command line, on miniatures written to folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_fixtures import timed_whisper, utterances

import qlib
from qlib.__main__ import main
from qlib.asr.hypotheses import Hypothesis, read_hypotheses, score_hypotheses, write_hypotheses
from qlib.models.__main__ import table as registered
from qlib.models.hub import registry
from qlib.models.tiny import tiny_llama, tiny_moonshine, tiny_whisper, write_folder
from qlib.scheme import parse_grid, parse_scheme

OUT = ("--output-path", "{}/o")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recognizer, a text model, recordings, a manifest and texts."""
    root = tmp_path_factory.mktemp("command_line")
    write_folder(tiny_whisper(5), root / "speech")
    write_folder(tiny_whisper(6), root / "other")
    write_folder(tiny_llama(3), root / "text")
    rows = [{"audio": each.audio.name, "text": each.text, "id": each.id} for each in utterances(root)]
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "texts.txt").write_text("the heat\na tea at the hat\n")
    return root


def lines(capsys: Capture) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- schemes


def test_schemes() -> None:
    assert parse_scheme("W4A16") == (qlib.Grid(4, 64), None)
    assert parse_scheme("w3a8g128", symmetric=True) == (qlib.Grid(3, 128, True), qlib.PerToken(8))
    assert parse_scheme("W8A8C") == (qlib.Grid(8), qlib.PerToken(8))
    grid = qlib.Grid(4, 32, scale_bits=16)
    assert parse_scheme("W4A16G32S16") == (grid, None)
    table = qlib.Grid(3, 32, scale_bits=16)
    assert parse_scheme("W4A8G32S16E3") == ({"*": grid, "embed_tokens": table}, qlib.PerToken(8))
    assert (parse_grid("4"), parse_grid("8C"), parse_grid("3G32S4")) == (
        qlib.Grid(4, 64),
        qlib.Grid(8),
        qlib.Grid(3, 32, scale_bits=4),
    )


@pytest.mark.parametrize(
    "text", ["4bit", "W4", "A8", "W4A16G", "W4A32", "W9A16", "W4A1", "W4A16G0", "W4A16E9", "W4A16S9", ""]
)
def test_what_is_no_scheme_shows_the_grammar(text: str) -> None:
    with pytest.raises(qlib.QuantError, match="W<bits>A<bits>"):
        parse_scheme(text)


# --- quantize


def test_quantize_saves_what_the_library_makes(place: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "out"
    command = ["quantize", "--model", str(place / "speech"), "--scheme", "W4A8G8", "--method", "gptq"]
    command += ["--layer", "fc2=8C", "--skip", "fc1", "--calib", str(place / "list.jsonl"), "--calib_limit=2"]
    assert main([*command, "--output", str(folder), "--quiet", "--json"]) == 0
    (report,) = lines(capsys)
    assert report["folder"] == str(folder) and report["bytes"] > 0
    model = qlib.load_model(str(place / "speech"))
    calib = qlib.read_manifest(place / "list.jsonl", 2)
    grids = {"*": qlib.Grid(4, 8), "fc2": qlib.Grid(8)}
    expected = qlib.quantize(
        model,
        [qlib.GPTQ()],
        weight=grids,
        activation=qlib.PerToken(8),
        calib=calib,
        skip=["fc1"],
        progress=False,
    ).model.state_dict()
    found = qlib.load_quantized(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("chain", [["awq", "gptq"], ["awq+gptq"]])
def test_a_text_model_is_calibrated_with_texts(
    place: Path, tmp_path: Path, capsys: Capture, chain: list[str]
) -> None:
    command = ["quantize", "--model", str(place / "text"), "--scheme", "W4A16G8", "--method", *chain]
    assert (
        main([*command, "--calib", str(place / "texts.txt"), "--output", str(tmp_path / "o"), "--quiet"]) == 0
    )
    assert "awq + gptq" in capsys.readouterr().out


def test_perplexity_compares_text_models(place: Path, tmp_path: Path, capsys: Capture) -> None:
    folders = [str(place / "text"), str(tmp_path / "w4")]
    command = ["quantize", "--model", folders[0], "--scheme", "W4A16G8", "--output", folders[1], "--quiet"]
    assert main(command) == 0
    capsys.readouterr()
    data = ["--data", str(place / "texts.txt"), "--quiet"]
    assert main(["perplexity", *folders, *data, "--json"]) == 0
    before, after = lines(capsys)
    texts = (place / "texts.txt").read_text().splitlines()
    expected = qlib.perplexity(qlib.load_quantized(folders[1]), texts, progress=False)
    assert (before["name"], after["name"]) == tuple(folders) and before["ratio"]["value"] == 1
    assert after["value"] == expected.value and after["texts"] == 2
    assert after["ratio"]["value"] == pytest.approx(after["value"] / before["value"])
    assert main(["perplexity", *folders, *data, "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert f"against {folders[0]}: " in out and "of 1 texts" in out


# --- transcribe, evaluate, compare, score


def test_transcribe(place: Path, capsys: Capture) -> None:
    audio = [str(place / f"noise{i}.wav") for i in range(2)]
    assert main(["transcribe", *audio, "--model", str(place / "speech"), "--quiet", "--json"]) == 0
    model = qlib.load_model(str(place / "speech"))
    texts = [each.text for each in qlib.transcribe(model, audio, progress=False)]
    assert [row["text"] for row in lines(capsys)] == texts
    assert main(["transcribe", audio[0], "--model", str(place / "speech"), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{texts[0]}\n"


@pytest.fixture(scope="module")
def timed(place: Path) -> Path:
    """A model that writes timestamps in two languages, and one that writes none."""
    write_folder(tiny_moonshine(2), place / "moonshine")
    return write_folder(timed_whisper(8), place / "timed")


FORMATS = ["txt", "vtt", "srt", "tsv", "json"]


@pytest.mark.parametrize(
    ("options", "formats"),
    [
        (["--output_dir", "{}"], FORMATS),
        (["--output-dir={}", "--output_format=all"], FORMATS),
        (["-o", "{}", "-f", "srt"], ["srt"]),
        (["--output-dir", "{}", "--output-format", "txt"], ["txt"]),
    ],
)
def test_transcripts_as_files(
    place: Path, timed: Path, tmp_path: Path, capsys: Capture, options: list[str], formats: list[str]
) -> None:
    audio, folder = [str(place / f"noise{i}.wav") for i in range(2)], tmp_path / "new" / "folder"
    options = [each.format(folder) for each in options]
    command = ["transcribe", *audio, "--model", str(timed), "--quiet", "--language", "German", *options]
    assert main(command) == 0
    expected = [folder / f"noise{i}.{each}" for i in range(2) for each in formats]
    assert capsys.readouterr().out.splitlines() == list(map(str, expected))
    assert sorted(folder.iterdir()) == sorted(expected)
    model, wanted = qlib.load_model(timed), formats != ["txt"]
    texts = qlib.transcribe(model, audio, language="de", timestamps=wanted, progress=False)
    for path, text in zip(expected, [text for text in texts for _ in formats], strict=True):
        fresh = qlib.write_transcript(text, tmp_path / path.name)
        assert path.read_bytes() == fresh.read_bytes()
    assert any(text.text for text in texts)


def test_transcripts_with_timestamps(
    place: Path, timed: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = str(place / "noise3.wav")
    command = ["transcribe", audio, "--model", str(timed), "--quiet"]
    model = qlib.load_model(timed)
    (text,) = qlib.transcribe(model, [audio], timestamps=True, progress=False)
    assert text.segments and text.language_probability
    assert main([*command, "--timestamps"]) == 0
    assert capsys.readouterr().out == "".join(f"{each}\n" for each in text.segments)
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--json", "--output-format", "vtt"]) == 0
    (row,) = lines(capsys)
    assert row["files"] == ["noise3.vtt"] and (tmp_path / "noise3.vtt").is_file()
    assert (row["language"], row["language_probability"]) == (text.language, text.language_probability)
    assert [each["start"] for each in row["segments"]] == [each.start for each in text.segments]


def test_translation_has_its_own_prompt(place: Path, timed: Path, capsys: Capture) -> None:
    audio = [str(place / f"noise{i}.wav") for i in range(4)]
    command = ["transcribe", *audio, "--model", str(timed), "--quiet", "--language", "de", "--json"]
    found = []
    for task in ("transcribe", "translate"):
        assert main([*command, "--task", task]) == 0
        found.append([row["text"] for row in lines(capsys)])
        expected = qlib.transcribe(qlib.load_model(timed), audio, language="de", task=task, progress=False)
        assert found[-1] == [each.text for each in expected]
    assert found[0] != found[1]


def test_a_model_without_timestamps(place: Path, timed: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["transcribe", str(place / "noise0.wav"), "--model", str(place / "moonshine"), "--quiet"]
    command += ["--output-dir", str(tmp_path)]
    assert main(command) == 1
    assert "a Moonshine writes no timestamps" in (error := capsys.readouterr().err) and "txt" in error
    assert not list(tmp_path.iterdir())
    assert main([*command, "--output-format", "txt"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["noise0.txt"]


def test_evaluate_writes_what_score_reads(place: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "results"
    names = [str(place / "speech"), str(place / "other")]
    command = ["evaluate", "--model", *names, "--tasks", str(place / "list.jsonl"), "--limit", "3", "--json"]
    assert main([*command, "--output_path", str(out), "--log_samples", "--quiet"]) == 0
    rows = lines(capsys)
    assert [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()] == rows
    model = qlib.load_model(names[0])
    data = qlib.read_manifest(place / "list.jsonl", 3)
    expected = qlib.evaluate_wer(model, data, progress=False)
    assert rows[0]["wer"] == expected.wer and rows[0]["utterances"] == 3 and rows[0]["rtfx"] > 0
    assert main(["score", str(out / "speech.jsonl"), "--json"]) == 0
    (scored,) = lines(capsys)
    assert scored["wer"] == expected.wer
    assert scored["references_sha256"] == expected.references_sha256
    samples = [json.loads(line) for line in (out / "speech.jsonl").read_text().splitlines()]
    assert {"audio_filepath", "duration", "time", "text", "pred_text"} <= samples[0].keys()
    assert [each["text"] for each in samples] == [each.text for each in data]
    assert sum(each["time"] for each in samples) == pytest.approx(rows[0]["time"], abs=1e-3)
    command = ["compare", str(out / "speech.jsonl"), str(place / "speech"), "--limit", "3", "--quiet"]
    assert main([*command, "--data", str(place / "list.jsonl"), "--json"]) == 0
    assert [row["difference"] for row in lines(capsys)] == [0.0, 0.0]


def test_hypotheses_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    found = [
        Hypothesis("1", "a.flac", 1.5, 0.25, "the cat sat", 'the "cat"\n', "en"),
        Hypothesis("2", "b.flac", 2.0, 0.5, "ein Haus", "ein Haus", "de"),
    ]
    write_hypotheses(found, path)
    assert read_hypotheses(path) == found
    assert score_hypotheses(found).words == 5
    path.write_text('{"text": "a", "pred_text": "a"}\n')  # what others write
    assert read_hypotheses(path) == [Hypothesis("1", "", 0.0, 0.0, "a", "a")]


def test_score_shows_errors(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text('{"text": "the cat sat", "pred_text": "the hat sat"}\n')
    assert main(["score", str(path), "--marked", "3"]) == 0
    assert "WER 33.33 %" in (out := capsys.readouterr().out) and "[-cat-]{+hat+}" in out


# --- cost, explain


@pytest.fixture(scope="module")
def quantized(place: Path) -> Path:
    model = qlib.load_model(str(place / "speech"))
    return qlib.quantize(model, weight=qlib.Grid(2, 8), activation=qlib.PerToken(8), progress=False).save(
        place / "w2"
    )


def test_cost_counts_what_the_library_counts(place: Path, quantized: Path, capsys: Capture) -> None:
    names = [str(place / "speech"), str(quantized), str(place / "text")]
    assert main(["cost", *names, "--tokens", "7", "--json"]) == 0
    rows = lines(capsys)
    model = qlib.load_model(names[0])
    half = qlib.cost(qlib.load_model(names[0], dtype="float16"), tokens=7)
    assert rows[0]["total"] == half.record()["total"] and rows[0]["parts"] == half.record()["parts"]
    assert rows[0]["file_bytes"] == qlib.cost(model).size.file_bytes  # as its weights are, in 32 bits
    found = qlib.cost(qlib.load_quantized(quantized), tokens=7, float_bits=16)
    assert rows[1] == {"model": names[1], **found.record()}
    assert rows[1]["total"]["bytes_moved"] == found.total.bytes_moved < rows[0]["total"]["bytes_moved"]
    assert sum(part["bit_operations"] for part in rows[1]["parts"]) == found.total.bit_operations
    assert rows[1]["bits_per_weight"] == found.bits_per_weight and rows[0]["bits_per_weight"] is None
    assert (rows[1]["audio_seconds"], rows[2]["audio_seconds"], rows[2]["per_second"]) == (10.0, None, None)


def test_cost_as_text(place: Path, quantized: Path, capsys: Capture) -> None:
    names = [str(place / "speech"), str(quantized)]
    assert main(["cost", names[1], "--audio_seconds", "0.5", "--tokens", "3"]) == 0
    model = qlib.load_quantized(quantized)
    assert capsys.readouterr().out == f"{qlib.cost(model, 0.5, 3, float_bits=16)}\n"
    assert main(["cost", *names, "--audio-seconds", "0.5"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "model" and [row.split()[0] for row in rows] == names
    assert rows[0].split()[2] == "-" and float(rows[1].split()[2]) == round(
        qlib.cost(model).bits_per_weight or 0, 2
    )


def test_explain(place: Path, quantized: Path, capsys: Capture) -> None:
    command = ["explain", str(place / "speech"), str(quantized), "--data", str(place / "list.jsonl")]
    command += ["--limit", "2", "--quiet"]
    model, data = qlib.load_model(str(place / "speech")), qlib.read_manifest(place / "list.jsonl", 2)
    expected = qlib.explain(model, qlib.load_quantized(quantized), data, progress=False)
    assert main([*command, "--json"]) == 0
    (row,) = lines(capsys)
    assert row == json.loads(json.dumps(expected.record()))
    assert (row["cause"], row["kl"]) == (expected.cause, expected.kl)
    assert row["before"]["wer"] == expected.before.wer and "ids" not in row["before"]
    assert [each["part"] for each in row["effects"]] == [each.part for each in expected.effects]
    assert [each["wer"] for each in row["restored"]] == [each.result.wer for each in expected.restored]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["explain", "{}/speech", "{}/w2", "--data", "{}/none.jsonl"], "there is no such file"),
        (["explain", "{}/speech", "{}/none", "--data", "{}/list.jsonl"], "none"),
        (["explain", "{}/w2", "{}/speech", "--data", "{}/list.jsonl"], "Name the float model first"),
        (
            ["explain", "{}/speech", "{}/other", "--data", "{}/list.jsonl"],
            "that `python -m qlib quantize` wrote",
        ),
        (["explain", "{}/speech", "{}/w2", "--data", "{}/untold.jsonl"], "transcript"),
        (
            ["transcribe", "{}/noise0.wav", "a/noise0.flac", "--model", "{}/speech", "--output-dir", "{}/o"],
            "would be called noise0",
        ),
        (
            ["transcribe", "{}/noise0.wav", "--model", "{}/speech", "--output-dir", "{}/list.jsonl/o"],
            "a part of the path is a file",
        ),
        (["transcribe", "{}/noise0.wav", "--model", "{}/none", "--output-dir", "{}/o"], "none"),
        (
            ["transcribe", "{}/noise0.wav", "--model", "{}/speech", "--language", "germn"],
            "Did you mean 'german'",
        ),
        (["cost", "{}/speech", "{}/none"], "none"),
        (["cost", "{}/speech", "--tokens", "0"], "--tokens=0"),
        (["cost", "{}/speech", "--audio-seconds", "0"], "--audio-seconds"),
        (["cost", "{}/speech", "--audio-seconds", "nan"], "--audio-seconds"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_errors_before_a_model_is_read(
    place: Path,
    quantized: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    words: str,
) -> None:
    (place / "untold.jsonl").write_text('{"audio": "noise0.wav"}\n')
    monkeypatch.setattr("qlib.__main__.load", lambda *_: pytest.fail("a model was read"))
    assert main([each.format(place) for each in command]) == 1
    assert words in capsys.readouterr().err
    assert not (place / "o").exists()


# --- ls, and errors


def test_ls(place: Path, capsys: Capture) -> None:
    assert main(["ls"]) == 0
    assert "whisper-tiny.en" in capsys.readouterr().out
    assert main(["ls", "--json"]) == 0
    known = {row["model"]: row for row in lines(capsys)}
    assert known.keys() == registry.ENTRIES.keys() and known["drafter-7m"]["here"] is True
    assert known["drafter-7m"]["licence"] in registered() and known["drafter-7m"]["bytes"] > 0
    assert main(["ls", str(place / "speech"), "--skip", "fc1", "--json"]) == 0
    rows = lines(capsys)
    assert {row["skipped"] for row in rows if row["name"].endswith("fc1")} == {"skipped as asked"}
    assert main(["ls", str(place / "text")]) == 0
    assert "layers can be quantized" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["quantize", "--model", "{}/speech", "--output", "{}/o", "--scheme", "4bit"], "is no scheme"),
        (["quantize", "--model", "{}/speech", "--output", "{}/o", "--method", "gptk"], "Did you mean 'gptq'"),
        (
            ["quantize", "--model", "{}/speech", "--output", "{}/o", "--layer", "fc2"],
            "a pattern and its grid",
        ),
        (["quantize", "--model", "{}/speech", "--output", "{}/o", "--layer", "fc2=x"], "is no grid"),
        (["quantize", "--model", "{}/none", "--output", "{}/o"], "none"),
        (["evaluate", "--model", "{}/speech", "--data", "{}/none.jsonl"], "there is no such file"),
        (["evaluate", "--model", "{}/speech", "--data", "{}/list.jsonl", "--log-samples"], "--output-path"),
        (
            [
                "evaluate",
                "--model",
                "{}/speech",
                "{}/speech",
                "--data",
                "{}/list.jsonl",
                "--log-samples",
                *OUT,
            ],
            "two models to speech.jsonl",
        ),
        (
            [
                "evaluate",
                "--model",
                "{}/speech",
                "--data",
                "{}/list.jsonl",
                "--output-path",
                "{}/list.jsonl/o",
            ],
            "a part of the path is a file",
        ),
        (
            [
                "benchmark",
                "--output",
                "{}/o",
                "--model",
                "{}/speech",
                "--data",
                *("{}/list.jsonl", "x/list.jsonl"),
            ],
            "two test sets",
        ),
        (["compare", "{}/speech", "{}/speech"], "--data"),
        (["compare", "{}/a.jsonl", "{}/b.jsonl", "--data", "{}/list.jsonl"], "Leave --data out"),
        (["benchmark", "s.toml", "--output", "{}/o", "--limit", "5"], "Leave --limit out, or write it there"),
        (
            ["benchmark", "s.toml", "--output", "{}/o", "--scheme", "W3A16", "--calib-limit", "8"],
            "Leave --scheme, --calib-limit out",
        ),
        (["score", "{}/list.jsonl"], "'pred_text'"),
        (["score", "{}/list.jsonl", "--marked", "3", "--json"], "Leave one of them out"),
        (["transcribe", "{}/texts.txt", "--model", "{}/speech"], "texts.txt"),
        (["transcribe", "{}/noise0.wav", "--model", "{}/text"], "does not transcribe speech"),
        (["evaluate", "--model", "{}/speech", "{}/text", "--data", "{}/list.jsonl"], "text is a Llama. Word"),
        (["compare", "{}/speech", "{}/text", "--data", "{}/list.jsonl"], "text is a Llama. Word error"),
        (["explain", "{}/text", "{}/text", "--data", "{}/texts.txt"], "qlib.sensitivity"),
        (["perplexity", "{}/speech", "--data", "{}/texts.txt"], "For a recognizer: `evaluate`"),
        (["perplexity", "{}/text", "--data", "{}/none.txt"], "no such file"),
        (["cost", "{}/speech", "--threads", "0"], "--threads=0 is not 1 or more"),
        (["transcribe", "{}", "--model", "{}/speech"], "a folder, not an audio file"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_failures_exit_with_1(place: Path, capsys: Capture, command: list[str], words: str) -> None:
    assert main([each.format(place) for each in command]) == 1
    error = capsys.readouterr().err
    assert words in error and error.splitlines()[-1].startswith("error: ")
    assert not (place / "o").exists()


def test_a_study_whose_cells_fail_exits_with_1(place: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["benchmark", "--output", str(tmp_path / "o"), "--model", str(place / "text"), "--quiet"]
    assert main([*command, "--data", str(place / "list.jsonl")]) == 1
    captured = capsys.readouterr()
    assert "A Llama does not transcribe speech" in captured.out
    assert captured.err.splitlines()[-1].startswith("error: 1 of the cells failed")


def test_the_signature_of_a_model_is_that_of_the_library(place: Path, capsys: Capture) -> None:
    data = str(place / "list.jsonl")
    assert main(["evaluate", "--model", str(place / "speech"), "--data", data, "--quiet"]) == 0
    model = qlib.load_model(str(place / "speech"))
    expected = qlib.evaluate_wer(model, qlib.read_manifest(data), progress=False).signature
    assert expected in capsys.readouterr().out.splitlines() and "|dec:greedy|" in expected


def test_wrong_usage_exits_with_2() -> None:
    with pytest.raises(SystemExit) as exit:
        main(["quantise"])
    assert exit.value.code == 2
