"""Golden images and descriptions: what each figure showed when somebody last looked at it.

`pytest tests/figures --golden` draws them anew into `tests/figures/golden/`. Look at each one
that git says has changed before it is committed.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hooked_whisper")
    group.addoption("--golden", action="store_true", help="draw the golden images of figures anew")


@pytest.fixture
def makes_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden images are to be made, not compared with."""
    # pytest knows the option only where tests/figures is named in the call.
    return bool(request.config.getoption("--golden", default=False))
