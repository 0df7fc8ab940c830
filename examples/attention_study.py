"""What the attention heads of a Whisper do on speech: the table of all heads, and pictures.

    python examples/attention_study.py [--model digits] [--audio a.wav b.wav] [--out out]

Redoes the attention part of "Analysis of Whisper-Tiny using Sparse Autoencoders" (LessWrong) for
any model, with the padding left out: the entropy of all heads, how far they look, which follow the
text in time, which attend to what is loud. Offline with the digits model and its recordings.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis import (
    cosine_by_layer,
    frame_energy,
    head_table,
    residual_histogram,
    residual_table,
    time_alignment,
)
from hooked_whisper.digits import recordings
from hooked_whisper.figures import (
    plot_by_layer,
    plot_cosine_matrix,
    plot_head_scores,
    plot_histograms,
)

if TYPE_CHECKING:
    import pandas

KINDS = {
    "encoder": ("encoder", "attn"),
    "decoder": ("decoder", "attn"),
    "cross-attention": ("decoder", "cross_attn"),
}
"""The three attentions of a Whisper, by stack and kind."""
HEAD = ["stack", "layer", "kind", "head"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="digits", help='"digits", "tiny", "base", a path, ...')
    parser.add_argument("--audio", type=Path, nargs="+", help="instead of the shipped recordings")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    model = HookedWhisper.from_pretrained(args.model, device="cpu")
    words = {each.path: each.words for each in recordings()}
    # One recording at a time: the patterns of all would be gigabytes.
    found = [study(model, path, words.get(path, ())) for path in args.audio or words]

    speech = mean_of([each["heads"] for each in found], HEAD)
    streams = mean_of([each["streams"] for each in found], ["stack", "layer"])
    in_word = [each["in_word"] for each in found if each["in_word"] is not None]
    show(speech, torch.stack(in_word).mean(dim=0) if in_word else None)
    compare(found[0]["heads"], study(model, (args.audio or [*words])[0], (), True)["heads"])
    draw_heads(args.model, speech, args.out)
    draw_streams(args.model, streams, found[-1], args.out)
    print(f"\npictures: {', '.join(str(each) for each in sorted(args.out.glob('study_*.png')))}")


@torch.no_grad()
def study(model: HookedWhisper, path: Path, words: Any, all_frames: bool = False) -> dict[str, Any]:
    """The tables of one recording, over its speech or over all frames."""
    mel = model.to_mel(path, cut=True)
    generation = model.generate(mel)
    tokens = generation.tokens[:, :-1]
    extent = "30 s window of" if all_frames else f"{mel.seconds.item():.2f} s"
    print(f"{extent:>8}  {path.name}: {generation.texts[0]}", flush=True)
    _, cache = model.run_with_cache(
        mel, tokens, names_filter=["*.hook_pattern", "*.blocks.*.hook_resid_post"]
    )
    text = slice(generation.n_prompt - 1, tokens.shape[1] - 1)  # the queries that write text
    n_layers = model.cfg.n_audio_layers
    streams = [cache["encoder", layer, "resid_post"] for layer in range(n_layers)]

    in_word = None
    if words and generation.texts[0] == " ".join(word.word for word in words):
        times = torch.tensor([[word.start_s, word.end_s] for word in words])
        in_word = torch.stack(
            [
                time_alignment(
                    cache["decoder", layer, "pattern", "cross_attn"][:, :, text],
                    times,
                    mel.n_positions,
                ).in_word.mean(dim=(0, 2))
                for layer in range(model.cfg.n_text_layers)
            ]
        )
    return {
        "heads": head_table(
            cache,
            mel.n_positions,
            text_queries=text,
            energy=frame_energy(mel.values),
            all_frames=all_frames,
        ),
        "streams": residual_table(cache, mel.n_positions),
        "in_word": in_word,
        "cosines": cosine_by_layer(streams, mel.n_positions, centred=True),
        "histograms": [residual_histogram(each, mel.n_positions) for each in streams],
    }


def mean_of(tables: list["pandas.DataFrame"], keys: list[str]) -> "pandas.DataFrame":
    """The mean of tables over recordings, row by row."""
    import pandas

    joined = pandas.concat(tables).groupby(keys, sort=False).mean(numeric_only=True)
    return joined.reset_index()


def by_head(table: "pandas.DataFrame", kind: str, column: str) -> Tensor:
    """One column of the table for one kind of attention, `[layer, head]`."""
    stack, part = KINDS[kind]
    rows = table[(table["stack"] == stack) & (table["kind"] == part)]
    return torch.tensor(rows.pivot(index="layer", columns="head", values=column).to_numpy())


def show(speech: "pandas.DataFrame", in_word: Any) -> None:
    """Print the entropies of all heads, and the heads that stand out."""
    for kind in KINDS:
        show_heads(f"entropy of every {kind} head, nats", by_head(speech, kind, "entropy_nats"))
    distance = by_head(speech, "encoder", "mean_distance")
    show_heads("mean distance of every encoder head, positions of 20 ms", distance)
    if in_word is not None:
        show_heads("attention of every cross-attention head in the word that is written", in_word)
    print("\nheads that stand out (speech):")
    for kind, column in (
        ("encoder", "energy_correlation"),
        ("encoder", "on_padding"),
        ("decoder", "previous_token"),
        ("decoder", "current_token"),
        ("decoder", "start_token"),
        ("cross-attention", "monotonicity"),
        ("cross-attention", "energy_correlation"),
    ):
        print(f"  {kind:<16}{column:<20}{best(by_head(speech, kind, column))}")
    if in_word is not None:
        print(f"  {'cross-attention':<16}{'in the word':<20}{best(in_word)}")


def show_heads(what: str, scores: Tensor) -> None:
    """Print a number for each head."""
    print(f"\n{what} (layers down, heads across):")
    for layer, row in enumerate(scores.tolist()):
        print(f"  {layer:>2}  " + "  ".join(f"{value:5.2f}" for value in row))


def compare(speech: "pandas.DataFrame", everything: "pandas.DataFrame") -> None:
    """Print what counting the padding would do to the first recording's means over heads."""
    print("\nfirst recording, mean over heads      speech   all frames")
    for kind in KINDS:
        for column in ("entropy_nats", "mean_distance", "energy_correlation"):
            here, there = (by_head(each, kind, column).nanmean() for each in (speech, everything))
            if not here.isnan():
                print(f"  {kind:<16}{column:<20}{here:8.2f}{there:13.2f}")


def best(scores: Tensor) -> str:
    """The three highest heads, as layer.head."""
    values, places = scores.flatten().topk(min(3, scores.numel()))
    n_heads = scores.shape[1]
    pairs = zip(values.tolist(), places.tolist(), strict=True)
    return "  ".join(f"{i // n_heads}.{i % n_heads} ({value:.2f})" for value, i in pairs)


def draw_heads(name: str, table: "pandas.DataFrame", out: Path) -> None:
    """The entropy table, and the other scores of all heads."""
    for column, label, kinds in (
        ("entropy_nats", "entropy (nats)", list(KINDS)),
        ("mean_distance", "mean distance (positions of 20 ms)", ["encoder"]),
        ("previous_token", "attention on the token before", ["decoder"]),
        ("energy_correlation", "correlation with energy", ["encoder", "cross-attention"]),
    ):
        figure = plot_head_scores(
            {kind: by_head(table, kind, column) for kind in kinds},
            label=label,
            title=f"{name}: {label}, speech only",
            diverging=column == "energy_correlation",
            digits=1 if column == "mean_distance" else 2,
        )
        figure.savefig(out / f"study_{column}.png")


def draw_streams(name: str, table: "pandas.DataFrame", last: dict[str, Any], out: Path) -> None:
    """The residual stream layer by layer; matrix and histograms are of the last recording."""
    lines = {
        label: {
            stack: torch.tensor(rows[column].to_numpy())
            for stack, rows in table.groupby("stack", sort=False)
        }
        for label, column in (("norm", "norm"), ("excess kurtosis", "kurtosis"))
    }
    title = f"{name}: the residual stream after each layer, speech only"
    plot_by_layer(lines, title=title).savefig(out / "study_residual.png")
    figure = plot_cosine_matrix(last["cosines"], title=f"{name}: encoder layers, centred")
    figure.savefig(out / "study_cosines.png")
    histograms = {
        f"layer {i}": (each.counts, each.edges) for i, each in enumerate(last["histograms"])
    }
    figure = plot_histograms(histograms, label="value", title=f"{name}: encoder residual stream")
    figure.savefig(out / "study_histogram.png")


if __name__ == "__main__":
    main()
