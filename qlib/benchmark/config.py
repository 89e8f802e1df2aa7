"""What a study is about: models, methods, schemes, calibration and test recordings.

From options of the command line, or from a small TOML file:

    models = ["whisper-tiny.en", "moonshine-tiny"]
    methods = ["rtn", "gptq", "awq + gptq"]
    schemes = ["W4A16", "W3A16"]
    runs = ["spqr W3A16G16"]
    calib = "calibration.jsonl"
    calib_limit = 32
    sensitivity = true

    [data]
    other = "test-other.jsonl"
    clean = "LibriSpeech/test-clean"
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qlib.asr.languages import language_code
from qlib.command_line import CALIBRATION, chain_names, methods
from qlib.errors import DataError, check_one_of, describe, did_you_mean, repeated, true_or_false, whole_number
from qlib.scheme import parse_scheme


@dataclass(frozen=True)
class Study:
    """A grid of runs: each model in float, and by each method with each scheme.

    Attributes
    ----------
    models : tuple of str
        Names or folders of float models.
    methods : tuple of str
        Chains of methods, as "awq + gptq".
    schemes : tuple of str
        As `qlib.scheme` has them; each is computed with each method.
    runs : tuple of str
        Further pairs of a chain and a scheme, as "spqr W3A16G16".
    data : dict of str to str
        Test sets by name: manifests, parquet files, folders of a corpus, or FOLDER:NAME for one in it. Of
        several splits, of a folder or named by the lines of a manifest, `test` is read.
    calib : str
        Recordings in the same form, of several splits `calibration` or `train`; empty where no method looks
        at inputs.
    calib_limit, batch_size : int
        Recordings that calibrate, and windows decoded side by side.
    limit : int, optional
        Most recordings of each test set.
    language : str
        Of the recordings, for multilingual checkpoints; empty if the lists say it.
    dtype : str
        "float16" rounds a checkpoint's numbers to 16 bits before anything is measured, so that what stays in
        float takes 16 bits in every file; "float32" takes them as they are. Float32 computes in both cases.
    sensitivity : bool
        Also estimate what each layer of each model costs on each scheme's grid; takes `calib`.

    Raises
    ------
    DataError
        A setting is of the wrong kind, empty or unknown. QuantError: an unknown method or scheme.
    """

    models: tuple[str, ...]
    data: Mapping[str, str]
    methods: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("W4A16",)
    runs: tuple[str, ...] = ()
    calib: str = ""
    calib_limit: int = CALIBRATION
    limit: int | None = None
    batch_size: int = 8
    language: str = ""
    dtype: str = "float32"
    sensitivity: bool = False

    def __post_init__(self) -> None:
        for name in ("models", "methods", "schemes", "runs"):
            object.__setattr__(self, name, _names(getattr(self, name), name))
        check_one_of(self.dtype, "study: dtype", ("float32", "float16"), DataError)
        for name in ("calib_limit", "batch_size"):
            whole_number(getattr(self, name), f"study: {name}", DataError, 1)
        if self.limit is not None:
            whole_number(self.limit, "study: limit", DataError, 1, remedy="Leave it out for all recordings.")
        if not isinstance(self.data, Mapping) or not self.data:
            raise DataError(f'study: data is {describe(self.data)}. Name test sets: [data] name = "path".')
        if self.language:
            language_code(self.language, "study: language")
        true_or_false(self.sensitivity, "study: sensitivity", DataError, "Write true or false.")
        if self.sensitivity and not self.calib:
            raise DataError("study: sensitivity is measured on recordings that calibrate. Name them: calib.")
        if not self.models:
            raise DataError('study: no models. Name one or more: models = ["whisper-tiny.en"].')
        self._check_names()

    def _check_names(self) -> None:
        """Refuse models that one could not tell apart, unknown schemes and unknown methods."""
        if clash := repeated(Path(name).name for name in self.models):
            raise DataError(
                f"study: two models are called {clash}, and their results could not be told apart. Give "
                "their folders other names."
            )
        for scheme in self.schemes:
            parse_scheme(scheme)
        for chain, scheme in self.pairs():
            parse_scheme(scheme)
            methods(chain_names(chain))
        if clash := repeated(" ".join(pair) for pair in self.pairs()):
            raise DataError(f"study: {clash} would be computed twice. Leave it out of runs.")

    def pairs(self) -> list[tuple[str, str]]:
        """Return all chains with their schemes, in the order of the results."""
        found = [(chain, scheme) for scheme in self.schemes for chain in self.methods]
        for text in self.runs:
            chain, _, scheme = text.rpartition(" ")
            if not chain.strip():
                raise DataError(f"study: {text!r} in runs is no method and scheme, such as 'spqr W3A16G16'.")
            found.append((chain.strip(), scheme))
        return found


def read_study(path: Path) -> Study:
    """Read a study from a TOML file; paths in it count from the file's folder.

    Raises
    ------
    DataError
        The file is missing, no TOML, or has an unknown setting; see `Study` for the others.
    """
    if sys.version_info < (3, 11):  # pragma: no cover
        raise DataError(f"{path}: TOML files need Python 3.11. Pass the study as options.")
    import tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no TOML ({error}).") from error
    known = [each.name for each in fields(Study)]
    for name in values:
        if name not in known:
            raise DataError(f"{path}: there is no setting {name!r}.{did_you_mean(name, known)}")
    if missing := [name for name in ("models", "data") if name not in values]:
        raise DataError(f"{path}: {missing[0]} is missing.")
    study = Study(**values)
    return replace(
        study,
        models=tuple(_beside(path, name) if _is_path(name) else name for name in study.models),
        data={name: _beside(path, place) for name, place in study.data.items()},
        calib=_beside(path, study.calib) if study.calib else "",
    )


def _names(value: Any, name: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(each, str) and each for each in names):
        raise DataError(f"study: {name} is {describe(value)}. Pass a list of names.")
    if repeated(names):
        raise DataError(f"study: {name} names something twice: {', '.join(names)}.")
    return tuple(names)


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name


def _beside(path: Path, place: Any) -> str:
    if not isinstance(place, str):
        raise DataError(f"{path}: {describe(place)} is no path.")
    return str(path.parent / place)
