"""What a user may call a model, and what is said of everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import qlib
from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.tiny import tiny_llama, tiny_whisper, write_folder


@pytest.mark.parametrize("given", [None, 3, ["a"], b"x", "", {"a": 1}])
def test_things_that_are_no_path_are_refused(given: Any) -> None:
    with pytest.raises(ModelError, match=r"A model is .*, not a path or a name\. Pass a folder .*smollm2"):
        load_model(given)


def test_a_model_is_not_a_path() -> None:
    with pytest.raises(ModelError, match="A model is a Llama, not a path or a name"):
        load_model(tiny_llama())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_a_folder_names_the_folder(tmp_path: Path, name: str) -> None:
    folder = write_folder(tiny_llama(), tmp_path)
    with pytest.raises(
        ModelError, match=rf"{name} is one file of a checkpoint\. Pass its folder: {folder}\."
    ):
        load_model(folder / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "is not read: weights in this format can run code.*safe_serialization=True"),
        ("tiny.pt", "is not read"),
        ("model.onnx", "is a compiled graph, not weights"),
        ("notes.txt", "is a file. Pass a folder"),
    ],
)
def test_other_files_say_what_to_pass(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / name)


def test_folders_without_a_config_say_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing\. A checkpoint folder .* has it\.$"):
        load_model(tmp_path)
    write_folder(tiny_llama(), tmp_path / "checkpoint-500")
    with pytest.raises(ModelError, match=r"These folders in it have one: checkpoint-500"):
        load_model(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"Pass the file itself: .*x\.gguf"):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is an adapter \(LoRA\): merge it"):
        load_model(tmp_path)


def test_a_quantized_checkpoint_names_its_loader(tmp_path: Path) -> None:
    result = qlib.quantize(tiny_whisper(frames=20), [], weight=qlib.Grid(4, 8), progress=False)
    folder = result.save(tmp_path / "w4")
    with pytest.raises(
        ModelError, match=r"w4 is a quantized checkpoint of this library\. Use qlib\.load_qua"
    ):
        load_model(folder)


def test_a_foreign_manifest_does_not_matter(tmp_path: Path) -> None:
    folder = write_folder(tiny_llama(), tmp_path)
    (folder / "manifest.json").write_text('{"audio_filepath": "a.wav"}\n{"audio_filepath": "b.wav"}\n')
    load_model(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wisper-tiny.en", r"Did you mean 'whisper-tiny\.en'\?"),
        ("Whisper-Base", r"Did you mean 'whisper-base'\?"),
        (
            "openai/whisper-tiny.en",
            r"Did you mean 'whisper-tiny\.en'\? Names of a model hub are not looked up",
        ),
        ("models/mine", r"relative paths begin in /"),
        ("/no/such/folder", "'/no/such/folder' is neither a folder nor a registered model"),
        ("~/no/such", r"There is no folder /.*/no/such\.$"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tiny_llama(), tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    load_model("~/mine")


@pytest.mark.parametrize("table", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}])
def test_a_broken_index_of_shards_is_named(tmp_path: Path, table: dict[str, Any]) -> None:
    folder = write_folder(tiny_llama(), tmp_path)
    (folder / "model.safetensors").unlink()  # it would count instead
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(ModelError, match=r"index\.json: weight_map is .*, not an object"):
        load_model(folder)
