"""Checkpoints of other programs, converted once into the cache: a .gguf file, a CTranslate2 folder.

A conversion is found again by the content of the files that it was made of: a changed file gives a new one,
and a file that was moved, renamed or copied the same one. `origin.json` names the source.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from qlib.errors import FileError, ModelError
from qlib.models.disk.hashes import digest_of, sha256_of
from qlib.models.hub import convert, convert_text, convert_whisper, store

log = logging.getLogger(__name__)
_CTRANSLATE2 = ("model.bin", "config.json", "tokenizer.json")
_OWN_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_ctranslate2(folder: Path) -> bool:
    """Tell whether a folder holds CTranslate2's weights and none of the Hugging Face layout."""
    return (folder / "model.bin").is_file() and not any((folder / name).is_file() for name in _OWN_WEIGHTS)


def converted(source: Path) -> Path:
    """Return the folder in Hugging Face layout that was, or now is, made of a foreign checkpoint.

    Parameters
    ----------
    source : Path
        A .gguf file, or a folder with `model.bin`, `config.json` and `tokenizer.json`.

    Raises
    ------
    ModelError
        A file is missing, damaged, or of an architecture that is not read.
    FileError
        The source cannot be read, or the cache cannot be written.
    MissingExtraError
        A .gguf file needs the `gguf` package.
    """
    try:
        name, made_of = _identity(source)
        folder = store.model_dir(name)
        if store.problem(folder, made_of) is None:
            return folder
        with store.workspace(name) as work:
            if store.problem(folder, made_of):  # else another process has just made it
                store.install(_build(source, work, made_of), name)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{source} cannot be converted into the cache {store.cache_dir()}: {error}. Make room there, or "
            "set QUANTDRAFT_CACHE to a folder that can be written."
        ) from error
    return folder


def _identity(source: Path) -> tuple[str, dict[str, Any]]:
    """Return the name in the cache, and what the result depends on: each file's sha256, the converter."""
    if source.is_dir():
        if missing := [name for name in _CTRANSLATE2 if not (source / name).is_file()]:
            raise ModelError(
                f"{source} holds CTranslate2's model.bin and lacks {', '.join(missing)}. Copy tokenizer.json "
                "from the model that it was converted from, and config.json from where model.bin came from."
            )
        hashes = {name: sha256_of(source / name) for name in _CTRANSLATE2}
    else:
        hashes = {"model.gguf": sha256_of(source)}
    made_of = {"source_sha256": hashes, "converter": convert.VERSION}
    return f"converted-{digest_of(made_of)[:16]}", made_of


def _build(source: Path, work: Path, made_of: dict[str, Any]) -> Path:
    """Convert inside the folder `work` and return the finished folder."""
    log.info("converting %s", source)
    built = work / "built"
    built.mkdir()
    if source.is_dir():
        convert_whisper.whisper_from_ctranslate2(source, built)
    else:
        convert_text.text_from_gguf(source, built, progress=True)
    store.write_origin(built, {"source": str(source.resolve()), **made_of})
    return built
