"""The distribution as users get it: sdist and wheel of a clean copy, used where no checkout is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from code_rules import ROOT
from test_docs import split
from test_packaging import EXTRAS, PAGES

pytestmark = pytest.mark.slow
NOT_SHIPPED = ("drafter-7m", "drafter-generic-7m")  # weights that the repository holds and the wheel does not


@dataclass(frozen=True)
class Installed:
    """An installed wheel, and an empty folder to work in."""

    wheel: Path
    sdist: Path
    site: Path
    place: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the empty folder; the packages of the wheel come before any others."""
        env = os.environ | {"PYTHONPATH": str(self.site)}
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=self.place, env=env, capture_output=True, text=True, check=False, timeout=300
        )

    def output(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def clean_copy(folder: Path) -> Path:
    """Copy what git knows or would add, and nothing that it ignores: no build folder, no egg-info."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout")
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(source: Path, kind: str, folder: Path) -> Path:
    """Build "sdist" or "wheel" with the setuptools that is there; needs no network."""
    command = f"import sys; from setuptools.build_meta import build_{kind}; build_{kind}(sys.argv[1])"
    arguments = [sys.executable, "-c", command, str(folder)]
    done = subprocess.run(arguments, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build sdist and wheel, and install the wheel without what it depends on, which is there already."""
    new = tmp_path_factory.mktemp
    source = clean_copy(new("source"))
    sdist, wheel = build(source, "sdist", new("sdist")), build(source, "wheel", new("wheel"))
    shutil.rmtree(source)
    found = Installed(wheel, sdist, new("site"), new("elsewhere"))
    found.output("-m", "pip", "install", "--no-index", "--no-deps", "--target", str(found.site), str(wheel))
    return found


def test_the_sdist_makes_the_same_wheel(installed: Installed, tmp_path: Path) -> None:
    with tarfile.open(installed.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    (tmp_path / "wheel").mkdir()
    again = build(source, "wheel", tmp_path / "wheel")
    with zipfile.ZipFile(installed.wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        for name in first.namelist():
            assert name.endswith("/RECORD") or first.read(name) == second.read(name), name


def test_python_imports_the_installed_packages(installed: Installed) -> None:
    code = "import draftlib, qlib; print(qlib.__file__, draftlib.__file__, sep='\\n')"
    for file in installed.output("-c", code).splitlines():
        assert Path(file).is_relative_to(installed.site)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("qlib --help", "usage: python -m qlib"),
        ("qlib quantize --help", "usage: python -m qlib quantize"),
        ("qlib.models --help", "usage: python -m qlib.models"),
        ("draftlib --help", "usage: python -m draftlib"),
        ("qlib ls", "whisper-tiny.en"),
    ],
)
def test_commands(installed: Installed, command: str, words: str) -> None:
    assert words in installed.output("-m", *command.split())


def test_the_readmes_first_example_without_a_model(installed: Installed) -> None:
    _, blocks = split((ROOT / "README.md").read_text())
    number = next(i for i, block in enumerate(blocks) if block.info == "python")
    assert blocks[number + 1].info == "text output"
    assert installed.output("-c", blocks[number].text).strip() == blocks[number + 1].text.strip()


@pytest.mark.weights
def test_the_readmes_first_example(installed: Installed, tmp_path: Path) -> None:
    """Quantize Whisper, measure it, save and load it; of the checkout only the recordings are used."""
    _, blocks = split((ROOT / "README.md").read_text())
    text = next(block.text for block in blocks if block.info == "python no-run")
    speech = (ROOT / "examples/data/speech/manifest.jsonl").as_posix()
    assert "examples/data/speech/manifest.jsonl" in text and "load_quantized" in text
    if "whisper-tiny.en" in missing(installed):
        pytest.skip("Run: python -m qlib.models fetch whisper-tiny.en")
    text = text.replace("examples/data/speech/manifest.jsonl", speech)
    text = text.replace("calib=calib,", "calib=calib[:4],").replace(", test)", ", test[:4])")
    installed.output("-c", text)
    assert (installed.place / "out" / "tiny-w4a8").is_dir()


def missing(installed: Installed) -> list[str]:
    """Return the names of models that `python -m qlib ls` says are not here."""
    rows = [line.split() for line in installed.output("-m", "qlib", "ls").splitlines()[1:]]
    return [row[0] for row in rows if row[-1] != "yes"]


class TestModelsOfTheRepository:
    """Drafters are not part of the wheel: their names stay, and say where to get them."""

    def test_are_listed_as_not_here(self, installed: Installed) -> None:
        assert set(NOT_SHIPPED) <= set(missing(installed))

    @pytest.mark.parametrize("name", NOT_SHIPPED)
    @pytest.mark.parametrize("command", ["qlib ls", "qlib.models fetch", "draftlib generate Hi --target"])
    def test_are_an_error_that_says_where_they_are(
        self, installed: Installed, name: str, command: str
    ) -> None:
        done = installed.run("-m", *command.split(), name)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"{name} is not there" in done.stderr and "Clone the repository" in done.stderr


class TestExtras:
    def dry_run(self, installed: Installed, extras: str) -> subprocess.CompletedProcess[str]:
        """Let pip resolve the wheel with extras, from what is installed here alone."""
        wanted = f"quantdraft[{extras}] @ {installed.wheel.as_uri()}"
        return installed.run("-m", "pip", "install", "--no-index", "--dry-run", wanted)

    @pytest.mark.parametrize("extra", EXTRAS)
    def test_pip_knows_it_and_needs_no_other_packages_than_are_pinned(
        self, installed: Installed, extra: str
    ) -> None:
        done = self.dry_run(installed, extra)
        assert done.returncode == 0, done.stderr
        assert "does not provide the extra" not in done.stderr

    def test_an_extra_that_does_not_exist_would_be_seen(self, installed: Installed) -> None:
        assert "does not provide the extra 'x'" in self.dry_run(installed, "x").stderr

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
    def test_pages_name_extras_that_exist(self, page: Path) -> None:
        found = re.findall(r"pip install [^\n`]*?'(?:quantdraft|\.)\[([\w,]+)\]'", page.read_text())
        assert {name for each in found for name in each.split(",")} <= EXTRAS.keys()
