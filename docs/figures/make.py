"""Write the pictures of the pages: python docs/figures/make.py [NAME ...], or `make figures` for all of them.

Each is computed by the library from small data with a fixed seed, from a table of the page on which it
stands, or from a file in docs/data. A test compares the committed files with what this script writes. The map
of the modules has a script of its own, house.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import architecture
import drafting
import measures
import methods
from chart import Picture

HERE = Path(__file__).parent
BENCHMARK = HERE.parent / "data" / "benchmark.jsonl"  # results.jsonl of `python -m qlib benchmark`

FIGURES: dict[str, Callable[[], Picture]] = {
    "rtn_grids": methods.rtn_grids,
    "gptq_columns": methods.gptq_columns,
    "hqq_zero": methods.hqq_zero,
    "smoothquant_ranges": methods.smoothquant_ranges,
    "awq_alpha": methods.awq_alpha,
    "omniquant_clip": methods.omniquant_clip,
    "quik_columns": methods.quik_columns,
    "spqr_outliers": methods.spqr_outliers,
    "scales_that_move": architecture.scales_that_move,
    "token_grids": measures.token_grids,
    "calibration_memory": measures.calibration_memory,
    "stored_bits": measures.stored_bits,
    "layer_ranking": measures.layer_ranking,
    "windows": measures.windows,
    "wer_intervals": measures.wer_intervals,
    "one_round": drafting.one_round,
    "real_rounds": drafting.real_rounds,
    "ngram_trie": drafting.ngram_trie,
    "overlap": drafting.overlap,
    "shared_noise": drafting.shared_noise,
    "best_length": drafting.best_length,
    "learning_curve": drafting.learning_curve,
    "row_cost": drafting.row_cost,
}
if BENCHMARK.exists():
    FIGURES["wer_over_bits"] = lambda: measures.wer_over_bits(BENCHMARK)


def main(names: list[str]) -> None:
    """Write the named pictures, or all."""
    for name in names or FIGURES:
        (HERE / f"{name}.svg").write_text(FIGURES[name]().svg(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
