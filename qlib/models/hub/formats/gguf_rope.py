"""The rotary scaling of a GGUF file.

Llama 3's is stored as its result, one factor a pair, without its settings, which are found again here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qlib.errors import ModelError
from qlib.models.hub.formats.gguf import GgufFile
from qlib.models.rotary import Rope

FACTORS = "rope_freqs.weight"


def rope_scaling(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Return `rope_scaling` of config.json."""
    architecture = file.metadata["general.architecture"]
    kind = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ModelError(
            f"{file.path} scales its rotary embeddings by {kind!r}, which is not read: only 'linear' and "
            "Llama 3's. Use a model with one of these."
        )
    if FACTORS in file.tensors:
        return llama3_scaling(file.read(FACTORS).double(), head_dim, theta, str(file.path))
    factor = file.values.number(f"{architecture}.rope.scaling.factor", 1.0, above=0)
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else None


def llama3_scaling(factors: Tensor, head_dim: int, theta: float, where: str) -> dict[str, Any] | None:
    """Return the settings of Llama 3's rotary scaling that lead to the factors stored in a file.

    The factor of a pair that turns t times a token is 1 for fast pairs, F for slow ones, and between

        1 / factor = (1 - k) / F + k        k = (context t - low) / (high - low)

    A straight line, so two pairs on the ramp tell context, low and high but for a common multiple, which
    changes nothing: low is 1, as in all published models.

    Parameters
    ----------
    factors : Tensor
        float64 ``[head_dim / 2]``.
    head_dim, theta : int, float
        Channels of a head; base of the rotation.
    where : str
        The file, for messages.
    """
    largest = float(factors.max())
    if bool((factors == 1).all()):
        return None
    turns = theta ** -(torch.arange(0, head_dim, 2).double() / head_dim) / (2 * torch.pi)
    tried = [(4.0, 8192)]  # as published
    if factors.shape == turns.shape and largest > 1:
        k = (1 / factors - 1 / largest) / (1 - 1 / largest)
        ramp = ((k > 1e-4) & (k < 1 - 1e-4)).nonzero().flatten()
        if len(ramp) > 1:
            first, last = int(ramp[0]), int(ramp[-1])
            slope = float((k[first] - k[last]) / (turns[first] - turns[last]))
            start = float(k[first]) - slope * float(turns[first])
            if start < 0:
                tried.append((round(1 - 1 / start, 3), round(slope * -1 / start)))
    for high, context in tried:
        rope = Rope(theta, "llama3", largest, 1.0, high, context)
        scaled = rope.frequencies(head_dim).double()
        if factors.shape == scaled.shape and torch.allclose(
            2 * torch.pi * turns / scaled, factors, rtol=1e-4
        ):
            return rope.scaling()
    raise ModelError(
        f"{where}: {FACTORS} scales the rotary embeddings by {len(factors)} factors from "
        f"{float(factors.min()):.4g} to {largest:.4g} for {len(turns)} pairs, which is not Llama 3's "
        "scaling. Use a model with that one or none."
    )
