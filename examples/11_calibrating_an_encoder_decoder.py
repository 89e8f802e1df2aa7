"""Lesson 11: calibrating an encoder-decoder.

What you will learn
- a method that looks at inputs has to see what the layer will read in the *quantized* model: so blocks are
  rounded in the order of computation, encoder first; each reads what the rounded ones before it write;
- the decoder is fed the true transcript ("teacher forcing"): all positions in one pass, and the inputs are
  those of a correct transcription;
- a decoder sees few tokens: about 3 per second of speech against 50 encoder positions;
- Whisper pads to 30 s, so most encoder positions are silence: if all count, they outnumber the speech. The
  library counts one in four of them; with a real model, look at what counting all of them does.

Papers: GPTQ (Frantar et al. 2022, arXiv 2210.17323), section 4; Whisper (arXiv 2212.04356), section 2.2.
Page: docs/calibration.md    Source: qlib/calibrate.py, qlib/asr/calibration.py
Exercise: examples/exercises/ex03_output_error_from_h.py
Run: python examples/11_calibrating_an_encoder_decoder.py                            a miniature (seconds)
     python examples/11_calibrating_an_encoder_decoder.py --model whisper-tiny.en    the real one (minutes)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from recognizer import chosen_recognizer
from rounding_pictures import draw_calibration

import qlib
from qlib.asr.calibration import speech_batches
from qlib.calibrate import walk_blocks
from qlib.methods.contracts import LayerStats, Needs
from qlib.models.table import align

METHOD, GRID, CLIPS = qlib.GPTQ(damping=0.1), qlib.Grid(4, 64), 6


# %% 1. Two orders
def round_layers(model: Any, names: Iterable[str], stats: Mapping[str, LayerStats]) -> None:
    """Replace linear layers by rounded ones, in place."""
    for name in names:
        layer = model.get_submodule(name)
        quantized = METHOD.quantize_layer(layer.weight.detach(), stats[name], GRID)
        parent, _, child = name.rpartition(".")
        rounded = qlib.FakeQuantLinear.from_linear(layer, quantized, GRID)
        setattr(model.get_submodule(parent), child, rounded)


def in_order(model: Any, batches: list[Any]) -> Any:
    """Return a rounded copy: each block reads what the rounded blocks before it write."""
    rounded = copy.deepcopy(model)
    for block in walk_blocks(rounded, batches):
        round_layers(rounded, block.layers, block.collect(Needs.HESSIAN))
    return rounded


def all_at_once(model: Any, batches: list[Any]) -> Any:
    """Return a rounded copy: all statistics are those of the float model."""
    stats: dict[str, LayerStats] = {}
    for block in walk_blocks(copy.deepcopy(model), batches):
        stats |= block.collect(Needs.HESSIAN)
    rounded = copy.deepcopy(model)
    round_layers(rounded, stats, stats)
    return rounded


# %% 2. Two mistakes
def all_positions(batches: list[Any]) -> list[Any]:
    """Let every encoder position count, silence and all."""
    return [replace(each, frame_mask=torch.ones_like(each.frame_mask)) for each in batches]


def wrong_texts(batches: list[Any]) -> list[Any]:
    """Give each recording the text of the next one."""
    others = [*batches[1:], batches[0]]
    return [
        replace(a, tokens=b.tokens, token_mask=b.token_mask) for a, b in zip(batches, others, strict=True)
    ]


# %% 3. What is measured
@torch.no_grad()
def logits(model: Any, batches: list[Any]) -> torch.Tensor:
    """Return the logits of all true tokens, given the true tokens before them."""
    return torch.cat([model(batch.features, batch.tokens)[batch.token_mask] for batch in batches])


def main() -> None:
    """Print two tables, draw one picture."""
    # %% 4. What each layer reads
    model, calib, test, real = chosen_recognizer()
    calib, test = (calib[:CLIPS], test[:CLIPS]) if real else (calib[:2], test[:1])
    batches, others = speech_batches(model, calib), speech_batches(model, test)
    counted = sum(int(each.frame_mask.sum()) for each in batches)
    positions = sum(each.frame_mask.numel() for each in batches)
    tokens = sum(int(each.token_mask.sum()) for each in batches)
    print(f"{tokens} tokens, {positions} encoder positions; {counted} of them count\n")
    rows = [("block", "layer", "inputs", "vectors seen")]
    for block in walk_blocks(copy.deepcopy(model), batches):
        if block.name.endswith("layers.0"):
            stats = block.collect(Needs.HESSIAN)
            for group in block.groups:
                seen = stats[group.first]
                layer = group.first.removeprefix(f"{block.name}.")
                rows.append((block.name, layer, str(len(seen.hessian)), str(seen.tokens)))
    print(align(rows))

    # %% 5. Four ways to calibrate, measured on recordings that none of them has seen
    reference = logits(model, others)
    ways = {
        "in order": lambda: in_order(model, batches),
        "all at once": lambda: all_at_once(model, batches),
        "silence counts": lambda: in_order(model, all_positions(batches)),
        "wrong texts": lambda: in_order(model, wrong_texts(batches)),
    }
    found = {name: logits(way(), others) for name, way in ways.items()}
    errors = {name: 100 * float((each - reference).norm() / reference.norm()) for name, each in found.items()}
    rows = [("GPTQ, calibrated", f"{GRID}"), *((name, f"{each:.2f}") for name, each in errors.items())]
    print(f"\nerror of the logits on other recordings, in % of their size\n\n{align(rows)}")

    few = f"{len(test)} clips are few: differences of a tenth may be chance."
    random = "The miniature's weights are random, and so is the order of the four ways: see --model."
    print(f"\n{few if real else random}")

    # %% 6. The first way is what `qlib.quantize` does
    result = qlib.quantize(model, METHOD, weight=GRID, calib=calib, progress=False)
    same = torch.equal(logits(result.model, others), found["in order"])
    print(f"\nqlib.quantize gives the same logits, bit for bit: {same}")
    title = "Four ways to calibrate, few clips" if real else "A miniature: how it is measured"
    draw_calibration(title, errors)


# %% Try this: predict first, then run
# 1. How many vectors does `encoder_attn.k_proj` of a decoder block see: as many as fc2 of that block?
# 2. With --model, CLIPS = 2: which of the four ways suffers most? Where are tokens fewer than inputs then?
# 3. With --model, GRID = qlib.Grid(3, 64): does "in order" still lead? Its statistics contain large errors.

if __name__ == "__main__":
    main()
