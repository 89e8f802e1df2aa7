"""Quantize Whisper tiny.en with RTN and GPTQ at 8, 4 and 3 bits, and see what each costs in word errors.

What you will learn: the whole way in one page. Load a model, calibrate on recordings, quantize, measure
the word error rate on other recordings, save, and load again.

    python examples/quickstart.py                 all of it, about two minutes
    python examples/quickstart.py --bits 4        one width only

The first run fetches the model (70 MB). The 24 recordings are in examples/data/speech: eleven calibrate,
the other thirteen are the test. That is little speech: read the intervals, not the second digit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import qlib
from qlib.checkpoint import folder_bytes
from qlib.models import fetch
from qlib.report import align

HERE = Path(__file__).parent
GROUP = 64  # neighbouring weights that share a scale


def main() -> None:
    options = parse()
    started = time.perf_counter()
    folder = fetch(options.model)
    model = qlib.load_model(folder)
    speech = qlib.read_manifest(HERE / "data" / "speech" / "manifest.jsonl")
    calib = [each for each in speech if each.split == "calibration"]
    test = [each for each in speech if each.split == "test"]

    reference = qlib.evaluate_wer(model, test, progress=True)
    float_bytes = folder_bytes(folder)
    rows = [
        ("", "WER %", "95 % interval", "sub", "del", "ins", "bits/weight", "MB", "of float", "worst layer")
    ]
    rows.append(("float", *errors(reference), "16", f"{float_bytes / 1e6:.1f}", "100 %", ""))
    for bits in options.bits:
        for method in (qlib.RTN(), qlib.GPTQ(damping=0.3, act_order="dynamic", fit="mse")):
            result = qlib.quantize(model, [method], weight=qlib.Grid(bits, GROUP), calib=calib)
            saved = result.save(options.out / f"{options.model}-{method.name}-w{bits}")
            wer = qlib.evaluate_wer(qlib.load_quantized(saved), test, progress=True)
            size, worst = folder_bytes(saved), result.report.worst(1)[0]
            rows.append(
                (
                    f"{method.name} w{bits} g{GROUP}",
                    *errors(wer),
                    f"{result.report.bits_per_weight:.2f}",
                    f"{size / 1e6:.1f}",
                    f"{size / float_bytes:.0%}",
                    worst.name.removeprefix("model."),
                )
            )

    print(f"\n{options.model}, {len(test)} test clips, {reference.words} words, {reference.normalizer}\n")
    print(align(rows))
    print(f"\nThe last model in detail ({saved}):\n{result.report}\n")
    print(qlib.transcribe(model, test[:1])[0], "<- float")
    print(qlib.transcribe(result.model, test[:1])[0], f"<- {rows[-1][0]}")
    print(f"\n{time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads")


def errors(wer: qlib.WerResult) -> tuple[str, ...]:
    low, high = wer.interval
    counts = (wer.substitutions, wer.deletions, wer.insertions)
    return f"{wer.wer:.2f}", f"{low:.1f} to {high:.1f}", *map(str, counts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="whisper-tiny.en", choices=["whisper-tiny.en", "whisper-base"])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3])
    parser.add_argument("--out", type=Path, default=Path("out") / "quickstart", help="where checkpoints go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
