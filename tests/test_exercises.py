"""The exercises: red before, green with the solution, red for three typical wrong answers each."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from grading import SOLUTIONS, STUBS, asked_for, from_text, grader, load

ROOT = Path(__file__).parents[1]
NUMBERS = [f"ex{n:02d}" for n in range(1, 17)]

# What is wrong, in words; the right text of the solution, and the wrong one.
WRONG: dict[str, list[tuple[str, str, str]]] = {
    "ex01": [
        ("the range need not reach 0", "w.min().clamp(max=0)", "w.min()"),
        ("2^b steps instead of 2^b - 1", "(2**bits - 1)", "2**bits"),
        ("the zero point is not rounded", "(-lo / scale).round()", "-lo / scale"),
        ("codes are not clamped", ".clamp(0, 2**bits - 1)", ""),
    ],
    "ex02": [
        ("the narrower last group is not counted", "-(-columns // group)", "columns // group"),
        ("zero points are not counted", "(32 + bits)", "32"),
        ("groups of rows instead of columns", "W.split(group, dim=1)", "W.split(group, dim=0)"),
    ],
    "ex03": [
        ("products of tokens instead of inputs", "X.T @ X", "X @ X.T"),
        ("a mean, so that batches do not add up", "X.T @ X", "X.T @ X / len(X)"),
        ("the sum of all of D H D^T instead of its diagonal", "((D @ H) * D).sum()", "(D @ H @ D.T).sum()"),
    ],
    "ex04": [
        ("the error is not divided by U_jj", " / U[j, j]", ""),
        ("a column of U instead of a row", "U[j, j:]", "U[j:, j]"),
        ("columns are rounded as they were at first", "nearest(W[:, j],", "nearest(original[:, j],"),
        ("the weight that was given is changed", "W = W.clone()", "pass"),
    ],
    "ex05": [
        ("lower triangular", ", upper=True", ""),
        ("no damping", "H + d * H.diagonal().mean() * torch.eye(len(H)).to(H)", "H"),
        ("damping is no share of the mean", "d * H.diagonal().mean()", "d"),
    ],
    "ex06": [
        ("the sign is lost", "R.sign() * ", ""),
        ("outliers are added instead of given up", "(W - E)", "(W + E)"),
        ("the mean over the rows instead of a row", "mean(1, keepdim=True)", "mean(0, keepdim=True)"),
    ],
    "ex07": [
        ("alpha and 1 - alpha are exchanged", "max_x**alpha / W.abs().amax(0) ** (1 - alpha)",
         "max_x ** (1 - alpha) / W.abs().amax(0) ** alpha"),
        ("the bias is not divided", "b / s", "b"),
        ("an input that is always 0 gets the scale 0", ".masked_fill(max_x == 0, 1)", ""),
    ],
    "ex08": [
        ("what was scaled up is not scaled back", "Grid(bits)) / s", "Grid(bits))"),
        ("the error of the weights instead of the outputs", "(X @ D.T)", "D"),
        ("the largest |x| instead of the mean", "X.abs().mean(0)", "X.abs().amax(0)"),
    ],
    "ex09": [
        ("plain rounding, without a gradient", "x + (x.round() - x).detach()", "x.round()"),
        ("the gradient of x is counted and taken away", ".detach()", ""),
        ("no gradient by the scale", "    return scale *", "    scale = scale.detach()\n    return scale *"),
        ("weights are not cut off", "w.clamp(-m, m)", "w"),
    ],
    "ex10": [
        ("16 bits for an outlier: its place is free", "// 32", "// 16"),
        ("the inputs do not count", "W.square() * h", "W.square()"),
        ("the range is fitted to the outliers too", "W.masked_fill(kept, 0)", "W"),
        ("outliers keep all their digits", "W.half().to(W)", "W"),
    ],
    "ex11": [
        ("a probability above 1", ".clamp(max=1)", ""),
        ("|p - q| instead of what p has more", "(p - q).clamp(min=0)", "(p - q).abs()"),
        ("the residual is not normalised", "left / left.sum()", "left"),
    ],
    "ex12": [
        ("one logarithm: exponential noise", "-(-u.log()).log()", "-u.log()"),
        ("noise on p instead of log p", "(log_p + gumbel(u))", "(log_p.exp() + gumbel(u))"),
        ("the drafter draws with noise of its own", "choose(log_q, u)", "choose(log_q, u.flip(0))"),
    ],
    "ex13": [
        ("the shortest n-gram instead of the longest", "range(len(drafted) - at, 1, -1)",
         "range(2, len(drafted) - at + 1)"),
        ("a token without a counterpart is skipped", "            break\n        at +=",
         "            at += 1\n            continue\n        at +="),
        ("the first piece keeps its mass", "    q[first] -= prod(pieces)\n", ""),
    ],
    "ex14": [
        ("the token that made the drafter unsure is dropped", "    return tokens",
         "    return tokens if belief >= least else tokens[:-1]"),
        ("only the newest token counts", "belief *= q", "belief = q"),
        ("one token too many", "len(tokens) < most", "len(tokens) <= most"),
    ],
    "ex15": [
        ("the forward divergence", "torch.xlogy(ours, ours) - torch.xlogy(ours, theirs)",
         "torch.xlogy(theirs, theirs) - torch.xlogy(theirs, ours)"),
        ("q is normalised over the mapped tokens, so wasted mass is hidden", "    ours, theirs = ",
         "    q = q * (direct >= 0)\n    q = q / q.sum(1, keepdim=True)\n    ours, theirs = "),
        ("two draft tokens for one target token: the second replaces the first", ".index_add(1, event, q)",
         ".index_copy(1, event, q)"),
    ],
    "ex16": [
        ("a mean of the clips' rates", "100 * more / words[draws].sum(1)",
         "100 * ((errors_b - errors_a) / words)[draws].mean(1)"),
        ("each system with clips of its own", "(errors_b - errors_a)[draws].sum(1)",
         "errors_b[draws].sum(1) - errors_a[draws[::-1]].sum(1)"),
        ("5 % at each end", "[2.5, 97.5]", "[5, 95]"),
        ("the words of all clips instead of those drawn", "words[draws].sum(1)", "words.sum()"),
    ],
}  # fmt: skip


def grades(number: str, answer: ModuleType) -> Iterator[tuple[str, BaseException | None]]:
    """Run every test of a grader on an answer; yield its name and how it failed, None where it did not."""
    for name, test in vars(grader(number)).items():
        if name.startswith("test_"):
            for arguments in _parameters(test):
                try:
                    test(answer, **arguments)
                    yield name, None
                except Exception as error:
                    yield name, error


def _parameters(test: Any) -> list[dict[str, Any]]:
    """Return what pytest would call a test with: one dict of arguments for each case."""
    sets = [{}]
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names = mark.args[0] if isinstance(mark.args[0], tuple) else (mark.args[0],)
            values = [value if isinstance(value, tuple) else (value,) for value in mark.args[1]]
            cases = [dict(zip(names, value, strict=True)) for value in values]
            sets = [one | other for one, other in itertools.product(sets, cases)]
    return sets


@pytest.mark.parametrize("number", NUMBERS)
def test_red_before(number: str) -> None:
    """Every test of a stub fails, and only because nothing is there yet."""
    for name, error in grades(number, load(number, STUBS)):
        assert isinstance(error, NotImplementedError), f"{name}: {error!r}"


@pytest.mark.parametrize("number", NUMBERS)
def test_green_with_the_solution(number: str) -> None:
    for name, error in grades(number, load(number, SOLUTIONS)):
        assert error is None, f"{name}: {error!r}"


@pytest.mark.parametrize(
    ("number", "what", "right", "wrong"),
    [(number, *answer) for number, answers in WRONG.items() for answer in answers],
    ids=lambda value: value if isinstance(value, str) and len(value) < 80 and "\n" not in value else "",
)
def test_red_for_a_wrong_answer(number: str, what: str, right: str, wrong: str) -> None:
    (path,) = SOLUTIONS.glob(f"{number}_*.py")
    text = path.read_text(encoding="utf-8")
    assert text.count(right) >= 1, f"the solution of {number} has no {right!r}"
    text = text.replace(right, wrong)
    if "original" in wrong:
        text = text.replace("W = W.clone()", "original, W = W, W.clone()")
    failed = [error for _, error in grades(number, from_text(text, path)) if error is not None]
    assert failed, f"{number} passes although {what}"
    assert any(isinstance(error, AssertionError) for error in failed), f"no failure has a hint: {failed}"


def test_three_wrong_answers_each() -> None:
    assert list(WRONG) == NUMBERS
    assert all(len(answers) >= 3 for answers in WRONG.values())


@pytest.mark.parametrize("number", NUMBERS)
def test_stub_and_solution_agree(number: str) -> None:
    """The same functions with the same arguments; a stub names lesson, page and marker, and these exist."""
    stub, solution = load(number, STUBS), load(number, SOLUTIONS)
    for name, function in vars(solution).items():
        if inspect.isfunction(function) and function.__module__ == solution.__name__:
            assert inspect.signature(getattr(stub, name)) == inspect.signature(function), name
    found = re.search(
        r"^Lesson: (\S+) +Page: (\S+) +Grade: pytest -m (\S+)$", stub.__doc__ or "", re.MULTILINE
    )
    assert found is not None
    assert (ROOT / found[1]).is_file(), found[1]
    assert (ROOT / found[2]).is_file(), found[2]
    assert found[3] == number


def test_the_readme_lists_all_stubs() -> None:
    readme = (STUBS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\((ex\d\d_\w+\.py)\)", readme) == sorted(path.name for path in STUBS.glob("ex*.py"))


@pytest.mark.slow
@pytest.mark.parametrize(("solutions", "code"), [("", 1), ("1", 0)])
def test_the_command_of_the_readme(solutions: str, code: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SOLUTIONS": solutions}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "ex04"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == code, run.stdout
    assert ("NotImplementedError" in run.stdout) == (code == 1)
    assert len(re.findall(r"grade_ex04\.py::", run.stdout)) == (6 if code else 0)


@pytest.mark.parametrize(
    ("markers", "expected"),
    [("ex04", True), ("ex04 or ex05", True), ("exercises", True), ("", False), ("not slow", False),
     ("not ex04", False), ("example", False)],
)  # fmt: skip
def test_what_asks_for_graders(markers: str, expected: bool) -> None:
    assert asked_for(markers) is expected


def test_other_runs_leave_the_graders_out(
    pytestconfig: pytest.Config, request: pytest.FixtureRequest
) -> None:
    assert not [item.nodeid for item in request.session.items if "grade_ex" in item.nodeid]
