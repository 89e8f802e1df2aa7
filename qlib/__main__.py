"""Command line: `python -m qlib COMMAND`, with the commands of `COMMANDS` below.

python -m qlib quantize --model whisper-tiny.en --method gptq --calib speech.jsonl --output out/w4
python -m qlib evaluate --model whisper-tiny.en out/w4 --data test.jsonl --output-path out --log-samples
python -m qlib compare whisper-tiny.en out/w4 --data test.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from qlib.analysis.cost import cost as cost_of
from qlib.analysis.cost_result import overview
from qlib.analysis.explain import explain as explain_models
from qlib.asr.comparison import compare as compare_results
from qlib.asr.datasets import require_text
from qlib.asr.hypotheses import (
    GREEDY,
    Hypothesis,
    read_hypotheses,
    recognize,
    score_hypotheses,
    write_hypotheses,
)
from qlib.asr.languages import language_code
from qlib.asr.subtitles import WITH_TIMES, check_stems, write_transcripts
from qlib.asr.transcribe import transcribe as transcribe_recordings
from qlib.asr.transcript import Transcript
from qlib.asr.utterance import Utterance
from qlib.asr.wer import WerResult
from qlib.benchmark.config import Study, read_study
from qlib.benchmark.page import write_report
from qlib.benchmark.runner import run_study
from qlib.checkpoint import folder_bytes
from qlib.command_line import (
    FLOAT_BITS,
    calibration,
    chain_names,
    check_kind,
    check_models,
    is_quantized,
    load,
    make_parser,
    methods,
    output_formats,
    plan,
    texts,
    utterances,
    with_dashes,
)
from qlib.errors import DataError, QuantError, repeated, whole_number
from qlib.likelihood import perplexity as perplexity_of
from qlib.likelihood import perplexity_ratio
from qlib.models.__main__ import exit_code
from qlib.models.__main__ import records as registered
from qlib.models.__main__ import table as table_of_registered
from qlib.models.disk.folders import make_folder
from qlib.models.files import atomic_file
from qlib.models.hub.load import load_model
from qlib.models.speech import SpeechModel
from qlib.models.text import TextModel
from qlib.overview import layers
from qlib.pipeline import quantize as quantize_model

IN_A_STUDY = ("model", "data", "method", "scheme", "calib", "calib_limit", "limit", "language", "batch_size")
RECOGNIZERS = "Word error rates are those of recognizers. For a text model: `perplexity`."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 1 after an error on stderr. Wrong usage exits with 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(with_dashes(arguments))
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Run the command that the options name."""
    if (threads := getattr(options, "threads", None)) is not None:
        torch.set_num_threads(whole_number(threads, "--threads", QuantError, 1))
    COMMANDS[options.command](options)


def quantize(options: argparse.Namespace) -> None:
    """Quantize a model, save it, and show the report."""
    names = [name for part in options.method for name in chain_names(part)]
    chain, (weight, activation) = methods(names), plan(options)  # errors before the model is read
    model = load_model(options.model, device=options.device)
    result = quantize_model(
        model,
        chain,
        weight=weight,
        activation=activation,
        calib=calibration(options, model),
        skip=options.skip,
        work=options.work,
        progress=not options.quiet,
    )
    folder = result.save(options.output)
    if options.json:
        print(json.dumps({"folder": str(folder), "bytes": folder_bytes(folder), **asdict(result.report)}))
    else:
        print(result)
        print(f"\n{folder}: {folder_bytes(folder) / 1e6:.1f} MB")


def transcribe(options: argparse.Namespace) -> None:
    """Write the text of each recording: on the screen, one a line, or into files."""
    formats = output_formats(options)
    folder = options.output_dir or Path()
    if options.language is not None:  # errors before the model is read
        language_code(options.language, "--language")
    if formats:
        check_stems(options.audio)
        check_models([options.model])
        make_folder(folder)
    found = transcribe_recordings(
        load(options.model, options),
        options.audio,
        batch_size=options.batch_size,
        language=options.language,
        task=options.task,
        timestamps=options.timestamps or any(each in WITH_TIMES for each in formats),
        progress=not options.quiet,
    )
    texts = dict(zip(options.audio, found, strict=True))
    files = write_transcripts(texts, folder, formats) if formats else {}
    for path, transcript in zip(options.audio, found, strict=True):
        if options.json:
            print(json.dumps(transcript_row(path, transcript, files.get(path, [])), ensure_ascii=False))
        elif formats:
            print(*files[path], sep="\n")
        else:
            lines = "\n".join(map(str, transcript.segments or [])) if options.timestamps else transcript
            print(f"{path}: {lines}" if len(found) > 1 else lines)


def transcript_row(path: str, transcript: Transcript, files: Sequence[Path]) -> dict[str, Any]:
    """Return a transcript as a JSON object, with its segments and files where there are some."""
    row: dict[str, Any] = {"audio_filepath": path, "duration": transcript.seconds, "text": transcript.text}
    row |= {"language": transcript.language, "language_probability": transcript.language_probability}
    if transcript.segments is not None:
        row["segments"] = [
            {"start": each.start, "end": each.end, "text": each.text} for each in transcript.segments
        ]
    return row | ({"files": [str(each) for each in files]} if files else {})


# --- word error rates


def evaluate(options: argparse.Namespace) -> None:
    """Score models on recordings; keep results and hypotheses where asked."""
    if options.log_samples and options.output_path is None:
        raise DataError("--log-samples writes hypotheses into the folder --output-path. Name one.")
    if options.log_samples and (twice := repeated(map(file_name, options.model))):
        raise DataError(f"--log-samples would write two models to {twice}. Give their folders other names.")
    check_kind(options.model, SpeechModel, RECOGNIZERS)
    data, rows = data_of(options), list[str]()
    for name in options.model:
        hypotheses = recognized(name, data, options)
        result = score_hypotheses(hypotheses, options.language, GREEDY)
        row = result_row(name, result, hypotheses)
        rows.append(json.dumps(row, ensure_ascii=False))
        speed = f"{row['rtfx']:.1f} times as fast as speech"
        print(rows[-1] if options.json else f"{name}: {result}\n{speed}")
        if options.output_path is not None:
            make_folder(options.output_path)
            if options.log_samples:
                write_hypotheses(hypotheses, options.output_path / file_name(name))
            with atomic_file(options.output_path / "results.jsonl") as fresh:
                fresh.write_text("\n".join(rows) + "\n", encoding="utf-8")


def recognized(name: str, data: Sequence[Utterance], options: argparse.Namespace) -> list[Hypothesis]:
    """Return what the model of a name writes."""
    return recognize(
        load(name, options),
        data,
        batch_size=options.batch_size,
        language=options.language,
        progress=not options.quiet,
    )


def compare(options: argparse.Namespace) -> None:
    """Compare models, or files of hypotheses, with the first one."""
    names = [options.baseline, *options.other]
    files = [name.endswith(".jsonl") for name in names]
    check_kind([name for name, file in zip(names, files, strict=True) if not file], SpeechModel, RECOGNIZERS)
    if all(files) and options.data is not None:
        raise DataError("compare: files of hypotheses name their own recordings. Leave --data out.")
    data = [] if all(files) else data_of(options)
    results = [
        score_hypotheses(read_hypotheses(Path(name)), options.language)
        if is_file
        else score_hypotheses(recognized(name, data, options), options.language, GREEDY)
        for name, is_file in zip(names, files, strict=True)
    ]
    for name, result in zip(names, results, strict=True):
        found = compare_results(results[0], result)
        if options.json:
            print(json.dumps({"name": name, "wer": result.wer, "baseline": names[0], **asdict(found)}))
        elif result is results[0]:
            print(f"{name}: {result}")
        else:
            print(f"{name}: {result}\n  against {names[0]}: {found}")


def data_of(options: argparse.Namespace) -> list[Utterance]:
    """Return the recordings that the options name, all of them with transcripts."""
    if options.data is None:
        raise DataError("compare: models are compared on recordings. Name them: --data MANIFEST ...")
    data = utterances(options.data, options.limit)
    require_text(data)
    return data


def score(options: argparse.Namespace) -> None:
    """Score files of hypotheses."""
    if options.json and options.marked is not None:
        raise DataError("score: --marked shows texts, and --json has figures alone. Leave one of them out.")
    for path in options.hypotheses:
        hypotheses = read_hypotheses(path)
        result = score_hypotheses(hypotheses, options.language)
        if options.json:
            print(json.dumps(result_row(str(path), result, hypotheses), ensure_ascii=False))
        else:
            print(f"{path}: {result}")
            if options.marked is not None:
                print(result.marked(options.marked))


def perplexity(options: argparse.Namespace) -> None:
    """Measure text models on texts, and compare the first one with all others."""
    check_kind(options.model, TextModel, "`perplexity` is about text models. For a recognizer: `evaluate`.")
    data = texts(options.data, options.limit)
    first = None
    for name in options.model:
        model = cast(TextModel, load(name, options))
        found = perplexity_of(model, data, context=options.context, progress=not options.quiet)
        first = first or found
        ratio = perplexity_ratio(first, found)
        if options.json:
            row = asdict(found) | {"ratio": asdict(ratio)}
            print(json.dumps({"name": name, **row}))
        else:
            against = "" if found is first else f"\n  against {options.model[0]}: {ratio}"
            print(f"{name}: {found}{against}")


def result_row(name: str, result: WerResult, hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
    """Return a result as a JSON object: rates and counts, without the texts."""
    seconds, time = (sum(getattr(each, field) for each in hypotheses) for field in ("duration", "time"))
    rates = result.record()
    del rates["ids"]
    return {"name": name, "seconds": seconds, "time": time, "rtfx": seconds / time if time else 0.0, **rates}


def file_name(model: str) -> str:
    """Return the name of the file of a model's hypotheses."""
    return f"{Path(model).resolve().name}.jsonl"


# --- what a model costs, and why it makes errors


def cost(options: argparse.Namespace) -> None:
    """Count what a run of models costs: one as a table of its parts, several as a table of models."""
    whole_number(options.tokens, "--tokens", QuantError, 1)  # errors before a model is read
    if options.audio_seconds is not None and not 0 < options.audio_seconds < float("inf"):
        raise QuantError(f"--audio-seconds {options.audio_seconds:g} is no length. Pass one above 0.")
    check_models(options.model)
    found = {
        name: cost_of(load(name, options), options.audio_seconds, options.tokens, float_bits=FLOAT_BITS)
        for name in options.model
    }
    if options.json:
        for name, each in found.items():
            print(json.dumps({"model": name, **each.record()}))
    else:
        print(overview(found) if len(found) > 1 else found[options.model[0]])


def explain(options: argparse.Namespace) -> None:
    """Say which part of a quantized model makes its errors."""
    check_kind(
        [options.float, options.quantized],
        SpeechModel,
        "`explain` is about recognizers. Of a text model, `perplexity` says how much was lost, and "
        "qlib.sensitivity which layers lose it.",
    )
    data = data_of(options)  # errors before the models are read
    if is_quantized(options.float) or not is_quantized(options.quantized):
        raise QuantError(
            f"explain: {options.float} is to be a float model, and {options.quantized} a folder that "
            "`python -m qlib quantize` wrote. Name the float model first."
        )
    found = explain_models(
        load(options.float, options), load(options.quantized, options), data, progress=not options.quiet
    )
    print(json.dumps(found.record(), ensure_ascii=False) if options.json else found)


# --- studies


def benchmark(options: argparse.Namespace) -> None:
    """Run a study, from a file or from options."""
    outcome = run_study(
        study_of(options),
        options.output,
        workers=options.workers,
        scheduler=options.scheduler,
        progress=not options.quiet,
    )
    print(json.dumps(asdict(outcome)) if options.json else outcome)
    if outcome.failed:
        raise DataError(
            f"{len(outcome.failed)} of the cells failed, for the reasons above. "
            "The same command tries them again."
        )


def report(options: argparse.Namespace) -> None:
    """Write a study as a page and as tables."""
    for path in write_report(options.study, options.output):
        print(json.dumps({"file": str(path)}) if options.json else path)


def study_of(options: argparse.Namespace) -> Study:
    """Return the study that the options name."""
    if options.study is not None:
        plain = make_parser().parse_args([options.command, "--output", "."])
        if given := [name for name in IN_A_STUDY if getattr(options, name) != getattr(plain, name)]:
            named = ", ".join("--" + name.replace("_", "-") for name in given)
            raise DataError(f"{options.study} says what to compute. Leave {named} out, or write it there.")
        study = read_study(options.study)
        return replace(study, sensitivity=study.sensitivity or options.sensitivity)
    if not options.model or not options.data:
        raise DataError("benchmark: name a study file, or --model and --data.")
    if twice := repeated(map(data_name, options.data)):
        raise DataError(
            f"--data has two test sets that are called {twice}. Name them in a study file: [data] NAME = ..."
        )
    return Study(
        models=tuple(options.model),
        data={data_name(path): path for path in options.data},
        methods=tuple(options.method),
        schemes=tuple(options.scheme),
        calib=options.calib,
        calib_limit=options.calib_limit,
        limit=options.limit,
        batch_size=options.batch_size,
        language=options.language,
        sensitivity=options.sensitivity,
    )


def data_name(path: str) -> str:
    """Return what a test set is called: a folder by its name, `manifest.jsonl` by that of its folder."""
    place = Path(path).resolve()
    return place.parent.name if place.stem == "manifest" else place.stem


# --- what there is


def ls(options: argparse.Namespace) -> None:
    """List the models that are known by name, or the layers of some."""
    if not options.model:
        print("\n".join(map(json.dumps, registered())) if options.json else table_of_registered())
    for name in options.model:
        found = layers(load_model(name, device=options.device), options.skip)
        if options.json:
            for each in found:
                print(json.dumps({"model": name, **asdict(each)}))
        else:
            print(f"{name}: {found}")


COMMANDS: Mapping[str, Any] = {
    "quantize": quantize,
    "transcribe": transcribe,
    "evaluate": evaluate,
    "compare": compare,
    "score": score,
    "perplexity": perplexity,
    "cost": cost,
    "explain": explain,
    "benchmark": benchmark,
    "report": report,
    "ls": ls,
}

if __name__ == "__main__":
    sys.exit(main())
