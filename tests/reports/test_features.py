"""What stands in a page of features equals a plain computation."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.digits import recordings
from hooked_whisper.interventions import Interventions, Scale, Site, ZeroAblation
from hooked_whisper.reports import feature_page

SITE = "encoder.blocks.2.hook_resid_post"
ReadData = Callable[[Path], Any]


@pytest.fixture(scope="module")
def latents(digits_model: Any, digits_saes: Any) -> list[torch.Tensor]:
    """The latents of each shipped recording at the positions that hold sound."""
    mel = digits_model.to_mel([each.path for each in recordings()])
    with torch.no_grad():
        _, cache = digits_model.run_with_cache(mel, names_filter=SITE)
        encoded = digits_saes[SITE].encode(cache[SITE])
    return [row[:n] for row, n in zip(encoded, mel.n_positions.tolist(), strict=True)]


@pytest.fixture(scope="module")
def data(feature_page_of_digits: Any, read_data: ReadData) -> Any:
    return read_data(feature_page_of_digits.path)


def clips_of(data: Any, place: int) -> list[dict[str, Any]]:
    """The clips of one feature, with the places of the page's short lists named."""
    names = ("window", "part", "position", "value", "start", "end", "first", "curve")
    return [
        dict(zip((*names, "low", "high", "share"), each, strict=False))
        for each in data["clips"][place]
    ]


def test_density_and_peak_are_those_of_the_latents(
    data: Any, latents: list[torch.Tensor], feature_page_of_digits: Any
) -> None:
    whole = torch.cat(latents)
    density, peak = (whole != 0).double().mean(dim=0), whole.amax(dim=0)
    assert data["features"]["density"] == pytest.approx(density.tolist())
    assert [each or 0.0 for each in data["features"]["peak"]] == pytest.approx(peak.tolist())
    table = feature_page_of_digits.to_dataframe()
    assert table["peak"].fillna(0).tolist() == pytest.approx(peak.tolist())
    assert len(table) == 768


def test_the_greatest_moments_come_from_recordings_of_their_own(
    data: Any, latents: list[torch.Tensor]
) -> None:
    for latent in (92, 539, 741):
        best = sorted(
            ((float(each[:, latent].max()), -i) for i, each in enumerate(latents)), reverse=True
        )[:5]
        top = [each for each in clips_of(data, latent) if "low" not in each]
        assert [each["value"] for each in top] == pytest.approx([v for v, _ in best], rel=1e-4)
        assert [each["window"] for each in top] == [-i for _, i in best]
        for each in top:
            at = int(latents[each["window"]][:, latent].argmax())
            assert each["position"] == at
            assert each["start"] == pytest.approx(max(0.0, (at + 0.5) * 0.02 - 1), abs=1e-3)


def test_samples_come_from_every_part_of_the_range(data: Any, latents: list[torch.Tensor]) -> None:
    whole = torch.cat(latents)[:, 92]
    active = whole[whole > 0]
    rest = [each for each in clips_of(data, 92) if "low" in each]
    assert len(rest) == 5
    for each in rest:
        value = float(latents[each["window"]][each["position"], 92])
        assert each["value"] == pytest.approx(value, rel=1e-4)
        assert each["low"] - 1e-2 <= value <= each["high"] + 1e-2
        inside = ((active > each["low"]) & (active <= each["high"])).double().mean()
        assert each["share"] == pytest.approx(float(inside), abs=2e-2)
    shown = [(each["window"], each["position"]) for each in clips_of(data, 92)]
    assert len(set(shown)) == len(shown), "no moment stands there twice"


def test_curves_are_the_activations_around_the_moment(
    data: Any, latents: list[torch.Tensor]
) -> None:
    low, high = data["ranges"][539][:2]
    for clip in clips_of(data, 539):
        steps = np.frombuffer(base64.b64decode(clip["curve"]), dtype=np.uint8)
        found = low + steps * (high - low) / 255
        mine = latents[clip["window"]][clip["first"] : clip["first"] + len(steps), 539]
        assert len(mine) == len(steps) and 50 <= len(steps) <= 101
        assert np.abs(found - mine.numpy()).max() <= (high - low) / 510 + 1e-5
        assert clip["first"] * 0.02 <= clip["start"] + 1e-9


def test_the_label_that_is_told_is_scored_as_scikit_learn_does(
    data: Any, latents: list[torch.Tensor]
) -> None:
    from sklearn.metrics import roc_auc_score

    words = []
    for recording, each in zip(recordings(), latents, strict=True):
        middle = (torch.arange(len(each), dtype=torch.float64) + 0.5) * 0.02
        said = [
            next((w.word for w in recording.words if w.start_s <= t < w.end_s), None)
            for t in middle.tolist()
        ]
        words += said
    known = [i for i, word in enumerate(words) if word is not None]
    is_seven = [words[i] == "seven" for i in known]
    wanted = roc_auc_score(is_seven, torch.cat(latents)[known, 539].numpy())
    assert data["features"]["value"][539] == "seven"
    assert data["features"]["auroc"][539] == pytest.approx(wanted)
    assert data["features"]["words"][539].startswith("seven ×2")


def test_transcripts_are_those_of_a_run_by_hand(
    data: Any, digits_model: Any, digits_saes: Any, without_shape_checks: None
) -> None:
    assert len(data["effects"]) == 2
    latents_site = f"{SITE}.hook_sae_acts_post"
    changed = 0
    for window, latent, plain, ablated, amplified in data["effects"]:
        mel = digits_model.to_mel(recordings()[window].path)
        assert digits_model.generate(mel).texts == [plain]
        with digits_model.saes({SITE: digits_saes[SITE]}, use_error_term=True):
            for edit, text in (
                (ZeroAblation(Site(latents_site, latent=latent)), ablated),
                (Scale(Site(latents_site, latent=latent), 4.0), amplified),
            ):
                with Interventions(digits_model, edit):
                    assert digits_model.generate(mel).texts == [text]
        changed += ablated != plain
    assert changed, "these two latents do something, or this would test nothing"
    assert data["features"]["changed_ablated"][data["effects"][0][1]] > 0


def test_sound_stands_there_once_for_each_recording(data: Any) -> None:
    assert sorted(part["window"] for part in data["parts"]) == list(range(8))
    for clips in data["clips"]:
        for window, part, _, _, start, end, *_ in clips:
            found = data["parts"][part]
            assert found["window"] == window
            assert found["start"] <= start < end <= found["end"] + 1e-3


def test_neurons_of_a_hook(
    digits_model: Any, read_data: ReadData, tmp_path: Path, without_shape_checks: None
) -> None:
    name, heard = "encoder.blocks.2.mlp.hook_post", recordings()[:2]
    page = feature_page(
        digits_model,
        None,
        heard,
        tmp_path / "neurons.html",
        hook_name=name,
        latents=[5, 313],
        n_effects=1,
        amplify=30,
        progress=False,
    )
    found = read_data(page.path)
    mel = digits_model.to_mel([each.path for each in heard])
    _, cache = digits_model.run_with_cache(mel, names_filter=name)
    rows = zip(cache[name], mel.n_positions.tolist(), strict=True)
    whole = torch.cat([row[:n, [5, 313]] for row, n in rows]).detach()
    assert found["kind"] == "neuron" and found["n_of_site"] == 384
    assert found["features"]["density"] == pytest.approx((whole > 0).double().mean(0).tolist())
    assert found["ranges"][1][:2] == pytest.approx(
        [float(whole[:, 1].min()), float(whole[:, 1].max())]
    )
    assert found["tells"][1][0][2] > 0, "a neuron is on where it is over 0"
    [[window, neuron, _, ablated, amplified]] = found["effects"]
    for edit, text in (
        (ZeroAblation(Site(name, neuron=neuron)), ablated),
        (Scale(Site(name, neuron=neuron), 30.0), amplified),
    ):
        with Interventions(digits_model, edit):
            assert digits_model.generate(mel[window]).texts == [text]


def test_tokens_of_a_hook_in_the_decoder(
    digits_model: Any, digits_saes: Any, read_data: ReadData, tmp_path: Path
) -> None:
    name, recording = "decoder.blocks.2.hook_resid_post", recordings()[1]
    page = feature_page(
        digits_model,
        digits_saes[name],
        [recording],
        tmp_path / "tokens.html",
        latents=[120, 596],
        n_effects=0,
        progress=False,
    )
    found = read_data(page.path)
    tokens = digits_model.to_tokens(" " + recording.text)
    mel = digits_model.to_mel(recording.path)
    _, cache = digits_model.run_with_cache(mel, tokens, names_filter=name)
    acts = digits_saes[name].encode(cache[name])[0, 3:, [120, 596]].detach()
    assert found["windows"]["0"]["tokens"] == ["<|notimestamps|>", *(
        f" {word.word}" for word in recording.words
    )]  # fmt: skip
    assert [each or 0 for each in found["features"]["peak"]] == pytest.approx(
        acts.amax(dim=0).tolist()
    )
    clip = clips_of(found, 1)[0]
    place = int(acts[:, 1].argmax())
    assert clip["position"] == 3 + place and clip["first"] == 3
    word = recording.words[max(0, place - 1)]
    assert clip["start"] == pytest.approx(max(0.0, word.start_s - 1), abs=1e-3)
    steps = np.frombuffer(base64.b64decode(clip["curve"]), dtype=np.uint8)
    low, high = found["ranges"][1][:2]
    assert low + steps * (high - low) / 255 == pytest.approx(acts[:, 1].numpy(), abs=high / 250)


def test_examples_in_the_padding_have_no_sound(
    digits_model: Any, digits_saes: Any, read_data: ReadData, tmp_path: Path
) -> None:
    recording = recordings()[0]
    mel = digits_model.to_mel(recording.path)
    n_sound = int(mel.n_positions)
    with torch.no_grad():
        _, cache = digits_model.run_with_cache(mel, names_filter=SITE)
        acts = digits_saes[SITE].encode(cache[SITE])[0]
    far = acts[n_sound + 100 :].amax(dim=0) - acts[: n_sound + 100].amax(dim=0)
    latent = int(far.argmax())
    page = feature_page(
        digits_model, digits_saes[SITE], [recording], tmp_path / "padding.html",
        latents=[latent], all_frames=True, n_effects=0, progress=False,
    )  # fmt: skip
    found = read_data(page.path)
    clip = clips_of(found, 0)[0]
    place = int(acts[:, latent].argmax())
    assert place > n_sound + 100 and clip["position"] == place and clip["part"] == -1
    assert clip["start"] < (place + 0.5) * 0.02 < clip["end"] <= 30.0
    low, high = found["ranges"][0][:2]
    steps = np.frombuffer(base64.b64decode(clip["curve"]), dtype=np.uint8)
    mine = acts[clip["first"] : clip["first"] + len(steps), latent].numpy()
    assert low + steps * (high - low) / 255 == pytest.approx(mine, abs=high / 250)


def test_times_of_tokens_by_attention_where_no_words_are_known(digits_model: Any) -> None:
    from hooked_whisper.data.windows import load_windows
    from hooked_whisper.reports.feature_data import token_times

    recording = recordings()[1]
    [window] = load_windows(digits_model, [recording.path], texts=[recording.text])
    assert window.words is None
    tokens = digits_model.to_tokens(" " + recording.text)[0].tolist()
    times = token_times(digits_model, window, tokens)
    assert times[:3] == [None, None, None] and times[3] == times[4]
    starts = [each[0] for each in times[4:] if each]
    assert len(starts) == len(recording.words) and starts == sorted(starts)
    middle = sum(times[5] or ()) / 2
    assert recording.words[1].start_s - 0.2 < middle < recording.words[1].end_s + 0.2


def test_it_stands_in_a_notebook_with_the_first_rows_of_its_table(
    feature_page_of_digits: Any, shown: Callable[[Any], Any]
) -> None:
    found = shown(feature_page_of_digits)
    (frame,) = found.all("iframe")
    assert frame["srcdoc"] == feature_page_of_digits.path.read_text(encoding="utf-8")
    assert found.rows[0] == list(feature_page_of_digits.table[0])
    assert found.rows[21] == ["… and 748 more"] and found.rows[1][1] == "0"
    assert len(repr(feature_page_of_digits)) < 300
