"""A Whisper model out of the files of CTranslate2."""

from __future__ import annotations

import logging
from pathlib import Path

from qlib.errors import ModelError
from qlib.models.config_values import MOST_TOKENS, ConfigValues
from qlib.models.files import read_json
from qlib.models.hub.converted_files import save_tensors, write_json
from qlib.models.hub.formats import (
    ctranslate2,
    ctranslate2_whisper,
    whisper_config,
)
from qlib.models.hub.formats.tokenizer_json import mend_merges

log = logging.getLogger(__name__)


def whisper_from_ctranslate2(source: Path, target: Path, *, progress: bool = False) -> None:
    """Convert CTranslate2's `model.bin`, `config.json` and `tokenizer.json` of a Whisper model.

    Parameters
    ----------
    source : Path
        Folder with the three files.
    target : Path
        Existing folder that receives `model.safetensors` (in the stored dtype), `config.json`,
        `generation_config.json`, `tokenizer.json` and the processor's settings.
    progress : bool
        Unused: this takes a second.

    Raises
    ------
    ModelError
        A file is missing or damaged, or this is no Whisper model.
    """
    checkpoint = ctranslate2.read(source / "model.bin")
    if checkpoint.spec != "WhisperSpec":
        raise ModelError(
            f"{source / 'model.bin'} holds a {checkpoint.spec!r}; only 'WhisperSpec' is converted."
        )
    variables = checkpoint.variables
    tensors = ctranslate2_whisper.whisper_state_dict(variables)
    tokenizer = read_json(source / "tokenizer.json")
    special = whisper_config.special_tokens(tokenizer)
    try:
        heads = int(variables["encoder/num_heads"]), int(variables["decoder/num_heads"])
    except KeyError as error:
        raise ModelError(
            f"{source / 'model.bin'} lacks the variable {error}. Is it a Whisper model?"
        ) from error
    config = whisper_config.whisper_config(tensors, heads, special)
    settings = ConfigValues(read_json(source / "config.json"), source / "config.json")
    lists = ("suppress_ids", "suppress_ids_begin", "lang_ids")
    ids = {key: list(settings.suppressed(key, MOST_TOKENS)) for key in lists}
    generation = whisper_config.whisper_generation_config(config, special, settings.values | ids)
    if mended := mend_merges(tokenizer):
        log.info("tokenizer.json lacked %d merges, put back: %s", len(mended), mended)
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", generation)
    write_json(target / "tokenizer.json", tokenizer)
    for file, content in whisper_config.whisper_processor_files(config["num_mel_bins"]).items():
        write_json(target / file, content)
    save_tensors(tensors, target / "model.safetensors")
