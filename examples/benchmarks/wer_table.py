"""Word error rates of all methods at several widths against float, paired over utterances.

    python examples/benchmarks/wer_table.py --model whisper-tiny.en --test TEST.jsonl --calib CALIB.jsonl ...

Recordings that calibrate are left out of the test, so both may name the same manifests: with `--every 2`
every other clip calibrates. A source is the folder of a manifest; several are scored each and together. Each
cell is written to out/wer_table as soon as it is measured, and each finished block of a quantization too, so
an interrupted run goes on where it stopped; remove the folder to measure again. `--only awq,gptq` and
`--configs w4a16,w4a8` select cells.

One quantized model serves both input widths of its row: its weights are fitted with float inputs, and 8-bit
per-token inputs are then switched on. OmniQuant learns scales for rounded inputs: its a8 cells are fitted
anew.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from common import command_line, names, parse, recognizer_options, recordings

import qlib
from qlib.asr.datasets import require_text
from qlib.asr.wer import score
from qlib.kept_columns import KeepColumns
from qlib.models.files import read_json, write_json
from qlib.models.table import align

CONFIGS = ("w8a8", "w4a16", "w4a8", "w3a16", "w3a8", "w2a16")
TOGETHER = "all"
Row = tuple[list[Any], int]  # methods, and columns in a group
Sources = dict[str, list[qlib.Utterance]]


def recipes(bits: int, group: int) -> dict[str, Row]:
    """Return how each method is used at a width."""
    damping = {8: 0.01, 4: 0.1}.get(bits, 0.3)
    gptq = qlib.GPTQ(
        damping=damping, act_order=True, static_groups=bits == 8, fit="mse" if bits < 8 else "minmax"
    )
    awq = qlib.AWQ(clip=bits < 8)
    return {
        "rtn": ([qlib.RTN()], group),
        "hqq": ([qlib.HQQ()], group),
        "smoothquant": ([qlib.SmoothQuant()], group),
        "awq": ([awq], group),
        "omniquant": ([qlib.OmniQuant(epochs=4)], group),
        "gptq": ([gptq], group),
        "spqr": ([qlib.SpQR(second_bits=8 if bits == 8 else 3)], 16),
        "quik": ([qlib.QUIK(damping=damping, fit="mse" if bits < 8 else "minmax")], group),
        "awq + gptq": ([qlib.AWQ(clip=False), replace(gptq, static_groups=bits > 3)], group),
        "awq + spqr": ([qlib.AWQ(clip=False), qlib.SpQR()], 16),
        "awq + quik": ([qlib.AWQ(clip=False), qlib.QUIK(damping=damping, fit="mse")], group),
    }


def main() -> None:
    options = read_options()
    torch.backends.cudnn.allow_tf32 = False  # float32 convolutions, as on the CPU
    model = qlib.load_model(options.model, device=options.device)
    calib = recordings(options.calib)[:: options.every]
    test = read_test(options.test, {each.path.resolve() for each in calib})
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
    print(f"{options.model}, {len(calib)} calibration clips, g{options.group}")
    for source in cells["float"]["wer"]:
        print(f"\n{source}, {result_of(cells['float'], source).utterances} clips\n\n{table(cells, source)}")


def read_test(manifests: Sequence[Path], calibrates: set[Path]) -> Sources:
    """Return the test recordings of each source, without those that calibrate."""
    sources = {
        manifest.parent.name: [
            each for each in qlib.read_manifest(manifest) if each.path.resolve() not in calibrates
        ]
        for manifest in manifests
    }
    return {source: utterances for source, utterances in sources.items() if utterances}


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
    test: Sources,
    folder: Path,
    report: qlib.QuantReport | None = None,
) -> None:
    """Evaluate one cell and keep it."""
    started = time.perf_counter()
    wer = evaluate(model, test)
    cells[name] = {
        "wer": {source: asdict(result) for source, result in wer.items()},
        "bits": None if report is None else report.bits_per_weight,
        "fit_seconds": None if report is None else report.seconds,
        "test_seconds": time.perf_counter() - started,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "wer.json", cells)
    print(f"{name}: {', '.join(f'{source} {result.wer:.2f}' for source, result in wer.items())}", flush=True)


def evaluate(model: Any, test: Sources) -> dict[str, qlib.WerResult]:
    """Return the word error rate of each source, and of all together where there are several."""
    together = [each for utterances in test.values() for each in utterances]
    heard = iter(qlib.transcribe(model, together, language="en"))
    texts = {source: [next(heard).text for _ in utterances] for source, utterances in test.items()}
    results = {source: score(require_text(test[source]), texts[source]) for source in test}
    if len(test) > 1:
        every = [text for source in test for text in texts[source]]
        results[TOGETHER] = score(require_text(together), every)
    return results


def load(store: Path) -> dict[str, Any]:
    """Return the cells measured so far."""
    return read_json(store) if store.is_file() else {}


def result_of(cell: dict[str, Any], source: str) -> qlib.WerResult:
    """Return a cell's word error rate on one source."""
    stored = cell["wer"][source]
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return qlib.WerResult(**values)


def table(cells: dict[str, Any], source: str) -> str:
    """Return all cells on one source: error rate, bits per weight, difference to float with its interval."""
    lines: list[tuple[str, ...]] = [
        ("", "WER %", "sub", "del", "ins", "length", "bits", "minus float", "95 %")
    ]
    reference = result_of(cells["float"], source)
    for name, cell in cells.items():
        wer = result_of(cell, source)
        paired = qlib.compare(reference, wer)
        low, high = paired.interval
        counts = map(str, (wer.substitutions, wer.deletions, wer.insertions))
        bits = "16" if cell["bits"] is None else f"{cell['bits']:.2f}"
        lines.append(
            (
                name,
                f"{wer.wer:.2f}",
                *counts,
                f"{wer.length_ratio:.2f}",
                bits,
                f"{paired.difference:+.2f}",
                f"{low:.1f} to {high:.1f}",
            )
        )
    return align(lines)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    recognizer_options(parser)
    parser.add_argument("--every", type=int, default=1, help="take one calibration clip in so many")
    parser.add_argument("--only", type=names, default=list(recipes(4, 64)))
    parser.add_argument("--configs", type=names, default=list(CONFIGS))
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("out") / "wer_table")
    return parse(parser)


if __name__ == "__main__":
    main()
