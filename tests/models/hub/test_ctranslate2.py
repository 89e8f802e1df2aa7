"""Files written by the documented layout come back; damaged ones say where; Whisper's names are right."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packages import ctranslate2_variables, model_bin, text, variable, whisper_tensors

from qlib.errors import ModelError
from qlib.models.hub.formats.ctranslate2 import read
from qlib.models.hub.formats.ctranslate2_whisper import whisper_state_dict

SMALL = {
    "a/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b": np.array([1.5, -2.0], np.float32),
    "c/num_heads": np.array(6, np.int8),
    "d": np.array(-700, np.int16),
    "e": np.array([[1 << 20]], np.int32),
    "empty": np.zeros((0, 3), np.float32),
}
ALIASES = {"head": "a/weight"}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(data)
    return path


def one_variable(body: bytes) -> bytes:
    return struct.pack("<I", 6) + text("S") + struct.pack("<II", 3, 1) + body + struct.pack("<I", 0)


def test_everything_written_comes_back(tmp_path: Path) -> None:
    found = read(write(tmp_path, model_bin(SMALL, ALIASES)))
    assert found.spec == "WhisperSpec"
    assert list(found.variables) == list(SMALL)
    for name, values in SMALL.items():
        assert found.variables[name].dtype == values.dtype
        np.testing.assert_array_equal(found.variables[name], values)


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    values = torch.tensor([[1.0, -3.140625, 1e-20]], dtype=torch.bfloat16)
    bits = values.view(torch.int16).numpy().view(np.uint16)
    found = read(write(tmp_path, one_variable(variable("w", bits, code=5)))).variables["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.float().numpy())


def test_a_file_cut_anywhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    whole = model_bin(SMALL, ALIASES)
    for length in range(1, len(whole)):
        path = write(tmp_path, whole[:length])
        with pytest.raises(ModelError, match=r"model\.bin .*byte \d+ of"):
            read(path)


def test_a_cut_inside_a_variable_names_it(tmp_path: Path) -> None:
    whole = model_bin(SMALL, ALIASES)
    cut = whole.index(text("b")) + 16
    with pytest.raises(ModelError, match=r"8 bytes expected, 2 left at byte \d+ of \d+, in variable 1 \(b\)"):
        read(write(tmp_path, whole[:cut]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Cannot read"),
        (b"PK\x03\x04" + bytes(100), "not a CTranslate2 model of binary version 6: it starts with 67324752"),
        (model_bin(SMALL, ALIASES, version=5), "starts with 5"),
        (model_bin(SMALL, ALIASES) + b"xyz", "3 bytes too many .* the end of the file"),
        (model_bin(SMALL, {"head": "nowhere"}), "unknown target 'nowhere' .* alias 0"),
        (
            one_variable(variable("w", np.zeros(2, np.float32), code=9)),
            r"unknown dtype 9 .* variable 0 \(w\)",
        ),
        (
            one_variable(text("w") + b"\x01" + struct.pack("<IBI", 3, 0, 8) + bytes(8)),
            r"8 bytes stated for shape \[3\]",
        ),
        (
            one_variable(text("w") + b"\xff" + bytes(4 * 255) + struct.pack("<BI", 0, 0)),
            "impossible shape .* rank 255",
        ),
        (one_variable(struct.pack("<H", 2) + b"\xff\x00"), "not text"),
        (one_variable(struct.pack("<H", 2) + b"ab"), "ends with NUL"),
        (
            struct.pack("<I", 6)
            + text("S")
            + struct.pack("<II", 3, 2)
            + 2 * variable("w", np.zeros(1, np.float32)),
            r"used before .* variable 1 \(w\)",
        ),
    ],
    ids=["empty", "zip", "version", "tail", "alias", "dtype", "size", "rank", "utf8", "nul", "twice"],
)
def test_foreign_or_damaged_files(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(write(tmp_path, data))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.bin"):
        read(tmp_path / "nothing.bin")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_gives_a_file_or_a_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(model_bin(SMALL, ALIASES))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(write(tmp_path, bytes(whole)))
    except ModelError as error:
        assert "model.bin" in str(error)


def test_whisper_tensors_return_under_their_names(tmp_path: Path) -> None:
    tensors = whisper_tensors()
    path = write(tmp_path, model_bin(ctranslate2_variables(tensors), {}))
    found = whisper_state_dict(read(path).variables)
    assert set(found) == set(tensors)
    for name, values in tensors.items():
        assert found[name].dtype == torch.float16
        np.testing.assert_array_equal(found[name].numpy(), values, err_msg=name)


def test_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, model_bin(ctranslate2_variables(whisper_tensors()), {}))
    found = whisper_state_dict(read(path).variables)
    for tensor in found.values():
        tensor.zero_()  # the mapped file is read-only: writing to it would crash
    assert path.read_bytes() == model_bin(ctranslate2_variables(whisper_tensors()), {})


@pytest.mark.parametrize("block", ["self_attention/linear_0", "attention/linear_1"])
def test_a_key_bias_is_refused(block: str) -> None:
    variables = ctranslate2_variables(whisper_tensors(width=4))
    name = f"decoder/layer_1/{block}/bias"
    variables[name] = variables[name].copy()
    variables[name][4 if block.startswith("self") else 0] = 0.25  # first row of the keys
    with pytest.raises(ModelError, match=rf"{name}: the bias of the keys is not zero \(largest 0.25\)"):
        whisper_state_dict(variables)


def test_quantized_weights_are_refused() -> None:
    variables = ctranslate2_variables(whisper_tensors())
    variables["encoder/layer_0/ffn/linear_0/weight"] = np.zeros((16, 4), np.int8)
    with pytest.raises(ModelError, match="encoder/layer_0/ffn/linear_0/weight is stored as int8"):
        whisper_state_dict(variables)


@pytest.mark.parametrize(
    "name",
    [
        "encoder/layer_0/ffn/linear_0/weight_scale",
        "encoder/layer_0/ffn/linear_9/weight",
        "encoder/layer_0/x/layer_norm/beta",
    ],
)
def test_variables_without_a_place_are_listed(name: str) -> None:
    variables = ctranslate2_variables(whisper_tensors()) | {name: np.zeros(3, np.float32)}
    with pytest.raises(ModelError, match=rf"1 variables have no place in a Whisper model: {name}"):
        whisper_state_dict(variables)


def test_rows_that_do_not_divide_are_an_error() -> None:
    variables = {"decoder/layer_0/self_attention/linear_0/weight": np.zeros((13, 4), np.float16)}
    with pytest.raises(ModelError, match="13 rows, which do not divide into 3"):
        whisper_state_dict(variables)
