"""Quantize Whisper tiny.en to 8 and to 3 bits, and see what each method keeps of its words.

What you will learn: the whole way in one page. Load a model, calibrate on recordings, quantize, measure
the word error rate on other recordings, save, and load again. At 8 bits rounding to nearest is enough. At 3
bits it breaks the model; GPTQ, which lets later columns make up for earlier ones, and SpQR, which keeps
the outliers in float, do not.

    python examples/quickstart.py                 all of it, one to two minutes on two idle cores
    python examples/quickstart.py --bits 4        one width only

The first run fetches the model (71 MB). The 24 recordings are in examples/data/speech: eleven calibrate,
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
from qlib.models.table import align

HERE = Path(__file__).parent
WHEN = {
    "rtn": "needs no data; enough at 8 bits",
    "gptq": "needs recordings to calibrate on; for 4 and 3 bits at the same size as rtn",
    "spqr": "needs recordings too; where a bit more per weight is welcome, for the least loss",
}
HEAD = ("", "WER %", "95 % interval", "sub", "del", "ins", "length", "bits/weight", "MB", "of float")


def main() -> None:
    options = parse()
    started = time.perf_counter()
    folder = fetch(options.model)
    model = qlib.load_model(folder)
    speech = qlib.read_manifest(HERE / "data" / "speech" / "manifest.jsonl")
    calib = [each for each in speech if each.split == "calibration"]
    test = [each for each in speech if each.split == "test"]

    heard = {"float": qlib.evaluate_wer(model, test)}
    float_bytes = folder_bytes(folder)
    rows = [HEAD, ("float", *errors(heard["float"]), "16", f"{float_bytes / 1e6:.1f}", "100 %")]
    for bits in options.bits:
        for method, group in recipes(bits):
            name = f"{method.name} w{bits} g{group}"
            result = qlib.quantize(model, [method], weight=qlib.Grid(bits, group), calib=calib)
            saved = result.save(options.out / f"{options.model}-{method.name}-w{bits}")
            heard[name] = qlib.evaluate_wer(qlib.load_quantized(saved), test)
            size = folder_bytes(saved)
            rows.append(
                (
                    name,
                    *errors(heard[name]),
                    f"{result.report.bits_per_weight:.2f}",
                    f"{size / 1e6:.1f}",
                    f"{size / float_bytes:.0%}",
                )
            )

    reference = heard["float"]
    print(f"\n{options.model}, {len(test)} test clips, {reference.words} words, {reference.normalizer}\n")
    print(align(rows))
    print("\n" + "\n".join(f"{name:4}  {text}" for name, text in WHEN.items()))
    print(f"\nThe last model in detail ({saved}):\n{result}\n")
    print(worst_clip(heard))
    print(f"\n{time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads")


def recipes(bits: int) -> list[tuple[qlib.RTN | qlib.GPTQ | qlib.SpQR, int]]:
    """Return methods and groups for a width: at 8 bits the simplest will do."""
    if bits == 8:
        return [(qlib.RTN(), 64)]
    return [(qlib.RTN(), 64), (qlib.GPTQ(), 64), (qlib.SpQR(), 16)]


def errors(wer: qlib.WerResult) -> tuple[str, ...]:
    low, high = wer.interval
    counts = (wer.substitutions, wer.deletions, wer.insertions)
    return f"{wer.wer:.2f}", f"{low:.1f} to {high:.1f}", *map(str, counts), f"{wer.length_ratio:.2f}"


def worst_clip(heard: dict[str, qlib.WerResult]) -> str:
    """Return what each model wrote for the clip on which they differ most, by its words."""
    reference, others = heard["float"], list(heard.values())
    counts = list(zip(*(each.utterance_errors for each in others), strict=True))
    words = reference.utterance_words
    clip = max(range(len(counts)), key=lambda i: (max(counts[i]) - counts[i][0]) / words[i])
    lines = [("said", reference.references[clip])]
    lines += [(name, wer.hypotheses[clip]) for name, wer in heard.items()]
    width = max(len(name) for name, _ in lines)
    texts = (f"  {name.ljust(width)}  {text[:300]}{' ...' * (len(text) > 300)}" for name, text in lines)
    return f"The clip on which they differ most, {reference.ids[clip]}:\n" + "\n".join(texts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="whisper-tiny.en", choices=["whisper-tiny.en", "whisper-base"])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 3])
    parser.add_argument("--out", type=Path, default=Path("out") / "quickstart", help="where checkpoints go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
