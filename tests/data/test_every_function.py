"""Whatever one function takes for recordings, all take, and give the same numbers for.

The same two recordings come in every form; each function's result is held
against what it gives for the list of their paths.
"""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.data import Recording, as_recordings, load_windows
from hooked_whisper.digits import recordings
from hooked_whisper.interventions import mean_activations
from hooked_whisper.sae import (
    ModelActivations,
    evaluate_sae,
    load_suite,
    top_clips,
)
from hooked_whisper.speech import load_audio
from hooked_whisper.store import harvest

pytestmark = pytest.mark.usefixtures("blocks_run_once")

SHIPPED = sorted(recordings(), key=lambda each: each.path.name)[:2]
SITE = "encoder.blocks.2.hook_resid_post"


class LazyPaths:
    """A sequence of somebody's own, which finds its items when they are asked for."""

    def __len__(self) -> int:
        return len(SHIPPED)

    def __getitem__(self, index: int) -> str:
        return str(SHIPPED[index].path)


class Someones:
    """A recording of somebody else's class."""

    def __init__(self, recording: Any) -> None:
        self.path, self.text = recording.path, recording.text
        self.words, self.speaker = recording.words, recording.speaker


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory, digits_model: HookedWhisper) -> dict[str, Any]:
    import datasets

    folder = tmp_path_factory.mktemp("forms") / "audio"
    folder.mkdir()
    for recording in SHIPPED:
        shutil.copy(recording.path, folder)
    rows = [
        {"path": str(each.path), "text": each.text, "speaker": each.speaker} for each in SHIPPED
    ]
    lines = [json.dumps({**row, "path": f"audio/{Path(row['path']).name}"}) for row in rows]
    manifest = folder.parent / "list.jsonl"
    manifest.write_text("\n".join(lines))
    table = folder.parent / "list.csv"
    table.write_text("path\n" + "\n".join(f"audio/{each.path.name}" for each in SHIPPED))
    paths = [str(each.path) for each in SHIPPED]
    return {
        "folder": folder,
        "JSONL": str(manifest),
        "CSV": table,
        "rows": rows,
        "Recordings": [
            Recording(each.path.name, str(each.path), {}, each.text) for each in SHIPPED
        ],
        "as_recordings": as_recordings(paths),
        "digits": SHIPPED,
        "pairs": [(load_audio(path), 16_000) for path in paths],
        "bytes": [Recording(path, Path(path).read_bytes()) for path in paths],
        "Mel": digits_model.to_mel(paths),
        "Mels": [digits_model.to_mel(path) for path in paths],
        "a sequence": LazyPaths(),
        "others": [Someones(each) for each in SHIPPED],
        "data set": datasets.Dataset.from_list([{"audio": path} for path in paths]).cast_column(
            "audio", datasets.Audio()
        ),
    }


@cache
def _sae() -> Any:
    return load_suite("digits")[SITE]


def _stored(model: HookedWhisper, given: Any, folder: Path) -> Tensor:
    store = harvest(model, given, SITE, folder / "store", n_workers=0, dtype="fp32")
    return store.rows(SITE, slice(None))[SITE]


def _judged(model: HookedWhisper, given: Any, folder: Path) -> list[float]:
    found = evaluate_sae(
        _sae(),
        model,
        given,
        SITE,
        ["one", "two"][: len(list(as_recordings(given)))],
        all_frames=False,
        transcripts=False,
        progress=False,
    ).extents["speech"]
    return [found.reconstruction.fvu, found.recovered.kl_spliced]


def _clips(model: HookedWhisper, given: Any, folder: Path) -> list[tuple[int, float, float]]:
    sae = _sae()
    found = top_clips(sae, model, given, [1, 2], SITE, n_top=3, progress=False)
    return [(each.recording, each.start_s, each.value) for some in found.values() for each in some]


def _read(model: HookedWhisper, given: Any, folder: Path) -> Tensor:
    source = ModelActivations(model, given, n_epochs=1)
    rows = torch.cat([batch[SITE] for batch in source.stream(SITE, 512)])
    return rows[rows[:, 0].argsort()]


def _mean(model: HookedWhisper, given: Any, folder: Path) -> Tensor:
    return mean_activations(model, given, SITE, progress=False)[SITE]


def _heard(model: HookedWhisper, given: Any, folder: Path) -> list[float]:
    """What pages and the study go through."""
    windows = load_windows(model, given)
    return [x for window in windows for x in (window.recording, window.n_positions)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "harvest": _stored,
    "evaluate_sae": _judged,
    "top_clips": _clips,
    "ModelActivations": _read,
    "mean_activations": _mean,
    "load_windows": _heard,
}


FEW = ("folder", "rows", "digits", "pairs", "Mel", "a sequence")


@pytest.fixture(scope="module")
def expected(
    digits_model: HookedWhisper, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    made: dict[str, Any] = {}
    paths = [str(each.path) for each in SHIPPED]

    def of(function: str) -> Any:
        if function not in made:
            folder = tmp_path_factory.mktemp("expected")
            made[function] = FUNCTIONS[function](digits_model, paths, folder)
        return made[function]

    return of


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_form_gives_the_same(
    function: str,
    forms: dict[str, Any],
    expected: Callable[[str], Any],
    digits_model: HookedWhisper,
    tmp_path: Path,
    without_shape_checks: None,
) -> None:
    # Each form becomes Recordings in one place, which windows are read through, too.
    few = FEW[:3] if function == "evaluate_sae" else FEW
    chosen = forms if function == "load_windows" else {name: forms[name] for name in few}
    for name, given in chosen.items():
        (tmp_path / name).mkdir()
        found = FUNCTIONS[function](digits_model, given, tmp_path / name)
        torch.testing.assert_close(
            torch.as_tensor(found),
            torch.as_tensor(expected(function)),
            msg=name,
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_of_them_alone(
    function: str, digits_model: HookedWhisper, tmp_path: Path, without_shape_checks: None
) -> None:
    path = SHIPPED[0].path
    alone = [str(path), path, Recording("a", str(path)), (load_audio(path), 16_000), SHIPPED[0]]
    found = []
    for number, given in enumerate(alone):
        (tmp_path / str(number)).mkdir()
        found.append(
            torch.as_tensor(FUNCTIONS[function](digits_model, given, tmp_path / str(number)))
        )
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
