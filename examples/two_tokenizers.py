"""Two small tokenizers for the lessons on drafting, trained in a second on the pages of `docs/`."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from qlib.models import Tokenizer

PAGES = [
    page.read_text(encoding="utf-8") for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
]


def byte_level(size: int) -> Tokenizer:
    """Return a tokenizer of `size` tokens in GPT-2's alphabet."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(PAGES, trainer)
    return Tokenizer(raw)


def sentence_pieces(size: int) -> Tokenizer:
    """Return a tokenizer of `size` tokens that writes spaces as a low line, and single bytes as <0x41>."""
    raw = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*specials, *pieces], max_token_length=16, show_progress=False
    )
    raw.train_from_iterator(PAGES, trainer)
    # Bytes are text, not special tokens: they are only here so that training gives them a place.
    table = raw.to_str()
    return Tokenizer(tokenizers.Tokenizer.from_str(_as_text(table, set(pieces))))


def _as_text(table: str, pieces: set[str]) -> str:
    content = json.loads(table)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in pieces]
    return json.dumps(content)
