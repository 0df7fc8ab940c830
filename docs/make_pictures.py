"""Make the pictures of these pages again: python docs/make_pictures.py

Each is drawn by an example or by a page's own lines, offline, on the digits model; see
docs/numbers.md for which. A minute on two cores. The study's pictures are the study's own.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures"
EXAMPLES = {
    "demo.py": ([], ["cross_attention.png", "patching.png"]),
    "sae_study.py": (["--digits", "0"], ["latents.png"]),
}
"""By script: what it is called with, and which of its pictures are shown."""


def run_example(script: str, arguments: list[str], pictures: list[str]) -> None:
    """Run an example and take over its pictures."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, DOCS.parent / "examples" / script, "--out", out, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name in pictures:
            shutil.copyfile(Path(out) / name, PICTURES / name)
            print(PICTURES / name)


def run_page(page: str, picture: str) -> None:
    """Run the first lines of a page, and keep the `figure` that they leave."""
    block = re.search(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.S | re.M)
    assert block is not None
    names: dict[str, object] = {}
    exec(compile(block[1], page, "exec"), names)
    names["figure"].savefig(PICTURES / picture, dpi=130)  # type: ignore[attr-defined]
    print(PICTURES / picture)


def main() -> None:
    for script, (arguments, pictures) in EXAMPLES.items():
        run_example(script, arguments, pictures)
    run_page("patching.md", "sweep.png")


if __name__ == "__main__":
    main()
