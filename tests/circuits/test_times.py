"""An edge by time: the whole is the exact score, a window a patch of its positions."""

from typing import Any

import pytest
import torch

from hooked_whisper.circuits import EdgeTimes, edge_times, find_circuit
from hooked_whisper.errors import InterventionError, SiteError

from .plain import contributions, patched_logits
from .test_find import DIFFERENCE, QUIET, difference

EDGES = ["encoder.embed->decoder.1.cross_attn.1.v", "encoder.1.mlp->decoder.0.cross_attn.0.k"]
WINDOWS = [(0.0, 0.1), (0.1, 0.26)]


@pytest.fixture(scope="module")
def times(small_model: Any, pair: Any, short_pair: Any) -> EdgeTimes:
    return edge_times(small_model, [pair, short_pair], DIFFERENCE, EDGES, WINDOWS, **QUIET)


def test_windows_are_the_plain_loops(
    small_model: Any, make_reference: Any, pair: Any, times: EdgeTimes
) -> None:
    whisper = make_reference(small_model)
    with torch.no_grad():
        ours, theirs = (contributions(whisper, run) for run in pair)
        for number, edge in enumerate(find_edges(small_model)):
            change = theirs[edge.sender] - ours[edge.sender]
            for place, (start, end) in enumerate([(0, 5), (5, 13), (13, 24), (0, 24)]):
                some = torch.zeros_like(change)
                some[:, start:end] = change[:, start:end]
                value = difference(patched_logits(whisper, pair[0], edge, some))
                assert float(times.values[0, number, place]) == pytest.approx(
                    float(value), abs=1e-5
                )


def find_edges(model: Any) -> list[Any]:
    from hooked_whisper.circuits import Edge

    return [Edge.from_text(text) for text in EDGES]


def test_the_whole_is_the_edges_score(
    small_model: Any, pair: Any, short_pair: Any, times: EdgeTimes
) -> None:
    scores = find_circuit(small_model, [pair, short_pair], DIFFERENCE, **QUIET)
    numbers = scores.graph.numbers_of(EDGES)
    torch.testing.assert_close(times.values[:, :, -1], scores.values[:, numbers], atol=1e-5, rtol=0)
    # Where nothing but values changes, and they are mixed as before, parts add up nearly.
    assert times.interplay().shape == (2, 2)


def test_windows_of_one_length_cover_the_sound(small_model: Any, pair: Any) -> None:
    found = edge_times(small_model, pair, DIFFERENCE, EDGES[:1], 0.15, **QUIET)
    assert found.windows == [(0.0, 0.15), (0.15, 0.3), (0.3, pytest.approx(0.45))]
    assert found.axes["window_s"][-2:] == ["rest", "all"]


def test_shown_saved_and_gone_on_with(
    small_model: Any, pair: Any, short_pair: Any, times: EdgeTimes, tmp_path: Any
) -> None:
    path = tmp_path / "times.safetensors"
    times.save(path)
    loaded = EdgeTimes.load(path)
    assert torch.equal(loaded.values, times.values) and loaded.windows == times.windows
    loaded.values[1, 1] = torch.nan
    again = edge_times(
        small_model, [pair, short_pair], DIFFERENCE, EDGES, WINDOWS, resume=loaded, **QUIET
    )
    torch.testing.assert_close(again.values, times.values, atol=1e-6, rtol=0)
    assert set(times.to_dataframe()["time"]) == {"0.00-0.10", "0.10-0.26", "rest", "all"}
    assert times.plot().axes


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("edges", "windows", "error", "message"),
    [
        ([], 0.1, InterventionError, "nothing is given; by time there are edges"),
        (["decoder.embed->logits"], 0.1, InterventionError, "decoder.embed->logits is given"),
        (EDGES, [], InterventionError, "no windows"),
        (EDGES, [(0.2, 0.1)], SiteError, "the window is 0.2 to 0.1 s"),
        (EDGES, 0.0, SiteError, "the window is 0 to 0.0 s"),
    ],
    ids=["no edges", "another kind", "no windows", "backwards", "of no length"],
)
def test_refuses(
    small_model: Any, pair: Any, edges: Any, windows: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        edge_times(small_model, pair, DIFFERENCE, edges, windows, **QUIET)
