"""A work folder: one run at a time, its own blocks only, damage named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from storage_cases import TEXTS, print_of

import qlib
from qlib import resume
from qlib.errors import FileError, QuantError
from qlib.models.llama import Llama
from qlib.models.tiny import tiny_llama


@pytest.fixture(scope="module")
def model() -> Llama:
    return tiny_llama(0, width=8, layers=3, heads=2, kv_heads=1)


def run(model: Llama, work: Path, bits: int = 4) -> qlib.Result:
    return qlib.quantize(
        model, [qlib.GPTQ()], weight=qlib.Grid(bits, 4), calib=TEXTS, work=work, progress=False
    )


def test_nothing_but_blocks_is_left(model: Llama, tmp_path: Path) -> None:
    first = run(model, tmp_path / "w")
    names = [
        "model.layers.0.safetensors",
        "model.layers.1.safetensors",
        "model.layers.2.safetensors",
        "run.json",
    ]
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == names
    assert print_of(run(model, tmp_path / "w").model) == print_of(first.model)
    said = json.loads((tmp_path / "w" / "run.json").read_text())
    assert said["quantdraft"] == resume.library_version()


def test_a_block_in_the_place_of_another(model: Llama, tmp_path: Path) -> None:
    run(model, tmp_path)
    shutil.copy(tmp_path / "model.layers.0.safetensors", tmp_path / "model.layers.1.safetensors")
    message = (
        r"layers\.1\.safetensors does not give .* it holds the block model\.layers\.0\. Remove this file"
    )
    with pytest.raises(QuantError, match=message):
        run(model, tmp_path)
    (tmp_path / "model.layers.1.safetensors").unlink()
    run(model, tmp_path)


def test_a_block_of_another_run(model: Llama, tmp_path: Path) -> None:
    run(model, tmp_path / "a")
    run(model, tmp_path / "b", bits=3)
    shutil.copy(tmp_path / "b" / "model.layers.1.safetensors", tmp_path / "a")
    with pytest.raises(QuantError, match=r"layers\.1\.safetensors does not .* it belongs to another run"):
        run(model, tmp_path / "a")


def test_a_changed_block(model: Llama, tmp_path: Path) -> None:
    run(model, tmp_path)
    path = tmp_path / "model.layers.2.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(QuantError, match=r"layers\.2\.safetensors does not .* it is damaged.*computed again"):
        run(model, tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[]", b"\xff"])
def test_a_run_file_that_cannot_be_read(model: Llama, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    run(model, tmp_path)  # no block is there: nothing can be mixed
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(QuantError, match=r"run\.json cannot be read .* the 3 finished blocks .* begin again"):
        run(model, tmp_path)


def test_a_run_file_with_another_set_of_settings(model: Llama, tmp_path: Path) -> None:
    """A setting that is None differs from one that is missing."""
    run(model, tmp_path)
    path = tmp_path / "run.json"
    stored = json.loads(path.read_text())
    assert None in stored.values()
    for key in stored:
        path.write_text(json.dumps({name: value for name, value in stored.items() if name != key}))
        with pytest.raises(QuantError, match=rf"another run: {key} was not there by its run\.json and is "):
            run(model, tmp_path)
    path.write_text(json.dumps({**stored, "new": None}))
    with pytest.raises(QuantError, match=r"another run: new was None by its run\.json and is not there now"):
        run(model, tmp_path)


def test_another_release_does_not_go_on(
    model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, tmp_path)
    monkeypatch.setattr(resume, "library_version", lambda: "9.9")
    with pytest.raises(
        QuantError, match=r"another run: quantdraft was .* by its run\.json and is '9\.9' now"
    ):
        run(model, tmp_path)


def test_the_second_run_in_a_folder_is_refused_at_once(model: Llama, tmp_path: Path) -> None:
    with resume.finished_blocks(tmp_path / "w", {}, model):
        with pytest.raises(
            QuantError, match=r"Another run is at work in .*w right now.*choose another folder"
        ):
            run(model, tmp_path / "w")
        run(model, tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["run.json"]


def test_a_run_that_fails_leaves_its_folder_to_the_next(
    model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise QuantError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(qlib.GPTQ, "quantize_layer", fail)
        with pytest.raises(QuantError, match="no luck") as held:
            run(model, tmp_path)
    run(model, tmp_path)  # though the failed one's frames are still alive
    assert held.tb is not None


def test_a_folder_that_is_a_file(model: Llama, tmp_path: Path) -> None:
    (tmp_path / "w").touch()
    with pytest.raises(FileError, match=r"Cannot write .*w: a part of the path is a file"):
        run(model, tmp_path / "w")
