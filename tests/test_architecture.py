"""The shape of the code: import arrows, what is never imported or called, docstrings, length.

Each rule is a function of tests/code_rules.py; the second half of this file shows that each can fail.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from code_rules import (
    PACKAGES,
    ROOT,
    Source,
    check_arrows,
    check_cuda,
    check_docstrings,
    check_forbidden,
    check_functions,
    check_importers,
    check_length,
    check_machine,
    check_print,
    import_cycle,
    sources,
)

Rule = Callable[[Source], list[str]]

ALL = sources(*PACKAGES, "examples")
IN_PACKAGES = [source for source in ALL if source.in_packages]


@pytest.mark.parametrize("source", IN_PACKAGES, ids=lambda source: source.path)
@pytest.mark.parametrize(
    "rule",
    [check_arrows, check_importers, check_print, check_docstrings],
    ids=lambda rule: rule.__name__,
)
def test_packages(source: Source, rule: Rule) -> None:
    assert rule(source) == []


@pytest.mark.parametrize("source", ALL, ids=lambda source: source.path)
@pytest.mark.parametrize("rule", [check_forbidden, check_cuda], ids=lambda rule: rule.__name__)
def test_packages_and_examples(source: Source, rule: Rule) -> None:
    assert rule(source) == []


@pytest.mark.parametrize("source", sources("qlib/methods"), ids=lambda source: source.path)
def test_method_files_are_short(source: Source) -> None:
    assert check_length(source) == []
    assert check_functions(source) == []


def test_no_module_imports_itself_through_others() -> None:
    assert import_cycle(IN_PACKAGES) == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is unknown")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    complaints = []
    for name in filter(None, listed.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # binary, or deleted and not yet committed
            continue
        complaints += check_machine(name, text)
    assert complaints == []


def test_every_rule_sees_the_code() -> None:
    """A moved folder must not turn the rules above into tests of nothing."""
    paths = {source.path for source in ALL}
    for expected in ("qlib/models/whisper.py", "qlib/methods/gptq.py", "draftlib/__init__.py"):
        assert expected in paths


# --- the rules can fail


BAD: list[tuple[Rule, str, str, str]] = [
    (check_arrows, "qlib/models/x.py", "from qlib.grid import Grid", "imports qlib.grid"),
    (check_arrows, "qlib/models/x.py", "from qlib import grid", "imports qlib.grid"),
    (check_arrows, "qlib/models/x.py", "import qlib", "imports qlib,"),
    (check_arrows, "qlib/models/x.py", "from ..grid import Grid", "imports qlib.grid"),
    (check_arrows, "qlib/models/fast/x.py", "from ... import grid", "imports qlib.grid"),
    (check_arrows, "qlib/models/x.py", "def f():\n    import qlib.pipeline", "x.py:2"),
    (check_arrows, "qlib/models/x.py", "importlib.import_module('qlib.grid')", "imports qlib.grid"),
    (check_arrows, "qlib/methods/x.py", "from qlib.methods.rtn import rtn", "imports qlib.methods.rtn"),
    (check_arrows, "qlib/methods/x.py", "from qlib.methods import rtn", "imports qlib.methods.rtn"),
    (check_arrows, "qlib/methods/x.py", "from . import rtn", "imports qlib.methods.rtn"),
    (check_arrows, "qlib/methods/x.py", "import qlib.models.whisper", "imports qlib.models.whisper"),
    (check_arrows, "qlib/methods/x.py", "import qlib.models.structures", "imports qlib.models.structures"),
    (check_arrows, "qlib/errors.py", "import qlib.grid", "neither package"),
    (check_arrows, "qlib/grid/x.py", "from qlib.linear import FakeQuantLinear", "imports qlib.linear"),
    (check_arrows, "qlib/pipeline.py", "import draftlib", "imports draftlib"),
    (check_arrows, "qlib/methods/__init__.py", "import draftlib", "imports draftlib"),
    (check_arrows, "draftlib/x.py", "from qlib import quantize", "imports qlib,"),
    (check_arrows, "draftlib/x.py", "from qlib.grid import Grid", "imports qlib.grid"),
    (check_importers, "qlib/pipeline.py", "from qlib.stored_layer import stored_bits", "qlib.stored_layer"),
    (check_importers, "qlib/methods/x.py", "import qlib.stored_layer", "only qlib/checkpoint.py and"),
    (check_importers, "qlib/pipeline.py", "import qlib.benchmark.runner", "only qlib/__main__.py and"),
    (check_importers, "qlib/__init__.py", "import qlib.benchmark", "imports qlib.benchmark"),
    (check_importers, "qlib/pipeline.py", "from qlib.analysis.cost import cost", "only qlib/__init__.py and"),
    (check_importers, "qlib/pipeline.py", "from qlib.testing import check_method", "qlib.testing"),
    (check_importers, "draftlib/decoder.py", "import draftlib.learning.online", "must work without"),
    (check_importers, "draftlib/answer.py", "def f():\n    import draftlib.learning", "answer.py:2"),
    (check_forbidden, "qlib/x.py", "import transformers.models", "imports transformers.models"),
    (check_forbidden, "qlib/x.py", "from torchao.quantization import quantize_", "imports torchao"),
    (check_forbidden, "qlib/x.py", "require_extra('librosa', 'asr', 'Mel')", "imports librosa"),
    (check_forbidden, "examples/01_x.py", "import llmcompressor", "imports llmcompressor"),
    (check_print, "qlib/x.py", "def f():\n    print(1)", "x.py:2: calls print"),
    (check_cuda, "qlib/x.py", "x = torch.ones(2).cuda()", "calls .cuda()"),
    (check_cuda, "examples/x.py", "model.cuda(0)", "calls .cuda()"),
    (check_docstrings, "qlib/x.py", "x = 1", "the module has no docstring"),
    (check_docstrings, "qlib/x.py", "'''.'''\ndef f(): pass", "f has no docstring"),
    (check_docstrings, "qlib/x.py", "'''.'''\nasync def f(): pass", "f has no docstring"),
    (check_docstrings, "qlib/x.py", "'''.'''\nclass A: pass", "A has no docstring"),
    (check_docstrings, "qlib/x.py", "'''.'''\nclass A:\n '''.'''\n def f(self): pass", "f has no docstring"),
    (check_docstrings, "qlib/x.py", "'''.'''\nif a:\n pass\nelse:\n def f(): pass", "f has no docstring"),
    (check_docstrings, "qlib/x.py", "'''.'''\ntry:\n pass\nexcept E:\n def f(): pass", "f has no docstring"),
    (check_length, "qlib/methods/x.py", "x = 1\n" * 151, "151 lines of code"),
    (check_functions, "qlib/methods/x.py", "def f():\n" + " x = 1\n" * 40, "f has 41 lines"),
    (check_functions, "qlib/methods/x.py", "class A:\n def f():\n" + "  x = 1\n" * 40, "x.py:2: f has"),
    (check_length, "qlib/methods/x.py", "x = '''\n" + "text\n" * 160 + "'''", "162 lines of code"),
]


@pytest.mark.parametrize(
    ("rule", "path", "text", "expected"), BAD, ids=[f"{b[0].__name__} {b[2]!r:.40}" for b in BAD]
)
def test_bad_code_is_reported(rule: Rule, path: str, text: str, expected: str) -> None:
    complaints = rule(Source(path, text))
    assert len(complaints) == 1
    assert expected in complaints[0]


GOOD: list[tuple[Rule, str, str]] = [
    (
        check_arrows,
        "qlib/models/x.py",
        "from . import cache\nfrom qlib.errors import ModelError\nimport torch",
    ),
    (check_arrows, "qlib/models/hub/formats/x.py", "from ..cache import KVCache"),
    (check_arrows, "qlib/methods/__init__.py", "from qlib.methods.rtn import RTN"),
    (check_arrows, "qlib/methods/x.py", "from qlib.methods.contracts import Needs\nimport qlib.grid"),
    (check_arrows, "qlib/grid/x.py", "from qlib.grid.codes import decode\nimport qlib.errors"),
    (check_arrows, "qlib/methods/x.py", "from qlib.methods.hessian import hessian"),
    (check_arrows, "qlib/methods/x.py", "import qlib.methods.compensate, qlib.methods.output_error"),
    (check_importers, "qlib/checkpoint.py", "from qlib.stored_layer import stored_layer"),
    (check_importers, "qlib/resume.py", "from qlib.stored_layer import restored_layer"),
    (check_importers, "qlib/__main__.py", "from qlib.benchmark import runner"),
    (check_importers, "qlib/analysis/allocate.py", "from qlib.analysis.cost import cost"),
    (check_importers, "qlib/benchmark/runner.py", "from qlib.benchmark.cells import Cell"),
    (check_importers, "draftlib/__init__.py", "from draftlib.learning import OnlineAdapter"),
    (check_importers, "tests/x.py", "import qlib.stored_layer"),
    (check_arrows, "draftlib/x.py", "from qlib.models import load_model\nimport draftlib.vocabulary.mapping"),
    (check_forbidden, "examples/benchmarks/x.py", "import transformers"),
    (check_forbidden, "qlib/models/x.py", "from qlib.models.hub.formats import ctranslate2"),
    (check_print, "qlib/models/__main__.py", "print(1)"),
    (check_print, "examples/x.py", "print(1)"),
    (check_print, "qlib/x.py", "pprint(1)\nself.print(2)\n'print(3)'"),
    (check_cuda, "qlib/x.py", "torch.cuda.is_available()"),
    (check_docstrings, "qlib/x.py", "'''.'''\ndef _f(): pass\nclass _A:\n def f(self): pass"),
    (check_docstrings, "qlib/x.py", "'''.'''\nclass A:\n '''.'''\n def __init__(self): pass"),
    (check_docstrings, "qlib/x.py", "'''.'''\ndef f():\n '''.'''\n def inner(): pass"),
    (check_length, "qlib/methods/x.py", '"""A.\n' + "text\n" * 99 + '"""\n' + "# why\n\nx = 1\n" * 150),
    (check_length, "qlib/models/x.py", "x = 1\n" * 151),
    (check_functions, "qlib/methods/x.py", "def f():\n '''.'''\n # why\n" + " x = 1\n" * 39),
    (check_functions, "qlib/models/x.py", "def f():\n" + " x = 1\n" * 99),
]


@pytest.mark.parametrize(("rule", "path", "text"), GOOD, ids=[f"{g[0].__name__} {g[2]!r:.40}" for g in GOOD])
def test_good_code_is_not(rule: Rule, path: str, text: str) -> None:
    assert rule(Source(path, text)) == []


def test_a_circle_of_imports_is_reported() -> None:
    files = {"qlib/a.py": "import qlib.b", "qlib/b.py": "from qlib.c import d", "qlib/c.py": "import qlib.a"}
    circle = import_cycle(Source(path, text) for path, text in files.items())
    assert circle in (
        ["qlib.a", "qlib.b", "qlib.c", "qlib.a"],
        ["qlib.b", "qlib.c", "qlib.a", "qlib.b"],
        ["qlib.c", "qlib.a", "qlib.b", "qlib.c"],
    )


@pytest.mark.parametrize(
    "back", ["x = 1", "def f():\n    import qlib.a", "if TYPE_CHECKING:\n    from qlib.a import A"]
)
def test_what_is_no_circle_is_not(back: str) -> None:
    assert import_cycle([Source("qlib/a.py", "import qlib.b"), Source("qlib/b.py", back)]) == []


# Put together here, so that this file does not hold what it forbids.
PLACES = ["/".join(["", top, "someone", "models"]) for top in ("home", "root", "Users", "work", "opt")]
HOSTS = [".".join(["pypi", "org"]), "--index" + "-url", "http://local" + "host:8080/simple"]


@pytest.mark.parametrize("text", [*PLACES, *HOSTS, "C:" + r"\Users\someone"])
def test_bad_text_is_reported(text: str) -> None:
    assert "a.md:2" in check_machine("a.md", f"first\nsee {text}\n")[0]


@pytest.mark.parametrize(
    "text", ["~/.cache/quantdraft", "a/work/b", "docs/home/page.md", "<cache>/opt/x", "/path/to/model"]
)
def test_good_text_is_not(text: str) -> None:
    assert check_machine("a.md", text) == []
