"""A real browser for the tests of pages: Chromium, headless, driven by playwright."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..blocks import run_blocks_once


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests of a worker; EXPECT_CHROMIUM makes its absence an error."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        if os.environ.get("EXPECT_CHROMIUM"):
            pytest.fail("EXPECT_CHROMIUM is set, and there is no chromium on the PATH")
        pytest.skip("pages are looked at in Chromium, which is not installed (apt: chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"],
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(path, width=1400)` opens a file; an error in its console fails the test."""
    problems: list[str] = []
    contexts = []

    def open_(path: Path, width: int = 1400, height: int = 900, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # machines are busy
        page.on("console", lambda message: _keep(problems, message.type, message.text))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: _local(problems, request.url))
        page.goto(Path(path).resolve().as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


def _keep(problems: list[str], kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        problems.append(f"{kind}: {text}")


def _local(problems: list[str], url: str) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        problems.append(f"the page asked the network for {url}")


@pytest.fixture(scope="session")
def digits_saes() -> Any:
    """The shipped autoencoders by hook."""
    from hooked_whisper.sae import load_suite

    return load_suite("digits")


@pytest.fixture(scope="session")
def read_data() -> Callable[[Path], Any]:
    """`read_data(path)`: the data that stands in a page."""
    import json
    import re

    def read(path: Path) -> Any:
        text = Path(path).read_text(encoding="utf-8")
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
        assert found is not None
        return json.loads(found[1])

    return read


@pytest.fixture(scope="session")
def feature_page_of_digits(
    digits_model: Any, digits_saes: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The page of all latents of one encoder site over the shipped recordings."""
    from hooked_whisper.digits import recordings
    from hooked_whisper.reports import feature_page

    with pytest.MonkeyPatch.context() as patch:
        run_blocks_once(patch)
        return feature_page(
            digits_model,
            digits_saes["encoder.blocks.2.hook_resid_post"],
            recordings(),
            tmp_path_factory.mktemp("pages") / "features.html",
            n_effects=2,
            progress=False,
        )


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until(page, expression)`: playwright's own way needs eval, which pages forbid."""
    import time

    def wait(page: Any, expression: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not page.evaluate(expression):
            assert time.monotonic() < deadline, f"{expression} has not come true"
            page.wait_for_timeout(20)

    return wait


@pytest.fixture(autouse=True)
def _blocks_run_once(blocks_run_once: None) -> None:
    """Pages take the same few clips again and again."""
