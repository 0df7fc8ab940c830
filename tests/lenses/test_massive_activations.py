"""Massive activations that are planted are found where they are, with their writers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_whisper import HookedWhisper, digits
from hooked_whisper.data import Recording, as_recordings, load_windows
from hooked_whisper.data.windows import mel_of
from hooked_whisper.errors import HookNameError, InputError
from hooked_whisper.lenses import massive_activations
from hooked_whisper.speech import Mel, to_tokens

STREAM = "encoder.blocks.2.hook_resid_post"
PLACES = {0: [3, 11], 1: [], 2: [7]}
"""Where vectors are made massive, in each recording."""


@pytest.fixture(scope="module")
def clips() -> list[Recording]:
    return list(as_recordings(digits.recordings()[:3]))


@contextmanager
def planted(model: HookedWhisper, size: float = 300.0) -> Iterator[None]:
    """The MLP of block 2 writes a long vector along dimensions 5 and 40 at some positions."""
    sound: list[int] = []

    def heard(mel: Tensor, hook: Any) -> None:
        """Recordings are told apart by their first frames, as batches are of any size."""
        sound[:] = [_number(model, each) for each in mel]

    def write(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for row, number in enumerate(sound):
            for pos in PLACES[number]:
                value[row, pos, 5] += size
                value[row, pos, 40] -= size / 3
        return value

    names = ["encoder.hook_mel", "encoder.blocks.2.hook_mlp_out"]
    with model.hooks(list(zip(names, (heard, write), strict=True))):
        yield


def mel_of_clip(model: HookedWhisper, clip: Recording) -> Mel:
    [window] = load_windows(model, [clip])
    return mel_of(model, [window])


_SUMS: dict[int, float] = {}


def _number(model: HookedWhisper, mel: Tensor) -> int:
    if not _SUMS:
        for number, clip in enumerate(as_recordings(digits.recordings()[:3])):
            _SUMS[number] = float(mel_of_clip(model, clip).values.sum())
    return min(_SUMS, key=lambda number: abs(_SUMS[number] - float(mel.sum())))


def streams(model: HookedWhisper, clips: list[Recording], name: str = STREAM) -> list[Tensor]:
    """The speech positions of each recording, by plain runs."""
    found = []
    for clip in clips:
        mel = mel_of_clip(model, clip)
        _, cache = model.run_with_cache(mel, names_filter=name)
        found.append(cache[name][0, : int(mel.n_positions[0])])
    return found


@pytest.mark.parametrize("batch_size", [1, 3])
def test_planted_ones_are_found(
    batch_size: int, digits_model: HookedWhisper, clips: list[Recording], tmp_path: Path, shown: Any
) -> None:
    options: dict[str, Any] = {"removals": False, "progress": False, "batch_size": batch_size}
    with planted(digits_model):
        found = massive_activations(digits_model, clips, STREAM, **options)
        plain = streams(digits_model, clips)
    wanted = [(clips[n].id, round(0.02 * pos, 3)) for n in PLACES for pos in PLACES[n]]
    assert [(each.recording, each.start_s) for each in found.positions] == wanted
    x = torch.cat(plain)
    lengths = x.norm(dim=1)
    own = lengths > 3 * lengths.median()
    assert (found.n_positions, found.n_recordings) == (len(x), 3)
    assert found.median_norm == pytest.approx(float(lengths.median()), rel=1e-5)
    assert found.max_ratio == pytest.approx(float(lengths.max() / lengths.median()), rel=1e-5)
    apart = (x - x.mean(0)).square().sum(1)
    assert found.massive_variance == pytest.approx(float(apart[own].sum() / apart.sum()), rel=1e-4)
    torch.testing.assert_close(found.dimensions, x[own].abs().mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.usual_dimensions, x[~own].abs().mean(0), rtol=1e-4, atol=1e-4)
    assert found.top_dimensions[:2] == [5, 40]
    ratios = [each.norm_ratio for each in found.positions]
    assert ratios == pytest.approx((lengths[own] / lengths.median()).tolist(), rel=1e-4)
    assert sum(found.writers.values()) == pytest.approx(1, abs=1e-4)
    assert next(iter(found.writers)) == "2_mlp_out" and found.writers["2_mlp_out"] > 0.9
    earlier = tmp_path / "earlier.json"
    earlier.write_text("good")
    (tmp_path / "found.json").hardlink_to(earlier)
    found.save(tmp_path / "found.json")
    assert earlier.read_text() == "good"  # not written into, but replaced
    kept = json.loads((tmp_path / "found.json").read_text())
    assert kept["share"] == found.share and len(kept["positions"]) == 3
    assert list(found.to_dataframe()["start_s"]) == [each.start_s for each in found.positions]
    assert "3 massive positions" in " ".join(shown(found).words)


def test_writers_are_those_of_the_definition(
    digits_model: HookedWhisper, clips: list[Recording]
) -> None:
    """Of a stream without massive vectors: those over 1.05 times the median."""
    options: dict[str, Any] = {"removals": False, "progress": False, "times": 1.05}
    for name, block in (("encoder.blocks.1.hook_resid_mid", 1), (STREAM, 2)):
        found = massive_activations(digits_model, clips, name, **options)
        x = torch.cat(streams(digits_model, clips, name))
        lengths = x.norm(dim=1)
        own = lengths > 1.05 * lengths.median()
        assert 0 < int(own.sum()) < len(x)
        assert len(found.positions) == int(own.sum())
        for kind, layer in (("attn", block), ("mlp", block - 1)):
            hook = f"encoder.blocks.{layer}.hook_{kind}_out"
            part = torch.cat(streams(digits_model, clips, hook))[own]
            share = ((part * x[own]).sum(1) / x[own].square().sum(1)).mean()
            assert found.writers[f"{layer}_{kind}_out"] == pytest.approx(share.item(), abs=1e-4)
        assert sum(found.writers.values()) == pytest.approx(1, abs=1e-3)
        neuron = next(iter(found.neurons))
        layer, place = (int(each) for each in neuron[1:].split("N"))
        post = torch.cat(streams(digits_model, clips, f"encoder.blocks.{layer}.mlp.hook_post"))
        written = post[own][:, place, None] * digits_model.encoder.blocks[layer].mlp.W_out[place]
        share = ((written * x[own]).sum(1) / x[own].square().sum(1)).mean()
        assert found.neurons[neuron] == pytest.approx(share.item(), abs=1e-4)


@pytest.mark.slow
def test_removals_do_what_the_same_edit_does(
    digits_model: HookedWhisper, clips: list[Recording]
) -> None:
    with planted(digits_model):
        found = massive_activations(digits_model, clips, STREAM, progress=False)
        x = torch.cat(streams(digits_model, clips))
        usual = x[x.norm(dim=1) <= 3 * x.norm(dim=1).median()]
        loss, n = {"nothing": 0.0, "positions at the mean": 0.0}, 0
        for number in (0, 2):
            mel = mel_of_clip(digits_model, clips[number])
            tokens = to_tokens(f" {clips[number].text}", digits_model.cfg, append_eot=True)
            start = to_tokens("", digits_model.cfg).shape[1]

            def edit(value: Tensor, hook: Any, number: int = number) -> Tensor:
                value = value.clone()
                value[0, PLACES[number]] = usual.mean(0)
                return value

            for name, hooks in (("nothing", []), ("positions at the mean", [(STREAM, edit)])):
                with digits_model.hooks(hooks):
                    logits = digits_model(mel, tokens[:, :-1])
                each = F.cross_entropy(logits[0, start - 1 :], tokens[0, start:], reduction="sum")
                loss[name] += each.item()
            n += tokens.shape[1] - start
    for name, total in loss.items():
        assert found.removals[name].loss == pytest.approx(total / n, rel=1e-3)
    assert found.removals["nothing"].kl_divergence == 0
    assert found.removals["nothing"].n_windows == 2
    without = massive_activations(digits_model, clips, STREAM, progress=False)
    assert not without.positions and not without.removals and without.writers == {}
    assert without.massive_variance == 0 and without.share == 0


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("encoder.blocks.0.attn.hook_pattern", {}, HookNameError, "with the axes"),
        (
            "decoder.blocks.0.hook_resid_post",
            {},
            HookNameError,
            "a hook of the encoder|one hook of",
        ),
        ("encoder.blocks.*.hook_resid_post", {}, HookNameError, "one hook of the encoder"),
        (STREAM, {"times": 1}, InputError, "it must be over 1"),
        (STREAM, {"batch_size": 0}, InputError, "batch_size is 0"),
    ],
    ids=["pattern", "decoder", "several", "times", "batch size"],
)
def test_what_cannot_be_looked_at_is_refused(
    name: str, options: Any, error: Any, message: str, digits_model: Any, clips: Any
) -> None:
    with pytest.raises(error, match=message):
        massive_activations(digits_model, clips, name, progress=False, **options)
