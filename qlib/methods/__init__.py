"""Quantization methods, one file each. `METHODS` lists them by name: class, `paper` and `needs`."""

from __future__ import annotations

from typing import Any

from qlib.methods.awq import AWQ
from qlib.methods.gptq import GPTQ
from qlib.methods.hqq import HQQ
from qlib.methods.omniquant import OmniQuant
from qlib.methods.quik import QUIK
from qlib.methods.rtn import RTN
from qlib.methods.smoothquant import SmoothQuant
from qlib.methods.spqr import SpQR

__all__ = ["AWQ", "GPTQ", "HQQ", "METHODS", "QUIK", "RTN", "OmniQuant", "SmoothQuant", "SpQR"]

METHODS: dict[str, type[Any]] = {
    method.name: method for method in (RTN, HQQ, GPTQ, SmoothQuant, AWQ, OmniQuant, SpQR, QUIK)
}
