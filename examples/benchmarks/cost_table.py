"""What models cost at several widths: bytes moved, bit operations, and the file, by qlib.cost.

    python examples/benchmarks/cost_table.py                       a table of four models
    python examples/benchmarks/cost_table.py --model whisper-base  one model, with every kind of layer

Nothing is measured here: all is counted, from the shapes and from what each layer stores. Weights are rounded
to nearest, which takes no calibration; GPTQ and AWQ store as much. Float numbers have 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import command_line, names, parse

import qlib
from qlib.models.structure import Model
from qlib.models.table import align

MODELS = "whisper-tiny.en,whisper-base,moonshine-tiny,smollm2-135m-instruct"
WIDTHS: dict[str, tuple[qlib.Grid, qlib.PerToken | None]] = {
    "w8a16": (qlib.Grid(8, 64), None),
    "w8a8": (qlib.Grid(8, 64), qlib.PerToken(8)),
    "w4a16": (qlib.Grid(4, 64), None),
    "w4a8": (qlib.Grid(4, 64), qlib.PerToken(8)),
    "w3a16": (qlib.Grid(3, 64), None),
}


def versions(model: Model) -> Iterator[tuple[str, Model]]:
    """Yield the model in float16, and rounded to each width."""
    yield "float16", model
    for name, (grid, activation) in WIDTHS.items():
        yield name, qlib.quantize(model, weight=grid, activation=activation, progress=False).model


def row(name: str, width: str, found: qlib.Cost) -> tuple[str, ...]:
    """Return the figures of one model at one width."""
    second, token, total = found.per_second, found.per_token, found.total
    return (
        name,
        width,
        "-" if second is None else f"{second.weight_bytes / 1e6:.2f}",
        f"{token.weight_bytes / 1e6:.2f}",
        f"{token.cache_bytes / 1e6:.2f}",
        f"{total.bytes_moved / 1e6:,.0f}",
        f"{total.bit_operations / 1e12:,.2f}",
        "-" if found.bits_per_weight is None else f"{found.bits_per_weight:.2f}",
        f"{found.bits_per_parameter:.2f}",
        f"{found.size.file_bytes / 1e6:.1f}",
    )


def main() -> None:
    """Print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--model", type=names, default=MODELS, help="names or folders, with commas")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=40)
    options = parse(parser)
    rows: list[tuple[str, ...]] = [
        ("model", "width", "MB/second", "MB/token", "cache", "MB moved", "10^12 bit op.", "bits/weight",
         "bits/param", "file MB")
    ]  # fmt: skip
    for name in options.model:
        for width, model in versions(qlib.load_model(name, dtype="float16")):
            seconds = options.seconds if hasattr(model, "encode_speech") else None
            found = qlib.cost(model, seconds, options.tokens)
            rows.append(row(name, width, found))
            if len(options.model) == 1:
                print(f"{width}: {found}\n")
    print(align(rows, left=2))


if __name__ == "__main__":
    main()
