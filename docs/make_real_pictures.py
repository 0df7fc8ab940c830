"""Make the pictures of real Whisper (tiny.en) on one sentence, the README's among them.

    python docs/make_real_pictures.py [--weights tiny.en.pt] [--recording jfk.flac]

real_whisper.png: the sound; where the eight heads that OpenAI calls alignment heads look while
each word is written; what becomes of the transcript when the model is edited. real_sweep.png: what
each half second of each encoder layer is worth to the text. real_attention_page.png: the page of
attention, photographed by Chromium. The weights are looked for in $HOOKED_WHISPER_DATA, or in
../shared/data beside the checkout, as whisper/tiny.en.pt. Two minutes on one core.
"""

import argparse
import difflib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from make_pictures import photograph

from hooked_whisper import HookedWhisper, load_audio
from hooked_whisper.interventions import (
    Edit,
    Example,
    Interventions,
    Patch,
    RestrictAttention,
    Site,
    ZeroAblation,
)
from hooked_whisper.metrics import SequenceLogProb
from hooked_whisper.patching import patch_sweep
from hooked_whisper.reports import attention_page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = Path(os.environ.get("HOOKED_WHISPER_DATA", ROOT.parent / "shared" / "data"))
TEXT = (
    " And so my fellow Americans ask not what your country can do for you, "
    "ask what you can do for your country."
)
RATE_HZ = 16_000
POSITIONS_PER_SECOND = 50
INK, GREY, GONE, NEW = "#1f2328", "#6e7781", "#b35900", "#0a5fb4"


def edits(model: HookedWhisper, n_samples: int) -> dict[str, Edit | None]:
    """By what the picture says of them: a silence for some seconds, blinkers, a layer less."""
    stream = "encoder.blocks.1.hook_resid_post"
    silence = model.to_mel(torch.zeros(n_samples), rate_hz=RATE_HZ)
    _, silent = model.run_with_cache(silence, names_filter=stream)
    return {
        "nothing edited": None,
        "encoder layer 1, 3.3 to 4.4 s\npatched from silence": Patch(
            Site(stream, window_s=(3.3, 4.4)), silent
        ),
        "encoder attention no further\nthan 0.4 s to either side": RestrictAttention("encoder", 20),
        "cross-attention of decoder\nlayer 2 ablated": ZeroAblation(
            Site("decoder.blocks.2.hook_cross_attn_out")
        ),
    }


@torch.no_grad()
def measure(model: HookedWhisper, recording: Path) -> dict[str, Any]:
    """All that the first picture shows."""
    samples = load_audio(recording)
    transcripts = {}
    for label, edit in edits(model, len(samples)).items():
        with Interventions(model, *([edit] if edit else [])):
            transcripts[label] = model.generate(model.to_mel(recording)).texts[0].strip()
        print(f"{label!r}: {transcripts[label]}")
    mel = model.to_mel(recording)
    text = transcripts["nothing edited"]
    tokens = model.to_tokens(" " + text)
    _, cache = model.run_with_cache(mel, tokens)
    layers, heads = model.alignment_heads.indices().tolist()
    pattern = torch.stack(
        [
            cache["decoder", layer, "pattern", "cross_attn"][0, head]
            for layer, head in zip(layers, heads, strict=True)
        ]
    ).mean(dim=0)
    written = model.to_str_tokens(tokens[0])
    shown = [i for i, token in enumerate(written) if token.startswith(" ")]
    return {
        "mel": mel.values[0],
        "seconds": float(mel.seconds),
        "words": [written[i].strip() for i in shown],
        "pattern": pattern[[i - 1 for i in shown]],  # the query that predicts a word looks for it
        "transcripts": transcripts,
    }


def pieces(before: str, after: str) -> list[tuple[str, str]]:
    """The words of both texts in order, with how each is written: kept, gone or new."""
    old, new = before.split(), after.split()
    plain = [[re.sub(r"\W", "", word).lower() for word in words] for words in (old, new)]
    matcher = difflib.SequenceMatcher(None, *plain, autojunk=False)
    if matcher.ratio() < 0.5:  # another sentence
        return [(word, "new") for word in new]
    found = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            found += [(word, "kept") for word in new[c:d]]
        else:
            found += [(word, "gone") for word in old[a:b]] + [(word, "new") for word in new[c:d]]
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_words, end_s = len(found["words"]), found["seconds"]
    figure = Figure(figsize=(9.2, 6.6), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    left, width = 0.115, 0.865
    mel = figure.add_axes((left, 0.855, width, 0.083))
    attention = figure.add_axes((left, 0.4, width, 0.445), sharex=mel)
    text = figure.add_axes((0.02, 0.0, 0.96, 0.34))
    figure.text(
        0.02, 0.957, "Whisper tiny.en hears this, looks here, and writes that", size=12.5,
        weight="bold", color=INK,
    )  # fmt: skip
    mel.imshow(
        found["mel"][:, : round(end_s * 100)], aspect="auto", origin="lower", cmap="magma",
        extent=(0, end_s, 0, 80),
    )  # fmt: skip
    mel.set_yticks([])
    mel.set_ylabel("log-mel", size=9, color=INK)
    n_keys = round(end_s * POSITIONS_PER_SECOND)
    attention.imshow(
        found["pattern"][:, :n_keys].sqrt(), aspect="auto", cmap="magma",
        extent=(0, end_s, n_words - 0.5, -0.5),
    )  # fmt: skip
    attention.set_yticks(range(n_words), found["words"], size=8.5)
    attention.set_xlabel("seconds of the recording", size=9, color=INK, labelpad=1)
    for axes in (mel, attention):
        axes.tick_params(length=2, colors=INK, labelsize=9)
        for side in axes.spines.values():
            side.set_visible(False)
    mel.tick_params(labelbottom=False)
    attention.text(
        end_s - 0.1, 0.35, "cross-attention, mean of the 8 alignment heads", size=9, color="white",
        ha="right", va="center",
    )  # fmt: skip
    write(text, found["transcripts"])
    figure.savefig(path)


def shrink(path: Path) -> None:
    """A palette in place of true colours: a third of the size, and the same to the eye."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


def write(axes: Any, transcripts: dict[str, str]) -> None:
    """The transcripts below each other: what an edit took away struck out, what it made in blue."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    renderer = axes.figure.canvas.get_renderer()
    before = next(iter(transcripts.values()))
    line, start, top = 0.094, 0.262, 0.97
    for label, after in transcripts.items():
        axes.text(0, top, label, size=9, color=GREY, va="top", linespacing=1.25)
        x, y = start, top
        for word, kind in pieces(before, after):
            color = {"kept": INK, "gone": GONE, "new": NEW}[kind]
            weight = "bold" if kind == "new" else "normal"
            put = axes.text(x, y, word, size=9.6, color=color, weight=weight, va="top")
            box = put.get_window_extent(renderer).transformed(axes.transData.inverted())
            if box.x1 > 1:
                x, y = start, y - line
                put.set_position((x, y))
                box = put.get_window_extent(renderer).transformed(axes.transData.inverted())
            if kind == "gone":
                middle = (box.y0 + box.y1) / 2
                axes.plot([box.x0, box.x1], [middle] * 2, color=GONE, linewidth=1.1)
            x = box.x1 + 0.0065
        top = min(y - line, top - 2 * line) - 0.06


def draw_sweep(model: HookedWhisper, recording: Path, path: Path) -> None:
    """What the text loses when half a second of one layer is as in silence."""
    clean = Example.from_audio(model, recording, TEXT)
    result = patch_sweep(
        model, clean, clean.with_silence(), "encoder.blocks.*.hook_resid_post",
        metric=SequenceLogProb(clean.tokens, start=2), per="window", window_s=0.5,
        direction="noising", progress=False,
    )  # fmt: skip
    result.plot().savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, default=DATA / "whisper" / "tiny.en.pt")
    parser.add_argument("--recording", type=Path, default=ROOT / "tests" / "data" / "jfk.flac")
    parser.add_argument("--out", type=Path, default=HERE / "pictures")
    args = parser.parse_args()
    model = HookedWhisper.from_pretrained(args.weights, device="cpu")
    draw(measure(model, args.recording), args.out / "real_whisper.png")
    draw_sweep(model, args.recording, args.out / "real_sweep.png")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "attention.html"
        attention_page(model, args.recording, page, text=TEXT)
        photograph(page, args.out / "real_attention_page.png")
    for name in ("real_whisper", "real_sweep", "real_attention_page"):
        shrink(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
