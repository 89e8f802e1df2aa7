"""From the files of a package to a Hugging Face-layout folder: the table of source formats."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from qlib.models.hub.convert_moonshine import moonshine_from_ort
from qlib.models.hub.convert_text import llama_from_gguf
from qlib.models.hub.convert_whisper import whisper_from_ctranslate2

VERSION = 1  # raise it when a conversion's result changes: folders made by another version are fetched again
CONVERTERS: dict[str, Callable[..., None]] = {
    "ctranslate2-whisper": whisper_from_ctranslate2,
    "gguf-llama": llama_from_gguf,
    "ort-moonshine": moonshine_from_ort,
}


def convert(form: str, source: Path, target: Path, *, progress: bool = False) -> None:
    """Convert the files in `source` (`form` is a key of `CONVERTERS`) into the new folder `target`."""
    target.mkdir()
    CONVERTERS[form](source, target, progress=progress)
    if (source / "LICENSE").exists():
        shutil.copyfile(source / "LICENSE", target / "LICENSE")
