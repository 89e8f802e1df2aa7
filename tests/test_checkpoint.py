"""Save and load: bit for bit, whole or not at all, damage named."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from speech_fixtures import utterances
from storage_cases import print_of, results, rtn_whisper
from torch import Tensor

import qlib
from qlib import checkpoint, version
from qlib.checkpoint import folder_bytes, save_quantized
from qlib.errors import ModelError, QuantError
from qlib.methods.gptq import hessian
from qlib.methods.spqr import spqr
from qlib.models.disk.hashes import sealed, sha256_of
from qlib.models.tiny import tiny_whisper, write_folder
from qlib.models.whisper import Whisper
from qlib.stored_weight import pack_weight, to_16_bits


def logits(model: Whisper) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 80, 2 * model.config.max_source_positions, generator=generator)
    with torch.no_grad():
        return model(features, torch.arange(10)[None])


@pytest.fixture
def result() -> qlib.Result:
    return qlib.quantize(tiny_whisper(frames=20), [], weight=qlib.Grid(4, 8), progress=False)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("group", [None, 8, 6], ids=["channel", "g8", "ragged"])
def test_reloaded_model_is_the_same_bit_for_bit(
    tmp_path: Path, bits: int, symmetric: bool, group: int | None
) -> None:
    grid, model = qlib.Grid(bits, group, symmetric), tiny_whisper(frames=20)
    result = qlib.quantize(model, [qlib.RTN("mse")], weight=grid, activation=qlib.PerToken(8), progress=False)
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    assert torch.equal(logits(again), logits(result.model))
    before, after = result.model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(
        before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before
    )


@pytest.mark.parametrize(("act_order", "static_groups"), [(False, False), (True, False), (True, True)])
def test_gptq_with_its_column_orders(tmp_path: Path, act_order: bool, static_groups: bool) -> None:
    method = qlib.GPTQ(act_order=act_order, static_groups=static_groups)
    model = tiny_whisper()
    result = qlib.quantize(
        model, [method], weight=qlib.Grid(3, 6), calib=utterances(tmp_path), progress=False
    )
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    assert torch.equal(logits(again), logits(result.model))
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert any(name.endswith(".index") for name in stored) == (act_order and not static_groups)


def test_reloaded_model_transcribes_and_keeps_ties(tmp_path: Path, result: qlib.Result) -> None:
    again = qlib.load_quantized(result.save(tmp_path / "saved"))
    assert again.proj_out.weight is again.model.decoder.embed_tokens.weight
    assert again.tokenizer is not None and again.tokenizer.encode(" the") == tiny_whisper().tokenizer.encode(
        " the"
    )  # type: ignore[union-attr]
    assert again.generation == result.model.generation
    assert not again.training


def test_size_on_disk_is_what_the_report_says(tmp_path: Path) -> None:
    """By hand: 64 x 16 weights at 4 bits, per group of 8 one float32 scale and one 4-bit zero point."""
    result = qlib.quantize(tiny_whisper(frames=20), [], weight=qlib.Grid(4, 8), progress=False)
    layer = result.model.get_submodule("model.encoder.layers.0.fc1")
    assert isinstance(layer, qlib.FakeQuantLinear)
    assert layer.quantized.bits(layer.grid) == 64 * 16 * 4 + 128 * 32 + 128 * 4
    path = result.save(tmp_path / "saved")
    stored = load_file(path / "model.safetensors")
    parts = {"codes", "scale", "zero"}
    on_disk = sum(t.nbytes for name, t in stored.items() if name.rpartition(".")[2] in parts)
    weights = sum(each.outputs * each.inputs for each in result.report.layers)
    assert on_disk * 8 / weights == pytest.approx(result.report.bits_per_weight)
    assert folder_bytes(path) == (path / "model.safetensors").stat().st_size


def test_bits_are_those_of_the_packed_tensors() -> None:
    """Of every way to store a layer: counted without packing, and by packing."""
    for kind, made in results(0).items():
        for layer in made.report.layers:
            module = made.model.get_submodule(layer.name)
            assert isinstance(module, qlib.FakeQuantLinear)
            packed = 8 * sum(each.nbytes for each in pack_weight(module).values())
            assert module.quantized.bits(module.grid) == packed, kind
            assert layer.bits_per_weight == packed / module.codes.numel(), kind


def test_bits_of_outliers_far_apart() -> None:
    """Their positions need 16 bits each, their distances 8."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(32, 64, generator=generator), torch.randn(200, 64, generator=generator)
    grid = qlib.Grid(3, 16)
    quantized = spqr(weight, hessian(inputs), grid, threshold=0.05)
    packed = pack_weight(qlib.FakeQuantLinear(quantized, grid))
    assert quantized.outliers is not None and int(quantized.outliers.max()) > 255
    assert packed["outliers"].dtype == torch.uint8
    assert quantized.bits(grid) == 8 * sum(each.nbytes for each in packed.values())


def test_shortening_never_changes_a_value() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(50, generator=generator)
    halves = torch.randn(50, generator=generator).half().float()
    brains = torch.randn(50, generator=generator).bfloat16().float() * 2.0**60
    assert to_16_bits(halves).dtype == torch.float16
    assert to_16_bits(brains).dtype == torch.bfloat16
    for tensor in (halves, brains, plain, torch.arange(3), plain.double()):
        assert torch.equal(to_16_bits(tensor).to(tensor.dtype), tensor)
    assert to_16_bits(plain).dtype == torch.float32


def test_manifest_says_how_the_model_was_made(tmp_path: Path) -> None:
    listed = utterances(tmp_path)
    result = qlib.quantize(
        tiny_whisper(), [qlib.GPTQ(damping=0.02)], weight=qlib.Grid(4), calib=listed, progress=False
    )
    manifest = json.loads((result.save(tmp_path / "saved") / "manifest.json").read_text())
    settings = manifest["settings"]
    assert settings["methods"][0]["name"] == "gptq" and settings["methods"][0]["damping"] == 0.02
    assert settings["weight"] == {"bits": 4, "group": None, "symmetric": False, "scale_bits": 32}
    assert "seed" not in settings
    assert settings["calibration"]["utterances"] == 4 and len(settings["calibration"]["sha256"]) == 64
    assert manifest["versions"]["torch"] == torch.__version__


def test_a_manifest_with_a_seed_still_loads(tmp_path: Path, result: qlib.Result) -> None:
    """`quantize` had one, which changed nothing."""
    folder = result.save(tmp_path / "saved")
    change(folder, settings={**result.settings, "seed": 0})
    assert torch.equal(logits(qlib.load_quantized(folder)), logits(result.model))


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path, result: qlib.Result) -> None:
    result.save(tmp_path / "saved")
    other = qlib.quantize(tiny_whisper(1, frames=20), [], weight=qlib.Grid(2), progress=False)
    other.save(tmp_path / "saved")
    assert torch.equal(logits(qlib.load_quantized(tmp_path / "saved")), logits(other.model))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_failed_save_keeps_the_old_checkpoint(
    tmp_path: Path, result: qlib.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save(tmp_path / "saved")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fail)
        with pytest.raises(OSError, match="no space left"):
            qlib.quantize(tiny_whisper(1, frames=20), [], weight=qlib.Grid(2), progress=False).save(
                tmp_path / "saved"
            )
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert torch.equal(logits(qlib.load_quantized(tmp_path / "saved")), logits(result.model))


KILLED = """
import os, signal, sys
import qlib
from qlib.models.tiny import tiny_whisper

def kill(event, arguments):
    if event == sys.argv[2] and sys.argv[3] in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

result = qlib.quantize(tiny_whisper(frames=20), [], weight=qlib.Grid(4), progress=False)
sys.addaudithook(kill)
result.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", [("open", "manifest.json"), ("os.rename", ".quantdraft-")], ids=str)
def test_a_killed_save_leaves_no_checkpoint_and_the_next_one_cleans_up(
    tmp_path: Path, result: qlib.Result, point: tuple[str, str]
) -> None:
    """Killed as the manifest is written, and as the finished folder is about to be given its name."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "saved"), *point], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "saved").exists()
    result.save(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert torch.equal(logits(qlib.load_quantized(tmp_path / "saved")), logits(result.model))


def change(folder: Path, **parts: object) -> None:
    """Edit the manifest on purpose: the hashes are mended too."""
    manifest = json.loads((folder / "manifest.json").read_text()) | parts
    manifest["files"] = {name: sha256_of(folder / name) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


def edit(folder: Path, drop: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[drop]
    save_file(tensors, path)
    change(folder)


@pytest.mark.parametrize("part", ["codes", "scale"])
def test_missing_part_names_the_layer(tmp_path: Path, result: qlib.Result, part: str) -> None:
    folder = result.save(tmp_path / "saved")
    edit(folder, f"model.encoder.layers.0.fc1.{part}")
    with pytest.raises(ModelError, match=rf"lacks the {part} of model\.encoder\.layers\.0\.fc1"):
        qlib.load_quantized(folder)


def test_missing_float_tensor_is_named(tmp_path: Path, result: qlib.Result) -> None:
    folder = result.save(tmp_path / "saved")
    edit(folder, "model.encoder.conv1.bias")
    with pytest.raises(ModelError, match=r"1 missing: model\.encoder\.conv1\.bias"):
        qlib.load_quantized(folder)


@pytest.mark.parametrize("keep", [100, -10])
def test_truncated_file(tmp_path: Path, result: qlib.Result, keep: int) -> None:
    folder = result.save(tmp_path / "saved")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="damaged or truncated"):
        qlib.load_quantized(folder)


def test_one_changed_byte_is_noticed(tmp_path: Path, result: qlib.Result) -> None:
    folder = result.save(tmp_path / "saved")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="changed or damaged since it was saved"):
        qlib.load_quantized(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, r"format and version \('other', 4\); this library reads 'quantdraft', .* 3, 4"),
        ({"version": 5}, r"\('quantdraft', 5\); this library reads 'quantdraft', versions 2, 3, 4"),
        ({"version": True}, r"\('quantdraft', True\)"),
        ({"files": None}, "lacks 'files'"),
        ({"digest": None}, "lacks 'digest'"),
        ({"settings": {}}, "manifest.json was changed or damaged since it was saved"),
        ({"layers": None}, "lacks 'layers'"),
        ({"dtype": None}, "lacks 'dtype'"),
    ],
)
def test_manifest_of_another_kind(
    tmp_path: Path, result: qlib.Result, change: dict[str, object], message: str
) -> None:
    folder = result.save(tmp_path / "saved")
    manifest = {**json.loads((folder / "manifest.json").read_text()), **change}
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))
    with pytest.raises(ModelError, match=message):
        qlib.load_quantized(folder)


def test_manifest_that_names_a_foreign_layer(tmp_path: Path, result: qlib.Result) -> None:
    folder = result.save(tmp_path / "saved")
    layers = json.loads((folder / "manifest.json").read_text())["layers"]
    layers["model.encoder.layers.9.fc1"] = layers.pop("model.encoder.layers.0.fc1")
    change(folder, layers=layers)
    with pytest.raises(ModelError, match=r"model\.encoder\.layers\.9\.fc1: this architecture does not have"):
        qlib.load_quantized(folder)


def test_refusals_of_saving(tmp_path: Path, result: qlib.Result) -> None:
    with pytest.raises(QuantError, match="no quantized layer"):
        save_quantized(tiny_whisper(frames=20), tmp_path / "saved")
    foreign: list[tuple[Any, str]] = [
        (result, r"a Result.*, which holds a model\. Call its own save\(folder\)"),
        (
            torch.nn.Sequential(result.model),
            r"a Sequential.*no model of this library.*torch\.save\(model",
        ),
        (str(tmp_path), r"the str .*, not a model\. Pass the model of qlib\.quantize"),
    ]
    for got, message in foreign:
        with pytest.raises(QuantError, match=f"save_quantized got {message}"):
            save_quantized(got, tmp_path / "saved")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(QuantError, match="exists and is not a quantized checkpoint"):
        result.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_regular_group_index_is_not_stored(result: qlib.Result) -> None:
    layer = result.model.get_submodule("model.encoder.layers.0.fc1")
    assert isinstance(layer, qlib.FakeQuantLinear)
    assert layer.index is not None and "index" not in pack_weight(layer)


# --- what a formula gives

POSITIONS = "model.encoder.embed_positions.weight"
GRID = qlib.Grid(4, 8)


def with_sinusoids(shift: float = 0.0) -> Whisper:
    """A miniature with the positions of published checkpoints, one of them shifted; by loops."""
    model = tiny_whisper(frames=20)
    table = model.get_parameter(POSITIONS)
    for place, channel in itertools.product(range(20), range(8)):
        angle = place / 10_000 ** (channel / 7)
        table[place, channel], table[place, channel + 8] = math.sin(angle), math.cos(angle)
    table.copy_(table.half())
    table[3, 5] += shift
    return model


def test_positions_of_the_formula_are_computed_and_not_stored(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16):
        model = with_sinusoids().to(dtype)
        folder = qlib.quantize(model, weight=GRID, progress=False).save(tmp_path / str(dtype))
        assert json.loads((folder / "manifest.json").read_text())["computed"] == [POSITIONS]
        assert POSITIONS not in load_file(folder / "model.safetensors")
        again = qlib.load_quantized(folder).get_parameter(POSITIONS)
        assert torch.equal(again, model.get_parameter(POSITIONS)) and again.dtype == dtype


def test_positions_that_differ_in_one_bit_are_stored(tmp_path: Path) -> None:
    model = with_sinusoids(2.0**-20)
    folder = qlib.quantize(model, weight=GRID, progress=False).save(tmp_path / "saved")
    assert POSITIONS in load_file(folder / "model.safetensors")
    assert torch.equal(qlib.load_quantized(folder).get_parameter(POSITIONS), model.get_parameter(POSITIONS))


@pytest.mark.parametrize("names", [["model.encoder.layer_norm.weight"], [3], "all"])
def test_what_no_formula_gives_cannot_be_left_out(tmp_path: Path, names: Any) -> None:
    path = qlib.quantize(with_sinusoids(), weight=GRID, progress=False).save(tmp_path / "s") / "manifest.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), "computed": names})))
    with pytest.raises(ModelError, match=r"computed is .* this architecture computes model\.encoder"):
        qlib.load_quantized(path.parent)


# --- whose folder it is


@pytest.mark.parametrize(
    "content",
    ['{"audio_filepath": "a.wav"}\n{"audio_filepath": "b.wav"}\n', '{"format": "mine"}', "[]", "\xff"],
)
def test_a_folder_of_recordings_with_a_manifest_is_refused(
    tmp_path: Path, result: qlib.Result, content: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "manifest.json").write_text(content, encoding="latin-1")
    (data / "a.wav").write_bytes(b"x")
    with pytest.raises(QuantError, match=r"data exists and is not a quantized checkpoint\. Choose another"):
        result.save(data)
    assert sorted(path.name for path in data.iterdir()) == ["a.wav", "manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_own_files_in_a_checkpoint_survive_and_nothing_else_goes(tmp_path: Path, result: qlib.Result) -> None:
    folder = result.save(tmp_path / "saved")
    outside = tmp_path / "outside.txt"
    for path in (outside, folder / "wer.json", folder / "notes.txt"):
        path.write_text("{}")
    change(folder, layers={"x": 1})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {"../outside.txt": "x", "notes.txt": "x", **manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))  # the hash does not allow it to name files
    result.save(folder)
    assert outside.exists() and (folder / "wer.json").exists() and (folder / "notes.txt").exists()
    qlib.load_quantized(folder)


def test_version_3_which_knew_no_scale_bits_loads(tmp_path: Path, result: qlib.Result) -> None:
    folder = result.save(tmp_path / "saved")
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["layers"].values():
        del entry["grid"]["scale_bits"]
    del manifest["digest"]
    old = sealed({**manifest, "version": 3})
    (folder / "manifest.json").write_text(json.dumps(old))
    again = qlib.load_quantized(folder)
    assert torch.equal(logits(again), logits(result.model))
    assert {each.grid.scale_bits for each in again.modules() if isinstance(each, qlib.FakeQuantLinear)} == {
        32
    }


def test_an_older_format_loads_and_is_replaced(tmp_path: Path, result: qlib.Result) -> None:
    """Version 2 hashed the weights alone; what can be checked without a hash is."""
    folder = result.save(tmp_path / "saved")
    manifest = json.loads((folder / "manifest.json").read_text())
    old = {key: value for key, value in manifest.items() if key not in ("files", "digest")}
    old |= {"version": 2, "sha256": manifest["files"]["model.safetensors"]}

    def write(**parts: object) -> None:
        (folder / "manifest.json").write_text(json.dumps(old | parts))

    write()
    assert torch.equal(logits(qlib.load_quantized(folder)), logits(result.model))
    name = "model.encoder.layers.0.fc1"
    good = old["layers"][name]
    for message, entry in {
        "a zero point on the grid w4 g8 symmetric": good | {"grid": good["grid"] | {"symmetric": True}},
        r"scale is \[64, 2\], not \[64, 4\]": good | {"grid": good["grid"] | {"group": 4}},
        r"its shape is \[16, 64\], in this architecture \[64, 16\]": good | {"shape": [16, 64]},
        r"its shape is \[1000000000, 16\]": good | {"shape": [10**9, 16]},
        "its entry is damaged": good | {"grid": {"bits": 4}, "activation": {"kind": "nonsense"}},
        r"its entry is damaged .*symmetric in Grid": good | {"grid": good["grid"] | {"symmetric": 0}},
        "check tensors": good | {"tensors": None},
        "lacks the zero": good | {"tensors": ["codes", "scale", "zero", "zero"]},
        "it has no bias, unlike in this architecture": good | {"tensors": ["codes", "scale", "zero"]},
        "keeps the columns .0, 3. in float, its weight ..": good | {
            "activation": {"kind": "keep columns", "columns": [0, 3],
                           "inner": {"kind": "per token", "bits": 8, "symmetric": False}}},
    }.items():  # fmt: skip
        write(layers=old["layers"] | {name: entry})
        with pytest.raises(ModelError, match=rf"manifest\.json.*{name}.*{message}"):
            qlib.load_quantized(folder)
    write()
    result.save(folder)
    assert json.loads((folder / "manifest.json").read_text())["version"] == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers_are_refused_at_both_ends(
    tmp_path: Path, result: qlib.Result, value: float
) -> None:
    folder = result.save(tmp_path / "saved")
    name = "model.decoder.layers.0.fc1"
    with torch.no_grad():
        result.model.get_submodule(name).scale[3, 1] = value
    with pytest.raises(QuantError, match=f"{name} cannot be saved: scale holds 1 NaN or infinite"):
        result.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{name}.scale"][3, 1] = value
    save_file(tensors, folder / "model.safetensors")
    change(folder)
    with pytest.raises(ModelError, match=f"{name}: scale holds 1 NaN or infinite"):
        qlib.load_quantized(folder)


# --- what is read


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    write_folder(tiny_whisper(frames=20), tmp_path / "float")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, message in {
        "float": r"float is a float checkpoint: .*no manifest\.json\. Load it by qlib\.load_model",
        "empty": r"empty holds no checkpoint: neither manifest\.json nor config\.json",
        "file": "file is a file, not the folder of a checkpoint",
        "nowhere": "nowhere does not exist",
    }.items():
        with pytest.raises(ModelError, match=message):
            qlib.load_quantized(tmp_path / name)
    with pytest.raises(
        ModelError, match=r"whisper-base is the name of a float model.*load_model\('whisper-b"
    ):
        qlib.load_quantized("whisper-base")


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "config.json"])
def test_files_beside_the_weights_are_hashed_too(tmp_path: Path, result: qlib.Result, name: str) -> None:
    path = result.save(tmp_path / "saved") / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1", b"2", 1))
    with pytest.raises(ModelError, match=rf"{name} .*was changed or damaged since it was saved"):
        qlib.load_quantized(path.parent)
    path.unlink()
    with pytest.raises(ModelError, match=rf"{name} is missing, and manifest\.json says that it was saved"):
        qlib.load_quantized(path.parent)


def test_a_file_that_would_change_what_is_loaded(tmp_path: Path, result: qlib.Result) -> None:
    folder = result.save(tmp_path / "saved")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"index\.json is not among the files .* Remove it"):
        qlib.load_quantized(folder)


def test_a_reader_never_gets_parts_of_two(
    tmp_path: Path, result: qlib.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody saves another model at the worst moment: between quantized layers and float tensors."""
    other = qlib.quantize(tiny_whisper(1, frames=20), [], weight=qlib.Grid(4, 8), progress=False)
    folder, fill, saves = result.save(tmp_path / "saved"), checkpoint.fill, []

    def late(*arguments: Any, **options: Any) -> None:
        if not saves:
            saves.append(other.save(folder))
        fill(*arguments, **options)

    monkeypatch.setattr(checkpoint, "fill", late)
    again = qlib.load_quantized(folder)
    assert saves and torch.equal(logits(again), logits(other.model))


def test_a_file_that_changes_after_it_was_hashed(
    tmp_path: Path, result: qlib.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, build = result.save(tmp_path / "saved"), checkpoint.build

    def late(*arguments: Any) -> Any:
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"d_model": 16', '"d_model" : 16'))
        return build(*arguments)

    monkeypatch.setattr(checkpoint, "build", late)
    with pytest.raises(ModelError, match=r"config\.json was changed while it was read"):
        qlib.load_quantized(folder)


def test_a_checkout_without_package_metadata_saves(
    tmp_path: Path, result: qlib.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", unknown)
    folder = result.save(tmp_path / "saved")
    assert json.loads((folder / "manifest.json").read_text())["versions"]["quantdraft"] is None
    qlib.load_quantized(folder)


def test_paths_that_are_not_utf8(tmp_path: Path, result: qlib.Result) -> None:
    folder = result.save(tmp_path / "\udcff\udcfe")
    assert torch.equal(logits(qlib.load_quantized(folder)), logits(result.model))


# --- two processes

SAVER = """
import sys, time
from pathlib import Path
from storage_cases import rtn_whisper
result, ends = rtn_whisper(int(sys.argv[2])), time.monotonic() + float(sys.argv[3])
while time.monotonic() < ends:
    result.save(sys.argv[1])
"""


@pytest.mark.slow
def test_two_savers_and_a_reader(tmp_path: Path) -> None:
    """Each reading is the one model or the other; no saver fails; nothing is left over."""
    known = {print_of(rtn_whisper(seed).model) for seed in (0, 1)}
    folder = rtn_whisper(0).save(tmp_path / "in" / "saved")
    (folder / "notes.txt").write_text("mine")
    seconds = "3"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    savers = [
        subprocess.Popen(
            [sys.executable, "-c", SAVER, str(folder), seed, seconds], env=os.environ | {"PYTHONPATH": paths}
        )
        for seed in ("0", "1")
    ]
    seen = []
    try:
        while any(saver.poll() is None for saver in savers):
            seen.append(print_of(qlib.load_quantized(folder)))
    finally:
        for saver in savers:
            saver.wait(60)
    assert [saver.returncode for saver in savers] == [0, 0]
    assert {*seen} == known and len(seen) > 10
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]
    assert (folder / "notes.txt").read_text() == "mine"
