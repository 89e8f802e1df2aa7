"""dtypes and devices by any unambiguous name; all else is refused before a file is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qlib.errors import ModelError
from qlib.models.hub.load import load_model
from qlib.models.hub.placement import choose_device, choose_dtype


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *((dtype, dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)),
        *((name, torch.float16) for name in ("float16", "torch.float16", "half", "FP16", " f16 ")),
        *((name, torch.bfloat16) for name in ("bfloat16", "bf16", "torch.bfloat16")),
        *((name, torch.float32) for name in ("float32", "float", "fp32", np.float32, np.dtype("float32"))),
        (np.float64, torch.float64),
    ],
)
def test_names_of_types(given: Any, expected: torch.dtype) -> None:
    assert choose_dtype(given) is expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("flaot16", "dtype is the str 'flaot16', .*: float32, float16, bfloat16, float64.* mean 'float16'"),
        (torch.int8, r"dtype is torch\.int8, .*qlib\.quantize"),
        ("int4", r"qlib\.quantize"),
        ("fp8", r"qlib\.quantize"),
        (torch.float8_e4m3fn, "not a floating-point type of weights in memory"),
        (torch.complex64, r"dtype is torch\.complex64"),
        (None, "dtype is None"),
        (16, "dtype is the int 16"),
        (float, "dtype is the class float"),
        (["float16"], "dtype is a list of 1 str"),
        ("auto", "dtype is the str 'auto'"),
        ("", "dtype is the str ''"),
        (np.int8, r"dtype is the class int8.*qlib\.quantize"),
    ],
)
def test_other_types_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        choose_dtype(given)
    with pytest.raises(ModelError, match=message):
        load_model("no-such-model", given)


@pytest.mark.parametrize("given", ["cpu", "CPU", " cpu ", "cpu:0", torch.device("cpu")])
def test_names_of_devices(given: Any) -> None:
    assert choose_device(given).type == "cpu"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gpu", "device='gpu' is unknown. Known: cpu, cuda, mps, xpu. Did you mean 'cuda'?"),
        ("cdua", "Did you mean 'cuda'?"),
        ("meta", "device='meta' is unknown"),
        ("cuda", r"device='cuda' is not there: of kind 'cuda' torch .* finds none here\. Use device='cpu'"),
        ("cuda:7", "device='cuda:7' is not there"),
        (torch.device("cuda", 1), "device='cuda:1' is not there"),
        ("mps", "device='mps' is not there"),
        ("cpu:3", "device='cpu:3' is not there: of kind 'cpu' this machine has 1"),
        ("cuda:x", "device='cuda:x' is not a kind and a number, as in 'cuda:0'"),
        (0, "device is the int 0, not a device"),
        (None, "device is None"),
        (["cpu"], "device is a list of 1 str"),
        ("", "device='' is unknown"),
    ],
)
def test_other_devices_are_refused(given: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match=message):
        choose_device(given)
    with pytest.raises(ModelError, match=message):
        load_model("no-such-model", device=given)


def test_a_number_beyond_the_last_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match=r"this machine has 2\. Use device='cuda:0' up to 'cuda:1'"):
        choose_device("cuda:7")
