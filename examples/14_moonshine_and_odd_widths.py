"""Lesson 14: Moonshine, whose width 288 is no multiple of 64 or 128.

What you will learn
- a group size need not divide the width: the last group is narrower, and is rounded on its own;
- what the narrow group costs in bits, and that padding or a silently changed group size are not needed;
- Moonshine's decoder is gated: a scale of fc2's inputs may move into fc2 where one half of fc1, the values,
  is divided by it, and never by way of the other half, the gate.

Paper: Moonshine (Jeffries et al. 2024, arXiv 2410.15608)
Pages: docs/methods/rtn.md#groups, docs/models.md#a-scale-through-a-gate
Source: qlib/grid/definition.py, qlib/models/moonshine_structure.py
Exercise: examples/exercises/ex02_groups_and_stored_bits.py
Run: python examples/14_moonshine_and_odd_widths.py                            a random miniature (a minute)
     python examples/14_moonshine_and_odd_widths.py --model moonshine-tiny     the real one (minutes)
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from drawing import BLUE, GREEN, ORANGE, canvas, save
from recognizer import SPEECH

import qlib
from qlib.asr.calibration import speech_batches
from qlib.models.moonshine import Moonshine
from qlib.models.structure import apply_fold, fold
from qlib.models.table import align
from qlib.models.tiny import tiny_moonshine

WIDTH, GROUPS = 288, (None, 128, 96, 64, 32)
FACTOR = 4.0  # of the scale that moves through the gate


# %% What is computed
@torch.no_grad()
def logits(model: Any, batches: list[Any]) -> torch.Tensor:
    """Return the logits of all true tokens, given the true tokens before them."""
    return torch.cat([model(batch.features, batch.tokens)[batch.token_mask] for batch in batches])


def move_through_the_gate(model: Any, wrong: bool) -> Any:
    """Multiply the first decoder layer's fc2 by FACTOR, and divide the right (or wrong) half of fc1 by it."""
    fc2 = "model.decoder.layers.0.mlp.fc2"
    (group,) = (each for each in model.groups() if fc2 in each.layers)
    rows = group.rows or ()  # the output of fc1 that each input of fc2 comes from: the first half, the values
    if wrong:  # the same places in the second half, the gate
        group = replace(group, rows=tuple(row + len(rows) for row in rows))
    apply_fold(model, fold(dict(model.named_parameters()), group, torch.full((len(rows),), FACTOR)))
    return model


def main() -> None:
    """Print two tables, draw one picture."""
    # %% 1. A model, and its logits on recordings that calibration has not heard
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--model", help="a fetched model or a folder; without it, a miniature with random weights"
    )
    name = parser.parse_args().model

    def fresh() -> Any:
        return qlib.load_model(name) if name else tiny_moonshine(width=WIDTH, layers=1, heads=8)

    model, longest = fresh(), 1000 if name else 50  # a miniature spells letter by letter and has room for 63
    if not isinstance(model, Moonshine):
        parser.error(f"--model {name}: this lesson needs a Moonshine, such as moonshine-tiny, for its gate")
    speech = [each for each in qlib.read_manifest(SPEECH) if len(each.text or "") < longest]
    calib, test = speech[: 8 if name else 6 : 2], speech[1 : 8 if name else 6 : 2]
    batches = speech_batches(model, test)
    reference = logits(model, batches)

    def error(other: Any) -> float:
        return 100 * float((logits(other, batches) - reference).norm() / reference.norm())

    # %% 2. Groups that divide 288, and others
    rows, errors = [("group", "groups of 288", "bits per weight", "RTN error %", "GPTQ error %")], []
    for group in GROUPS:
        widths = [part.stop - part.start for part in qlib.Grid(4, group).slices(WIDTH)]
        results = [
            qlib.quantize(model, [method], weight=qlib.Grid(4, group), calib=calib, progress=False)
            for method in (qlib.RTN(), qlib.GPTQ())
        ]
        errors.append([error(result.model) for result in results])
        counted = " + ".join(f"{widths.count(w)} x {w}" for w in dict.fromkeys(widths))
        bits = f"{results[0].report.bits_per_weight:.3f}"
        rows.append((str(group or "row"), counted, bits, *(f"{each:.2f}" for each in errors[-1])))
    print(f"4-bit weights, error of the logits on other speech in % of their size\n\n{align(rows)}\n")
    print("bits per weight: of all layers; fc2 reads 1152 inputs, so its groups are others.")

    # %% 3. A scale moved through the gate, rightly and wrongly
    print(f"\nfc2 times {FACTOR:g}, and a half of fc1 divided by {FACTOR:g}, without any rounding:")
    for text, wrong in (("the first half (values)", False), ("the second half (gate)", True)):
        print(f"  {text:30} changes the logits by {error(move_through_the_gate(fresh(), wrong)):8.4f} %")

    # %% 4. The errors over the groups
    figure = canvas(7, 4)
    axes = figure.subplots()
    for column, (label, color) in enumerate((("RTN", ORANGE), ("GPTQ", BLUE))):
        axes.plot(
            [str(group or "row") for group in GROUPS],
            [e[column] for e in errors],
            "o-",
            color=color,
            label=label,
        )
    for ragged in (i for i, group in enumerate(GROUPS) if group and WIDTH % group):
        axes.axvspan(ragged - 0.5, ragged + 0.5, color=GREEN, alpha=0.08)
    axes.set(title=f"Groups that divide {WIDTH}, and others (green)", xlabel="group", ylabel="logit error, %")
    axes.legend()
    save(figure, "14_moonshine_and_odd_widths")


# %% Try this: predict first, then run
# 1. A group of 287 in GROUPS: how many groups, and how many bits per weight? Which weights are rounded
#    without an error?
# 2. FACTOR = 2, by way of the gate: is the error half as large? (SiLU is not linear)
# 3. Group 96 and group 128 have three groups each: which has the smaller error, and why?

if __name__ == "__main__":
    main()
