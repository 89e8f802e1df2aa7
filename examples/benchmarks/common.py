"""What the benchmarks share: the beginning of a command line, and the recordings it names."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

import qlib


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the first line of a script's docstring as its description."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add `--threads`, read the command line, and let PyTorch use so many threads."""
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def recognizer_options(parser: argparse.ArgumentParser) -> None:
    """Add the model that is measured, recordings that test and calibrate it, and where it computes."""
    parser.add_argument("--model", default="whisper-tiny.en")
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--calib", type=Path, nargs="+", required=True)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (%(default)s)")


def names(text: str) -> list[str]:
    """Return the names in a list with commas, as `--only awq,gptq` has it."""
    return text.split(",")


def recordings(manifests: Iterable[str | Path]) -> list[qlib.Utterance]:
    """Return the recordings of all manifests, in their order."""
    return [each for manifest in manifests for each in qlib.read_manifest(manifest)]


def quiet_transformers() -> None:
    """Keep transformers from writing its warnings between the rows of a table."""
    warnings.filterwarnings("ignore", module="transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
