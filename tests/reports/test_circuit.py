"""The page of a circuit: what is written, and what a reader does with it in a browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper.circuits import Circuit, EdgeGraph
from hooked_whisper.digits import recordings
from hooked_whisper.errors import InputError, InterventionError
from hooked_whisper.reports import CircuitPage, circuit_page

RECORDING = recordings()[0]  # "three one four"
NAMES = [
    "encoder.embed->encoder.1.attn.2.v",
    "encoder.1.attn.2->decoder.2.cross_attn.0.v",
    "encoder.embed->decoder.2.cross_attn.0.k",
    "decoder.2.cross_attn.0->logits",
    "decoder.embed->decoder.3.attn.1.q",
    "decoder.3.attn.1->logits",
]
SCORES = [0.2, 0.3, 0.1, 0.5, 0.02, -0.05]
TIMES = {
    NAMES[1]: [(0.0, 0.5, 0.02), (0.5, 1.0, 0.2), (1.0, 1.5, 0.12), (1.5, 2.0, 0.0)],
    NAMES[2]: [(0.0, 0.5, 0.1), (0.5, 1.0, 0.0)],
}


@pytest.fixture(scope="module")
def circuit(digits_model: Any) -> Circuit:
    graph = EdgeGraph.of(digits_model.cfg)
    scores = torch.zeros(len(graph.edges))
    scores[graph.numbers_of(NAMES)] = torch.tensor(SCORES)
    return Circuit(graph, Circuit.of(graph, NAMES).mask, scores, {"metric": "<b>m</b>"})


@pytest.fixture(scope="module")
def page(digits_model: Any, circuit: Circuit, tmp_path_factory: Any) -> CircuitPage:
    out = tmp_path_factory.mktemp("circuit") / "circuit.html"
    return circuit_page(digits_model, circuit, RECORDING, out, times=TIMES)


def test_what_is_written(page: CircuitPage, read_data: Callable[[Path], Any]) -> None:
    data = read_data(page.path)
    assert page.n_bytes == page.path.stat().st_size < 300_000 and page.n_edges == 6
    assert [edge["name"] for edge in data["edges"]] == [NAMES[i] for i in (3, 1, 0, 2, 5, 4)]
    by_name = {edge["name"]: edge for edge in data["edges"]}
    assert by_name[NAMES[1]]["moment"] == [0.5, 1.5] and not by_name[NAMES[1]]["traced"]
    assert by_name[NAMES[0]]["moment"] == [0.5, 1.5] and by_name[NAMES[0]]["traced"]
    assert by_name[NAMES[5]]["moment"] is None
    assert by_name[NAMES[2]]["from"] == "encoder sound" and by_name[NAMES[2]]["part"] == "keys"
    assert [word for *_, word in data["words"]] == ["three", "one", "four"]
    shares = [part for *_, part in by_name[NAMES[1]]["times"]]
    np.testing.assert_allclose(np.abs(shares).sum(), 1)


def test_everything_is_escaped(digits_model: Any, circuit: Circuit, tmp_path: Path) -> None:
    evil = '"><script>window.bad = 1</script>'
    page = circuit_page(
        digits_model,
        circuit,
        RECORDING,
        tmp_path / "page.html",
        words=[(0.1, 0.4, evil)],
        labels={"decoder.2.cross_attn.0": evil},
        text=evil,
        title=evil,
    )
    text = page.path.read_text()
    assert "<script>window.bad" not in text and "<b>m</b>" not in text


def test_errors(digits_model: Any, circuit: Circuit, tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="no edges"):
        empty = Circuit.of(circuit.graph, [])
        circuit_page(digits_model, empty, RECORDING, tmp_path / "page.html")
    with pytest.raises(InputError, match=r"a folder; name the file: .*circuit\.html"):
        circuit_page(digits_model, circuit, RECORDING, tmp_path)
    with pytest.raises(InputError, match="word 0 is 'three'"):
        circuit_page(digits_model, circuit, RECORDING, tmp_path / "p.html", words=["three"])


LISTEN = """() => {
  window.began = null;
  document.getElementById("audio").addEventListener(
    "playing", (event) => { window.began = event.target.currentTime; }, { once: true });
}"""


def test_edges_are_heard_with_mouse_and_keyboard(
    page: CircuitPage, open_page: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    browser = open_page(page.path)
    assert browser.locator(".edge").count() == 6 and browser.locator("#rows tr").count() == 6
    readout = browser.locator("#readout")

    def heard(act: Callable[[], None]) -> float:
        browser.evaluate(LISTEN)
        act()
        wait_until(browser, "window.began !== null")
        return float(browser.evaluate("window.began"))

    edge = browser.locator('.edge[data-edge="1"]')
    began = heard(lambda: edge.locator(".hit").dispatch_event("click"))
    assert began == pytest.approx(0.5, abs=0.15)
    assert "encoder head 1.2 → cross-attention head 2.0, read as values" in readout.inner_text()
    assert "carries 0.50–1.50 s" in readout.inner_text() and "score 0.300" in readout.inner_text()
    wait_until(browser, "hw.playing === null")  # it ends by itself, where the part ends
    at = browser.evaluate("document.getElementById('audio').currentTime")
    assert at == pytest.approx(1.5, abs=0.25)

    # With the keyboard: the graph is one stop, arrows go from edge to edge, Enter plays.
    browser.locator("#node").focus()
    browser.keyboard.press("Tab")
    assert browser.evaluate("document.activeElement.dataset.edge") == "1"
    browser.keyboard.press("ArrowRight")
    assert browser.evaluate("document.activeElement.dataset.edge") == "2"
    assert "encoder sound → encoder head 1.2" in readout.inner_text()
    assert "(traced)" in readout.inner_text()
    assert heard(lambda: browser.keyboard.press("Enter")) == pytest.approx(0.5, abs=0.15)
    browser.keyboard.press("Escape")
    wait_until(browser, "hw.playing === null")
    browser.keyboard.press("End")
    assert "no time" in readout.inner_text() and browser.locator("#again").is_disabled()

    # The table plays too; node and number choose what is there.
    row = browser.locator("#rows tr", has_text="keys")
    assert heard(lambda: row.locator("button").click()) == pytest.approx(0.0, abs=0.15)
    browser.locator("#node").select_option("decoder.3.attn.1")
    assert browser.locator("#rows tr").count() == 2
    browser.locator("#node").select_option("")
    browser.evaluate(
        """() => { const most = document.getElementById("most"); most.value = 2;
          most.dispatchEvent(new Event("input")); }"""
    )
    assert browser.locator("#rows tr").count() == 2
    assert browser.locator(".edge.hidden").count() == 4


def test_a_narrow_window_does_not_scroll_sideways(
    page: CircuitPage, open_page: Callable[..., Any]
) -> None:
    browser = open_page(page.path, width=380)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 380
