"""Rules on source code, as functions from one file to its faults: what test_architecture.py checks."""

from __future__ import annotations

import ast
import graphlib
import io
import re
import token
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PACKAGES = ("qlib", "draftlib")

METHODS_IMPORT = (
    *("qlib.grid", "qlib.quantized_weight", "qlib.errors", "qlib.models.structure"),
    *("qlib.methods.contracts", "qlib.methods.checks", "qlib.methods.hessian", "qlib.methods.compensate"),
    *("qlib.methods.channels", "qlib.methods.output_error", "qlib.methods.straight_through"),
    "qlib.methods.two_levels",
)
# Who may import what of the two packages; the first line whose folder fits counts.
ARROWS: list[tuple[str, tuple[str, ...]]] = [
    ("qlib/models/", ("qlib.errors", "qlib.models")),
    ("qlib/methods/__init__.py", ("qlib",)),  # the list of all methods
    ("qlib/methods/", METHODS_IMPORT),
    ("qlib/errors.py", ()),
    ("qlib/grid/", ("qlib.grid", "qlib.errors")),
    ("qlib/", ("qlib",)),
    ("draftlib/", ("draftlib", "qlib.models", "qlib.errors")),
]
# Some modules have few importers: files, or folders with a slash.
ONLY_FROM: dict[str, tuple[str, ...]] = {
    "qlib.stored_layer": (
        "qlib/checkpoint.py",
        "qlib/resume.py",
    ),  # quantizing does not know how layers are stored
    # What is found out about models: nothing that quantizes reads it.
    "qlib.analysis": ("qlib/__init__.py", "qlib/__main__.py", "qlib/analysis/", "qlib/benchmark/"),
    "qlib.testing": ("qlib/testing/",),  # for the tests of methods; nothing else reads it
    "qlib.benchmark": ("qlib/__main__.py", "qlib/benchmark/"),  # a command, and no part of the library
}
# And some files must do without some modules, though their folder may import them.
NEVER: dict[str, tuple[str, ...]] = {
    "draftlib/decoder.py": ("draftlib.learning",),  # learning watches the rounds; decoding works without it
    "draftlib/answer.py": ("draftlib.learning",),
    "draftlib/round.py": ("draftlib.learning",),
}
# Everything here is written from scratch; these would do the work, or belong to the tests alone.
FORBIDDEN = {
    *("accelerate", "auto_gptq", "auto_round", "autoawq", "awq", "bitsandbytes", "compressed_tensors"),
    *("ctranslate2", "faster_whisper", "gptqmodel", "hqq", "librosa", "llmcompressor", "neural_compressor"),
    *("onnxruntime", "optimum", "peft", "quanto", "torchao", "torchaudio", "transformers", "whisper"),
}
IMPORTERS = ("import_module", "__import__", "require_extra")  # functions that import by name
METHOD_LINES = 150
FUNCTION_LINES = 40  # of a function in a method file: its loop fits on one screen


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root of the repository, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        """Return the name under which the file is imported."""
        return ".".join(PurePosixPath(self.path).with_suffix("").parts).removesuffix(".__init__")

    @property
    def in_packages(self) -> bool:
        return self.path.startswith(tuple(f"{package}/" for package in PACKAGES))

    @property
    def is_command(self) -> bool:
        return PurePosixPath(self.path).name == "__main__.py"

    def at(self, node: ast.AST, complaint: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 0)}: {complaint}"


def sources(*folders: str) -> list[Source]:
    """Return all Python files of some folders."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


# --- imports


def imports(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Yield every imported module with its full name, wherever the import stands in the file."""
    yield from _imported(source, ast.walk(source.tree))


def imports_at_once(source: Source) -> set[str]:
    """Return the modules that are imported when the file is: not those of functions or for type checkers."""
    return {name for _, name in _imported(source, _run_at_import(source.tree))}


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing_only and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _run_at_import(child)


def _imported(source: Source, nodes: Iterable[ast.AST]) -> Iterator[tuple[ast.AST, str]]:
    package = list(PurePosixPath(source.path).parent.parts)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:  # `from qlib import grid` imports a module, not a name of one
                name = f"{module}.{alias.name}"
                yield node, name if _is_module(name) else module
        elif isinstance(node, ast.Call) and _called(node) in IMPORTERS:
            yield from ((node, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def check_arrows(source: Source) -> list[str]:
    """Complain about imports between the parts of the packages that ARROWS does not allow."""
    allowed = next((targets for start, targets in ARROWS if source.path.startswith(start)), PACKAGES)
    return [
        source.at(node, f"imports {name}, may import {', '.join(allowed) or 'neither package'}")
        for node, name in imports(source)
        if name.split(".")[0] in PACKAGES and not any(_within(name, target) for target in allowed)
    ]


def check_importers(source: Source) -> list[str]:
    """Complain about imports that ONLY_FROM and NEVER rule out."""
    if not source.in_packages:
        return []
    faults = []
    for node, name in imports(source):
        for target, importers in ONLY_FROM.items():
            if _within(name, target) and source.module != target and not source.path.startswith(importers):
                faults.append(source.at(node, f"imports {name}, which only {' and '.join(importers)} may"))
        if any(_within(name, target) for target in NEVER.get(source.path, ())):
            faults.append(source.at(node, f"imports {name}, and must work without it"))
    return faults


def import_cycle(files: Iterable[Source]) -> list[str]:
    """Return modules that import one another in a circle, from one back to itself, or an empty list."""
    graph = {source.module: imports_at_once(source) - {source.module} for source in files}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))  # the sorter walks from the imported one to its importer
    return []


def check_forbidden(source: Source) -> list[str]:
    """Complain about frameworks that do what this library is there to do itself."""
    if source.path.startswith("examples/benchmarks/"):
        return []
    return [
        source.at(node, f"imports {name}")
        for node, name in imports(source)
        if name.split(".")[0] in FORBIDDEN
    ]


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def _within(name: str, target: str) -> bool:
    return name == target or name.startswith(f"{target}.")


def _called(node: ast.Call) -> str:
    """Return the last name of what is called: `f` of `f()` and of `a.f()`."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


# --- calls


def check_print(source: Source) -> list[str]:
    """Complain about `print` outside the command line."""
    if source.is_command or not source.in_packages:
        return []
    return [
        source.at(node, "calls print; use logging, or return a string")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def check_cuda(source: Source) -> list[str]:
    """Complain about `.cuda(...)`: tensors follow their inputs, on whatever device those are."""
    return [
        source.at(node, "calls .cuda(); use the device of the input")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
    ]


# --- docstrings and length


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def check_docstrings(source: Source) -> list[str]:
    """Complain about public modules, classes, functions and methods without a docstring."""
    if PurePosixPath(source.path).name.startswith("_") and not source.path.endswith("__init__.py"):
        return []
    return [
        source.at(node, f"{getattr(node, 'name', 'the module')} has no docstring")
        for node in _public(source.tree)
        if not ast.get_docstring(node)
    ]


def _public(node: Documented) -> Iterator[Documented]:
    """Yield a module or class and what is public in it; magic methods are described by their class."""
    yield node
    for child in _statements(node.body):
        if not isinstance(child, Documented) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from _public(child)
        elif not _is_setter(child):
            yield child


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, also those under a module's `if` and `try`."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            parts = [statement.body, statement.orelse, getattr(statement, "finalbody", [])]
            parts += [handler.body for handler in getattr(statement, "handlers", [])]
            for part in parts:
                yield from _statements(part)
        else:
            yield statement


def _is_setter(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell `@x.setter`, whose getter has the docstring, and `@overload`, whose implementation has it."""
    return any(
        getattr(each, "attr", getattr(each, "id", "")) in ("setter", "overload")
        for each in function.decorator_list
    )


def code_lines(source: Source) -> set[int]:
    """Return the numbers of the lines that hold code: no docstrings, comments or blank lines."""
    empty = (token.NEWLINE, token.INDENT, token.DEDENT, token.ENDMARKER)
    empty += (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)
    lines: set[int] = set()
    for each in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if each.type not in empty:
            lines.update(range(each.start[0], each.end[0] + 1))
    for node in ast.walk(source.tree):
        if isinstance(node, Documented) and ast.get_docstring(node):
            text = node.body[0]
            lines.difference_update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def check_length(source: Source) -> list[str]:
    """Complain about method files that nobody reads in one sitting."""
    if not source.path.startswith("qlib/methods/") or (lines := len(code_lines(source))) <= METHOD_LINES:
        return []
    return [f"{source.path}: {lines} lines of code, at most {METHOD_LINES}"]


def check_functions(source: Source) -> list[str]:
    """Complain about functions of method files that do not fit on one screen."""
    if not source.path.startswith("qlib/methods/"):
        return []
    code = code_lines(source)
    faults = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef):
            lines = len(code.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
            if lines > FUNCTION_LINES:
                faults.append(source.at(node, f"{node.name} has {lines} lines, at most {FUNCTION_LINES}"))
    return faults


# --- text of any kind


# Bracketed letters keep these patterns from finding themselves.
MACHINE = re.compile(
    r"(?<![\w.>}])/(?:[h]ome|[U]sers|[r]oot|[w]ork|[o]pt|[m]nt|[s]cratch)/[\w.-]+"  # folders of one machine
    r"|\b[A-Z]:\\{1,2}[U]sers\b"
    r"|[p]ypi\.org|[p]ythonhosted\.org|[a]naconda\.org|[a]rtifactory|--(?:extra-)?[i]ndex-url"
    r"|https?://(?:[l]ocalhost|\d+\.\d+\.\d+\.\d+)"
)


def check_machine(path: str, text: str) -> list[str]:
    """Complain about paths of one machine and addresses of package registries."""
    return [
        f"{path}:{number}: {match.group()!r} exists on one machine or is a registry's address"
        for number, line in enumerate(text.split("\n"), start=1)
        for match in MACHINE.finditer(line)
    ]
