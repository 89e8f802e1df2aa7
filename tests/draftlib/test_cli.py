"""The command line, on miniatures written to folders."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import qlib
from draftlib import (
    AcceptanceHead,
    Confidence,
    CostAware,
    Entropy,
    FixedLength,
    OnlineAdapter,
    SpeculativeDecoder,
)
from draftlib.__main__ import colour, main
from draftlib.command_line import make_decoder, make_parser
from draftlib.seconds import Seconds
from draftlib.step import Step
from draftlib.vocabulary.mapping import VocabularyMap
from qlib.models.tiny import tiny_llama, tiny_moonshine, write_folder

WORDS = VocabularyMap.from_bytes([b"f", b"la", b" z", None], [b"fla", b"f", b" z\n", b"la", None], {3: 4})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    target, draft = write_folder(tiny_llama(3), root / "target"), write_folder(tiny_llama(3), root / "draft")
    return ["--target", str(target), "--draft", str(draft), "--max-new-tokens", "12"]


def test_generate_streams_the_text(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a tea", *folders]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n") and "target calls" in err


def test_the_length_of_drafts(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A fixed number, a belief of the drafter, or a belief and a largest number."""
    for arguments, most in [
        (["--length", "4"], {4}),
        (["--confidence", "1"], {1}),
        (["--confidence", "0", "--length", "6"], {6}),
        (["--confidence", "0"], {8}),
    ]:
        assert main(["generate", "a tea", "--json", *arguments, *folders]) == 0
        rounds = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {len(each["drafted"]) for each in rounds if each["drafted"]} == most


def test_what_was_learned_is_kept(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    for learn in (["--learn", "--lora-rank", "0"], []):
        arguments = ["--state", str(state), "--source", "answers", "--length", "2", *learn, *folders]
        assert main(["generate", "a tea", "--max-new-tokens", "8", *arguments]) == 0
        assert (state / "state.json").is_file()
    assert main(["generate", "a tea", "--source", "wrong", *folders]) == 1
    assert "There is no source 'wrong'" in capsys.readouterr().err


def test_rules_for_the_length_by_name(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, kind in [
        ([], CostAware),
        (["--length", "cost"], CostAware),
        (["--length", "3"], FixedLength),
        (["--length", "entropy"], Entropy),
        (["--length", "head"], AcceptanceHead),
        (["--length", "confidence"], Confidence),
        (["--length", "confidence", "--confidence", "0.2"], Confidence),
    ]:
        options = make_parser().parse_args(["generate", "a tea", *arguments, *folders])
        assert type(make_decoder(options).length) is kind


def test_adapters_of_low_rank_go_on_from_their_state(folders: list[str], tmp_path: Path) -> None:
    """A state is taken up with the rank that it has, and an empty folder is no state yet."""
    for asked, rank in (("2", 2), ("0", None)):
        state = tmp_path / f"state {asked}"
        state.mkdir()
        arguments = ["a tea", "--state", str(state), *folders]
        assert main(["generate", "--learn", "--lora-rank", asked, *arguments]) == 0
        assert main(["generate", "--learn", *arguments]) == 0
        decoder = make_decoder(make_parser().parse_args(["generate", *arguments]))
        assert isinstance(decoder.adapter, OnlineAdapter) and decoder.adapter.frozen
        assert decoder.adapter.lora_rank == rank


def test_the_rank_if_none_is_asked_for(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It is 32, too much for these layers; the message says what to pass."""
    assert OnlineAdapter().lora_rank == 32
    assert main(["generate", "a tea", "--learn", *folders]) == 1
    assert "lora_rank=32: " in (said := capsys.readouterr().err) and "--lora-rank 0" in said


def test_a_conversation(
    folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each answer reads all that was said before it, until a new conversation begins."""
    lines = ["a tea", "", "the heat", "/new", "a hat", "/what", "/quit", "never"]
    seen: list[Any] = []
    generate = SpeculativeDecoder.generate

    def watched(self: SpeculativeDecoder, prompt: Any, **options: Any) -> Any:
        seen.append([dict(each) for each in prompt])
        return generate(self, prompt, **options)

    monkeypatch.setattr(SpeculativeDecoder, "generate", watched)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    state = tmp_path / "state"
    rank = ["--lora-rank", "4"]  # these layers are too small for the default
    assert main(["chat", "--state", str(state), *rank, *folders, "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert [[each["content"] for each in prompt if each["role"] == "user"] for prompt in seen] == [
        ["a tea"],
        ["a tea", "the heat"],
        ["a hat"],
    ]
    assert out.count("accepted per round: ") == 3 and "There is no command /what" in out
    assert "n-grams" in out and "LoRA of rank 4" in out  # the drafter learns if nothing else is said
    assert (state / "state.json").is_file()
    monkeypatch.setattr("sys.stdin", io.StringIO("a tea"))
    assert main(["chat", "--no-learn", "--json", *folders]) == 0
    assert {"text", "acceptance_length"} <= json.loads(capsys.readouterr().out).keys()


def test_a_conversation_that_becomes_too_long(
    folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a tea\n" + "a tea " * 500 + "\nthe heat\n"))
    assert main(["chat", "--no-learn", *folders, "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "error: " in out and "/new begins another conversation" in out
    assert out.count("accepted per round: ") == 2


def test_a_bad_line_does_not_lose_what_was_learned(folders: list[str], tmp_path: Path) -> None:
    prompts, state = tmp_path / "prompts.jsonl", tmp_path / "state"
    prompts.write_text('{"prompt": "a tea"}\nno prompt\n')
    arguments = ["--prompts", str(prompts), "--state", str(state), "--learn", "--lora-rank", "0"]
    assert main(["bench", *arguments, "--max-new-tokens", "8", *folders]) == 1
    assert (state / "state.json").is_file()


def test_without_a_drafter(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    target = folders[folders.index("--target") + 1]
    assert main(["generate", "a tea", "--json", "--draft", "none", "--target", target]) == 0
    rounds = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rounds and not any(each["drafted"] for each in rounds)


def test_comparison_with_the_target_alone(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "a tea", "--compare", "--device", "cpu", "--verify", "path-revealed"]
    assert main([*command, *folders]) == 0
    error = capsys.readouterr().err
    assert "speed-up" in error and "the target alone: " in error and "the same text" in error


def test_rounds_as_json(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a tea", "--json", "--length", "3", *folders]) == 0
    rounds = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["number"] for each in rounds] == list(range(1, len(rounds) + 1))
    assert sum(len(each["tokens"]) for each in rounds) == 12
    assert all(len(each["drafted"]) <= 3 and each["seconds"]["target"] > 0 for each in rounds)


def test_rounds_as_lines(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a tea", "--steps", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("   1  ") and "\x1b" not in lines[0]


def test_colours() -> None:
    step = Step(7, 0, (0, 1, 0, 2), (0, 1, 2), ((0, 2), (2, 3), (3, 4)), 2, (0, 1, 4), 0, Seconds(), WORDS)
    assert colour(step, False) == "   7  [fla] f -·z\\n- +<4>"
    assert colour(step, True) == (
        "   7  \x1b[36m[fla]\x1b[0m \x1b[32mf\x1b[0m \x1b[9;31m·z\\n\x1b[0m \x1b[1m<4>\x1b[0m"
    )


def test_bench(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a tea"}\n\n{"prompt": "the"}\n{"prompt": "third"}\n')
    command = ["bench", "--prompts", str(prompts), "--limit", "2", "--temperature", "0.8", *folders]
    assert main([*command, "--json"]) == 0
    *rows, total = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [row["identical"] for row in rows] == [True, True]
    assert (total["identical"], total["prompts"], total["total"]["responses"]) == (2, 2, 2)
    assert total["total"]["measured_speedup"] > 0 and total["total"]["tokens"] == 24
    assert main(command) == 0
    assert "2 of 2 answers are token for token" in capsys.readouterr().out


def test_a_cache_is_kept(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        assert main(["generate", "a tea", "--cache", str(cache), *folders]) == 0
        assert (cache / "ngrams.json").is_file()
    (cache / "ngrams.json").write_text("{")
    assert main(["generate", "a tea", "--cache", str(cache), *folders]) == 1
    assert "Save it again" in capsys.readouterr().err


def test_errors_are_one_line(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, odd = tmp_path / "empty.jsonl", tmp_path / "odd.jsonl"
    empty.write_text("")
    odd.write_text('{"text": 1}\n')
    speech = str(write_folder(tiny_moonshine(), tmp_path / "speech"))
    for arguments, words in [
        (["generate", ""], "prompt is empty"),
        (["generate", "a", "--length", "0"], "at least 1 token"),
        (["generate", "a", "--length", "entropi"], "Did you mean 'entropy'?"),
        (["generate", "a", "--length", "head", "--confidence", "0.3"], "are two rules"),
        (["generate", "a", "--source", "none", "--source", "suffix"], "--source none stands beside suffix"),
        (["generate", "a", "--draft", "none", "--learn"], "--learn is for a draft model"),
        (["chat", "--draft", "none", "--learn"], "--learn is for a draft model"),
        (["generate", "a", "--draft", "none", "--cache", "x"], "--cache is for a draft model"),
        (["generate", "a", "--lora-rank", "4"], "Pass --learn too"),
        (["generate", "a", "--state", __file__], "is a file"),
        (["generate", "a", "--confidence", "2"], "Confidence(threshold=2.0)"),
        (["generate", "a", "--verify", "loose"], "verify='loose' is unknown"),
        (["generate", "a", "--temperature", "-1"], "temperature=-1"),
        (["generate", "a", "--compare", "--steps"], "--compare is of a whole answer"),
        (["generate", "a", "--compare", "--json"], "Leave one out"),
        (["bench", "--prompts", str(tmp_path / "none")], "does not exist"),
        (["bench", "--prompts", str(empty)], "no prompts"),
        (["bench", "--prompts", str(odd), "--limit", "0"], "--limit=0 is not 1 or more"),
        (["generate", "a", "--threads", "-1"], "--threads=-1 is not 1 or more"),
        (["bench", "--prompts", str(odd)], "field 'prompt'"),
    ]:
        assert main([arguments[0], *folders, *arguments[1:]]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and "Traceback" not in error
    assert main(["generate", "a", *folders, "--draft", speech]) == 1
    assert "Moonshine, which does not continue text" in capsys.readouterr().err
    result = qlib.quantize(tiny_llama(), weight=qlib.Grid(4, 8), progress=False)
    quantized = str(result.save(tmp_path / "w4"))
    assert main(["generate", "a", *folders, "--target", quantized]) == 1
    assert f"qlib.load_quantized('{quantized}')" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["write"])
    assert "invalid choice" in capsys.readouterr().err
