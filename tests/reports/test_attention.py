"""The page of attention heads: what is written, and what a reader does with it in a browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.digits import recordings
from hooked_whisper.errors import AudioLengthError, InputError, RecordingsError
from hooked_whisper.reports.attention import AttentionPage, attention_page

RECORDING = recordings()[3]
SPOKEN = 4
"""The first token that is spoken, after the prompt's four."""


@pytest.fixture(scope="module")
def model(digits_model: HookedWhisper) -> HookedWhisper:
    return digits_model


@pytest.fixture(scope="module")
def page(model: HookedWhisper, tmp_path_factory: pytest.TempPathFactory) -> AttentionPage:
    """The page of one of the shipped recordings."""
    return attention_page(model, RECORDING, tmp_path_factory.mktemp("page") / "attention.html")


@pytest.fixture(scope="module")
def patterns(model: HookedWhisper) -> Callable[[str, int, int], torch.Tensor]:
    """The model's own pattern of a head, cut to the sound."""
    mel = model.to_mel(RECORDING.path)
    tokens = model.to_tokens(" " + RECORDING.text, append_eot=True)
    with torch.no_grad():
        _, cache = model.run_with_cache(mel, tokens, names_filter="*.hook_pattern")
    n_sound = int(mel.n_positions)

    def pattern(kind: str, layer: int, head: int) -> torch.Tensor:
        stack = "encoder" if kind == "encoder" else "decoder"
        part = "cross_attn" if kind == "cross" else "attn"
        found = cache[f"{stack}.blocks.{layer}.{part}.hook_pattern"][0, head]
        return (
            found
            if kind == "decoder"
            else found[: len(found) if kind == "cross" else n_sound, :n_sound]
        )

    return pattern


def data_of(path: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())
    assert found
    return json.loads(found[1])


class Reader:
    """Somebody who has the page open."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.until("attention.state.shown !== null")

    def until(self, condition: str) -> None:
        """Wait, without what the page's content security policy forbids."""
        for _ in range(1200):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"a minute has passed without {condition}")

    def choose(self, kind: str, layer: int, head: int) -> None:
        self.page.get_by_role("button", name=re.compile(f"^{kind}.*heads")).click()
        self.page.get_by_role("radio", name=re.compile(rf"^Head {layer}\.{head},")).click()
        title = f"head {layer}.{head}:"
        self.until(f"document.getElementById('view-title').textContent.includes('{title}')")
        self.until("attention.state.shown !== null")
        self.settle()

    def settle(self) -> None:
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))"
        )

    def token(self, index: int) -> Any:
        return self.page.locator("#tokens button").nth(index)

    def readout(self) -> str:
        self.settle()
        return str(self.page.locator("#readout").inner_text())

    def hover_pattern(self, across: float, down: float, click: bool = False) -> None:
        """Point into the pattern, at shares of its width and height."""
        place = self.page.evaluate("attention.places.pattern")
        at = {
            "x": place["left"] + across * place["room"],
            "y": place["top"] + down * place["inside"],
        }
        canvas = self.page.locator("#pattern")
        (canvas.click if click else canvas.hover)(position=at)

    def played_from(self, act: Callable[[], None]) -> float:
        """Where the sound begins, in seconds, when the reader does something; it plays on."""
        self.page.evaluate(
            """() => {
              window.began = null;
              document.getElementById("audio").addEventListener(
                "playing", (event) => { window.began = event.target.currentTime; }, { once: true });
            }"""
        )
        act()
        self.until("window.began !== null")
        began = float(self.page.evaluate("window.began"))
        self.until("!document.getElementById('audio').paused")
        self.until(f"document.getElementById('audio').currentTime > {began} + 0.1")
        return began

    def colours(self, selector: str, inside: bool = False) -> int:
        """How many colours a canvas has; inside of the pattern's axes, 0 where it is bare."""
        return int(
            self.page.evaluate(
                """([selector, inside]) => {
                  const canvas = document.querySelector(selector);
                  const { left, top, room, inside: high } = attention.places.pattern;
                  const box = inside ? [left + 2, top + 2, room - 4, high - 4]
                    : [0, 0, canvas.width, canvas.height];
                  const points = canvas.getContext("2d").getImageData(...box).data;
                  const clear = points.some((value, i) => i % 4 === 3 && value < 255);
                  return inside && clear ? 0 : new Set(new Uint32Array(points.buffer)).size;
                }""",
                [selector, inside],
            )
        )


@pytest.fixture
def reader(open_page: Callable[..., Any], page: AttentionPage) -> Reader:
    return Reader(open_page(page.path))


def test_every_head_is_in_the_grid(reader: Reader) -> None:
    for kind in ("Encoder", "Decoder", "Cross"):
        reader.page.get_by_role("button", name=re.compile(f"^{kind}.*24 heads")).click()
        heads = reader.page.get_by_role("radio")
        assert heads.count() == 24
        assert heads.nth(7).inner_text().split()[0].rstrip("*") == "1.1"
        assert re.search(r"\d\.\d\d", heads.nth(7).inner_text())
    reader.page.wait_for_timeout(100)
    assert reader.colours(".head canvas") > 20


def test_choosing_a_head_draws_it(reader: Reader) -> None:
    reader.choose("Encoder", 0, 0)
    first = reader.page.locator("#pattern").screenshot()
    assert reader.colours("#pattern", inside=True) > 50
    reader.choose("Encoder", 3, 5)
    assert reader.page.locator("#pattern").screenshot() != first
    chosen = reader.page.get_by_role("radio", checked=True)
    assert chosen.count() == 1
    assert chosen.inner_text().split()[-2:][0].endswith("3.5")
    assert (
        reader.page.locator("#view-title")
        .inner_text()
        .startswith("Encoder self-attention, head 3.5: entropy")
    )


@pytest.mark.parametrize("head", [(2, 0), (0, 3)], ids=str)
def test_a_token_shows_where_it_looks(
    reader: Reader, patterns: Callable[..., torch.Tensor], head: tuple[int, int]
) -> None:
    reader.choose("Cross", *head)
    reader.token(SPOKEN + 1).hover()
    row = patterns("cross", *head)[SPOKEN]  # the step that writes the token is the one before it
    word = RECORDING.text.split()[1]
    expected = f"token ' {word}' looks most at {int(row.argmax()) * 0.02:.2f} s ({row.max():.2f})"
    assert expected in reader.readout()


def test_a_time_shows_where_it_looks_and_who_looks_at_it(
    reader: Reader, patterns: Callable[..., torch.Tensor]
) -> None:
    reader.choose("Encoder", 1, 2)
    pattern = patterns("encoder", 1, 2)
    place = reader.page.evaluate("attention.places.sound")
    position = 45
    across = (position + 0.5) / len(pattern)
    reader.page.locator("#sound").hover(
        position={"x": place["left"] + across * place["room"], "y": 60}
    )
    row = pattern[position]
    found = reader.readout()
    assert found.startswith(f"0.90 s looks most at {int(row.argmax()) * 0.02:.2f} s (")
    looker = re.search(r"0\.90 s is looked at most by (\d\.\d\d) s", found)
    assert looker
    # To a byte, which several queries may share.
    column = pattern[:, position]
    assert column[round(float(looker[1]) / 0.02)] > 0.9 * column.max()


def test_a_cell_of_the_pattern_is_read_out(
    reader: Reader, patterns: Callable[..., torch.Tensor]
) -> None:
    reader.choose("Encoder", 0, 1)
    pattern = patterns("encoder", 0, 1)
    query, key = 30, int(pattern[30].argmax())
    reader.hover_pattern((key + 0.5) / len(pattern), (query + 0.5) / len(pattern))
    found = re.search(
        r"^0\.60 s looks most at (\S+) s \((\S+)\); .*here: (\S+) goes to (\S+) s\.$",
        reader.readout(),
    )
    assert found
    assert found[1] == found[4] == f"{key * 0.02:.2f}"
    assert float(found[2]) == pytest.approx(float(pattern[query, key]), rel=0.06)
    assert float(found[3]) == pytest.approx(float(pattern[query, key]), rel=0.06)


def test_a_token_of_the_decoder_looks_at_tokens(
    reader: Reader, patterns: Callable[..., torch.Tensor]
) -> None:
    reader.choose("Decoder", 1, 0)
    reader.token(SPOKEN + 1).hover()
    row = patterns("decoder", 1, 0)[SPOKEN + 1]
    texts = [each["text"] for each in data_of(reader_path(reader))["tokens"]]
    expected = f"looks most at token '{texts[int(row.argmax())]}' ({row.max():.2f})"
    assert expected in reader.readout()
    share = float(reader.token(int(row.argmax())).locator("small").inner_text())
    assert share == pytest.approx(float(row.max()), abs=0.02)


def reader_path(reader: Reader) -> Path:
    return Path(reader.page.url.removeprefix("file://"))


def test_a_click_on_a_token_plays_from_there(reader: Reader) -> None:
    reader.choose("Cross", 2, 0)
    began = reader.played_from(reader.token(SPOKEN + 1).click)
    assert began == pytest.approx(RECORDING.words[1].start_s, abs=0.15)
    assert reader.page.get_by_role("button", name="Stop").is_visible()
    reader.page.keyboard.press("Escape")
    assert reader.page.evaluate("document.getElementById('audio').paused")


def test_a_click_on_the_pattern_or_the_spectrogram_plays_from_there(reader: Reader) -> None:
    reader.choose("Encoder", 0, 0)
    began = reader.played_from(lambda: reader.hover_pattern(0.5, 0.1, click=True))
    assert began == pytest.approx(RECORDING.duration_s / 2, abs=0.15)
    place = reader.page.evaluate("attention.places.sound")
    at = {"x": place["left"] + 0.2 * place["room"], "y": 60}
    began = reader.played_from(lambda: reader.page.locator("#sound").click(position=at))
    assert began == pytest.approx(0.2 * RECORDING.duration_s, abs=0.15)


def test_everything_can_be_reached_by_keyboard(reader: Reader) -> None:
    press = reader.page.keyboard.press
    reader.choose("Encoder", 0, 0)
    press("ArrowDown")
    press("ArrowRight")
    reader.settle()
    assert "head 1.1:" in reader.page.locator("#view-title").inner_text()
    assert "Head 1.1" in reader.page.evaluate("document.activeElement.ariaLabel")

    press("Tab")  # Play
    assert reader.played_from(lambda: press("Enter")) < 0.15
    press("Enter")
    assert reader.page.evaluate("document.getElementById('audio').paused")

    while reader.page.evaluate("document.activeElement.id") != "sound":
        press("Tab")
    press("Home")
    press("ArrowRight")
    assert reader.readout().startswith("0.02 s looks most at")
    press("Tab")  # the tokens
    press("End")
    assert "<|endoftext|>" in reader.readout()
    press("Tab")  # the pattern
    press("Home")
    press("ArrowRight")
    assert "goes to" in reader.readout()


def test_the_padding_is_shown_when_asked_for(reader: Reader) -> None:
    reader.choose("Encoder", 3, 0)
    reader.page.get_by_label("all 30 s").check()
    reader.settle()
    reader.hover_pattern(0.99, 0.01)
    found = reader.readout()
    assert re.search(r"% goes to the padding", found)
    assert re.search(r"goes to \d\d\.\d\d–30\.00 s", found)


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_sticks_out(open_page: Callable[..., Any], page: AttentionPage, width: int) -> None:
    reader = Reader(open_page(page.path, width=width))
    for kind in ("Encoder", "Decoder", "Cross"):
        reader.choose(kind, 2, 3)
        wide = reader.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        small = reader.page.evaluate(
            """[...document.querySelectorAll("button:not([hidden])")]
              .filter((each) => each.offsetHeight && each.offsetHeight < 24).length"""
        )
        assert small == 0


def test_the_page_says_what_it_holds(page: AttentionPage) -> None:
    data = data_of(page.path)
    assert page.n_bytes == page.path.stat().st_size < 2e6
    assert page.text == data["text"] == RECORDING.text
    assert page.bins == {kind: (1, 1) for kind in ("encoder", "decoder", "cross")}
    assert [word for _, _, word in data["words"]] == RECORDING.text.split()
    text = page.path.read_text()
    assert "<h1>Attention of digits" in text
    assert "https://" not in text and "http://" not in text


def test_names_and_texts_are_text(model: HookedWhisper, tmp_path: Path) -> None:
    samples = np.zeros(8000, np.float32)
    page = attention_page(
        model,
        (samples, 16000),
        tmp_path / "a.html",
        text="</script><script>alert(1)</script> one",
        words=[(0.1, 0.2, "<b>one</b>")],
    )
    text = page.path.read_text()
    assert "<h1>Attention of digits: recording</h1>" in text
    assert "<script>alert" not in text and "<b>one" not in text


@pytest.mark.parametrize(
    ("n_samples", "text"),
    [
        pytest.param(400, "one", id="25 ms and a token"),
        pytest.param(3200, None, marks=pytest.mark.slow, id="0.2 s of silence"),
        pytest.param(48_000, "", marks=pytest.mark.slow, id="silence without text"),
    ],
)
def test_little_sound_or_text_works(
    model: HookedWhisper, open_page: Any, tmp_path: Path, n_samples: int, text: str | None
) -> None:
    samples = np.zeros(n_samples, np.float32)
    page = attention_page(model, (samples, 16000), tmp_path / "a.html", text=text)
    reader = Reader(open_page(page.path, width=420))
    for kind in ("Encoder", "Decoder", "Cross"):
        reader.choose(kind, 0, 0)
        reader.token(4).click()
        reader.hover_pattern(0.5, 0.5)
        assert "looks most at" in reader.readout()


def test_a_clip_of_30_s_at_tinys_size_is_under_15_mb(
    make_model: Callable[..., Any], open_page: Any, tmp_path: Path
) -> None:
    # Patterns depend on the numbers of layers, heads and positions; a narrow model is as good.
    cfg = HookedWhisperConfig.for_release("tiny", d_model=24)
    noise = 0.1 * np.random.default_rng(0).normal(size=480_000).astype(np.float32)
    page = attention_page(
        make_model(cfg), (noise, 16000), tmp_path / "a.html", text=" one two three" * 30
    )
    assert page.n_bytes < 15e6
    assert page.bins == {"encoder": (4, 4), "cross": (1, 2), "decoder": (1, 1)}
    reader = Reader(open_page(page.path))
    reader.choose("Encoder", 3, 5)
    reader.hover_pattern(0.5, 0.5)
    assert re.search(r"\d\d\.\d\d–\d\d\.\d\d s looks most at", reader.readout())
    assert not reader.page.get_by_label("all 30 s").is_visible()  # there is no padding
    reader.page.get_by_text("What is shown").click()
    about = reader.page.locator("details").inner_text()
    assert "the mean of the pattern over rows and columns of 4 positions (80 ms)" in about


def test_what_is_no_page_is_refused(model: HookedWhisper, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder; name the file"):
        attention_page(model, RECORDING, tmp_path)
    out = tmp_path / "a.html"
    with pytest.raises(InputError, match="max_mb is -1; it must be"):
        attention_page(model, RECORDING, out, max_mb=-1)
    with pytest.raises(InputError, match=r"max_mb is 0.001.*has 24 encoder heads"):
        attention_page(model, RECORDING, out, max_mb=0.001)
    with pytest.raises(RecordingsError, match="8 recordings were given"):
        attention_page(model, recordings(), out)
    long = (np.zeros(16000 * 31, np.float32), 16000)
    with pytest.raises(AudioLengthError, match=r"31.00 s long.*cut=True"):
        attention_page(model, long, out)
    assert not out.exists()


def test_it_stands_in_a_notebook(page: AttentionPage, shown: Callable[[Any], Any]) -> None:
    found = shown(page)
    (frame,) = found.all("iframe")
    assert frame["srcdoc"] == page.path.read_text(encoding="utf-8")
    assert str(page.path) in found.text and page.text in found.text


def test_a_row_of_a_data_set_that_holds_the_file_is_read(
    model: HookedWhisper, tmp_path: Path
) -> None:
    row = {"audio": {"bytes": RECORDING.path.read_bytes(), "path": "four.flac"}, "id": "row 7"}
    made = attention_page(model, row, tmp_path / "page.html", text=RECORDING.text)
    assert data_of(made.path)["recording"] == "row 7"
    assert data_of(made.path)["sound_s"] == pytest.approx(RECORDING.duration_s, abs=0.01)
