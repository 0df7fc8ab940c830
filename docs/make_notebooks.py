"""Run the notebooks again and store what they show: python docs/make_notebooks.py [NAME ...]

Each runs in examples/notebooks, in a kernel of its own, in under a minute. Pages that a notebook
shows in a frame are stored as photographs, by Chromium: a code host shows no frames. The last
notebook runs where Whisper's weights are: see `weights`.
"""

import base64
import html
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "examples" / "notebooks"
PICTURES = ROOT / "docs" / "pictures"
TINY_EN = "HOOKED_WHISPER_TINY_EN"
"""The variable that names the file of tiny.en."""
FRONT = {
    "01_first_look": 1,
    "02_patch_a_digit": 0,
    "03_attention_and_alignment": 3,
    "04_train_and_read_an_autoencoder": 1,
    "05_hooks_while_transcribing": 0,
    "06_real_whisper": 0,
}
"""Which of a notebook's pictures stands for it on docs/notebooks.md."""


def weights() -> Path | None:
    """Where tiny.en is: $HOOKED_WHISPER_TINY_EN, or shared/data beside the checkout."""
    data = Path(os.environ.get("HOOKED_WHISPER_DATA", ROOT.parent / "shared" / "data"))
    path = Path(os.environ.get(TINY_EN, data / "whisper" / "tiny.en.pt"))
    return path if path.is_file() else None


def paths() -> list[Path]:
    """The notebooks in their order."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def run(path: Path) -> Any:
    """The notebook with the outputs of a fresh kernel.

    Raises:
        CellExecutionError: A cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    shutil.rmtree(NOTEBOOKS / "out", ignore_errors=True)  # of an earlier version, perhaps
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    real = weights()
    client.execute(env=os.environ | ({TINY_EN: str(real)} if real else {}))
    tidy(notebook)
    return notebook


def tidy(notebook: Any) -> None:
    """Leave out what hangs on the clock, on who wrote it, and on where the checkout is."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
        for output in cell.get("outputs", ()):
            if "data" in output:
                output.metadata = {}
                output.data["text/plain"] = output.data["text/plain"].replace(f"{ROOT}/", "")


def make_still(notebook: Any) -> None:
    """Photographs in place of pages in frames, and small pictures: what a code host can show."""
    for data in shown(notebook):
        framed = re.search(r'<iframe [^>]*srcdoc="([^"]*)"', data.get("text/html", ""))
        if framed:
            del data["text/html"]
            data["image/png"] = photograph(html.unescape(framed[1]))
        if "image/png" in data:
            data["image/png"] = smaller(data["image/png"])


def shown(notebook: Any) -> list[Any]:
    """What the outputs hold, by type."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data for output in outputs if "data" in output]


def pictures(notebook: Any) -> list[str]:
    """Its pictures, in base64."""
    return [data["image/png"] for data in shown(notebook) if "image/png" in data]


def photograph(page: str) -> str:
    """What Chromium shows of a page, as a PNG in base64."""
    import make_pictures

    if shutil.which("chromium") is None:
        sys.exit("Pages are photographed by Chromium, which is not here: apt install chromium")
    with tempfile.TemporaryDirectory() as folder:
        file, picture = Path(folder, "page.html"), Path(folder, "page.png")
        file.write_text(page, encoding="utf-8")
        make_pictures.photograph(file, picture)
        return base64.b64encode(picture.read_bytes()).decode()


def smaller(png: str) -> str:
    """A picture in 128 colours, which takes a third of the bytes and looks the same."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    import nbformat

    known = {path.stem: path for path in paths()}
    for name in sys.argv[1:] or known:
        if name not in known:
            sys.exit(f"There is no notebook {name!r}; there are {', '.join(known)}.")
        path = known[name]
        notebook = run(path)
        make_still(notebook)
        nbformat.write(notebook, path)
        front = pictures(notebook)[FRONT[name]]
        (PICTURES / f"notebook_{name}.png").write_bytes(base64.b64decode(front))
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
