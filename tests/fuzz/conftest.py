"""What came of all damaged files, printed at the end of `make fuzz`."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from .mutations import OUTCOMES, N, Outcomes


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """Counts what comes of the files that a test damages, for the table of its loader."""
    found = Outcomes()
    yield found
    request.node.user_properties.append(("fuzz", dict(found)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each loader; errors that are not ours would have failed its test."""
    loaders: dict[str, Counter[str]] = {}
    for report in terminalreporter.getreports(""):
        if report.when == "teardown" and (counts := dict(report.user_properties).get("fuzz")):
            name = report.nodeid.partition("test_")[2].replace(".py::test_", ", ").replace("_", " ")
            loaders.setdefault(name, Counter()).update(counts)
    if N <= 100 or not loaders:
        return
    terminalreporter.section("damaged files")
    terminalreporter.write_line("| loader | damaged | " + " | ".join(OUTCOMES) + " |")
    terminalreporter.write_line("|---" * (2 + len(OUTCOMES)) + "|")
    for name, counts in loaders.items():
        numbers = [counts.total(), *(counts[outcome] for outcome in OUTCOMES)]
        terminalreporter.write_line(f"| {name} | " + " | ".join(f"{n:,}" for n in numbers) + " |")
