"""Word error rates of all methods at several widths against float, paired over utterances.

    python examples/benchmarks/wer_table.py --model whisper-tiny.en --test TEST.jsonl --calib CALIB.jsonl ...

Calibration and test recordings must be different ones. Each cell is written to out/wer_table as soon as it
is measured, and each finished block of a quantization too, so an interrupted run goes on where it stopped;
remove the folder to measure again. `--only awq,gptq` and `--configs w4a16,w4a8` select cells.

One quantized model serves both input widths of its row: its weights are fitted with float inputs, and 8-bit
per-token inputs are then switched on. OmniQuant learns scales for rounded inputs: its a8 cells are fitted
anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import qlib
from qlib.activation import KeepColumns
from qlib.report import align

CONFIGS = ("w8a8", "w4a16", "w4a8", "w3a16", "w3a8", "w2a16")
Row = tuple[list[Any], int]  # methods, and columns in a group


def recipes(bits: int, group: int) -> dict[str, Row]:
    """Return how each method is used at a width."""
    damping = {8: 0.01, 4: 0.1}.get(bits, 0.3)
    order: Any = "static" if bits > 3 else "dynamic"
    gptq = qlib.GPTQ(damping=damping, act_order=order, fit="mse" if bits < 8 else "minmax")
    awq = qlib.AWQ(clip=bits < 8)
    return {
        "rtn": ([qlib.RTN()], group),
        "hqq": ([qlib.HQQ()], group),
        "smoothquant": ([qlib.SmoothQuant()], group),
        "awq": ([awq], group),
        "omniquant": ([qlib.OmniQuant(epochs=4, clip_rate=0.05)], group),
        "gptq": ([gptq], group),
        "spqr": ([qlib.SpQR(second_bits=8 if bits == 8 else 3)], 16),
        "quik": ([qlib.QUIK(damping=damping, fit="mse" if bits < 8 else "minmax")], group),
        "awq + gptq": ([qlib.AWQ(clip=False), gptq], group),
        "awq + spqr": ([qlib.AWQ(clip=False), qlib.SpQR()], 16),
        "awq + quik": ([qlib.AWQ(clip=False), qlib.QUIK(damping=damping, fit="mse")], group),
    }


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    model = qlib.load_model(options.model)
    test = qlib.read_manifest(options.test)
    calib = [each for manifest in options.calib for each in qlib.read_manifest(manifest)][:: options.every]
    folder = options.out / options.model
    cells = load(folder / "wer.json")
    if "float" not in cells:
        measure(cells, "float", model, test, folder)
    for bits, name, methods, group in rows(options):
        wanted = [c for c in options.configs if c.startswith(f"w{bits}") and f"{name} {c}" not in cells]
        fits = (
            [[c for c in wanted if c.endswith(end)] for end in ("a16", "a8")]
            if name == "omniquant"
            else [wanted]
        )
        for configs in filter(None, fits):
            grid = qlib.Grid(bits, group)
            learns = name == "omniquant" and configs[0].endswith("a8")
            work = folder / "work"
            result = qlib.quantize(
                model,
                methods,
                weight=grid,
                activation=qlib.PerToken(8) if learns else None,
                calib=calib,
                work=work,
            )
            for config in configs:
                round_inputs(result.model, 8 if config.endswith("a8") else None)
                measure(cells, f"{name} {config}", result.model, test, folder, result.report)
            shutil.rmtree(work)
    print(f"{options.model}, {len(test)} test clips, {len(calib)} calibration clips, g{options.group}\n")
    print(table(cells))


def rows(options: argparse.Namespace) -> Iterator[tuple[int, str, list[Any], int]]:
    """Yield width, name, methods and group of each quantization asked for, the easier widths first."""
    for bits in dict.fromkeys(int(config[1]) for config in options.configs):
        for name, (methods, group) in recipes(bits, options.group).items():
            if name in options.only:
                yield bits, name, methods, group


def round_inputs(model: torch.nn.Module, bits: int | None) -> None:
    """Round every quantized layer's input to this many bits per token, or not at all."""
    for module in model.modules():
        if isinstance(module, qlib.FakeQuantLinear):
            columns = module.quantized.columns
            spec = None if bits is None else qlib.PerToken(bits)
            module.activation = spec if spec is None or columns is None else KeepColumns(spec, columns)


def measure(
    cells: dict[str, Any],
    name: str,
    model: Any,
    test: Sequence[qlib.Utterance],
    folder: Path,
    report: qlib.QuantReport | None = None,
) -> None:
    """Evaluate one cell and keep it."""
    started = time.perf_counter()
    wer = qlib.evaluate_wer(model, test)
    cells[name] = {
        "wer": asdict(wer),
        "bits": None if report is None else report.bits_per_weight,
        "fit_seconds": None if report is None else report.seconds,
        "test_seconds": time.perf_counter() - started,
    }
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / ".wer.partial"
    fresh.write_text(json.dumps(cells))
    fresh.replace(folder / "wer.json")
    print(f"{name}: {wer.wer:.2f}", flush=True)


def load(store: Path) -> dict[str, Any]:
    """Return the cells measured so far."""
    return json.loads(store.read_text()) if store.is_file() else {}


def result_of(cell: dict[str, Any]) -> qlib.WerResult:
    """Return a cell's word error rate."""
    return qlib.WerResult(**{k: tuple(v) if isinstance(v, list) else v for k, v in cell["wer"].items()})


def table(cells: dict[str, Any]) -> str:
    """Return all cells: error rate, bits a weight, difference to float with its interval."""
    lines = [("", "WER %", "sub", "del", "ins", "bits", "minus float", "95 %")]
    reference = result_of(cells["float"])
    for name, cell in cells.items():
        wer = result_of(cell)
        paired = qlib.compare(reference, wer)
        low, high = paired.interval
        counts = map(str, (wer.substitutions, wer.deletions, wer.insertions))
        bits = "16" if cell["bits"] is None else f"{cell['bits']:.2f}"
        lines.append(
            (name, f"{wer.wer:.2f}", *counts, bits, f"{paired.difference:+.2f}", f"{low:.1f} to {high:.1f}")
        )
    return align(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="whisper-tiny.en")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--calib", type=Path, nargs="+", required=True)
    parser.add_argument("--every", type=int, default=1, help="take one calibration clip in so many")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(recipes(4, 64)))
    parser.add_argument("--configs", type=lambda text: text.split(","), default=list(CONFIGS))
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out") / "wer_table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
