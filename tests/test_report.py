"""Numbers and text of a report."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch

from qlib.models.table import align
from qlib.report import LayerReport, QuantReport, output_error, weight_error


def layer(name: str, weight: float, output: float | None, inputs: int = 4, bits: float = 4.5) -> LayerReport:
    return LayerReport(
        name, 2, inputs, "gptq", "w4 g64 asymmetric", "float", bits, weight, output, 7, ("note one",)
    )


@pytest.fixture
def report() -> QuantReport:
    layers = (layer("a", 0.1, 0.2), layer("b", 0.3, 0.1, inputs=12, bits=8.5), layer("c", 0.2, None))
    skipped = (("conv", "Conv1d, not a linear layer"), ("proj_out", "tied"))
    return QuantReport(layers, skipped, 1.5)


def test_average_is_weighted_by_size(report: QuantReport) -> None:
    assert report.bits_per_weight == pytest.approx((4.5 * 8 + 8.5 * 24 + 4.5 * 8) / 40)


def test_worst_prefers_the_output_error(report: QuantReport) -> None:
    assert [each.name for each in report.worst(2)] == ["a", "c"]  # 0.2 of the output, then 0.2 of the weight


def test_text_holds_errors_notes_and_reasons(report: QuantReport) -> None:
    text = str(report)
    assert "3 layers quantized by gptq to w4 g64 asymmetric in 1.5 s, 6.90 bits per weight" in text
    assert "left in float (1, tied): proj_out" in text
    assert "notes (3): a: note one ..." in text
    assert text.index("\na ") < text.index("\nc ") < text.index("\nb ")


def test_csv_and_json_hold_every_layer(report: QuantReport) -> None:
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["output_error"] == "0.2" and rows[2]["output_error"] == ""
    assert json.loads(report.json())["layers"][1]["weight_error"] == 0.3


def test_columns_line_up() -> None:
    assert (
        align([("layer", "n"), ("a", "10"), ("long one", "3")]) == "layer      n\na         10\nlong one   3"
    )


def test_output_error_equals_the_error_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, values = torch.randn(2, 5, 3, generator=generator)
    inputs = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    expected = (inputs @ (weight - values).T.double()).norm() / (inputs @ weight.T.double()).norm()
    assert output_error(weight, values, inputs.T @ inputs) == pytest.approx(float(expected), rel=1e-6)
    assert weight_error(weight, values) == pytest.approx(float((weight - values).norm() / weight.norm()))


def test_zero_weight_has_no_error() -> None:
    zero, hessian = torch.zeros(2, 3), torch.eye(3).double()
    assert weight_error(zero, zero) == output_error(zero, zero, hessian) == 0
