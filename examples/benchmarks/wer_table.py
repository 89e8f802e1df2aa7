"""Word error rates of RTN and GPTQ at 4 and 3 bits against float, paired over utterances.

    python examples/benchmarks/wer_table.py --model whisper-tiny.en --test TEST.jsonl --calib CALIB.jsonl ...

Calibration and test recordings must be different ones. Each row is written to out/wer_table as soon as it is
measured, so an interrupted run goes on where it stopped; remove the file to measure again. On 2 cores one row
takes about 4 minutes for tiny.en and 10 for base, with 50 test and 64 calibration clips.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import qlib
from qlib.report import align

ROWS: dict[str, tuple[int, list[Any]]] = {
    "float": (0, []),
    "rtn w4": (4, [qlib.RTN()]),
    "gptq w4": (4, [qlib.GPTQ(damping=0.1, act_order="static", fit="mse")]),
    "rtn w3": (3, [qlib.RTN()]),
    "gptq w3": (3, [qlib.GPTQ(damping=0.3, act_order="dynamic", fit="mse")]),
}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    model = qlib.load_model(options.model)
    test = qlib.read_manifest(options.test)
    calib = [each for manifest in options.calib for each in qlib.read_manifest(manifest)]
    store = options.out / f"{options.model}.json"
    results = load(store)
    for name, (bits, methods) in ROWS.items():
        if name not in results:
            measured = model
            if bits:
                grid = qlib.Grid(bits, options.group)
                measured = qlib.quantize(model, methods, weight=grid, calib=calib).model
            results[name] = qlib.evaluate_wer(measured, test, progress=True)
            save(store, results)
    print(f"{options.model}, {len(test)} test clips, {len(calib)} calibration clips, g{options.group}\n")
    rows = [("", "WER %", "sub", "del", "ins", "minus float", "95 %")]
    for name, wer in results.items():
        counts = map(str, (wer.substitutions, wer.deletions, wer.insertions))
        paired = qlib.compare(results["float"], wer)
        low, high = paired.interval
        rows.append(
            (name, f"{wer.wer:.2f}", *counts, f"{paired.difference:+.2f}", f"{low:.1f} to {high:.1f}")
        )
    print(align(rows))
    for bits in (4, 3):
        paired = qlib.compare(results[f"rtn w{bits}"], results[f"gptq w{bits}"])
        print(f"gptq w{bits} against rtn w{bits}: {paired}")


def load(store: Path) -> dict[str, qlib.WerResult]:
    if not store.is_file():
        return {}
    saved = json.loads(store.read_text())
    lists = {
        name: {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        for name, row in saved.items()
    }
    return {name: qlib.WerResult(**row) for name, row in lists.items()}


def save(store: Path, results: dict[str, qlib.WerResult]) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    fresh = store.with_suffix(".partial")
    fresh.write_text(json.dumps({name: asdict(wer) for name, wer in results.items()}))
    fresh.replace(store)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="whisper-tiny.en", choices=["whisper-tiny.en", "whisper-base"])
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--calib", type=Path, nargs="+", required=True)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out") / "wer_table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
