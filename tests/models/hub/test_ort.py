"""The `.ort` reader on files written here: values, scopes, weights' names, and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ort_files import Exporter, codes, flatbuffer, graph, moonshine_package, node, session, tensor

from qlib.errors import ModelError
from qlib.models.hub.formats import ort, ort_moonshine
from qlib.models.hub.formats.flatbuffer import Table
from qlib.models.tiny import tiny_moonshine


def write(path: Path, content: dict[int, Any]) -> Path:
    path.write_bytes(session(content))
    return path


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(7, np.uint8),
        np.array([-1, 2], np.int64),
        np.zeros((0, 3), np.int8),
    ],
    ids=["matrix", "scalar", "integers", "nothing"],
)
def test_initializers_are_read_as_they_are(tmp_path: Path, values: np.ndarray) -> None:
    (found,) = ort.read(write(tmp_path / "x.ort", graph({"a": values}, [node("/n", "Op", ["a", "b"])])))
    assert found.initializers["a"].dtype == values.dtype
    np.testing.assert_array_equal(found.initializers["a"], values)
    assert found.nodes == (ort.Node("/n", "Op", ("a", "b")),)


def test_branches_see_what_is_around_them(tmp_path: Path) -> None:
    one, two, three = (np.array([float(i)], np.float32) for i in range(3))
    inner = graph({"b": two}, [])
    outer, branch, other = ort.read(
        write(
            tmp_path / "x.ort",
            graph(
                {"a": one, "b": three},
                [node("/if", "If", [], inner), node("/if", "If", [], graph({}, []))],
            ),
        )
    )
    assert set(outer.initializers) == {"a", "b"}
    assert branch.initializers == {"a": one, "b": two}, "its own come first"
    assert other.initializers == {"a": one, "b": three}


def test_texts_and_unknown_types_are_passed_over(tmp_path: Path) -> None:
    strange = {**tensor("s", np.array([1], np.uint8)), 10: 8}
    content = graph({"a": np.ones(1, np.float32)}, [])
    content[4].append(strange)
    (found,) = ort.read(write(tmp_path / "x.ort", content))
    assert set(found.initializers) == {"a"}


def test_dequantized_by_hand(tmp_path: Path) -> None:
    tensors = {
        "w_quantized": np.array([[0, 128, 255]], np.uint8),
        "w_scale": np.array(0.5, np.float32),
        "w_zero_point": np.array(128, np.uint8),
    }
    (found,) = ort.read(write(tmp_path / "x.ort", graph(tensors, [])))
    assert found.dequantize("w").tolist() == [[-64.0, 0.0, 63.5]]
    with pytest.raises(ModelError, match=r"x\.ort lacks the initializer 'v_quantized'"):
        found.dequantize("v")
    tensors["w_scale"] = np.ones(3, np.float32)
    (found,) = ort.read(write(tmp_path / "y.ort", graph(tensors, [])))
    with pytest.raises(ModelError, match=r"w has 3 scales and 1 zero points.*without per_channel"):
        found.dequantize("w")


def test_moonshines_tensors_get_their_names_back(tmp_path: Path) -> None:
    model = tiny_moonshine(width=40, heads=8)
    files = moonshine_package(model)
    found = {}
    for side, prefix in (("encoder", "model.encoder."), ("decoder", "")):
        (tmp_path / f"{side}.ort").write_bytes(files[f"{side}.ort"])
        graphs = ort.read(tmp_path / f"{side}.ort")
        found |= ort_moonshine.moonshine_state_dict(graphs, prefix)
        assert ort_moonshine.rotary_frequencies(graphs).tolist() == pytest.approx([1, 0.01])
    expected = model.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        if value.dim() == 2:
            step = float(value.max().clamp(min=0) - value.min().clamp(max=0)) / 255
            assert (found[name] - value).abs().max() < 0.51 * step, name
        else:
            assert torch.equal(found[name], value), name


def test_branches_that_differ_are_refused(tmp_path: Path) -> None:
    branches = []
    for value in (1.0, 2.0):
        exporter = Exporter("_merged_0")
        exporter.add("model.decoder.norm.weight", np.full(4, value, np.float32))
        branches.append(graph(exporter.tensors, exporter.nodes))
    path = write(tmp_path / "d.ort", graph({}, [node("/if", "If", [], branch) for branch in branches]))
    with pytest.raises(ModelError, match=r"d\.ort: model\.decoder\.norm\.weight is not the same in both"):
        ort_moonshine.moonshine_state_dict(ort.read(path), "")


def test_a_graph_without_rotary_embedding(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ort", graph({}, [node("/rotary_emb/Expand", "Expand", ["computed", "s"])]))
    with pytest.raises(ModelError, match=r"x\.ort has no rotary embedding"):
        ort_moonshine.rotary_frequencies(ort.read(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"Cannot read .*x\.ort: .*No such file"),
        (b"", r"Cannot read .*x\.ort: .*empty"),
        (b"PK\x03\x04 zip archive", r"begins with b'PK.*not with an offset and b'ORTM'"),
        (flatbuffer({}), r"holds no graph"),
        (flatbuffer({6: {}}), r"holds no graph"),
        (b"\xff\xff\xff\x7fORTM1234", r"damaged: it points to bytes 2147483647 to 2147483651 of 12"),
    ],
    ids=["missing", "empty", "zip", "no model", "no graph", "far away"],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "x.ort").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        ort.read(tmp_path / "x.ort")


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = session(graph({**codes("w", np.ones((2, 2), np.float32))}, [node("/n", "Op", ["w"])]))
    for end in (*range(8, len(whole), 11), len(whole) - 1):
        (tmp_path / "cut.ort").write_bytes(whole[:end])
        with pytest.raises(ModelError, match="damaged"):
            ort.read(tmp_path / "cut.ort")


def test_data_that_does_not_fill_its_shape_is_refused(tmp_path: Path) -> None:
    wrong = {**tensor("a", np.ones(3, np.float32)), 8: np.array([2, 2], "<i8")}
    content = {4: [wrong], 8: []}
    with pytest.raises(ModelError, match=r"a has 12 bytes, which is not what the shape \[2, 2\] of float32"):
        ort.read(write(tmp_path / "x.ort", content))


def test_absent_fields_have_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(flatbuffer({8: "text"}))
    table = Table.root(tmp_path / "x", b"ORTM")
    assert (table.text(8), table.text(4), table.text(40)) == ("text", "", "")
    assert (table.number(4, "<i4", 7), table.table(4), table.tables(4), table.texts(6)) == (7, None, [], [])
    assert table.numbers(4, "<i8").tolist() == []
