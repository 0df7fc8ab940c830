"""The list of mutants cannot rot: each still fits the code, and names tests that there are.

`make mutants` runs them.
"""

import ast
from collections import Counter

from .catalogue import MUTANTS
from .mutant import ROOT

OFF = ("slow", "gpu", "network")


def test_each_fits_the_code() -> None:
    problems = []
    for mutant in MUTANTS:
        try:
            mutant.changed((ROOT / "hooked_whisper" / mutant.file).read_text())
        except (OSError, ValueError, SyntaxError) as error:
            problems.append(f"{mutant.name}: {error}")
    assert not problems, "\n".join(problems)


def test_each_names_tests_that_run_by_default() -> None:
    problems = []
    for test in sorted({test for mutant in MUTANTS for test in mutant.tests}):
        path, *names = test.split("::")
        file = ROOT / "tests" / path
        if not file.exists():
            problems.append(f"there is no {file}")
            continue
        tree = ast.parse(file.read_text()) if names else ast.Module([], [])
        found = [node for node in ast.walk(tree) if getattr(node, "name", None) in names]
        marks = {ast.unparse(each) for node in found for each in node.decorator_list}
        if len(found) != len(names) or marks & {f"pytest.mark.{each}" for each in OFF}:
            problems.append(f"{test} is not there, or does not run by default")
    assert not problems, "\n".join(problems)


def test_each_has_a_name_and_a_test() -> None:
    twice = [name for name, n in Counter(mutant.name for mutant in MUTANTS).items() if n > 1]
    assert not twice
    assert not [mutant.name for mutant in MUTANTS if not mutant.tests]
