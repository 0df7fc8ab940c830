"""A real browser for the tests of pages: Chromium, headless, driven by playwright."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


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
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
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
        page.set_default_timeout(10_000)
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
