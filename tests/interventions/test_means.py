"""Means over recordings, of speech unless told otherwise."""

import itertools
from typing import Any

import pytest
import torch

from hooked_whisper import Mel
from hooked_whisper.digits import recordings
from hooked_whisper.errors import HookNameError, InputError, RecordingsError, SiteError
from hooked_whisper.interventions.ablation import MeanAblation
from hooked_whisper.interventions.edits import Interventions
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.means import mean_activations
from hooked_whisper.interventions.sites import Site

RESID = "encoder.blocks.0.hook_resid_post"
OF_DECODER = "decoder.blocks.1.hook_resid_post"
PATTERN = "encoder.blocks.0.attn.hook_pattern"
CONV = "encoder.hook_conv1"


@pytest.fixture
def examples(tiny_model: Any, tiny_mel: Any, tiny_tokens: Any) -> list[Example]:
    """Two recordings side by side, of 20 and 31 frames, and a third of 10 with a longer text."""
    longer = torch.cat([tiny_tokens[:1], tiny_tokens[1:, :2]], dim=1)
    return [
        Example(Mel(tiny_mel, torch.tensor([20, 31])), tiny_tokens),
        Example(Mel(-tiny_mel[:1], torch.tensor([10])), longer),
    ]


def rows(model: Any, examples: list[Example], name: str) -> list[torch.Tensor]:
    """The activation of each recording."""
    with torch.no_grad():
        runs = [model.run_with_cache(each.mel, each.tokens)[1] for each in examples]
    return [row for run in runs for row in run[name]]


@pytest.mark.parametrize(
    ("name", "n_sound", "axis"),
    [(RESID, (10, 16, 5), 0), (PATTERN, (10, 16, 5), 1), (CONV, (20, 31, 10), 1)],
    ids=["positions", "queries", "frames"],
)
def test_the_mean_over_speech(tiny_model, examples, name, n_sound, axis):
    parts = [
        row.movedim(axis, 0)[:n]
        for row, n in zip(rows(tiny_model, examples, name), n_sound, strict=True)
    ]
    expected = torch.cat(parts).mean(dim=0).unsqueeze(axis)[None]
    mean = mean_activations(tiny_model, examples, name, progress=False)
    torch.testing.assert_close(mean[name], expected, atol=1e-6, rtol=1e-5)
    assert mean.axes(name) == tiny_model.hook_dict[name].axes


def test_the_mean_of_each_position(tiny_model, examples):
    first, second, third = rows(tiny_model, examples, RESID)
    mean = mean_activations(tiny_model, examples, RESID, per_position=True, progress=False)[RESID]
    assert mean.shape == (1, 30, 24)
    three = torch.stack([first, second, third])
    torch.testing.assert_close(mean[0, :5], three[:, :5].mean(dim=0))
    torch.testing.assert_close(mean[0, 5:10], three[:2, 5:10].mean(dim=0))
    torch.testing.assert_close(mean[0, 10:16], second[10:16])
    # Where nobody speaks any more: the mean of their padding.
    torch.testing.assert_close(mean[0, 16:], three[:, 16:].mean(dim=0))


def test_all_frames(tiny_model, examples, tiny_mel):
    every = torch.stack(rows(tiny_model, examples, RESID))
    mean = mean_activations(tiny_model, examples, RESID, all_frames=True, progress=False)[RESID]
    torch.testing.assert_close(mean, every.mean(dim=(0, 1), keepdim=True))
    plain = [tiny_mel, -tiny_mel[:1]]  # which know no lengths
    same = mean_activations(tiny_model, plain, RESID, all_frames=True, progress=False)[RESID]
    torch.testing.assert_close(same, mean)


def test_the_mean_over_tokens(tiny_model, examples):
    first, second, third = rows(tiny_model, examples, OF_DECODER)
    mean = mean_activations(tiny_model, examples, [RESID, OF_DECODER], progress=False)
    expected = torch.cat([first, second, third]).mean(dim=0)
    torch.testing.assert_close(mean[OF_DECODER], expected[None, None])
    each = mean_activations(tiny_model, examples, OF_DECODER, per_position=True, progress=False)[
        OF_DECODER
    ]
    assert each.shape == (1, 9, 24)
    torch.testing.assert_close(each[0, 3], (first[3] + second[3] + third[3]) / 3)
    torch.testing.assert_close(each[0, 7:], third[7:])


def test_any_iterable_and_any_kind_of_input(tiny_model, examples):
    expected = mean_activations(tiny_model, examples, RESID, progress=False)[RESID]
    kinds = iter([examples[0].mel, (examples[1].mel, examples[1].tokens)])
    mean = mean_activations(tiny_model, kinds, RESID, progress=False)[RESID]
    torch.testing.assert_close(mean, expected)
    one = mean_activations(tiny_model, examples[0], RESID, progress=False)[RESID]
    same = mean_activations(tiny_model, [examples[0]], RESID, progress=False)[RESID]
    assert torch.equal(one, same)


def test_a_mean_of_means_fits_an_ablation(tiny_model, examples, tiny_mel):
    for name, per_position in itertools.product((RESID, PATTERN, CONV), (True, False)):
        mean = mean_activations(
            tiny_model, examples, name, per_position=per_position, progress=False
        )
        with torch.no_grad(), Interventions(tiny_model, MeanAblation(Site(name), mean)):
            _, cache = tiny_model.run_with_cache(tiny_mel, names_filter=name)
        torch.testing.assert_close(cache[name], mean[name].expand_as(cache[name]))


def test_a_bar_shows_progress(tiny_model, examples, capsys):
    mean_activations(tiny_model, examples, RESID)
    assert "mean activations: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "name", "error", "message"),
    [
        ("none", RESID, InputError, "there are no inputs to average over"),
        ("mels", OF_DECODER, InputError, "Mel has no tokens, which the decoder needs"),
        ("tensors", RESID, InputError, "does not say how much of it holds sound"),
        ("examples", "decoder.blocks.0.attn.hook_pattern", SiteError, "keys grow with the text"),
        ("examples", "encoder.blocks.7.hook_z", HookNameError, "encoder blocks 0 to 1"),
    ],
    ids=["nothing", "no tokens", "no lengths", "self-attention", "name"],
)
def test_what_has_no_mean_is_refused_before_anything_runs(
    tiny_model, examples, tiny_mel, monkeypatch, inputs, name, error, message
):
    monkeypatch.setattr(tiny_model, "run_with_cache", lambda *args, **kwargs: pytest.fail("it ran"))
    given = {
        "none": [],
        "mels": [each.mel for each in examples],
        "tensors": [examples[0].mel, tiny_mel],
        "examples": examples,
    }
    with pytest.raises(error, match=message):
        mean_activations(tiny_model, given[inputs], name, progress=False)


def test_recordings_by_their_paths(digits_model):
    paths = [recording.path for recording in recordings()[:2]]
    name = "encoder.hook_embed"
    mean = mean_activations(digits_model, paths, name, progress=False)[name]
    with torch.no_grad():
        sound = [
            digits_model.run_with_cache(mel, names_filter=name, stop_at_layer=("encoder", 0))[1][
                name
            ][0, : mel.n_positions[0]]
            for mel in map(digits_model.to_mel, paths)
        ]
    torch.testing.assert_close(mean[0, 0], torch.cat(sound).mean(dim=0), atol=1e-5, rtol=0)


def test_recordings_bring_their_text_and_may_be_long(digits_model, tmp_path):
    """The decoder reads what a recording says; 35 s are two windows, whose sound counts alike."""
    name = "decoder.blocks.1.hook_resid_post"
    shipped = recordings()[:2]
    examples = [Example.from_audio(digits_model, one.path, f" {one.text}") for one in shipped]
    expected = mean_activations(digits_model, examples, name, progress=False)[name]
    mean = mean_activations(digits_model, shipped, name, progress=False)[name]
    torch.testing.assert_close(mean, expected)
    with pytest.raises(InputError, match="Recording has no tokens"):
        mean_activations(digits_model, [one.path for one in shipped], name, progress=False)

    samples = torch.randn(35 * 16_000, generator=torch.Generator().manual_seed(0)) / 10
    pieces = [(piece, 16_000) for piece in samples.split(30 * 16_000)]
    name = "encoder.hook_embed"
    mean = mean_activations(digits_model, (samples, 16_000), name, progress=False)[name]
    expected = mean_activations(digits_model, pieces, name, progress=False)[name]
    torch.testing.assert_close(mean, expected)
    mixed = [pieces[0], digits_model.to_mel(*pieces[1][:1], rate_hz=16_000)]
    torch.testing.assert_close(
        mean_activations(digits_model, iter(mixed), name, progress=False)[name], expected
    )


def test_a_recording_that_cannot_be_read(digits_model, tmp_path):
    with pytest.raises(RecordingsError, match=r"recording .*absent\.wav: .*absent\.wav"):
        mean_activations(digits_model, [tmp_path / "absent.wav"], RESID, progress=False)
