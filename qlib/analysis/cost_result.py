"""What a run costs: sums by part, divided by seconds and by tokens, as a table and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlib.analysis.cost_formulas import Amount
from qlib.analysis.held_weights import Size
from qlib.models.table import align

AUDIO, TOKEN = "audio", "token"  # when a part runs: once a window of audio, or once for each written token
SETTINGS = ("family", "audio_seconds", "windows", "prompt_tokens", "tokens", "float_bits")


@dataclass(frozen=True)
class Part:
    """One row of the table: a kind of layer, when it runs, and its cost in the whole run."""

    name: str
    when: str  # "audio": once a window; "token": once for each written token
    amount: Amount


@dataclass(frozen=True)
class Cost:
    """What one run of a model costs, by kind of layer, and how large the model is on disk."""

    family: str
    audio_seconds: float | None  # None for a text model
    windows: int
    prompt_tokens: int  # of each window
    tokens: int  # written, in all windows together
    float_bits: int  # of a number in float
    parts: tuple[Part, ...]
    cache_size: int  # bytes of keys and values at the end of a window
    size: Size

    def sum_of(self, when: str = "", name: str = "") -> Amount:
        """Return the sum over parts that run `when`, and whose name begins with `name`; by default all."""
        return sum(
            (p.amount for p in self.parts if when in ("", p.when) and p.name.startswith(name)), Amount()
        )

    @property
    def total(self) -> Amount:
        """The whole run."""
        return self.sum_of()

    @property
    def per_second(self) -> Amount | None:
        """What the encoder's side costs for each second of audio; None for a text model."""
        return None if self.audio_seconds is None else self.sum_of(AUDIO) / self.audio_seconds

    @property
    def per_token(self) -> Amount:
        """What the decoder costs for each written token."""
        return self.sum_of(TOKEN) / self.tokens

    @property
    def bits_per_weight(self) -> float | None:
        """Average over the quantized layers, with all that they store; None where there are none."""
        size = self.size
        return size.quantized_bits / size.quantized_weights if size.quantized_weights else None

    @property
    def bits_per_parameter(self) -> float:
        """Average over the whole file: embeddings, norms and biases too."""
        return 8 * self.size.file_bytes / self.size.parameters

    def record(self) -> dict[str, Any]:
        """Return all figures as plain data: sizes, sums of the run, and each part's."""
        seconds = None if self.per_second is None else _figures(self.per_second)
        return {
            **{name: getattr(self, name) for name in SETTINGS},
            "bits_per_weight": self.bits_per_weight,
            "bits_per_parameter": self.bits_per_parameter,
            **asdict(self.size),
            "cache_size": self.cache_size,
            "total": _figures(self.total),
            "per_second": seconds,
            "per_token": _figures(self.per_token),
            "parts": [{"name": p.name, "when": p.when, **_figures(p.amount)} for p in self.parts],
        }

    def __str__(self) -> str:
        heading = ("part", "per", "weights MB", "activations MB", "cache MB", "10^9 bit operations")
        rows: list[tuple[str, ...]] = [heading]
        for part in self.parts:
            audio = part.when == AUDIO and self.audio_seconds is not None
            amount = part.amount / (self.audio_seconds or 1.0 if audio else self.tokens)
            rows.append((part.name, "second" if audio else "token", *_cells(amount)))
        if self.per_second is not None:
            rows.append(("all", "second", *_cells(self.per_second)))
        rows += [("all", "token", *_cells(self.per_token)), ("all", "run", *_cells(self.total))]
        return "\n".join([self._heading(), align(rows, left=2), self._size()])

    def _heading(self) -> str:
        run = f"{self.tokens} tokens written after a prompt of {self.prompt_tokens}"
        if self.audio_seconds is not None:
            windows = "1 window" if self.windows == 1 else f"{self.windows} windows"
            run = f"{self.audio_seconds:g} s of audio in {windows}, {run}"
        return f"{self.family}: {run}; float numbers have {self.float_bits} bits"

    def _size(self) -> str:
        size = self.size
        text = (
            f"file: {size.file_bytes / 1e6:,.2f} MB, {self.bits_per_parameter:.2f} bits per parameter "
            f"({size.parameters:,}); cache: up to {self.cache_size / 1e6:,.2f} MB"
        )
        if self.bits_per_weight is None:
            return text
        return f"{text}; {self.bits_per_weight:.2f} bits per quantized weight ({size.quantized_weights:,})"


def _cells(amount: Amount) -> list[str]:
    moved = amount.weight_bytes, amount.activation_bytes, amount.cache_bytes
    return [*(f"{each / 1e6:,.3f}" for each in moved), f"{amount.bit_operations / 1e9:,.3f}"]


def _figures(amount: Amount) -> dict[str, float]:
    return {**asdict(amount), "bytes_moved": amount.bytes_moved}


def overview(costs: Mapping[str, Cost]) -> str:
    """Return the runs of several models as a table, a line for each.

    Parameters
    ----------
    costs : mapping of str to Cost
        By the name that stands in the first column.
    """
    heading = ("model", "file MB", "bits per weight", "MB a token", "MB moved", "10^12 bit operations")
    rows: list[tuple[str, ...]] = [heading]
    for name, each in costs.items():
        bits = "-" if each.bits_per_weight is None else f"{each.bits_per_weight:.2f}"
        file, token = each.size.file_bytes, each.per_token.weight_bytes
        moved, operations = each.total.bytes_moved, each.total.bit_operations
        rows.append(
            (name, f"{file / 1e6:,.2f}", bits, f"{token / 1e6:,.2f}", f"{moved / 1e6:,.1f}",
             f"{operations / 1e12:,.3f}")
        )  # fmt: skip
    return align(rows)
