"""A sweep gives the numbers of the plain loop, at every hook, and survives what goes wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import Mel, WhisperCache, digits
from hooked_whisper.errors import (
    InterventionError,
    SweepError,
)
from hooked_whisper.hooks.passes import pass_info
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import Metric, as_metric
from hooked_whisper.metrics.sequences import KLDivergence, SequenceLogProb
from hooked_whisper.metrics.tokens import LogitDifference, LogProb
from hooked_whisper.metrics.transcripts import ExactTranscript
from hooked_whisper.model.encoder import Encoder
from hooked_whisper.patching.attribution_patching import attribution_patch
from hooked_whisper.patching.results import SweepResult
from hooked_whisper.patching.sweep import patch_sweep

FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


def whole_text(logits: Tensor) -> Tensor:
    """A metric to which every logit of every position matters."""
    weights = torch.linspace(-1, 1, logits[0].numel()).view(logits.shape[1:])
    return (logits.softmax(-1) * weights).sum(dim=(1, 2))


METRICS = {
    "every-position": as_metric(whole_text),
    "last": as_metric(lambda logits: logits[:, 0, 3] - logits[:, 0, 5], positions=[-1]),
    "two tokens": LogitDifference(3, 5),
    "two tokens early": LogitDifference(3, 5, pos=2),
    "two": as_metric(lambda logits: logits[:, 0, 3] - logits[:, 1, 5], positions=[2, -3]),
}


def plain(model: Any, base: Example, source: Any, name: str, index: Any, metric: Metric) -> Tensor:
    """One patch by the plain way: a full run with a hook written by hand."""

    def patch(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[index] = source[name][index]
        return value

    with torch.no_grad():
        return metric(model.run_with_hooks(base.mel, base.tokens, fwd_hooks=[(name, patch)]))


def cache_of(model: Any, example: Example) -> WhisperCache:
    with torch.no_grad():
        return model.run_with_cache(example.mel, example.tokens)[1]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("metric", "names_filter"),
    [("every-position", "*"), *((name, "*.blocks.1.*") for name in [*METRICS][1:])],
    ids=METRICS,
)
def test_every_hook_whole(
    tiny_model: Any, pair: tuple[Example, Example], metric: str, names_filter: str
) -> None:
    clean, corrupted = pair
    source = cache_of(tiny_model, clean)
    names, metric = tiny_model.hook_names(names_filter), METRICS[metric]
    result = patch_sweep(tiny_model, clean, corrupted, names, metric=metric, progress=False)
    assert result.complete and result.n_cells == len(names)
    for row in result.to_dataframe().itertuples():
        wanted = plain(tiny_model, corrupted, source, row.name, slice(None), metric)
        assert row.value == pytest.approx(wanted.item(), abs=1e-5), row.name


@pytest.mark.usefixtures("without_shape_checks")
def test_hooks_behind_flags(fresh_model: Any, make_example: Callable[..., Example]) -> None:
    model = fresh_model
    plain_names = set(model.hook_names())
    for flag in FLAGS:
        getattr(model, f"set_{flag}")(True)
    names = sorted(set(model.hook_names()) - plain_names)
    assert len(names) > 20
    clean, corrupted = make_example(model, 1), make_example(model, 2)
    source, metric = cache_of(model, clean), METRICS["every-position"]
    result = patch_sweep(model, clean, corrupted, names, metric=metric, progress=False)
    for row in result.to_dataframe().itertuples():
        wanted = plain(model, corrupted, source, row.name, slice(None), metric)
        assert row.value == pytest.approx(wanted.item(), abs=1e-5), row.name


PARTS = {
    "decoder-stream-by-position": ("decoder.blocks.*.hook_resid_*", "pos", [0, 1, 3, 6]),
    "decoder-outputs-by-position": ("decoder.blocks.*.hook_*_out", "pos", [0, 3, 6]),
    "decoder-anything-by-position": (
        [
            "decoder.blocks.*.attn.hook_*",
            "decoder.blocks.*.cross_attn.hook_[qpaz]*",
            "decoder.blocks.*.ln*",
            "decoder.blocks.*.mlp.hook_*",
            "decoder.hook_*",
            "decoder.ln_final.*",
        ],
        "pos",
        [0, 5],
    ),
    "decoder-heads": ("decoder.blocks.*attn.hook_[zqvkp]*", "head", [0, 2]),
    "encoder-heads": ("encoder.blocks.*.attn.hook_[zqvkp]*", "head", range(2)),
    "encoder-neurons": ("encoder.blocks.*.mlp.hook_*", "neuron", [0, 95]),
    "decoder-neurons": ("decoder.blocks.*.mlp.hook_post", "neuron", [5, 17]),
    "encoder-windows": ("encoder.blocks.*.hook_*", "window", [(0.0, 0.2), (0.5, 0.6)]),
    "encoder-start-windows": (["encoder.hook_*", "encoder.ln_final.*"], "window", [(0.1, 0.3)]),
    "cross-keys-by-time": ("decoder.blocks.*.cross_attn.hook_[kv]", "window", [(0.1, 0.3)]),
}


NOISED = ("decoder-outputs-by-position", "encoder-neurons")


def index_of(model: Any, name: str, per: str, part: Any) -> Any:
    """The part of an activation, worked out without the package's own index."""
    axes = model.hook_dict[name].axes
    wanted = {
        "head": ("head",),
        "pos": ("pos", "query"),
        "neuron": ("d_mlp",),
        "window": ("frame", "key") if "cross" in name else ("frame", "pos", "query"),
    }[per]
    axis = next(axes.index(each) for each in wanted if each in axes)
    if per == "window":
        rate = 100 if axes[axis] == "frame" else 50
        part = slice(round(part[0] * rate), round(part[1] * rate))
    return (slice(None),) * axis + (part,)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("names", "per", "parts", "direction"),
    [(*each, "denoising") for each in PARTS.values()]
    + [(*PARTS[name], "noising") for name in NOISED],
    ids=[*PARTS, *(f"{name}-noising" for name in NOISED)],
)
def test_parts(
    tiny_model: Any,
    pair: tuple[Example, Example],
    names: Any,
    per: Any,
    parts: Any,
    direction: Any,
) -> None:
    clean, corrupted = pair
    base, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    source, metric = cache_of(tiny_model, other), METRICS["every-position"]
    result = patch_sweep(
        tiny_model,
        clean,
        corrupted,
        names,
        metric=metric,
        per=per,
        parts=parts,
        direction=direction,
        progress=False,
    )
    assert result.complete
    for row in result.to_dataframe().itertuples():
        part = (row.start_s, row.end_s) if per == "window" else getattr(row, per)
        index = index_of(tiny_model, row.name, per, part)
        wanted = plain(tiny_model, base, source, row.name, index, metric)
        assert row.value == pytest.approx(wanted.item(), abs=1e-5), (row.name, part)


def test_windows_go_to_the_end(tiny_model: Any, pair: tuple[Example, Example]) -> None:
    name, metric = "encoder.blocks.1.hook_resid_post", METRICS["last"]
    options: dict[str, Any] = {"per": "window", "window_s": 0.25, "all_frames": True}
    result = patch_sweep(tiny_model, *pair, name, metric=metric, progress=False, **options)
    assert result.axes["window_s"] == [(0.0, 0.25), (0.25, 0.5), (0.5, 0.6)]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("n_frames", [(50, 20), (20, 50)], ids=["clean-longer", "clean-shorter"])
def test_windows_cover_the_longer_recording(
    tiny_model: Any, pair: tuple[Example, Example], direction: Any, n_frames: tuple[int, int]
) -> None:
    """What one run holds behind the other's end counts, whichever of them is patched."""
    clean, corrupted = (
        Example(Mel(example.mel.values, torch.tensor([n])), example.tokens)
        for example, n in zip(pair, n_frames, strict=True)
    )
    name, metric = "encoder.blocks.1.hook_resid_post", METRICS["every-position"]
    result = patch_sweep(
        tiny_model,
        clean,
        corrupted,
        name,
        metric=metric,
        per="window",
        window_s=0.25,
        direction=direction,
        progress=False,
    )
    assert result.axes["window_s"] == [(0.0, 0.25), (0.25, 0.5)]
    base, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    index = index_of(tiny_model, name, "window", (0.25, 0.5))
    wanted = plain(tiny_model, base, cache_of(tiny_model, other), name, index, metric)
    assert result.values[0, 0, 0, 1].item() == pytest.approx(wanted.item(), abs=1e-5)
    estimate = attribution_patch(
        tiny_model,
        clean,
        corrupted,
        name,
        metric=metric,
        per="window",
        window_s=0.25,
        direction=direction,
    )
    assert estimate.axes == result.axes


def test_windows_cover_what_a_cache_holds(tiny_model: Any, pair: tuple[Example, Example]) -> None:
    short = Example(Mel(pair[0].mel.values, torch.tensor([20])), pair[0].tokens)
    long = Example(Mel(pair[1].mel.values, torch.tensor([50])), pair[1].tokens)
    result = patch_sweep(
        tiny_model,
        short,
        cache_of(tiny_model, long),
        "encoder.blocks.1.hook_resid_post",
        metric=METRICS["last"],
        per="window",
        window_s=0.25,
        direction="noising",
        progress=False,
    )
    assert result.axes["window_s"] == [(0.0, 0.25), (0.25, 0.5)]


@pytest.mark.parametrize("kind", ["text", "last-first", "newest-apart"])
def test_a_metric_of_several_positions(
    tiny_model: Any, pair: tuple[Example, Example], kind: str
) -> None:
    clean, corrupted = pair
    name = "decoder.blocks.1.hook_resid_pre"
    metric: Metric = SequenceLogProb(corrupted.tokens)
    if kind == "last-first":
        metric = as_metric(lambda x: x[:, 0, 3] - 2 * x[:, 1, 5], positions=[-1, 0])
    elif kind == "newest-apart":
        with torch.no_grad():
            reference = tiny_model(clean.mel, clean.tokens)
        metric = KLDivergence(reference, pos=[5, 2, 6])
    result = patch_sweep(
        tiny_model, clean, corrupted, name, metric=metric, per="pos", progress=False
    )
    source = cache_of(tiny_model, clean)
    for row in result.to_dataframe().itertuples():
        index = index_of(tiny_model, name, "pos", row.pos)
        wanted = plain(tiny_model, corrupted, source, name, index, metric)
        assert row.value == pytest.approx(wanted.item(), abs=1e-4), row.pos


@pytest.mark.usefixtures("without_shape_checks")
def test_the_memory_bound_changes_no_number(tiny_model: Any, pair: tuple[Example, Example]) -> None:
    sweep: dict[str, Any] = {"metric": METRICS["last"], "per": "pos", "progress": False}
    names = "decoder.blocks.*.hook_resid_*"
    wanted = patch_sweep(tiny_model, *pair, names, **sweep).values
    for max_bytes in (1, 10**6):  # one row at a time, some
        got = patch_sweep(tiny_model, *pair, names, max_bytes=max_bytes, **sweep).values
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.usefixtures("without_shape_checks")
def test_hooks_of_the_users_own_stay_in_effect(
    tiny_model: Any, pair: tuple[Example, Example]
) -> None:
    clean, corrupted = pair

    def halve(value: Tensor, hook: Any) -> Tensor:
        return value * 0.5

    def shift_third(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, 2] += 1.0
        return value

    own = [
        ("encoder.blocks.0.mlp.hook_post", halve),
        ("decoder.blocks.1.hook_resid_mid", shift_third),
    ]
    names = ["decoder.blocks.*.hook_resid_*", "decoder.blocks.*.hook_mlp_out"]
    metric = METRICS["every-position"]
    with tiny_model.hooks(fwd_hooks=own):
        source = cache_of(tiny_model, clean)
        result = patch_sweep(
            tiny_model, clean, corrupted, names, metric=metric, per="pos", progress=False
        )
        for row in result.to_dataframe().itertuples():
            index = (slice(None), row.pos)
            wanted = plain(tiny_model, corrupted, source, row.name, index, metric)
            assert row.value == pytest.approx(wanted.item(), abs=1e-5), row.name


def test_several_pairs(tiny_model: Any, make_example: Callable[..., Example]) -> None:
    clean, corrupted = make_example(tiny_model, 1, 3), make_example(tiny_model, 2, 3)
    metrics = [as_metric(lambda x, t=t: x[:, -1, t]) for t in range(3)]
    names = "decoder.blocks.*.hook_attn_out"
    result = patch_sweep(tiny_model, clean, corrupted, names, metric=metrics, progress=False)
    assert result.values.shape == (3, 1, 3, 1)
    for pair in range(3):
        right = Example(clean.mel[pair], clean.tokens[pair : pair + 1])
        wrong = Example(corrupted.mel[pair], corrupted.tokens[pair : pair + 1])
        alone = patch_sweep(tiny_model, right, wrong, names, metric=metrics[pair], progress=False)
        torch.testing.assert_close(result.values[pair], alone.values[0])
        assert result.clean[pair] == pytest.approx(alone.clean.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["zero", "cache"])
def test_activations_of_no_run(tiny_model: Any, pair: tuple[Example, Example], kind: str) -> None:
    clean, other = pair
    cache = cache_of(tiny_model, other)
    source = cache if kind == "cache" else {name: torch.zeros_like(cache[name]) for name in cache}
    names, metric = "*.attn.hook_z", METRICS["every-position"]
    result = patch_sweep(
        tiny_model,
        clean,
        cache if kind == "cache" else "zero",
        names,
        metric=metric,
        direction="noising",
        progress=False,
    )
    for row in result.to_dataframe().itertuples():
        wanted = plain(tiny_model, clean, source, row.name, slice(None), metric)
        assert row.value == pytest.approx(wanted.item(), abs=1e-5)
    assert result.corrupted.isnan().all()
    with pytest.raises(InterventionError, match="comes from no run"):
        result.effect()


class BreaksAfter:
    """A metric that raises when it has judged some rows."""

    def __init__(self, n: int, error: BaseException) -> None:
        self.left, self.error = n, error

    def __call__(self, logits: Tensor) -> Tensor:
        self.left -= len(logits)
        if self.left < 0:
            raise self.error
        return whole_text(logits)


def test_a_transcript_sweep_encodes_each_run_once(
    digits_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = digits.recordings()[:2]
    clean = Example.from_audio(digits_model, first.path, f" {first.text}")
    corrupted = Example(digits_model.to_mel(second.path), clean.tokens)
    encoded, embed = [], Encoder.embed

    def count(encoder: Any, mel: Any) -> Tensor:
        encoded.append(len(mel))
        return embed(encoder, mel)

    monkeypatch.setattr(Encoder, "embed", count)
    names = ["encoder.blocks.2.hook_resid_post", "decoder.blocks.0.hook_mlp_out"]
    metric = ExactTranscript(first.text)
    result = patch_sweep(digits_model, clean, corrupted, names, metric=metric, progress=False)
    assert result.complete and encoded == [1, 1]
    assert (result.clean.item(), result.corrupted.item()) == (1, 0)


def test_ctrl_c_keeps_what_is_done_and_the_sweep_goes_on(
    tiny_model: Any, pair: tuple[Example, Example], capsys: pytest.CaptureFixture[str]
) -> None:
    names, own = "decoder.blocks.*.hook_resid_*", {"per": "pos", "progress": False}
    metric = BreaksAfter(20, KeyboardInterrupt())
    stopped = patch_sweep(tiny_model, *pair, names, metric=as_metric(metric), max_bytes=1, **own)
    assert not stopped.complete and 15 <= stopped.n_done <= 20
    assert f"stopped after {stopped.n_done} of 84 patches" in capsys.readouterr().err
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())
    assert pass_info().first_pos == 0

    metric.left = 10**6
    rest = patch_sweep(tiny_model, *pair, names, metric=as_metric(metric), resume=stopped, **own)
    assert rest.complete and not stopped.complete
    assert 10**6 - metric.left == 84 - stopped.n_done + 2  # the baselines are measured again
    whole = patch_sweep(tiny_model, *pair, names, metric=as_metric(metric), **own)
    torch.testing.assert_close(rest.values, whole.values, equal_nan=True)


def test_an_error_on_the_way_keeps_what_is_done(
    tiny_model: Any, pair: tuple[Example, Example]
) -> None:
    metric = as_metric(BreaksAfter(8, OSError("no disk")))
    names = "decoder.blocks.*.hook_resid_*"
    with pytest.raises(SweepError, match=r"of 12 patches: OSError: no disk") as caught:
        patch_sweep(tiny_model, *pair, names, metric=metric, max_bytes=1, progress=False)
    assert caught.value.result.n_done > 0
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_a_result_of_another_sweep_is_not_resumed(
    tiny_model: Any, pair: tuple[Example, Example], tmp_path: Path
) -> None:
    clean, corrupted = pair
    given: dict[str, Any] = {
        "clean": clean,
        "corrupted": corrupted,
        "names_filter": "encoder.blocks.0.hook_resid_pre",
        "metric": LogProb(3),
        "per": "window",
        "parts": [(0.0, 0.2), (0.2, 0.4)],
        "progress": False,
    }
    patch_sweep(tiny_model, **given).save(tmp_path / "sweep")
    earlier = SweepResult.load(tmp_path / "sweep")
    for changes, message in (
        ({"names_filter": "encoder.blocks.1.hook_resid_pre"}, "other names"),
        ({"parts": [(0.0, 0.2), (0.2, 0.5)]}, "other axes"),
        ({"metric": LogProb(4)}, "other metric's settings"),
        ({"clean": corrupted}, "other runs put in"),
        ({"corrupted": clean}, "other patched runs"),
    ):
        with pytest.raises(InterventionError, match=message):
            patch_sweep(tiny_model, **{**given, **changes}, resume=earlier)
    whole = patch_sweep(tiny_model, **given, resume=earlier)
    assert whole.complete and torch.equal(whole.values, earlier.values)
