"""Lesson 18: bytes and bit operations against word errors.

What you will learn
- the bits of a code are not the size of a file: scales, embedding and what stays in float count; "4 bits" of
  the linear layers alone is 11 bits per parameter of Whisper tiny;
- an encoder's weights are read once per window (30 s at most), a decoder's once per written token: memory
  I/O is the decoder's, bit operations are the encoder's;
- a table of sizes and error rates has a front: settings that no other one beats in both.

Page: docs/cost.md    Source: qlib/analysis/cost.py
Exercise: examples/exercises/ex02_groups_and_stored_bits.py
Run: python examples/18_what_a_byte_buys.py                            a random miniature (seconds)
     python examples/18_what_a_byte_buys.py --model whisper-tiny.en    real words (some minutes)
"""

from __future__ import annotations

from typing import Any

import torch
from drawing import BLUE, GREY, ORANGE, canvas, save
from recognizer import chosen_recognizer

import qlib
from qlib.asr.calibration import speech_batches
from qlib.models.table import align

TABLE = "embed_tokens"  # which is the head, too


def grids(bits: int, table: int | None = None) -> dict[str, qlib.Grid]:
    """Return a grid for all layers, and one for the token table if it is to be rounded."""
    found = {"*": qlib.Grid(bits, 64, scale_bits=16)}
    return found if table is None else {**found, TABLE: qlib.Grid(table, 64, scale_bits=16)}


SETTINGS: dict[str, tuple[dict[str, qlib.Grid], Any]] = {
    "w8": (grids(8), None),
    "w8, table 8": (grids(8, 8), None),
    "w4": (grids(4), None),
    "w4, table 8": (grids(4, 8), None),
    "w4, table 4": (grids(4, 4), None),
    "w4a8, table 4": (grids(4, 4), qlib.PerToken(8)),
}


# %% 1. What is lost: words, or with a miniature, which writes none, the error of the logits
def lost(model: Any, exact: Any, test: list[qlib.Utterance], real: bool) -> float:
    """Return the word error rate, or the error of the logits in percent of their size."""
    if real:
        return qlib.evaluate_wer(model, test, progress=False).wer
    with torch.no_grad():
        pairs = [[each(b.features, b.tokens)[b.token_mask] for each in (model, exact)]
                 for b in speech_batches(exact, test)]  # fmt: skip
    found, right = (torch.cat(each) for each in zip(*pairs, strict=True))
    return 100 * float((found - right).norm() / right.norm())


# %% 2. The front: settings that no other one beats in both numbers
def front(points: list[tuple[float, float]]) -> list[int]:
    """Return the indices of the points on the front, by size."""
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not found or points[i][1] < points[found[-1]][1]:
            found.append(i)
    return found


def main() -> None:
    """Print one table, draw one picture."""
    # %% 3. Six settings
    model, calib, test, real = chosen_recognizer()
    models: dict[str, Any] = {"float": model}
    for name, (weight, activation) in SETTINGS.items():
        method = [qlib.GPTQ(damping=0.1, fit="mse")] if real else []
        result = qlib.quantize(
            model, method, weight=weight, activation=activation, calib=calib, progress=False
        )
        models[name] = result.model
    # %% 4. What each costs
    name_of_loss = "WER %" if real else "logit error %"
    rows = [("", "file MB", "bits/parameter", "MB per token", "10^9 bit operations", name_of_loss)]
    points = []
    for name, each in models.items():
        found = qlib.cost(each, audio_seconds=10, tokens=40, float_bits=16)  # as in docs/cost.md
        loss = lost(each, model, test, real)
        size = found.size.file_bytes / 1e6
        points.append((size, loss))
        rows.append(
            (
                name,
                f"{size:.3g}",
                f"{found.bits_per_parameter:.2f}",
                f"{found.per_token.weight_bytes / 1e6:.3g}",
                f"{found.total.bit_operations / 1e9:,.0f}",
                f"{loss:.1f}",
            )
        )
    note = "" if real else " (the file of the miniature has 32)"
    print(f"a run of 10 s of audio and 40 written tokens, float numbers of 16 bits{note}")
    print(f"errors on {len(test)} recordings\n\n{align(rows)}")
    best = front(points)
    print(f"\non the front: {'; '.join(list(models)[i] for i in best)}")

    # %% 5. Size against errors
    figure = canvas(7, 4)
    axes = figure.subplots()
    axes.plot(*zip(*(points[i] for i in best), strict=True), "--", color=GREY)
    for i, (name, (size, loss)) in enumerate(zip(models, points, strict=True)):
        axes.plot(size, loss, "o", color=BLUE if i in best else ORANGE)
        place = (4, 5 - 17 * (i % 2))  # by turns above and below: neighbours are near each other
        axes.annotate(name, (size, loss), xytext=place, textcoords="offset points", fontsize=8)
    title = "Half of the file is the token table" if real else "A miniature: how it is measured"
    axes.set(title=title, xlabel="megabytes of the file", ylabel=name_of_loss)
    save(figure, "18_what_a_byte_buys")


# %% Try this: predict first, then run
# 1. "w8, table 4": (grids(8, 4), None) in SETTINGS: does it save as much per token as "w4, table 8"?
#    What does that say of the table's share? (In Whisper tiny it is larger.)
# 2. Inputs of 8 bits save bit operations, but no bytes per token: why? And why are operations not halved?
# 3. "w4, table 3": (grids(4, 3), None) in SETTINGS: smaller by how much, and still on the front?

if __name__ == "__main__":
    main()
