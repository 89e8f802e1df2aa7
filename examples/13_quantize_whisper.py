"""Lesson 13: a whole Whisper.

What you will learn
- one call quantizes a model: methods that change the weights in float first (SmoothQuant, AWQ, OmniQuant),
  at most one that rounds them last;
- at 8 bits every method is good on a real model but SpQR, whose own scales have 3 bits: on whisper-tiny.en
  27 % of the words are wrong, 19 in float. On the miniature it corrects errors as GPTQ does, and yet has
  five times the error of GPTQ, as RTN has. `SpQR(second_bits=8)` is the remedy;
- at 4 bits most methods are good; at 3 those that correct errors or keep outliers stand out. That needs a
  trained model: three methods with --model, all in docs/results.md. The miniature's weights are random;
- what counts is the output on speech that calibration has not heard, and which words go wrong;
- bits per weight are not the bits of a code: scales, zeros and what is kept in float count as well.

Page: docs/results.md    Source: qlib/pipeline.py, quantize_block.py, chain.py
Exercise: examples/exercises/ex04_gptq.py
Run: python examples/13_quantize_whisper.py                            eight methods on a miniature (a minute)
     python examples/13_quantize_whisper.py --model whisper-tiny.en    three methods, real words (minutes)
"""

from __future__ import annotations

from typing import Any

import torch
from recognizer import chosen_recognizer
from rounding_pictures import draw_methods

import qlib
from qlib.asr.calibration import speech_batches
from qlib.models.table import align

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
WITH_WORDS = ("rtn", "gptq", "spqr")  # on a real model: the others take their time
CLIPS = 4  # recordings that calibrate a real model, and those that test it


# %% What is computed
@torch.no_grad()
def logits(model: Any, batches: list[Any]) -> torch.Tensor:
    """Return the logits of all true tokens, given the true tokens before them."""
    return torch.cat([model(batch.features, batch.tokens)[batch.token_mask] for batch in batches])


def main() -> None:
    """Print one table, and with a real model what it wrote; draw one picture."""
    # %% 1. A model, and recordings of which calibration hears half
    model, calib, test, real = chosen_recognizer()
    calib, test = (calib[:CLIPS], test[:CLIPS]) if real else (calib, test)
    methods = {name: METHODS[name] for name in (WITH_WORDS if real else METHODS)}
    widths = (4, 3) if real else (8, 4, 3)
    batches = speech_batches(model, test)
    reference = logits(model, batches)
    written = {"float": qlib.evaluate_wer(model, test, progress=False)} if real else {}

    # %% 2. All methods, all widths
    columns = ("error %", "bits", *(["WER"] if real else []))
    rows = [("", *(f"{column} w{bits}" for bits in widths for column in columns))]
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, chain in methods.items():
        cells, curves[name] = [name], []
        for bits in widths:
            grid = qlib.Grid(bits, 16 if name == "spqr" else 32)
            result = qlib.quantize(model, chain, weight=grid, calib=calib, progress=False)
            error = 100 * float((logits(result.model, batches) - reference).norm() / reference.norm())
            size = result.report.bits_per_weight
            cells += [f"{error:.2f}", f"{size:.2f}"]
            curves[name].append((size, error))
            if real:
                found = qlib.evaluate_wer(result.model, test, progress=False)
                written[f"{name} w{bits}"] = found
                cells.append(f"{found.wer:.1f}")
        rows.append(tuple(cells))
    print(f"error of the logits on {len(test)} clips that calibration has not heard, in % of their size\n")
    print(align(rows))
    report = result.report
    left = [model.get_submodule(name) for name, _ in report.skipped if ".layers." in name]
    sizes = [layer.weight.numel() for layer in left if isinstance(layer, torch.nn.Linear)]
    rounded = sum(layer.outputs * layer.inputs for layer in report.layers)
    print(f"\nIn float: {sum(sizes) / (rounded + sum(sizes)):.0%} of the linear layers' weights "
          "in the blocks; \"bits\" does not count them.")  # fmt: skip

    # %% 3. Which words went wrong, in the two clips with the most errors
    for name, found in written.items():
        print(f"\n{name}: WER {found.wer:.1f}\n{found.marked(2)}")
    if not real:
        print(
            "\nThe miniature's weights are random, and so is the order of the methods: see docs/results.md."
        )
    draw_methods(curves)


# %% Try this: predict first, then run
# 1. [qlib.AWQ(), qlib.GPTQ()] as another row of METHODS: does it beat both of its parts?
# 2. Which methods store more than the bits of a code, a scale and a zero point (as rtn does)? Look at "bits".
# 3. skip=["fc2"] for `qlib.quantize`: which share of the weights is in float, how much of the error goes?

if __name__ == "__main__":
    main()
