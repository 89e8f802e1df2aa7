"""Where weights go and in which floating-point type, checked before anything is read."""

from __future__ import annotations

from typing import Any

import torch

from qlib.errors import ModelError, describe, did_you_mean, list_names

_DTYPES = {
    torch.float32: ("float32", "float", "fp32", "f32"),
    torch.float16: ("float16", "half", "fp16", "f16"),
    torch.bfloat16: ("bfloat16", "bf16"),
    torch.float64: ("float64", "double", "fp64", "f64"),
}
_BY_NAME = {name: dtype for dtype, names in _DTYPES.items() for name in names}
_DEVICES = ("cpu", "cuda", "mps", "xpu")


def choose_dtype(dtype: Any, name: str = "dtype") -> torch.dtype:
    """Return a floating-point type given as torch's, as NumPy's, or by name (``"bfloat16"``).

    Parameters
    ----------
    dtype : torch.dtype, str or numpy.dtype
        What the user gave.
    name : str
        What to call it in the message.

    Raises
    ------
    ModelError
        Something else, or a type that is no float of 16 bits or more.
    """
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES:
        return dtype
    word = _type_name(dtype)
    if word in _BY_NAME:
        return _BY_NAME[word]
    known = [names[0] for names in _DTYPES.values()]
    quantize = " Fewer bits: load the float model, and call qlib.quantize." if _is_small(word) else ""
    near = did_you_mean(word, known) if word and not quantize else ""
    shown = describe(dtype) if not isinstance(dtype, torch.dtype) else str(dtype)
    raise ModelError(
        f"{name} is {shown}, not a floating-point type of weights in memory. Use torch's types or their "
        f"names: {list_names(known)}.{near}{quantize}"
    )


def choose_device(device: Any) -> torch.device:
    """Return a device of this machine given as torch's or by name (``"cpu"``, ``"cuda:0"``).

    Raises
    ------
    ModelError
        Something else, a kind of device that is unknown, or one that this machine does not have.
    """
    if not isinstance(device, str | torch.device):
        raise ModelError(
            f"device is {describe(device)}, not a device. Use its name, for example 'cpu' or 'cuda:0'."
        )
    word = str(device).strip().lower()
    kind = word.partition(":")[0]
    if kind not in _DEVICES:
        near = " Did you mean 'cuda'?" if kind == "gpu" else did_you_mean(kind, _DEVICES)
        raise ModelError(f"device={word!r} is unknown. Known: {list_names(_DEVICES)}.{near}")
    try:
        chosen = torch.device(word)
    except RuntimeError as error:
        raise ModelError(
            f"device={word!r} is not a kind and a number, as in {kind + ':0'!r}. Correct it."
        ) from error
    count = _count(kind)
    if (chosen.index or 0) >= count:
        found = f"this machine has {count}" if count else f"torch {torch.__version__} finds none here"
        use = "device='cpu'" if not count else f"device='{kind}:0' up to '{kind}:{count - 1}'"
        raise ModelError(f"device={word!r} is not there: of kind {kind!r} {found}. Use {use}.")
    return chosen


def _count(kind: str) -> int:
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = torch.cuda if kind == "cuda" else torch.xpu
    return int(module.device_count()) if module.is_available() else 0


def _type_name(dtype: Any) -> str:
    """Return the name of a type as users write it; empty where it is no type at all."""
    if isinstance(dtype, str | torch.dtype):
        return str(dtype).strip().lower().removeprefix("torch.")
    if isinstance(dtype, type) and dtype.__module__ == "numpy":
        return dtype.__name__
    return (
        dtype.name if type(dtype).__module__.partition(".")[0] == "numpy" and hasattr(dtype, "name") else ""
    )


def _is_small(word: str) -> bool:
    return word.startswith(("int", "uint", "float8", "fp8", "nf4", "fp4"))
