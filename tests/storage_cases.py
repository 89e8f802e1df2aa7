"""What is kept on disk, in miniature: how each kind is made, read, and compared; for damage and failures."""

from __future__ import annotations

import hashlib
import os
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

import qlib
from draftlib import NGramCache
from draftlib.vocabulary.mapping import VocabularyMap
from qlib.activation_state import describe
from qlib.linear import FakeQuantLinear
from qlib.models.structure import Model
from qlib.models.tiny import tiny_gemma3, tiny_llama, tiny_moonshine, tiny_whisper

TEXTS = ["the cat sat at the heath", "a tall hat", "that is the art of it", "he ate a tart"]
ROUNDS = int(os.environ.get("QUANTDRAFT_ROUNDS", "0"))  # 0: few, for every day

PAIR = VocabularyMap.from_bytes(
    [b"a", b"b", b"ab", b"c"], [b"a", b"b", b"aa", b"ab", b"ba", b"abc", b"aab", b"bab", b"abab"]
)
NGRAMS = {(0, 0): 2, (0, 1): 3, (1, 0): 4, (0, 1, 3): 5, (2, 3): 5, (0, 2): 6, (1, 2): 7, (2, 2): 8}


def small_whisper(seed: int) -> Model:
    return tiny_whisper(seed, width=8, layers=1, frames=8, mels=8)


def rtn_whisper(seed: int = 0, bits: int = 4) -> qlib.Result:
    return qlib.quantize(small_whisper(seed), [], weight=qlib.Grid(bits, 4), progress=False)


def text_result(model: Model, method: Any, grid: qlib.Grid, activation: Any = None) -> qlib.Result:
    return qlib.quantize(model, [method], weight=grid, activation=activation, calib=TEXTS, progress=False)


def results(seed: int) -> dict[str, qlib.Result]:
    """One quantized miniature of each way to store a layer."""
    return {
        "rtn whisper": qlib.quantize(
            small_whisper(seed), [], weight=qlib.Grid(3, 6), activation=qlib.PerToken(8), progress=False
        ),
        "hqq moonshine": qlib.quantize(
            tiny_moonshine(seed, width=8, layers=1), [qlib.HQQ()], weight=qlib.Grid(4, 8), progress=False
        ),
        "spqr llama": text_result(
            tiny_llama(seed, width=8, layers=1, heads=2, kv_heads=1),
            qlib.SpQR(second_group=4), qlib.Grid(4, 4),
        ),
        "quik llama": text_result(
            tiny_llama(seed, width=8, layers=1, heads=2, kv_heads=1),
            qlib.QUIK(columns=2), qlib.Grid(4, None, True), qlib.PerTensor(8),
        ),
        "gptq gemma3": text_result(
            tiny_gemma3(seed, width=8, layers=1, head_dim=4), qlib.GPTQ(act_order=True), qlib.Grid(3, 4)
        ),
    }  # fmt: skip


def print_of(model: Model) -> str:
    """Return a hash of all that a model computes with."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantLinear):
            digest.update(f"{name} {describe(module.activation)} {module.grid} {module.notes}".encode())
    tokenizer = model.tokenizer
    said = (model.config, model.generation, getattr(model, "chat_template", None), model.training)
    digest.update(repr(said).encode())
    digest.update(b"" if tokenizer is None else tokenizer.to_json().encode())
    return digest.hexdigest()


def ngrams(count: int = len(NGRAMS), **settings: Any) -> NGramCache:
    """Return a cache of the first n-grams."""
    cache = NGramCache(**{"max_entries": 100, **settings})
    cache.bind(PAIR)
    for turn, (key, target) in enumerate([*NGRAMS.items()][:count]):
        for _ in range(1 + turn % 3):
            cache.add(key, target)
    cache.commit()
    return cache


def contents(cache: NGramCache) -> Any:
    """Return all that a cache knows."""
    settings = (cache.max_entries, cache.policy, cache.max_length)
    return [astuple(each) for each in cache], settings, cache._clock, cache._rows()


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
