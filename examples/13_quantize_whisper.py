"""Lesson 13: a whole Whisper, eight methods, three widths.

What you will learn
- one call quantizes a model: transformations first, at most one rounding method last;
- at 8 bits every method is good, at 4 most are; at 3 those that correct errors or keep outliers stand out;
- what counts is the output on speech that calibration has not heard;
- bits a weight are not the bits of a code: scales, zeros and what is kept in float count as well.

Page: docs/results.md    Source: qlib/pipeline.py, quantize_block.py, chain.py
Exercise: examples/exercises/ex04_gptq.py
Run: python examples/13_quantize_whisper.py                               a random miniature (a minute)
     python examples/13_quantize_whisper.py --model whisper-tiny.en   real words and their error rate (30 min)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, canvas, save

import qlib
from qlib.asr.calibration import speech_batches
from qlib.models.table import align
from qlib.models.tiny import tiny_whisper

SPEECH = Path(__file__).parent / "data" / "speech" / "manifest.jsonl"
WIDTHS = (8, 4, 3)
METHODS: dict[str, list[Any]] = {
    "rtn": [qlib.RTN()],
    "hqq": [qlib.HQQ()],
    "smoothquant": [qlib.SmoothQuant()],
    "awq": [qlib.AWQ()],
    "omniquant": [qlib.OmniQuant(epochs=3)],
    "gptq": [qlib.GPTQ()],
    "spqr": [qlib.SpQR()],
    "quik": [qlib.QUIK(damping=0.1)],
}
COLORS = (GREY, INK, PURPLE, BLUE, "#0e7490", GREEN, ORANGE, RED)


@torch.no_grad()
def logits(model: Any, batches: list[Any]) -> torch.Tensor:
    """Return the logits of all true tokens, given the true tokens before them."""
    return torch.cat([model(batch.features, batch.tokens)[batch.token_mask] for batch in batches])


def main() -> None:
    """Print one table, draw one picture."""
    # %% 1. A model, and recordings of which calibration hears half
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--model", help="a fetched model or a folder; without it, a miniature with random weights"
    )
    name = parser.parse_args().model
    model = qlib.load_model(name) if name else tiny_whisper(width=64)
    speech = qlib.read_manifest(SPEECH)
    calib = [each for each in speech if each.split == "calibration"]
    test = [each for each in speech if each.split == "test"]
    if not name:  # a miniature spells its texts letter by letter and has room for 63
        short = [each for each in speech if len(each.text or "") < 50]
        calib, test = short[:6:2], short[1:6:2]
    batches = speech_batches(model, test)
    reference = logits(model, batches)
    heading = (
        "",
        *(f"{text} w{bits}" for bits in WIDTHS for text in ("error %", *(["WER"] if name else []), "bits")),
    )
    # %% 2. Eight methods, three widths
    rows, curves = [heading], {}
    for method, chain in METHODS.items():
        row, errors = [method], []
        for bits in WIDTHS:
            grid = qlib.Grid(bits, 16 if method == "spqr" else 32)
            result = qlib.quantize(model, chain, weight=grid, calib=calib, progress=bool(name))
            error = 100 * float((logits(result.model, batches) - reference).norm() / reference.norm())
            row.append(f"{error:.2f}")
            if name:
                row.append(f"{qlib.evaluate_wer(result.model, test).wer:.1f}")
            row.append(f"{result.report.bits_per_weight:.2f}")
            errors.append((result.report.bits_per_weight, error))
        rows.append(tuple(row))
        curves[method] = errors
    title = (
        f"{name or 'a miniature'}: error of the logits on {len(test)} clips that calibration has not heard"
    )
    print(f"{title}, in % of their size\n")
    print(align(rows))
    if name:
        print(f"\nfloat: WER {qlib.evaluate_wer(model, test).wer:.1f}")
    # %% 3. Error against stored bits
    figure = canvas(8, 4.5)
    axes = figure.subplots()
    for (method, errors), color in zip(curves.items(), COLORS, strict=True):
        axes.plot(*zip(*errors, strict=True), marker="o", color=color, label=method)
    axes.set(
        title="What a bit buys",
        xlabel="bits a weight, everything counted",
        ylabel="logit error, %",
        yscale="log",
    )
    axes.legend(ncols=2)
    save(figure, "13_quantize_whisper")


# %% Try this: predict first, then run
# 1. [qlib.AWQ(), qlib.GPTQ()] as a ninth row: does it beat both of its parts?
# 2. Which method stores more than the bits of its codes plus a scale and a zero point? Look at "bits".
# 3. skip=["fc2"]: which share of the weights stays in float, and how much of the error goes?

if __name__ == "__main__":
    main()
