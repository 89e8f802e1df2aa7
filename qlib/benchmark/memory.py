"""What a model weighs, looked up in its files before it is loaded."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from qlib.errors import DataError
from qlib.models.disk.hashes import sha256_of
from qlib.models.disk.safetensors_file import open_safetensors
from qlib.models.hub.locate import locate

NEED = 4  # times the float32 weights: the float model, its copy, decoded values, and statistics


def weight_files(name: str) -> list[Path]:
    """Return the weight files of a model by name or folder."""
    return sorted(locate(name).glob("*.safetensors"))


def hash_of(name: str) -> str:
    """Return one hash of all weight files of a model."""
    return sha256_of("".join(sha256_of(path) for path in weight_files(name)).encode())


def check_memory(name: str) -> None:
    """Refuse a model that is too large to be quantized in the memory that is free.

    Raises
    ------
    DataError
        With both numbers.
    """
    need, free = NEED * 4 * count_weights(name), free_memory()
    if free is not None and need > free:
        raise DataError(
            f"{name} takes about {need / 1e9:.1f} GB to quantize, and {free / 1e9:.1f} GB are free. "
            "Use fewer workers, or a machine with more."
        )


def count_weights(name: str) -> int:
    """Return the number of weights in a model's files; their data is not read."""
    total = 0
    for path in weight_files(name):
        with open_safetensors(path) as file:
            total += sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total


def free_memory() -> int | None:
    """Return the bytes of memory that are free; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        if "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}):
            return None
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None
