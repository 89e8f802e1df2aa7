"""What `python -m qlib` takes: its options, and the models, methods and data that they stand for.

Options of several words are taken with `-` and with `_`: other tools have taught their users either.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlib.asr.corpora import read_corpus
from qlib.asr.datasets import read_manifest
from qlib.asr.manifest_rows import lines_of, rows_of_json
from qlib.asr.subtitles import FORMATS
from qlib.asr.utterance import Utterance
from qlib.checkpoint import MANIFEST, load_quantized
from qlib.errors import DataError, ModelError, QuantError, did_you_mean
from qlib.grid import Grid
from qlib.methods import METHODS
from qlib.models.hub.load import build, load_model
from qlib.models.hub.locate import locate
from qlib.models.structure import Model
from qlib.models.text import TextModel
from qlib.scheme import GRAMMAR, parse_grid, parse_scheme

CALIBRATION = 32  # utterances or texts, if nothing else is said
FLOAT_BITS = 16  # of numbers in float where costs are counted, whatever dtype a model is loaded in

# --- what options stand for


def load(name: str, options: argparse.Namespace) -> Model:
    """Return a model by name or folder: a float one, or a checkpoint that was quantized."""
    if is_quantized(name):
        return load_quantized(name, device=options.device)
    return load_model(name, device=options.device)


def output_formats(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the formats of the files that `transcribe` is to write; none where no file was asked for."""
    if options.output_format is None and options.output_dir is None:
        return ()
    return tuple(FORMATS) if options.output_format in (None, "all") else (options.output_format,)


def check_models(names: Sequence[str]) -> None:
    """Refuse a name or folder that is no model, before any of them is read.

    Raises
    ------
    ModelError
        Of the first one that is neither a checkpoint of this library nor a float model.
    """
    for name in names:
        if not is_quantized(name):
            locate(name)


def check_kind(names: Sequence[str], kind: type[Model], remedy: str) -> None:
    """Refuse a model that is not of the kind that a command takes, before any of them is read.

    Raises
    ------
    ModelError
        Of the first one that is a text model in place of a recognizer, or the other way round.
    """
    for name in names:
        found = build(Path(name) if is_quantized(name) else locate(name))
        if not isinstance(found, kind):
            raise ModelError(f"{name} is a {type(found).__name__}. {remedy}")


def is_quantized(name: str) -> bool:
    """Return whether a folder holds a checkpoint that this library quantized."""
    return (Path(name) / MANIFEST).is_file()


def chain_names(chain: str) -> list[str]:
    """Return the methods of a chain.

    >>> chain_names("awq + gptq")
    ['awq', 'gptq']
    """
    return [name.strip() for name in chain.split("+")]


def methods(names: Sequence[str]) -> list[Any]:
    """Return methods with their default settings, by name.

    Raises
    ------
    QuantError
        A name is unknown.
    """
    found = []
    for name in names:
        key = name.lower().replace("-", "").replace("_", "")
        if key not in METHODS:
            raise QuantError(
                f"there is no method {name!r}. Known: {', '.join(METHODS)}.{did_you_mean(key, METHODS)}"
            )
        found.append(METHODS[key]())
    return found


def plan(options: argparse.Namespace) -> tuple[Grid | dict[str, Grid], Any]:
    """Return the grids of the weights, and how inputs are rounded."""
    grid, activation = parse_scheme(options.scheme, symmetric=options.symmetric)
    if not options.layer:
        return grid, activation
    grids = grid if isinstance(grid, dict) else {"*": grid}
    for text in options.layer:
        pattern, equals, wanted = text.rpartition("=")
        if not equals or not pattern:
            raise QuantError(f"--layer {text}: write a pattern and its grid, such as fc2=8 or proj_out=4G64.")
        grids[pattern] = parse_grid(wanted, symmetric=options.symmetric)
    return grids, activation


def utterances(places: Sequence[str], limit: int | None, split: str = "test") -> list[Utterance]:
    """Return the recordings of lists and corpora, `limit` of each at most; their sound is read later.

    A folder may be followed by a corpus in it, ``FOLDER:NAME``. Of a folder with several splits, or of a
    manifest whose lines name several, `split` is taken; a single parquet file is read whole.

    Raises
    ------
    DataError
        What `read_corpus` raises; or the lines of a manifest name several splits, and not that one.
    """
    found: list[Utterance] = []
    for place in places:
        folder, colon, name = place.rpartition(":")
        if not colon or Path(place).exists():
            folder, name = place, ""
        chosen = _split_of(Path(folder), split) if Path(folder).is_file() else split
        found += read_corpus(folder, name or None, split=chosen, limit=limit)
    return found


def _split_of(path: Path, split: str) -> str | None:
    """Return which split of a single file is meant: None, all of it, unless its lines name several.

    Manifests call the recordings to calibrate with "calibration" or "train"; the first is the more exact.
    """
    if path.suffix.lower() == ".parquet":
        return None
    there = {each.split for each in read_manifest(path)} - {""}
    if len(there) < 2:
        return None
    names = ("calibration", "train") if split == "train" else (split,)
    for name in names:
        if name in there:
            return name
    raise DataError(
        f"{path}: its lines are of the splits {', '.join(sorted(there))}; {' or '.join(names)} is expected "
        "here. Put the lines that are meant into a file of their own."
    )


def calibration(options: argparse.Namespace, model: Model) -> list[Utterance] | list[str] | None:
    """Return what a model is calibrated with: recordings, or texts; None where nothing was named."""
    if options.calib is None:
        return None
    if isinstance(model, TextModel):
        return texts(Path(options.calib), options.calib_limit)
    return utterances([options.calib], options.calib_limit, "train")


def texts(path: Path, limit: int | None) -> list[str]:
    """Return the texts of a file: the lines of a text file, or `text` or `prompt` of JSON lines.

    Raises
    ------
    DataError
        The file cannot be read, or a line holds no text; names file and line.
    """
    if path.suffix.lower() not in (".jsonl", ".json"):
        return [line for _, line in lines_of(path)][:limit]
    found = []
    for where, row in rows_of_json(path):
        text = row.get("text", row.get("prompt"))
        if not isinstance(text, str):
            raise DataError(f"{where}: no 'text' or 'prompt' (found: {', '.join(row)}).")
        found.append(text)
    return found[:limit]


# --- the parser


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m qlib",
        description="Post-training quantization of speech recognizers and text models.",
        epilog="Models that are known by name are downloaded by `python -m qlib.models fetch NAME`.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text, fill in (
        ("quantize", "quantize a model and save the checkpoint", _quantize),
        ("transcribe", "write what is said in recordings", _transcribe),
        ("evaluate", "word error rate of models on recordings with transcripts", _evaluate),
        ("compare", "two models or two files of hypotheses on the same recordings", _compare),
        ("score", "word error rate of files of hypotheses", _score),
        ("perplexity", "perplexity of text models; those after the first are compared with it", _perplexity),
        ("cost", "what a run of models moves and computes, and how large they are", _cost),
        ("explain", "why a quantized model makes more errors than the float model", _explain),
        ("benchmark", "run a study: models by methods by schemes, stopped and resumed", _benchmark),
        ("report", "a study as a page (report.html) and as tables (report.md)", _report),
        ("ls", "models that are known by name, or the layers of one", _ls),
    ):
        command = commands.add_parser(name, help=text, description=text)
        fill(command)
        command.add_argument("--json", action="store_true", help="JSON lines instead of text")
    return parser


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Return arguments with options of several words in their first form.

    >>> with_dashes(["--batch_size=4", "a_b.wav"])
    ['--batch-size=4', 'a_b.wav']
    """
    found = []
    for each in arguments:
        name, equals, value = each.partition("=")
        found.append(name.replace("_", "-") + equals + value if name.startswith("--") else each)
    return found


def _quantize(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="name or folder of a float model")
    add("--output", "--output-dir", type=Path, required=True, help="folder of the checkpoint")
    help = f"one method, or a chain as awq+gptq: {', '.join(METHODS)} (rtn)"
    add("--method", nargs="+", default=["rtn"], metavar="CHAIN", help=help)
    add("--scheme", default="W4A16", help=f"{GRAMMAR} (%(default)s)")
    add("--symmetric", action="store_true", help="codes on both sides of 0, no zero points")
    add(
        "--layer",
        action="append",
        metavar="PATTERN=GRID",
        help="another grid for some: fc2=8, k=4G128",
    )
    add("--skip", nargs="+", default=[], metavar="PATTERN", help="layers to leave in float")
    help = "manifest or corpus (of several splits, train), or texts (.txt, .jsonl)"
    add("--calib", metavar="FILE", help=help)
    add(
        "--calib-limit",
        type=int,
        default=CALIBRATION,
        metavar="N",
        help="use so many of them (%(default)s)",
    )
    add("--work", type=Path, help="folder for finished blocks: a killed run continues from there")
    _machine(parser)


def _transcribe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("audio", nargs="+", help="audio files")
    add("--model", default="whisper-tiny.en", help="name or folder (%(default)s)")
    add("--task", choices=("transcribe", "translate"), default="transcribe", help="translate: into English")
    add("--timestamps", action="store_true", help="say when each segment is spoken (Whisper)")
    help = "write files, .vtt, .srt, .tsv and .json with timestamps (all, with --output-dir)"
    add("--output-format", "-f", choices=(*FORMATS, "all"), help=help)
    add("--output-dir", "-o", type=Path, metavar="FOLDER", help="where files are written (this folder)")
    _decoding(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="names or folders, float or quantized")
    _data(parser)
    add("--output-path", type=Path, metavar="FOLDER", help="results.jsonl is written there")
    add("--log-samples", action="store_true", help="write each model's hypotheses there too")
    _decoding(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("baseline", help="model, or file of hypotheses (.jsonl)")
    add("other", nargs="+", help="models or files that are compared with it")
    _data(parser, required=False)
    _decoding(parser)


def _score(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("hypotheses", nargs="+", type=Path, help="JSON lines with 'text' and 'pred_text'")
    add("--language", help="of the texts that do not say it (English)")
    add("--marked", type=int, metavar="N", help="show N texts with their errors marked")


def _perplexity(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="+", help="names or folders of text models, float or quantized")
    add("--data", type=Path, required=True, metavar="FILE", help="texts: .txt, one a line, or .jsonl")
    add("--limit", type=int, metavar="N", help="use at most so many texts")
    add("--context", type=int, metavar="N", help="tokens of a window (2048)")
    _machine(parser)


def _cost(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="+", help="names or folders, float or quantized")
    add("--audio-seconds", type=float, metavar="N", help="length of the recording (10); not for text models")
    add("--tokens", type=int, default=40, metavar="N", help="tokens written (%(default)s)")
    _machine(parser)


def _explain(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("float", help="name or folder of the float model")
    add("quantized", help="folder of the quantized model")
    _data(parser)
    _machine(parser)


def _benchmark(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("study", nargs="?", type=Path, help="TOML file; or name models and data by options")
    add("--output", "--output-path", type=Path, required=True, help="folder of the results")
    add("--model", nargs="+", help="names or folders of float models")
    help = f"methods; awq+gptq is one chain, awq gptq are two: {', '.join(METHODS)}"
    add("--method", nargs="+", default=[], metavar="CHAIN", help=help)
    add("--scheme", nargs="+", default=["W4A16"], help=f"{GRAMMAR} (%(default)s)")
    _data(parser, required=False)
    add("--calib", default="", metavar="FILE", help="manifest or corpus (of several splits, train)")
    add("--calib-limit", type=int, default=CALIBRATION, metavar="N", help="(%(default)s)")
    add("--language", default="", help="of the recordings, for multilingual checkpoints")
    add("--batch-size", type=int, default=8, metavar="N", help="(%(default)s)")
    add("--sensitivity", action="store_true", help="also estimate what each layer costs on each grid")
    add("--workers", type=int, default=1, metavar="N", help="processes on this machine (%(default)s)")
    add("--scheduler", metavar="ADDRESS", help="of Dask, tcp://host:port: its workers compute")
    add("--quiet", action="store_true", help="no progress bar")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument("--output", "--output-dir", type=Path, metavar="FOLDER", help="the study's own")


def _ls(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="*", help="name or folder: its layers are listed")
    add("--skip", nargs="+", default=[], metavar="PATTERN", help="layers to leave in float")
    _machine(parser)


def _data(parser: argparse.ArgumentParser, required: bool = True) -> None:
    add = parser.add_argument
    help = "manifests (.jsonl, .csv, .tsv), parquet files, folders of a corpus, or FOLDER:NAME for one in it"
    add("--data", "--tasks", nargs="+", required=required, metavar="PATH", help=help)
    add("--limit", type=int, metavar="N", help="use at most so many recordings of each")


def _decoding(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--language", help="code or English name, for multilingual checkpoints")
    add("--batch-size", type=int, default=8, metavar="N", help="(%(default)s)")
    _machine(parser)


def _machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    add("--threads", type=int, metavar="N", help="threads of the CPU")
    add("--quiet", action="store_true", help="no progress bars")
