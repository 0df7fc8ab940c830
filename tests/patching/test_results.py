"""What a sweep's result says, keeps, and refuses."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper import display
from hooked_whisper.errors import InterventionError
from hooked_whisper.patching.results import SweepResult


def make_result(n_pairs: int = 3, **changes: Any) -> SweepResult:
    """Two sites in two layers, one place without a hook, three heads."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n_pairs, 2, 2, 3, generator=generator)
    values[:, 1, 0] = torch.nan
    fields: dict[str, Any] = {
        "values": values,
        "axes": {
            "pair": list(range(n_pairs)),
            "site": ["decoder.attn.hook_z", "decoder.cross_attn.hook_z"],
            "layer": [0, 3],
            "head": [0, 2, 5],
        },
        "names": [
            ["decoder.blocks.0.attn.hook_z", "decoder.blocks.3.attn.hook_z"],
            [None, "decoder.blocks.3.cross_attn.hook_z"],
        ],
        "clean": torch.linspace(2, 3, n_pairs),
        "corrupted": torch.linspace(-1, 0.5, n_pairs),
        "direction": "denoising",
        "metric": "LogProb",
    }
    return SweepResult(**{**fields, **changes})


def test_it_says_what_it_holds() -> None:
    result = make_result()
    assert repr(result) == (
        "SweepResult(LogProb, denoising: 3 pair, 2 site, 2 layer, 3 head; 27 of 27 done)"
    )
    assert result.complete


def test_places_that_were_not_done_are_missing() -> None:
    result = make_result()
    result.values[1, 0, 1, 2] = torch.nan
    assert (result.n_cells, result.n_done, result.complete) == (27, 26, False)
    assert len(result.to_dataframe()) == 26


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_effect_is_0_at_the_run_that_is_patched_and_1_at_the_other(direction: str) -> None:
    result = make_result(direction=direction)
    base, source = result.clean, result.corrupted
    if direction == "denoising":
        base, source = source, base
    result.values[:, 0, 0, 0], result.values[:, 0, 0, 1] = base, source
    result.values[:, 0, 0, 2] = base + 0.25 * (source - base)
    effect = result.effect()[:, 0, 0]
    torch.testing.assert_close(effect, torch.tensor([[0.0, 1.0, 0.25]] * 3))


def test_the_dataframe_has_a_row_for_each_patch() -> None:
    result = make_result()
    table = result.to_dataframe()
    row = table[(table.pair == 1) & (table.name == "decoder.blocks.3.cross_attn.hook_z")]
    assert row["value"].tolist() == result.values[1, 1, 1].tolist()
    assert row["head"].tolist() == [0, 2, 5]
    assert set(row["stack"]) == {"decoder"} and set(row["layer"]) == {3}
    assert set(row["clean"]) == {result.clean[1].item()}


def test_best_names_the_greatest_mean_effect() -> None:
    result = make_result()
    means = result.effect().mean(dim=0)
    best = result.best(2)
    greatest = sorted(means[~means.isnan()].tolist(), reverse=True)[:2]
    assert [place["effect"] for place in best] == pytest.approx(greatest)
    site = result.axes["site"].index(best[0]["site"])
    layer = result.axes["layer"].index(best[0]["layer"])
    head = result.axes["head"].index(best[0]["head"])
    assert means[site, layer, head].item() == pytest.approx(best[0]["effect"])


def test_the_interval_is_the_bootstraps() -> None:
    result = make_result(40)
    low, high = result.interval(0.9, n_resamples=4000)
    values = result.values[:, 0, 1, 2].tolist()
    generator = torch.Generator().manual_seed(9)
    means = sorted(
        statistics.fmean(values[i] for i in torch.randint(40, (40,), generator=generator).tolist())
        for _ in range(4000)
    )
    assert low[0, 1, 2].item() == pytest.approx(means[200], abs=0.03)
    assert high[0, 1, 2].item() == pytest.approx(means[3800], abs=0.03)
    assert low[1, 0].isnan().all() and high[1, 0].isnan().all()


def test_it_is_saved_and_read_again(tmp_path: Path) -> None:
    result = make_result(conditions={"model": "digits"})
    result.save(tmp_path / "sweep.safetensors")
    read = SweepResult.load(tmp_path / "sweep.safetensors")
    for what in ("values", "clean", "corrupted"):
        torch.testing.assert_close(getattr(read, what), getattr(result, what), equal_nan=True)
    for what in ("axes", "names", "direction", "metric", "conditions"):
        assert getattr(read, what) == getattr(result, what)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.safetensors"]


def test_it_draws_a_panel_for_each_site() -> None:
    figure = make_result().plot(title="heads")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["decoder.attn.hook_z", "decoder.cross_attn.hook_z"]
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["0", "3"]
    written = [text.get_text() for text in panel.texts]
    values = make_result().mean(effect=True)[0, 0].tolist()
    assert written[:3] == [f"{value:.2f}".replace("-0.00", "0.00") for value in values]


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="at least 2 pairs; this result has 1"):
        make_result(1).interval()
    with pytest.raises(InterventionError, match="level is 95"):
        make_result().interval(95)
    with pytest.raises(InterventionError, match=r"is 2\.0 in both runs"):
        make_result(corrupted=torch.linspace(2, 3, 3)).effect()
    with pytest.raises(InterventionError, match="comes from no run"):
        make_result(corrupted=torch.full((3,), torch.nan)).best()
    unfinished = make_result()
    unfinished.values[0, 0, 0, 0] = torch.nan
    with pytest.raises(InterventionError, match="26 of 27 patches are done"):
        unfinished.interval()
    with pytest.raises(InterventionError, match="cannot be read as a SweepResult"):
        SweepResult.load(tmp_path / "none")
    with pytest.raises(InterventionError, match="cannot be written"):
        make_result().save(tmp_path / "no folder" / "sweep")


class TestShown:
    def test_the_heatmap_and_the_best_places(self, shown: Callable[[Any], Any]) -> None:
        result = make_result()
        found = shown(result)
        assert "LogProb, denoising, 27 of 27 done" in found.text
        (picture,) = found.all("img")
        assert picture["src"].startswith("data:image/png;base64,iVBOR")
        assert f'src="{picture["src"]}"' in display.picture(result.plot(effect=True), "")
        assert picture["alt"] == "heatmap: LogProb, denoising, 27 of 27 done"
        header = ["name", "layer", "head", "effect"]
        best = [[str(each[name]) for name in header] for each in result.best()]
        assert found.rows[0] == header
        assert [row[:3] for row in found.rows[1:6]] == [each[:3] for each in best]
        assert [float(row[3]) for row in found.rows[1:6]] == pytest.approx(
            [each["effect"] for each in result.best()], rel=1e-3
        )
        assert found.rows[6:] == [
            ["pairs", "3"],
            ["LogProb, clean run", "2.5"],
            ["LogProb, corrupted run", "-0.25"],
        ]

    def test_without_a_run_to_compare_with_it_shows_the_metric(
        self, shown: Callable[[Any], Any]
    ) -> None:
        found = shown(make_result(corrupted=torch.full((3,), torch.nan)))
        assert len(found.all("img")) == 1
        assert found.rows == [
            ["pairs", "3"],
            ["LogProb, clean run", "2.5"],
            ["LogProb, corrupted run", "–"],
        ]

    def test_what_is_not_begun_or_not_finished_says_so(self, shown: Callable[[Any], Any]) -> None:
        result = make_result()
        result.values[1:] = torch.nan
        result.clean[1:] = result.corrupted[1:] = torch.nan
        found = shown(result)
        assert "9 of 27 done" in found.text and len(found.rows) == 9
        result.values[:] = torch.nan
        found = shown(result)
        assert "0 of 27 done" in found.text and "Nothing is done yet" in found.text
        assert not found.all("img")

    def test_a_name_is_no_html(self, shown: Callable[[Any], Any]) -> None:
        metric, name = "<script>1</script>", "</td><b>&"
        result = make_result(metric=metric)
        result.names[0] = [name, name]
        found = shown(result)
        assert f"{metric}, clean run" in found.text
        assert any(row[0] == name for row in found.rows)
