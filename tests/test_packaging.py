"""Packaging: metadata in one place, dependencies as promised, a complete wheel, commands that exist."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from code_rules import PACKAGES, ROOT, Source, imports, sources

CORE = ["torch", "numpy", "safetensors", "soundfile", "jiwer", "tqdm", "tokenizers"]
EXTRAS = {
    "asr": ["whisper-normalizer", "soxr"],
    "gguf": ["gguf"],
    "parquet": ["pyarrow"],
    "chat": ["jinja2"],
    "plots": ["matplotlib"],
    "dask": ["distributed"],
}
OPTIONAL = [name for extra in EXTRAS.values() for name in extra]
TOOLS = ["pytest", "pytest-cov", "pytest-xdist", "hypothesis", "ruff", "mypy", "transformers"]
PAGE = ("benchmark/page.css", "benchmark/page.js")  # of a study: files that are no code
PIN = r'[\w-]+==[\w.]+(; python_version (<|>=) "3\.11")?'
FIRST_PARTY = {*PACKAGES, "__future__"}
STANDARD = sys.stdlib_module_names | {"tomllib"}  # of 3.11: config.py says so to users of 3.10


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def names(text: str) -> list[str]:
    """Return the names of requirements, one a line: no versions, comments or options.

    >>> names("torch>=2.4\\n-r cpu.txt\\n# why\\nnumpy==2.4.6\\n")
    ['torch', 'numpy']
    """
    lines = (line.strip() for line in text.splitlines())
    return [re.split(r"[<>=!~\[; ]", line)[0] for line in lines if line and line[0] not in "#-"]


def bounds(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and lower bounds of requirements, one a line; zeros at the end do not count.

    >>> bounds("torch>=2.4.0\\njiwer>=3\\ntqdm")
    [('torch', (2, 4)), ('jiwer', (3,))]
    """
    found = re.findall(r"^\s*([\w-]+)>=([\d.]+)$", text, re.MULTILINE)
    return [(name, tuple(map(int, re.sub(r"(\.0)+$", "", bound).split(".")))) for name, bound in found]


def python_of(line: str) -> str:
    """Return the Python that a pinned line is for: "3.10", "3.11" (and newer), or "" for any."""
    match = re.search(r'; python_version (<|>=) "3\.11"$', line)
    return "" if match is None else {"<": "3.10", ">=": "3.11"}[match[1]]


def tables(toml: str) -> list[str]:
    """Return the top-level names of the tables of a TOML file."""
    return [name.strip("\"' ") for name in re.findall(r"^\s*\[+\s*([^\].]+)", toml, re.MULTILINE)]


class TestMetadata:
    def test_pyproject_has_no_project_table(self) -> None:
        """With one, setuptools would ignore setup.cfg without a word."""
        assert set(tables((ROOT / "pyproject.toml").read_text())) == {"build-system", "tool"}

    @pytest.mark.parametrize(
        "table", ["[project]", " [ project ]", "[project.scripts]", '["project"]', "[[project.x]]"]
    )
    def test_a_project_table_would_be_seen(self, table: str) -> None:
        assert "project" in tables(f"[build-system]\nrequires = []\n{table}\nname = 'x'\n")

    def test_setup_cfg_has_it_all(self, setup: configparser.ConfigParser) -> None:
        metadata = setup["metadata"]
        assert metadata["name"] == "quantdraft"
        assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
        for key in ("description", "license", "long_description"):
            assert metadata[key]
        assert setup["options"]["python_requires"] == ">=3.10"

    def test_type_information_is_packaged(self, setup: configparser.ConfigParser) -> None:
        """Newer setuptools adds the files unasked, the oldest that is allowed does not."""
        files = {package: value.split(", ") for package, value in setup["options.package_data"].items()}
        assert files == {"qlib": ["py.typed", *PAGE], "draftlib": ["py.typed"]}

    def test_changelog_has_this_version(self, setup: configparser.ConfigParser) -> None:
        assert f"\n## [{setup['metadata']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


class TestDependencies:
    def test_core(self, setup: configparser.ConfigParser) -> None:
        assert names(setup["options"]["install_requires"]) == CORE

    def test_extras(self, setup: configparser.ConfigParser) -> None:
        found = {key: names(value) for key, value in setup["options.extras_require"].items()}
        dev = found.pop("dev")
        assert found == EXTRAS
        assert sorted(dev) == sorted([*OPTIONAL, *TOOLS])

    @pytest.mark.parametrize(("file", "wanted"), [("cpu.txt", [*CORE, *OPTIONAL]), ("dev.txt", TOOLS)])
    def test_pinned(self, file: str, wanted: list[str]) -> None:
        text = (ROOT / "requirements" / file).read_text()
        assert set(names(text)) - {"setuptools"} == set(wanted)
        for line in text.splitlines():
            assert line.startswith(("#", "-r")) or re.fullmatch(PIN, line), line

    @pytest.mark.parametrize("python", ["3.10", "3.11"])
    @pytest.mark.parametrize("file", ["cpu.txt", "dev.txt"])
    def test_every_package_is_pinned_once_for_each_python(self, file: str, python: str) -> None:
        """Some packages have left Python 3.10: the README promises it, so their last release is taken."""
        lines = (ROOT / "requirements" / file).read_text().splitlines()
        found = names("\n".join(line for line in lines if python_of(line) in ("", python)))
        assert sorted(found) == sorted(set(names("\n".join(lines))))

    def test_the_oldest_pins_are_the_lower_bounds(self, setup: configparser.ConfigParser) -> None:
        """`make oldest` tests what setup.cfg promises."""
        texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
        found = [bound for text in texts for bound in bounds(text)]
        lowest = dict(found)
        assert all(numbers == lowest[name] for name, numbers in found)
        pins = (ROOT / "requirements" / "oldest.txt").read_text().replace("==", ">=")
        pinned = {name: numbers for name, numbers in bounds(pins) if name in [*CORE, *OPTIONAL]}
        assert pinned == lowest and set(lowest) == {*CORE, *OPTIONAL}

    def test_the_oldest_build_system_is_pinned(self) -> None:
        (needed,) = re.findall(r'"setuptools>=(\d+)"', (ROOT / "pyproject.toml").read_text())
        assert f"\nsetuptools=={needed}.0.0\n" in (ROOT / "requirements" / "oldest.txt").read_text()

    def test_a_bound_without_a_number_would_be_seen(self) -> None:
        assert bounds("a>=2.0\nb") == [("a", (2,))]

    @pytest.mark.parametrize("source", sources(*PACKAGES), ids=lambda source: source.path)
    def test_every_import_is_covered(self, source: Source) -> None:
        assert uncovered(source) == []

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("import pandas", "pandas"),
            ("def f():\n    from scipy.io import wavfile", "scipy.io"),
            ("import soxr", "soxr"),  # an extra: through require_extra only
            ("require_extra('gguf', 'asr', 'It')", "gguf"),  # the wrong extra
            ("require_extra('scipy', 'asr', 'It')", "scipy"),
        ],
    )
    def test_an_uncovered_import_would_be_seen(self, text: str, expected: str) -> None:
        assert uncovered(Source("qlib/x.py", text)) == [expected]

    def test_what_is_covered(self) -> None:
        text = "import json, torch.nn\nimport qlib\nrequire_extra('whisper_normalizer.english', 'asr', 'It')"
        assert uncovered(Source("qlib/x.py", text)) == []


def uncovered(source: Source) -> list[str]:
    """Return the imports that neither the core requirements nor, by `require_extra`, an extra brings."""
    found = []
    for node, name in imports(source):
        top = name.split(".")[0]
        if isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            brought = EXTRAS[str(node.args[1].value)]
        else:
            brought = CORE
        if top not in FIRST_PARTY | STANDARD and top.replace("_", "-") not in brought:
            found.append(name)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel of a copy of the sources, without network."""
    work = tmp_path_factory.mktemp("wheel")
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, work / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, work)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=work, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = (work / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


class TestWheel:
    def test_holds_both_packages_and_nothing_else(self, wheel: zipfile.ZipFile) -> None:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
        paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
        kinds = (".py", ".typed", ".css", ".js")
        wanted = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix in kinds}
        assert files == wanted
        assert {f"{package}/py.typed" for package in PACKAGES} <= files

    def test_says_what_it_needs(self, wheel: zipfile.ZipFile) -> None:
        (file,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        lines = wheel.read(file).decode().splitlines()
        needed = [
            line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")
        ]
        assert names("\n".join(line for line in needed if "extra ==" not in line)) == CORE
        assert "Name: quantdraft" in lines


# --- commands


def targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class TestCommands:
    def test_make_has_every_target_and_explains_it(self) -> None:
        found = targets(MAKEFILE)
        assert {"demo", "test", "oldest", "wheel-check", "check", "lessons", "docs", "clean"} <= found
        (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
        assert set(phony.split()) == found
        explained = set(re.findall(r'@echo "make ([\w-]+) ', MAKEFILE))
        assert explained == found - {"help", "clean"}

    def test_ci_runs_the_readmes_test_command_and_then_the_checks(self) -> None:
        lines = (ROOT / ".ci" / "run").read_text().splitlines()
        assert [line for line in lines if line.startswith("make ")] == ["make test", "make check"]
        assert "set -euo pipefail" in lines

    @pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
    @pytest.mark.parametrize(
        ("user", "apt", "browser", "words"),
        [
            (0, 0, False, "chromium: installed"),
            (0, 1, False, "chromium: not installed, one test is skipped"),
            (0, None, False, "chromium: not installed"),
            (1000, 0, False, "chromium: not installed"),
            (0, 0, True, "bin/chromium"),
        ],
        ids=["installs", "apt fails", "no apt", "no root", "is there"],
    )
    def test_ci_installs_a_browser_if_it_can(
        self, tmp_path: Path, user: int, apt: int | None, browser: bool, words: str
    ) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("bash", "dirname", "timeout"):
            (folder / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name}"))
        stubs = {"id": f"echo {user}", "make": 'echo "make $1"'}
        stubs |= {} if apt is None else {"apt-get": f"exit {apt}"}
        stubs |= {"chromium": "exit 0"} if browser else {}
        for name, command in stubs.items():
            (folder / name).write_text(f"#!{folder}/bash\n{command}\n")
            (folder / name).chmod(0o755)
        run = [str(folder / "bash"), str(ROOT / ".ci" / "run")]
        found = subprocess.run(run, env={"PATH": str(folder)}, capture_output=True, text=True, check=True)
        first, *rest = found.stdout.splitlines()
        assert words in first and rest == ["make test", "make check"]

    def test_readme_has_the_two_commands(self) -> None:
        commands = fenced_commands((ROOT / "README.md").read_text())
        assert {"make demo", "make test"} <= {" ".join(command.split()[:2]) for command in commands}

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
    def test_every_make_target_that_a_page_names_exists(self, page: Path) -> None:
        assert set(named_targets(page.read_text())) <= targets(MAKEFILE)

    def test_a_target_that_does_not_exist_would_be_seen(self) -> None:
        page = "Run `make nothing`, which makes sense.\n\n```bash\nmake demo  # two minutes\nmake typo\n```\n"
        assert named_targets(page) == ["nothing", "demo", "typo"]


def named_targets(page: str) -> list[str]:
    """Return the targets of every `make TARGET` in code, inline or in a block."""
    inline = re.findall(r"`make ([a-z][\w-]*)[^`]*`", page)
    return inline + [command.split()[1] for command in fenced_commands(page) if command.startswith("make ")]


def fenced_commands(page: str) -> list[str]:
    """Return the lines of all fenced blocks, without a shell's prompt."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ").strip() for block in blocks for line in block.splitlines()]
