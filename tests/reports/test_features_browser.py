"""The feature page in a real browser: it lists, sorts, searches, plays, and fits its window."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.digits import recordings
from hooked_whisper.reports import feature_page
from hooked_whisper.speech.audio import load_audio

NASTY = "<script>window.owned=1</script>\"'&.flac"


@pytest.fixture
def page(open_page: Callable[..., Any], feature_page_of_digits: Any) -> Any:
    return open_page(feature_page_of_digits.path)


def column(page: Any, number: int) -> list[str]:
    """The texts of one column of the table."""
    return page.locator(f"#rows tr td:nth-child({number})").all_inner_texts()


def test_the_table_is_there_sorts_and_searches(page: Any) -> None:
    heads = page.locator("#head button").all_inner_texts()
    assert heads == [
        "Latent", "Density", "Peak", "Tells", "AUROC", "F1", "At its peaks", "Words changed"
    ]  # fmt: skip
    assert page.locator("#count").inner_text() == "768 of 768"
    assert page.locator("#rows tr").count() == 200
    page.click("#more")
    assert page.locator("#rows tr").count() == 400

    page.click("#head button[data-key=peak]")
    assert page.locator("th:has([data-key=peak])").get_attribute("aria-sort") == "descending"
    assert page.locator("th:has([data-key=auroc])").get_attribute("aria-sort") == "none"
    peaks = [float(each) for each in column(page, 3)]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > peaks[-1]
    page.click("#head button[data-key=peak]")
    assert page.locator("th:has([data-key=peak])").get_attribute("aria-sort") == "ascending"
    assert [float(each) for each in column(page, 3)] == sorted(float(e) for e in column(page, 3))
    page.click("#head button[data-key=feature]")
    assert column(page, 1)[:3] == ["0", "1", "2"]

    page.get_by_label("Search").fill("word seven")
    found = page.locator("#rows tr").all_inner_texts()
    assert found and all("seven" in each for each in found)
    page.get_by_label("Search").fill("539")
    assert column(page, 1) == ["539"]
    page.get_by_label("Search").fill("nowhere")
    assert page.locator("#rows").inner_text() == "Nothing is found."
    assert page.locator("#count").inner_text() == "0 of 768"


def test_rows_are_reached_and_opened_by_the_keyboard(page: Any) -> None:
    page.get_by_label("Search").fill("53")
    page.locator("#rows button").first.focus()
    page.keyboard.press("ArrowDown")
    name = page.evaluate("document.activeElement.textContent")
    assert name == column(page, 1)[1]
    page.keyboard.press("Enter")
    assert page.locator("#detail h2").inner_text() == f"Latent {name}"
    assert page.locator("tr[aria-current=true] button").inner_text() == name
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is seen"
    assert page.url.endswith(f"#latent-{name}")


def test_a_click_plays_the_moment_and_stops_at_its_end(
    page: Any, wait_until: Callable[..., None]
) -> None:
    page.goto(page.url.split("#")[0] + "#latent-539")
    card = page.locator(".clip").first
    assert card.locator("mark").inner_text() == "seven"
    button = card.locator("button.play")
    start, end = page.evaluate("hw.data.clips[539][0].slice(4, 6)")
    assert button.get_attribute("aria-label").startswith(f"Play {start:.2f} to {end:.2f} s of ")
    button.click()
    wait_until(page, f"hw.audio.currentTime > {start + 0.3}")
    assert button.get_attribute("aria-pressed") == "true"
    head = float(card.locator("canvas").get_attribute("data-playhead"))
    assert abs(head - page.evaluate("hw.audio.currentTime")) < 0.2, "in step with the sound"
    wait_until(page, "hw.audio.paused")
    assert page.evaluate("hw.audio.currentTime") == pytest.approx(end, abs=0.25)
    assert button.get_attribute("aria-pressed") == "false"
    assert card.locator("canvas").get_attribute("data-playhead") == ""

    button.click()
    wait_until(page, "!hw.audio.paused")
    page.keyboard.press("Escape")
    assert page.evaluate("hw.audio.paused")

    box = card.locator("canvas").bounding_box()
    card.locator("canvas").click(position={"x": box["width"] * 0.75, "y": 20})
    wait_until(page, "!hw.audio.paused")
    assert page.evaluate("hw.audio.currentTime") >= start + 0.75 * (end - start) - 0.1
    page.locator(".clip button.play").nth(1).click()
    wait_until(page, "!hw.audio.paused")
    assert page.locator("button.play[aria-pressed=true]").count() == 1, "one sound at a time"


def test_the_sound_is_in_time_with_the_recording(page: Any) -> None:
    """MP3 begins with a delay, which the browser has to know and take away."""
    decoded = page.evaluate(
        """async () => {
            const part = hw.data.parts.find((each) => each.window === 1);
            const raw = hw.bytes(hw.media(part.audio).split(",")[1]);
            const context = new OfflineAudioContext(1, 16000, 16000);
            const found = await context.decodeAudioData(raw.buffer);
            return Array.from(found.getChannelData(0));
        }"""
    )
    import numpy as np

    wanted = load_audio(recordings()[1].path).numpy()
    found = np.zeros_like(wanted)
    n = min(len(decoded), len(wanted))
    found[:n] = decoded[:n]
    lags = range(-1600, 1601, 80)
    scores = [float(np.dot(np.roll(found, lag), wanted)) for lag in lags]
    assert abs(lags[int(np.argmax(scores))]) <= 80, "within 5 ms"
    assert abs(len(decoded) - len(wanted)) <= 1152


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_sticks_out_of_the_window(
    open_page: Callable[..., Any], feature_page_of_digits: Any, width: int
) -> None:
    page = open_page(feature_page_of_digits.path, width=width)
    assert fits(page) == []
    page.locator("summary").click()
    page.locator("#rows button").nth(3).click()
    page.wait_for_timeout(100)
    assert fits(page) == []
    assert page.locator(".clip").first.is_visible()
    if width == 420:
        assert not page.locator("#table").is_visible()
        assert page.evaluate("document.activeElement.tagName") == "H2"
        page.get_by_role("button", name="Back to the table").click()
        assert page.locator("#table").is_visible()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, canvas")].filter((each) =>
            !(each.getAttribute("aria-label") || each.textContent || (each.labels || []).length)
        ).map((each) => each.outerHTML)"""
    )
    assert unnamed == []


def fits(page: Any) -> list[str]:
    """What is seen and reaches beyond the window's sides, or overlaps what follows it in a card."""
    return page.evaluate(
        """() => {
            const wide = document.documentElement.clientWidth;
            const found = document.documentElement.scrollWidth > wide ? ["the page scrolls"] : [];
            for (const each of document.querySelectorAll("main *, header *")) {
                const box = each.getBoundingClientRect();
                if (!box.width || each.closest(".unseen, .skip")) continue;
                if (box.right > wide + 1 || box.left < -1) found.push(each.outerHTML.slice(0, 80));
            }
            for (const each of document.querySelectorAll(".clip, td, th, #detail")) {
                if (each.scrollWidth > each.clientWidth + 1 && each.clientWidth)
                    found.push("cut: " + each.outerHTML.slice(0, 80));
            }
            return found;
        }"""
    )


def test_names_and_texts_of_users_are_text(
    open_page: Callable[..., Any], digits_model: Any, digits_saes: Any, tmp_path: Path
) -> None:
    samples = load_audio(recordings()[1].path)
    manifest = [{"id": NASTY, "audio": (samples.numpy(), 16000), "text": NASTY, "who": NASTY}]
    written = feature_page(
        digits_model,
        digits_saes["encoder.blocks.2.hook_resid_post"],
        manifest,
        tmp_path / "a <b> & c.html",
        latents=[539, 741],
        n_effects=0,
        title=NASTY,
        progress=False,
    )
    page = open_page(written.path)
    assert page.locator("h1").inner_text() == NASTY
    assert page.title() == NASTY
    assert page.locator(".clip h4").first.inner_text() == NASTY.rpartition("/")[2]
    assert NASTY in page.locator(".clip .said").first.inner_text()
    assert NASTY in page.locator(".clip .about").first.inner_text()
    assert page.evaluate("window.owned") is None
    assert page.locator("#head button").all_inner_texts() == ["Latent", "Density", "Peak"]


def test_tokens_of_the_decoder(
    open_page: Callable[..., Any],
    digits_model: Any,
    digits_saes: Any,
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    written = feature_page(
        digits_model,
        digits_saes["decoder.blocks.2.hook_resid_post"],
        recordings()[:2],
        tmp_path / "tokens.html",
        latents=[120, 596, 0],
        n_effects=0,
        n_clips=2,
        progress=False,
    )
    page = open_page(written.path, width=420)
    page.locator("#rows button", has_text="120").click()
    tokens = page.locator(".clip .tokens").first.locator("li")
    texts = tokens.all_inner_texts()
    assert texts[0].startswith("<|notimestamps|>")
    marked = page.locator(".clip").first.locator("li[aria-current=true]")
    value = page.locator(".clip .about").first.inner_text().split()[0]
    assert marked.inner_text().split() == [marked.inner_text().split()[0], value]
    page.locator("button.play").first.click()
    wait_until(page, "hw.audio.currentTime > 0.05")
    assert fits(page) == []


def test_tokens_at_which_a_neuron_is_below_zero_are_not_shaded(
    open_page: Callable[..., Any], digits_model: Any, tmp_path: Path
) -> None:
    name, recording = "decoder.blocks.2.mlp.hook_post", recordings()[1]
    tokens = digits_model.to_tokens(f" {recording.text}")
    mel = digits_model.to_mel(recording.path)
    _, cache = digits_model.run_with_cache(mel, tokens, names_filter=name)
    peaks = cache[name][0, 3:].amax(dim=0)
    chosen = [int(peaks.argmin()), int(peaks.argmax())]
    assert peaks[chosen[0]] < 0 < peaks[chosen[1]]
    written = feature_page(
        digits_model, None, [recording], tmp_path / "p.html", hook_name=name,
        latents=chosen, n_effects=0, progress=False,
    )  # fmt: skip
    page = open_page(written.path)
    for neuron, some_are_shaded in zip(chosen, (False, True), strict=True):
        page.locator("#rows button", has_text=str(neuron)).first.click()
        items = page.locator(".clip").first.locator(".tokens li")
        styles = items.evaluate_all("all => all.map((each) => each.style.backgroundColor)")
        shaded = [style for style in styles if not style.endswith(", 0)")]
        assert styles and bool(shaded) is some_are_shaded
        assert all(float(style.rstrip(")").split(",")[3]) <= 0.6 for style in styles)
    headings = page.locator("#detail h3").all_inner_texts()
    assert headings == ["Where it is most active", "Across its range"]
    page.locator("#rows button", has_text=str(chosen[0])).first.click()
    assert page.locator("#detail h3").all_inner_texts() == ["Across its range"]


def test_it_works_inside_of_a_notebook(
    open_page: Callable[..., Any], feature_page_of_digits: Any, tmp_path: Path
) -> None:
    notebook = tmp_path / "notebook.html"
    shown = feature_page_of_digits._repr_html_()
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{shown}", encoding="utf-8")
    page = open_page(notebook, width=1200).frame_locator("iframe")
    page.locator("#rows tr button").nth(1).click()
    play = page.locator(".clips button[aria-pressed]").first
    play.click()
    page.locator(".clips button[aria-pressed=true]").first.wait_for()
    place = "document.getElementById('audio').currentTime > 0"
    assert page.locator("#audio").evaluate(f"async () => {{ for (let i = 0; i < 100 && !({place});"
        " i++) await new Promise((go) => setTimeout(go, 50)); return " + place + "; }")  # fmt: skip
