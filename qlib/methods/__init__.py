"""Quantization methods, one file each; `METHODS` lists them by name."""

from __future__ import annotations

from typing import Any

from qlib.methods.gptq import GPTQ
from qlib.methods.rtn import RTN

METHODS: dict[str, type[Any]] = {method.name: method for method in (RTN, GPTQ)}
