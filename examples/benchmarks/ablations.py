"""One setting changed at a time: clipping, group size, how many recordings calibrate, and which ones.

    python examples/benchmarks/ablations.py --test TEST.jsonl --calib A.jsonl B.jsonl --only group,domain

    clip      the range of a group: smallest and largest weight, least error, or learned with the inputs
    group     columns that share a scale: 32, 64, 128, the whole row
    size      4, 8, 16, 32 recordings of all lists together
    domain    each list alone, as many recordings of each as the shortest has

Everything else is GPTQ with groups of 64, or, for clipping, the method that is named. Rates are compared with
float, paired over recordings. Results are one JSON object a line in out/ablations/MODEL.jsonl; what is there
under the same settings is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration_draws import Record, find, keep, load
from common import command_line, names, parse, recognizer_options, recordings

import qlib
from qlib.asr.calibration import fingerprint
from qlib.models.table import align

Setting = tuple[str, list[Any], qlib.Grid, list[qlib.Utterance]]  # name, methods, grid, calibration
KINDS = ("clip", "group", "size", "domain")


def main() -> None:
    options = read_options()
    model, test = qlib.load_model(options.model, device=options.device), recordings(options.test)
    lists = {path.stem: recordings([path]) for path in options.calib}
    store = options.out / f"{options.model}.jsonl"
    records, shown = load(store), [("", "setting", "bits per weight", "WER %", "against float")]
    plain: list[qlib.WerResult] = []
    for kind in options.only:
        for name, methods, grid, calib in settings(kind, options.bits, lists):
            key = {
                "kind": kind,
                "setting": name,
                "methods": repr(methods),
                "grid": str(grid),
                "calib": fingerprint(calib),
                "test": fingerprint(test),
            }
            if (found := find(records, key)) is None:
                plain = plain or [qlib.evaluate_wer(model, test)]
                found = {**key, **measure(model, methods, grid, calib, test, plain[0])}
                records.append(found)
                keep(records, store)
            shown.append((kind, name, f"{found['bits']:.2f}", f"{found['wer']:.2f}", found["difference"]))
    print(align(shown, left=2))


def settings(kind: str, bits: int, lists: dict[str, list[qlib.Utterance]]) -> Iterator[Setting]:
    """Yield the settings of one ablation."""
    grid, everything = qlib.Grid(bits, 64), [each for listed in lists.values() for each in listed]
    if kind == "clip":
        yield "RTN, smallest and largest", [qlib.RTN()], grid, everything
        yield "RTN, least error", [qlib.RTN(fit="mse")], grid, everything
        yield "GPTQ, smallest and largest", [qlib.GPTQ(fit="minmax")], grid, everything
        yield "GPTQ, least error", [qlib.GPTQ(fit="mse")], grid, everything
        yield "AWQ, scales alone", [qlib.AWQ(clip=False)], grid, everything
        yield "AWQ, scales and clipping", [qlib.AWQ()], grid, everything
        yield "OmniQuant, learned", [qlib.OmniQuant(epochs=4)], grid, everything
    for group in (32, 64, 128, None) if kind == "group" else ():
        yield str(group or "row"), [qlib.GPTQ()], qlib.Grid(bits, group), everything
    for size in (4, 8, 16, 32) if kind == "size" else ():
        if size <= len(everything):
            yield f"{size} of {len(everything)}", [qlib.GPTQ()], grid, spread(everything, size)
    shortest = min(map(len, lists.values()))
    for name, listed in lists.items() if kind == "domain" else ():
        yield f"{name}, {shortest}", [qlib.GPTQ()], grid, spread(listed, shortest)


def spread(listed: list[qlib.Utterance], count: int) -> list[qlib.Utterance]:
    """Return `count` recordings at equal distances in a list."""
    return [listed[i * len(listed) // count] for i in range(count)]


def measure(
    model: Any,
    methods: list[Any],
    grid: qlib.Grid,
    calib: list[qlib.Utterance],
    test: list[qlib.Utterance],
    plain: qlib.WerResult,
) -> Record:
    """Quantize and score."""
    result = qlib.quantize(model, methods, weight=grid, calib=calib)
    found = qlib.evaluate_wer(result.model, test)
    low, high = (against := qlib.compare(plain, found)).interval
    return {
        "bits": result.report.bits_per_weight,
        "wer": found.wer,
        "difference": f"{against.difference:+.2f} [{low:+.2f}, {high:+.2f}]",
        "signature": found.signature,
    }


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    recognizer_options(parser)
    parser.add_argument("--only", type=names, default=list(KINDS), help="clip,group,size,domain")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out") / "ablations")
    options = parse(parser)
    if unknown := [name for name in options.only if name not in KINDS]:
        parser.error(f"--only {unknown[0]}: there are {', '.join(KINDS)}.")
    return options


if __name__ == "__main__":
    main()
