"""Loading: what is put in place, what is refused, and what the refusal says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.tiny import tiny_whisper, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tiny_whisper(frames=20), tmp_path / "tiny")


def edit(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Rewrite the weights with tensors replaced, added, or (None) removed."""
    tensors = {**load_file(folder / "model.safetensors"), **change}
    save_file(
        {name: value for name, value in tensors.items() if value is not None}, folder / "model.safetensors"
    )


def test_round_trip_keeps_every_weight_and_the_tie(folder: Path) -> None:
    original, again = tiny_whisper(frames=20), load_model(folder)
    for name, value in original.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.proj_out.weight is again.model.decoder.embed_tokens.weight
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert again.tokenizer is not None and again.tokenizer.decode(again.tokenizer.encode(" the")) == " the"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_converted(folder: Path, dtype: torch.dtype) -> None:
    assert {p.dtype for p in load_model(folder, dtype=dtype).parameters()} == {dtype}


def test_shards_equal_one_file(folder: Path) -> None:
    expected = load_model(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / shard)
    (folder / "model.safetensors").unlink()
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = load_model(folder).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks b\.safetensors"):
        load_model(folder)


def test_a_saved_copy_of_the_tied_head_is_accepted(folder: Path) -> None:
    embedding = load_file(folder / "model.safetensors")["model.decoder.embed_tokens.weight"]
    edit(folder, {"proj_out.weight": embedding.clone()})
    model = load_model(folder)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.encoder.conv1.bias": None}, r"1 missing: model\.encoder\.conv1\.bias"),
        ({"model.extra": torch.zeros(1)}, r"1 unexpected: model\.extra"),
        ({"model.q_proj.lora_A.weight": torch.zeros(1)}, r"1 unexpected: .*lora_A.*merge_and_unload"),
        ({"model.encoder.conv1.bias": torch.zeros(3)}, r"model\.encoder\.conv1\.bias is \[3\], not \[16\]"),
    ],
    ids=["missing", "unexpected", "adapter", "misshapen"],
)
def test_wrong_tensors_are_named(folder: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    edit(folder, change)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -8])
def test_truncated_weights_name_the_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors .* damaged or truncated"):
        load_model(folder)


def test_folder_without_safetensors_says_how_to_convert(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"lacks model\.safetensors.*safe_serialization"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("{", "is not valid JSON"),
        ("[]", "holds a list, not a JSON object"),
        ('{"model_type": "bert"}', "'bert' is not supported. Supported: whisper, moonshine"),
    ],
)
def test_bad_config(folder: Path, content: str | None, message: str) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'whisper-huge' is neither a folder nor a registered model.*whisper-tiny\.en"
    ):
        load_model("whisper-huge")


def test_older_folders_keep_the_token_ids_in_config_json(folder: Path) -> None:
    steering = json.loads((folder / "generation_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **steering}))
    (folder / "generation_config.json").unlink()
    assert load_model(folder).generation == tiny_whisper(frames=20).generation
