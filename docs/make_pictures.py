"""Make the pictures of these pages again: python docs/make_pictures.py

Each is drawn by an example or by a page's own lines, offline, on the digits model; see
docs/numbers.md for which. Some minutes on two cores; the pictures of HTML pages need Chromium.
The study's pictures are made by docs/make_study.py.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures"
EXAMPLES = {
    "demo.py": ([], ["cross_attention.png", "patching.png"]),
    "sae_study.py": (["--digits", "0"], ["latents.png"]),
}
"""By script: what it is called with, and which of its pictures are shown."""
PAGES = {
    "patching.md": ["sweep.png"],
    "figures.md": ["mel.png", "patterns.png", "entropy.png", "features.html", "attention.html"],
}
"""By page of the documentation: what its lines write; HTML is photographed."""


def keep(folder: Path, names: Sequence[str]) -> None:
    """Take over pictures, and photographs of pages."""
    for name in names:
        if name.endswith(".html"):
            photograph(folder / name, PICTURES / name.replace(".html", "_page.png"))
        else:
            shutil.copyfile(folder / name, PICTURES / name)
            print(PICTURES / name)


def photograph(page: Path, picture: Path) -> None:
    """What Chromium shows of a page, 1,200 pixels wide."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"{picture} stays as it is: no chromium on this machine")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1200, "height": 900})
        shown.goto(page.as_uri())
        shown.wait_for_timeout(1000)
        shown.screenshot(path=picture)
        browser.close()
    print(picture)


def main() -> None:
    for script, (arguments, pictures) in EXAMPLES.items():
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, DOCS.parent / "examples" / script, "--out", out, *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            keep(Path(out), pictures)
    for page, pictures in PAGES.items():
        blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.S | re.M)
        names: dict[str, object] = {}
        with tempfile.TemporaryDirectory() as out:
            os.chdir(out)
            for block in blocks:
                exec(compile(block, page, "exec"), names)
            keep(Path(out), pictures)
            os.chdir(DOCS)


if __name__ == "__main__":
    main()
