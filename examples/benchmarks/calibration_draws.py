"""How much a word error rate depends on which recordings calibrate: the spread over several draws of them.

    python examples/benchmarks/calibration_draws.py --test TEST.jsonl --calib CALIB.jsonl ...

Each draw takes `--clips` of the calibration recordings without replacement, by its number as the seed, and
every method is fitted to it. A difference between two methods that is smaller than the standard deviation
over draws says nothing about the methods.

Results are one JSON object a line in out/calibration_draws/MODEL.jsonl. A line is found again by all settings
that its figure depends on, so a run that was stopped goes on, and another setting is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import command_line, names, parse, recognizer_options, recordings
from wer_table import recipes

import qlib
from qlib.asr.calibration import fingerprint
from qlib.models.files import atomic_file
from qlib.models.table import align

Record = dict[str, Any]


def main() -> None:
    options = read_options()
    model = qlib.load_model(options.model, device=options.device)
    test = recordings(options.test)
    tested = {each.path.resolve() for each in test}
    pool = [each for each in recordings(options.calib) if each.path.resolve() not in tested]
    if options.clips > len(pool):
        raise SystemExit(f"--clips {options.clips} of {len(pool)} recordings. Draw fewer, or add some.")
    store = options.out / f"{options.model}.jsonl"
    records = load(store)
    wanted = list(cells(options, pool, fingerprint(test)))
    for settings, calib in wanted:
        if find(records, settings) is None:
            records.append({**settings, **measure(model, settings, calib, test)})
            keep(records, store)
    print(table([found for settings, _ in wanted if (found := find(records, settings))]))


def cells(
    options: argparse.Namespace, pool: Sequence[qlib.Utterance], test: str
) -> Iterator[tuple[Record, list[qlib.Utterance]]]:
    """Yield settings and calibration recordings of each figure, draw by draw."""
    for draw in range(options.draws):
        calib = random.Random(draw).sample(list(pool), options.clips)
        settings = {"draw": draw, "calib": fingerprint(calib), "test": test}
        for method in options.only:
            methods, group = recipes(options.bits, options.group)[method]
            fitted = {"method": method, "recipe": repr(methods), "bits": options.bits, "group": group}
            yield {**settings, **fitted}, calib


def measure(model: Any, settings: Record, calib: list[qlib.Utterance], test: list[qlib.Utterance]) -> Record:
    """Fit a method to a draw, and score it."""
    bits, group = settings["bits"], settings["group"]
    methods, _ = recipes(bits, group)[settings["method"]]
    result = qlib.quantize(model, methods, weight=qlib.Grid(bits, group), calib=calib)
    wer = qlib.evaluate_wer(result.model, test)
    print(f"{settings['method']}, draw {settings['draw']}: {wer}", flush=True)
    return {"wer": wer.wer, "signature": wer.signature}


def load(store: Path) -> list[Record]:
    """Return the records measured so far."""
    if not store.is_file():
        return []
    return [json.loads(line) for line in store.read_text(encoding="utf-8").splitlines()]


def keep(records: Sequence[Record], store: Path) -> None:
    """Write all records; a run that is killed leaves the old file or the new one."""
    store.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(store) as path:
        path.write_text("".join(f"{json.dumps(each)}\n" for each in records), encoding="utf-8")


def find(records: Sequence[Record], settings: Record) -> Record | None:
    """Return the record of some settings."""
    return next((each for each in records if settings.items() <= each.items()), None)


def table(records: Sequence[Record]) -> str:
    """Return mean, standard deviation and extremes of the word error rate of each method."""
    lines: list[tuple[str, ...]] = [("", "draws", "mean WER %", "deviation", "lowest", "highest")]
    for method in dict.fromkeys(each["method"] for each in records):
        rates = [each["wer"] for each in records if each["method"] == method]
        deviation = f"{statistics.stdev(rates):.2f}" if len(rates) > 1 else "-"
        figures = (statistics.mean(rates), min(rates), max(rates))
        mean, lowest, highest = (f"{figure:.2f}" for figure in figures)
        lines.append((method, str(len(rates)), mean, deviation, lowest, highest))
    return align(lines)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    recognizer_options(parser)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--clips", type=int, default=32, help="recordings in a draw (%(default)s)")
    parser.add_argument("--only", type=names, default=["awq", "gptq"], help="methods (awq,gptq)")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("out") / "calibration_draws")
    return parse(parser)


if __name__ == "__main__":
    main()
