"""Results of patching stay on the disk: as they grow, through kills, and checked when read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hooked_whisper import io as module
from hooked_whisper.errors import InterventionError, StoreBusyError, SweepError
from hooked_whisper.io import lock_file
from hooked_whisper.metrics import LogProb
from hooked_whisper.patching import (
    MLPLayer,
    SweepResult,
    attribution_patch,
    patch_sweep,
    path_patch_heads,
    saved,
)
from hooked_whisper.patching.paths import PathEffects

from ..kills import SOME_KILLS, check_kills

METRIC = LogProb(5)
FILE = "result.safetensors"


def sweep(model: Any, pair: Any, **options: Any) -> SweepResult:
    names = "encoder.blocks.*.hook_resid_post"
    return patch_sweep(
        model, *pair, names, metric=METRIC, per="pos", max_bytes=1, progress=False, **options
    )


def attribution(model: Any, pair: Any, **options: Any) -> SweepResult:
    names = "decoder.blocks.*.hook_resid_post"
    return attribution_patch(
        model, *pair, names, metric=METRIC, n_steps=3, along="sites", progress=False, **options
    )


def paths(model: Any, pair: Any, **options: Any) -> PathEffects:
    return path_patch_heads(
        model, *pair, [MLPLayer("decoder", 2)], metric=METRIC, max_rows=1, progress=False,
        **options,
    )  # fmt: skip


WORK: dict[str, Callable[..., Any]] = {"sweep": sweep, "attribution": attribution, "paths": paths}


@pytest.mark.parametrize("name", WORK)
def test_it_is_on_the_disk_at_the_end_and_done_already_the_next_time(
    name: str, tiny_model: Any, pair: Any, tmp_path: Path, without_shape_checks: None
) -> None:
    expected = WORK[name](tiny_model, pair)
    path = tmp_path / "result.safetensors"
    found = WORK[name](tiny_model, pair, save_to=path)
    read = type(expected).load(path)
    again = WORK[name](tiny_model, pair, save_to=str(path))
    for each in (found, read, again):
        assert each.complete and torch.equal(each.values, expected.values)
        assert torch.equal(each.clean, expected.clean)


@SOME_KILLS
@pytest.mark.parametrize("name", WORK)
def test_after_kills_at_any_moment_it_goes_on_to_the_same_numbers(
    name: str,
    n_kills: int,
    tiny_model: Any,
    pair: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_shape_checks: None,
) -> None:
    expected = WORK[name](tiny_model, pair)
    for what in ("SAVE_EVERY_S", "SAVE_EVERY_WRITES"):
        monkeypatch.setattr(module, what, 0.0)

    def work(folder: Path) -> None:
        WORK[name](tiny_model, pair, save_to=folder / FILE)

    def look(folder: Path) -> None:
        if (folder / FILE).exists():
            type(expected).load(folder / FILE)

    def values(folder: Path) -> Any:
        found = type(expected).load(folder / FILE)
        assert found.complete and torch.equal(found.values, expected.values)
        return found.values.tolist(), found.clean.tolist(), found.corrupted.tolist()

    check_kills(work, look, values, tmp_path, n_kills)


@pytest.mark.parametrize("name", WORK)
def test_a_disk_that_is_full_at_the_end_loses_nothing(
    name: str,
    tiny_model: Any,
    pair: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_shape_checks: None,
) -> None:
    """The numbers are in the error; what was on the disk before is there still."""
    expected, path = WORK[name](tiny_model, pair), tmp_path / FILE
    save = type(expected).save

    def full(self: Any, path: Path) -> None:
        if self.n_done:
            raise InterventionError("No space left on device.")
        save(self, path)

    monkeypatch.setattr(type(expected), "save", full)
    with pytest.raises(SweepError, match=r"^after .*No space left on device") as caught:
        WORK[name](tiny_model, pair, save_to=path)
    assert isinstance(caught.value.result, type(expected))
    assert torch.equal(caught.value.result.values, expected.values)
    assert type(expected).load(path).n_done == 0


def test_what_cannot_go_on_is_refused_before_anything_runs(
    tiny_model: Any, pair: Any, tmp_path: Path, without_shape_checks: None
) -> None:
    path = tmp_path / "result.safetensors"
    done = sweep(tiny_model, pair, save_to=path)
    with pytest.raises(InterventionError, match="resume is given too"):
        sweep(tiny_model, pair, save_to=path, resume=done)
    with pytest.raises(InterventionError, match="other"):
        sweep(tiny_model, pair[::-1], save_to=path)
    with pytest.raises(InterventionError, match="is no PathEffects"):
        paths(tiny_model, pair, save_to=path)
    with (
        lock_file(path, "sweep"),
        pytest.raises(StoreBusyError, match=r"another sweep writes .*result\.safetensors"),
    ):
        sweep(tiny_model, pair, save_to=path)
    with pytest.raises((InterventionError, OSError), match="no folder"):
        sweep(tiny_model, pair, save_to=tmp_path / "no folder" / "result")


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Rewrite a result with another header or other tensors, and a checksum of these."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sweep"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(header, tensors)
    if "xxh3_128" in header:
        header["xxh3_128"] = saved._checksum(header, tensors)
    save_file(tensors, path, metadata={"sweep": json.dumps(header)})


CHANGES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "an axis too short": (lambda h, t: h["axes"]["pos"].pop(), "axes have .* labels, its values"),
    "no pairs": (lambda h, t: h["axes"].update(pair=[]), "axes have"),
    "an axis less": (lambda h, t: h["axes"].pop("layer"), "axes have"),
    "no values": (lambda h, t: t.pop("values"), "it holds clean, corrupted"),
    "more tensors": (lambda h, t: t.update(more=torch.zeros(1)), "it holds"),
    "integers": (lambda h, t: t.update(clean=torch.zeros(1).long()), "clean are torch.int64"),
    "two clean runs": (lambda h, t: t.update(clean=torch.zeros(2)), r"clean is \(2,\) for 1"),
    "names": (lambda h, t: h["names"][0].pop(), "names of hooks"),
    "direction": (lambda h, t: h.update(direction="sideways"), "does not hold what it should"),
    "no metric": (lambda h, t: h.pop("metric"), "does not hold what it should"),
    "no checksum": (lambda h, t: h.pop("xxh3_128"), "missing required field `xxh3_128`"),
    "axes": (lambda h, t: h.update(axes=[1, 2]), "does not hold what it should"),
    "format": (lambda h, t: h.update(format="hooked_whisper.sweep/9"), "of the format"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_does_not_fit_together_is_refused(
    change: Callable[[Any, Any], None],
    message: str,
    tiny_model: Any,
    pair: Any,
    tmp_path: Path,
    without_shape_checks: None,
) -> None:
    path = tmp_path / "result.safetensors"
    sweep(tiny_model, pair, parts=[0, 1, 2]).save(path)
    changed(path, lambda header, tensors: None)
    SweepResult.load(path)  # of a release that wrote no checksum
    changed_once = tmp_path / "changed.safetensors"
    changed_once.write_bytes(path.read_bytes())
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sweep"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(header, tensors)
    save_file(tensors, changed_once, metadata={"sweep": json.dumps(header)})
    with pytest.raises(InterventionError, match=message):
        SweepResult.load(changed_once)


def test_other_numbers_are_seen_by_the_checksum(
    tiny_model: Any, pair: Any, tmp_path: Path, without_shape_checks: None
) -> None:
    path = tmp_path / "result.safetensors"
    sweep(tiny_model, pair, parts=[0, 1, 2]).save(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InterventionError, match="its checksum is of other content"):
        SweepResult.load(path)
