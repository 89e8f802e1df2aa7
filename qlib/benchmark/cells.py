"""The cells of a study: one quantization of one model, measured on all test sets; or its layers' losses.

A cell has a key: a hash of everything that decides its result. What is stored under the key is never computed
again; anything that changes (a weight of the model, a setting, a recording, a version) makes another key, so
that no old number stands under new settings.

The packages that count errors are in no key, but in the signature of each rate. Where they have changed, what
the model wrote is scored again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from qlib.analysis.cost import cost
from qlib.asr.calibration import fingerprint
from qlib.asr.datasets import require_text
from qlib.asr.hypotheses import GREEDY, Hypothesis, recognize, score_hypotheses
from qlib.asr.parquet import StoredSound
from qlib.asr.signature import has_settings
from qlib.asr.transcribe import as_speech_model
from qlib.asr.utterance import Utterance
from qlib.asr.wer import check_scorable, scorer_versions
from qlib.benchmark.config import Study
from qlib.benchmark.layer_losses import MEASURE, RECORDINGS, grids_of, layer_losses
from qlib.benchmark.memory import check_memory
from qlib.chain import make_chain
from qlib.checkpoint import folder_bytes
from qlib.command_line import FLOAT_BITS, chain_names, methods, utterances
from qlib.errors import DataError
from qlib.models.disk.hashes import digest_of
from qlib.models.hub.load import load_model
from qlib.models.structure import Model
from qlib.pipeline import quantize
from qlib.scheme import parse_scheme
from qlib.version import library_version

FLOAT = "float"
SENSITIVITY = "sensitivity"  # in the place of a method: not quantized, its layers are judged
SECONDS, TOKENS = 10, 40  # of the run whose cost is counted
Row = dict[str, Any]
Texts = dict[str, list[dict[str, Any]]]  # what a model wrote, by test set: rows of hypotheses


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes
    ----------
    model, method, scheme : str
        As in the study; method and scheme are "float" for the model as it is, and "sensitivity" where its
        layers are judged.
    """

    model: str
    method: str
    scheme: str

    @property
    def name(self) -> str:
        """What stands in messages."""
        quantized = self.method not in (FLOAT, SENSITIVITY)
        return f"{Path(self.model).name} {self.method}" + (f" {self.scheme}" if quantized else "")


def cells_of(study: Study) -> list[Cell]:
    """Return all runs of a study, model by model, float first."""
    found = []
    for model in study.models:
        found.append(Cell(model, FLOAT, FLOAT))
        found += [Cell(model, method, scheme) for method, scheme in study.pairs()]
        found += [Cell(model, SENSITIVITY, SENSITIVITY)] if study.sensitivity else []
    return found


@dataclass(frozen=True)
class Data:
    """The recordings of a study, with a hash of each list."""

    tests: dict[str, list[Utterance]]
    calib: list[Utterance] | None
    hashes: dict[str, str]

    @classmethod
    def of(cls, study: Study) -> Data:
        """Read all lists; recordings that calibrate are in no test.

        Raises
        ------
        DataError
            A list cannot be read, has no transcripts or none with a word to score, or is empty once the
            calibration is taken out.
        """
        calib = utterances([study.calib], study.calib_limit, "train") if study.calib else None
        used = {_stored(each) for each in calib or []} - {None}
        tests = {}
        for name, place in study.data.items():
            listed = utterances([place], None)
            tests[name] = [each for each in listed if _stored(each) not in used][: study.limit]
            require_text(tests[name])
            if not tests[name]:
                raise DataError(f"{place}: all {len(listed)} recordings calibrate, and none is left to test.")
            _check_words(tests[name], study, place)
        hashes = {name: fingerprint(listed) for name, listed in tests.items()}
        return cls(tests, calib, {**hashes, "calibration": "" if calib is None else fingerprint(calib)})


def _check_words(listed: Sequence[Utterance], study: Study, place: str) -> None:
    """Refuse a list without a word to score, before anything is quantized."""
    languages = [study.language or each.language or "en" for each in listed]
    try:
        check_scorable([each.text or "" for each in listed], languages)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _stored(utterance: Utterance) -> tuple[Path, int] | None:
    """Return file and row of a recording, row 0 of a file of its own; None where the sound is in memory."""
    if isinstance(utterance.audio, StoredSound):
        return utterance.audio.path.resolve(), utterance.audio.row
    return (utterance.audio.resolve(), 0) if isinstance(utterance.audio, Path) else None


def key_of(cell: Cell, study: Study, data: Data, weights: str) -> str:
    """Return the hash of everything that decides a cell's result; `weights` is that of the float model."""
    versions = {"torch": torch.__version__, "quantdraft": library_version()}
    if cell.method == SENSITIVITY:
        heard, grids = fingerprint((data.calib or [])[:RECORDINGS]), [str(each) for each in grids_of(study)]
        return digest_of(
            {
                "weights": weights,
                "measure": MEASURE,
                "grids": grids,
                "data": heard,
                "dtype": study.dtype,
                "versions": versions,
            }
        )
    chain = [] if cell.method == FLOAT else make_chain(methods(chain_names(cell.method))).describe()
    return digest_of(
        {
            "weights": weights,
            "methods": chain,
            "scheme": cell.scheme,
            "data": data.hashes,
            "language": study.language,
            "dtype": study.dtype,
            "versions": versions,
        }
    )


# --- one run


def _cost(model: Model) -> Row:
    """Return what a run of a model costs: megabytes moved, and 10^12 bit operations."""
    found = cost(model, SECONDS, TOKENS, float_bits=FLOAT_BITS)
    return {
        "audio_seconds": SECONDS,
        "tokens": TOKENS,
        "bytes_moved": round(found.total.bytes_moved),
        "bit_operations": round(found.total.bit_operations),
        "file_bytes": found.size.file_bytes,
        "bits_per_parameter": found.bits_per_parameter,
    }


def run(cell: Cell, study: Study, data: Data, key: str, folder: Path, threads: int | None) -> dict[str, Any]:
    """Quantize and measure; return the row of the result, which holds no times, the texts, and the times.

    Parameters
    ----------
    cell, study
        What to do.
    data : Data
        The study's recordings, without their sound.
    key : str
        Of the cell; finished blocks of a killed run are taken up from a folder of this name.
    folder : Path
        Of the study.
    threads : int, optional
        Of the processor; None leaves them to the process.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    started = perf_counter()
    check_memory(cell.model)
    model = load_model(cell.model, dtype=study.dtype).float()
    as_speech_model(model)  # an error before it is quantized
    row: Row = {"key": key, **asdict(cell), "parameters": sum(each.numel() for each in model.parameters())}
    if cell.method == SENSITIVITY:
        row |= layer_losses(model, study, data.calib or [])
        return {"row": row, "texts": {}, "times": {"sensitivity": perf_counter() - started}}
    if cell.method != FLOAT:
        grid, activation = parse_scheme(cell.scheme)
        result = quantize(
            model,
            methods(chain_names(cell.method)),
            weight=grid,
            activation=activation,
            calib=data.calib,
            work=folder / "work" / key,
            progress=False,
        )
        place = folder / "work" / f"{key}-checkpoint"
        model, size = result.model, folder_bytes(result.save(place))
        row |= {"settings": result.settings, "bits_per_weight": result.report.bits_per_weight, "bytes": size}
    row["cost"] = _cost(model)
    quantized = perf_counter()
    texts: Texts = {}
    for name, listed in data.tests.items():
        hypotheses = recognize(
            model,
            listed,
            batch_size=study.batch_size,
            language=study.language or None,
            progress=False,
        )
        texts[name] = [each.row() for each in hypotheses]
    row["tests"] = _rates(texts, study)
    times = {"quantize": quantized - started, "recognize": perf_counter() - quantized}
    times["threads"] = torch.get_num_threads()
    return {"row": row, "texts": texts, "times": times}


# --- rates


def _rates(texts: Texts, study: Study) -> Row:
    """Return the rates of what a cell wrote, by test set."""
    language = study.language or None
    written = {name: [Hypothesis(**each) for each in rows] for name, rows in texts.items()}
    return {name: score_hypotheses(each, language, GREEDY).record() for name, each in written.items()}


def is_scored_now(row: Row) -> bool:
    """Return whether the rates of a cell are those that the packages here would count."""
    settings = {"dec": GREEDY, **scorer_versions()}
    return all(has_settings(each.get("signature", ""), settings) for each in row.get("tests", {}).values())


def scored_again(found: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """Return a finished cell with the rates that the packages here count, of what it wrote then."""
    return {**found, "row": {**found["row"], "tests": _rates(found["texts"], study)}}
