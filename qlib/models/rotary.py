"""Rotary position embeddings: pairs of channels turn by an angle that grows with the position.

Paper: Su et al. 2021, arXiv 2104.09864. The product of a query and a key then depends on their distance,
not on where they stand.

    pair i of C / 2 turns by position * theta^(-2i / C); Hugging Face checkpoints pair channels (i, i + C/2)

Angles, cos and sin are computed in float32 in every model, as in training, and rounded to its dtype.
Left out: the scalings "dynamic", "yarn" and "longrope".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qlib.errors import ModelError, list_names
from qlib.models.config_values import MOST_POSITIONS, ConfigValues

# What each kind of scaling must state, by the names in config.json.
_SCALING: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Rope:
    """Frequencies of rotary position embeddings. Paper: Su et al. 2021, arXiv 2104.09864."""

    rope_theta: float = 10000.0
    rope_type: str = "default"  # "linear": positions / factor; "llama3": only slow frequencies / factor
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192  # context before the scaling

    @classmethod
    def from_dict(cls, scaling: Mapping[str, Any] | ConfigValues | None, theta: float = 10000.0) -> Rope:
        """Read `rope_scaling` (older files) or `rope_parameters` of config.json.

        Parameters
        ----------
        scaling : mapping or None
            None: not scaled. `rope_theta` inside wins over `theta`.
        theta : float
            The base, where it stands beside the scaling.

        Raises
        ------
        ModelError
            A kind of scaling that is not supported, or a number that it needs and does not have.
        """
        if scaling is None:
            return cls(theta)
        if not isinstance(scaling, ConfigValues):
            scaling = ConfigValues(scaling, "config.json: the rotary scaling")
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in [*_SCALING]:
            raise ModelError(
                f"{scaling.file}: rotary scaling of type {kind!r} is not supported. "
                f"Supported: {list_names(_SCALING)}. Use a checkpoint with one of these."
            )
        if missing := [name for name in _SCALING[kind] if scaling.get(name) is None]:
            raise ModelError(
                f"{scaling.file}: rotary scaling of type {kind!r} lacks {list_names(missing)}. Copy "
                "config.json from where the weights came from."
            )
        # Without a scaling, the reference implementation turns all channels whatever this number says.
        if kind != "default":
            scaling.check({"partial_rotary_factor": 1.0})
        own: dict[str, Any] = {
            name: scaling.whole(name, most=MOST_POSITIONS)
            if name == "original_max_position_embeddings"
            else scaling.number(name, 0, above=0)
            for name in _SCALING[kind]
        }
        if kind == "llama3" and own["low_freq_factor"] >= own["high_freq_factor"]:
            raise scaling.refusal(
                "high_freq_factor", f"a number above low_freq_factor={own['low_freq_factor']:g}"
            )
        return cls(scaling.number("rope_theta", theta, above=0), kind, **own)

    def scaling(self) -> dict[str, Any] | None:
        """Return `rope_scaling` of config.json; None where nothing is scaled."""
        if self.rope_type == "default":
            return None
        values = asdict(self)
        return {name: values[name] for name in ("rope_type", *_SCALING[self.rope_type])}

    def frequencies(self, channels: int) -> Tensor:
        """Return the angle per position of each channel pair, float32 `[channels / 2]`."""
        pairs = torch.arange(0, channels, 2, dtype=torch.int64).float() / channels
        plain = 1.0 / self.rope_theta**pairs
        if self.rope_type == "linear":
            return plain / self.factor
        if self.rope_type == "llama3":
            # Turns within the original context: few (slow) are divided, many (fast) stay, a ramp between.
            turns = self.original_max_position_embeddings / (2 * torch.pi / plain)
            keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            keep = keep.clamp(0, 1)
            return (1 - keep) * plain / self.factor + keep * plain
        return plain


def read_rope(values: ConfigValues) -> Rope:
    """Return the rotary settings of a config.json, in the older form, the newer one, or both (older wins)."""
    scaling = values.section("rope_scaling") or values.section("rope_parameters")
    if scaling is not None and any(isinstance(value, dict) for value in scaling.values.values()):
        raise ModelError(
            f"{scaling.file} has settings by kind of layer ({list_names(scaling.values)}), which is not "
            "supported in this family, only the same for all layers. Use a checkpoint with these."
        )
    return Rope.from_dict(scaling, values.number("rope_theta", 10000.0, above=0))


def cos_sin(frequencies: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the angles of positions start .. end - 1, float32 `[end - start, C / 2]`."""
    positions = torch.arange(start, end, device=frequencies.device).float()
    angles = positions[:, None] * frequencies
    return angles.cos(), angles.sin()


class Rotary:
    """Tables of cos and sin for every position that was needed so far, computed in float32 and kept.

    Not a module: the tables belong to no checkpoint, and follow the dtype and device of their user.
    """

    def __init__(self, rope: Rope, channels: int):
        self.rope = rope
        self.channels = channels
        self._cos = torch.empty(0, 1, channels)
        self._sin = self._cos

    def tables(self, start: int, end: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and signed sin `[end - start, 1, channels]` of positions start .. end - 1."""
        cos = self._cos
        if len(cos) < end or cos.dtype != dtype or cos.device != device:
            self._build(max(256, 2 ** (end - 1).bit_length()), dtype, device)
        return self._cos[start:end], self._sin[start:end]

    # Tensors made in inference mode could not be used in training later.
    @torch.inference_mode(False)
    def _build(self, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        cos, sin = (t[:, None] for t in cos_sin(self.rope.frequencies(self.channels), 0, positions))
        self._cos = torch.cat((cos, cos), -1).to(device, dtype)
        self._sin = torch.cat((-sin, sin), -1).to(device, dtype)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + C/2) of `[B, T, heads, C]` by tables `[T, 1, C]` of `Rotary`.

        first' = first cos - second sin        second' = second cos + first sin

    >>> quarter_turn = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[-1.0, 1.0]]])
    >>> rotate(torch.tensor([[[[3.0, 5.0]]]]), *quarter_turn).flatten().tolist()
    [-5.0, 3.0]
    """
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)
