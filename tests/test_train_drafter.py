"""The drafter that a user trains: it learns, loads, drafts, and survives being killed."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from draftlib import SpeculativeDecoder
from qlib.models import Tokenizer, load_model
from qlib.models.llama import Llama
from qlib.models.tiny import tiny_llama

SCRIPT = Path(__file__).parents[1] / "examples" / "train_drafter.py"
SENTENCE = "the cat sat on the mat and the dog sat on the cat. "
TINY = {
    **{"vocabulary": 290, "layers": 2, "width": 32, "heads": 2, "feed-forward": 64, "context": 16},
    **{"batch": 8, "steps": 40, "warmup": 4, "learning-rate": 0.02, "every": 10},
}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_drafter", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


drafter = load_script()


def train(out: Path, *texts: Path, **changes: Any) -> int:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, **changes}.items()]
    code: int = drafter.main([*map(str, texts), "--out", str(out), *options])
    return code


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(out / "training" / "checkpoint.pt")["model"]
    return state


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text((SENTENCE * 3 + "<|endoftext|>") * 40, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(text: Path) -> Path:
    out = text.parent / "drafter"
    assert train(out, text) == 0
    return out


def test_it_learns(trained: Path) -> None:
    saved = torch.load(trained / "training" / "checkpoint.pt")
    assert saved["step"] == 40
    assert saved["loss"] < 0.4 * math.log(290)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_it_learns_on_a_cuda_device(text: Path) -> None:
    out = text.parent / "drafter-cuda"
    assert train(out, text, device="cuda") == 0
    saved = torch.load(out / "training" / "checkpoint.pt", map_location="cpu")
    assert saved["step"] == 40 and saved["loss"] < 2.5
    assert isinstance(load_model(out, device="cuda"), Llama)


def test_the_folder_loads_and_writes_text_of_its_kind(trained: Path) -> None:
    model = load_model(trained)
    assert isinstance(model, Llama) and model.tokenizer is not None and model.chat is None
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 32)
    assert model.generation.eos == (model.tokenizer.token_id("<|endoftext|>"),)
    decoder = SpeculativeDecoder(
        tiny_llama(max_position_embeddings=96), model
    )  # as the drafter of any target
    out = decoder.generate("the cat", max_new_tokens=8, raw=True)
    assert out.tokens == decoder.generate_target_only("the cat", max_new_tokens=8, raw=True).tokens
    assert out.stats.drafted > 0
    said = SpeculativeDecoder(model, model).generate("the cat sat on", max_new_tokens=8, raw=True).text
    assert len(said) > 8 and {*said.split()[:-1]} <= {*SENTENCE.split()}


def test_a_killed_run_goes_on_to_the_same_weights(
    text: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, batch = tmp_path / "killed", drafter.batch

    def killed(stream: torch.Tensor, step: int, settings: Any) -> torch.Tensor:
        if step == 27:
            (out / "training" / "checkpoint.unfinished").write_bytes(b"half of a checkp")
            raise KeyboardInterrupt
        return batch(stream, step, settings)  # type: ignore[no-any-return]

    monkeypatch.setattr(drafter, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(out, text)
    assert not (out / "config.json").exists()
    steps: list[int] = []
    monkeypatch.setattr(drafter, "batch", lambda *given: steps.append(given[1]) or batch(*given))
    assert train(out, text) == 0
    assert steps == [*range(20, 40)]
    other = weights(trained)
    assert all(torch.equal(value, other[name]) for name, value in weights(out).items())
    assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert train(out, text) == 0 and len(steps) == 20  # finished: nothing is left to do


def test_another_seed_gives_other_weights_and_other_batches() -> None:
    stream = torch.arange(200, dtype=torch.int32)
    settings = [drafter.Settings(context=16, batch=4, seed=seed) for seed in (0, 1)]
    first, other = (drafter.batch(stream, 0, each) for each in settings)
    assert first.shape == (4, 17) and first.dtype == torch.int64
    assert not torch.equal(first, other)
    tokenizer = tiny_llama().tokenizer
    small = [drafter.Settings(width=32, heads=2, layers=1, seed=seed) for seed in (0, 1)]
    models = [drafter.new_model(each, tokenizer) for each in small]
    assert not torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)


def test_an_epoch_takes_every_block_once() -> None:
    stream, settings = torch.arange(200, dtype=torch.int32), drafter.Settings(context=16, batch=1)
    blocks = (200 - 16) // 16
    epochs = []
    for epoch in range(3):
        starts = [int(drafter.batch(stream, epoch * blocks + i, settings)[0, 0]) for i in range(blocks)]
        assert torch.tensor(sorted(starts)).diff().tolist() == [16] * (blocks - 1)
        assert starts != sorted(starts)
        epochs.append(starts)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_schedule() -> None:
    settings = drafter.Settings(steps=104, warmup=4, learning_rate=1.0)
    rates = [drafter.learning_rate(step, settings) for step in range(105)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[54] == pytest.approx(0.55) and rates[104] == pytest.approx(0.1)


def test_defaults_are_the_shape_of_drafter_7m() -> None:
    known = SCRIPT.parent / "models" / "drafter-7m"
    model = drafter.new_model(drafter.Settings(), Tokenizer.from_folder(known))
    config = json.loads((known / "config.json").read_text())
    ours = {**model.config.to_dict(), **model.generation.to_dict()}
    del config["torch_dtype"]
    assert {name: ours[name] for name in config} == config


def test_documents_of_lines_and_of_whole_files(tmp_path: Path) -> None:
    lines, whole = tmp_path / "a.jsonl", tmp_path / "b.txt"
    lines.write_text('{"said": "one\\ntwo"}\n\n{"said": " "}\n{"said": "three \\ud83d"}\n', encoding="utf-8")
    whole.write_text("four\n<|endoftext|>\n<|endoftext|>five", encoding="utf-8")
    assert list(drafter.read_documents(lines, "said")) == ["one\ntwo", "three ?"]
    assert list(drafter.read_documents(whole, "said")) == ["four\n", "five"]


def test_the_tokenizer_keeps_every_text() -> None:
    chat = "<|im_start|>user\nhow many are 12 cats?<|im_end|>"
    tokenizer = drafter.train_tokenizer([chat * 20], 280)
    ids = tokenizer.encode(chat)
    assert tokenizer.decode(ids, skip_special=False) == chat
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(tokenizer.encode("naïve  \n 日本 12")) == "naïve  \n 日本 12"
    assert all(not token.isdigit() or len(token) == 1 for token in tokenizer._backend.get_vocab())
    stream = drafter.encode(tokenizer, ["cats\n" * 1500, "12"])
    assert stream.tolist().count(0) == 2 and stream[-1] == 0
    assert tokenizer.decode(stream.tolist()) == "cats\n" * 1500 + "12"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b" \n ", "no text in .*empty.txt"),
        ("short.txt", b"a cat", "too short: it has .* tokens, and blocks of 16"),
        ("latin.txt", b"caf\xe9", "latin.txt is no readable file of UTF-8"),
        (
            "lines.jsonl",
            b'{"text": "a"}\n{"words": "b"}',
            "lines.jsonl:2: no JSON object with a text in 'text'",
        ),
        ("missing.txt", None, "missing.txt is no readable file"),
    ],
)
def test_texts_that_cannot_be_used(
    name: str, content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert train(tmp_path / "out", path) == 1
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 41}, "holds another run (steps 40 -> 41)"),
        ({"device": "nowhere"}, "--device nowhere cannot be used"),
        ({"batch": 0}, "--batch 0: a number above 0"),
        ({"heads": 3, "out": "new"}, "hidden_size=32 does not divide into 3 heads"),
    ],
)
def test_runs_that_are_refused(
    changes: dict[str, Any], words: str, text: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained.with_name(changes.pop("out", trained.name))
    assert train(out, text, **changes) == 1
    assert words in capsys.readouterr().err


def test_folders_of_others_are_left_alone(
    text: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").touch()
    assert train(tmp_path, text) == 1
    assert "exists and holds no run" in capsys.readouterr().err
    other = tmp_path / "other.txt"
    other.write_text("dogs " * 100)
    assert train(trained, other) == 1
    assert "another run (texts " in capsys.readouterr().err
    assert train(text, text) == 1
    assert "exists and holds no run" in capsys.readouterr().err
