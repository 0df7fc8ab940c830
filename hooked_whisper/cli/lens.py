"""`hooked-whisper lens`: what the model would say if it stopped early."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli import pairs


@opt.command(
    opt.RECORDINGS,
    opt.LANGUAGE,
    opt.option(
        "--stack",
        type=click.Choice(["decoder", "encoder"]),
        default="decoder",
        help="decoder: the logit lens, at every place of its stream. encoder: what the decoder "
        "says to the encoder's output after each number of layers.",
    ),
    opt.flag("--no-final-ln", help="Encoder: without its final LayerNorm."),
    out=("A folder for the tables and plots", "MODEL-lens"),
    examples="""
    hooked-whisper lens
    hooked-whisper lens --stack encoder recordings/lucas-2-0.flac
    hooked-whisper lens list.csv --model tiny.en --out lens
    """,
)
def lens(args: opt.Options) -> None:
    """Read predictions off every layer, and see where the text of recordings emerges.

    Of each token of the text (the manifest's, or what the model writes): its
    log-probability, and whether it is the likeliest. Printed are means over
    recordings, with the bootstrap's intervals of 95 %. The folder gets lens.csv
    and a picture of each recording.
    """
    import pandas as pd

    from hooked_whisper.io import make_folder, write_whole

    recordings = args.listed_recordings()
    names = opt.file_names(recordings, "png")
    folder = args.new_folder("lens", names)
    model = args.load_model()
    read = _decoder if args.stack == "decoder" else _encoder
    make_folder(folder)
    tables, lines = [], []
    for recording, name in zip(args.with_bar(recordings, "lens"), names, strict=True):
        table, line, figure = read(model, recording, args)
        table.insert(0, "recording", recording.id)
        tables.append(table)
        lines.append(line)
        write_whole(folder / name, partial(figure.savefig, format="png"))
    text = pd.concat(tables).to_csv(index=False)
    write_whole(folder / "lens.csv", lambda file: file.write(text.encode()))
    _report(lines, recordings, folder, args)


def _tokens(model: Any, recording: Any, args: opt.Options) -> tuple[Any, Any]:
    """The recording's mel, and the tokens of its text with the start sequence and the end."""
    import torch

    from hooked_whisper.speech.tokens import get_tokenizer

    example = pairs.example_of(model, recording, args.language)
    end = torch.tensor([[get_tokenizer(model.cfg).eot]], device=example.tokens.device)
    return example.mel, torch.cat([example.tokens, end], dim=1)


def _decoder(model: Any, recording: Any, args: opt.Options) -> tuple[Any, Any, Any]:
    """The table, the means of each site and the picture of one recording."""
    from hooked_whisper.lenses import logit_lens

    mel, tokens = _tokens(model, recording, args)
    start = model.to_tokens("").shape[1] - 1
    found = logit_lens(
        model, mel, tokens[:, :-1], targets=tokens[:, start + 1 :], pos=slice(start, None)
    )
    line = {
        site: {"first": float((ranks == 0).float().mean()), "log_prob": float(logprobs.mean())}
        for site, ranks, logprobs in zip(
            found.labels, found.target_ranks, found.target_logprobs, strict=True
        )
    }
    return found.to_dataframe(), line, found.plot(title=Path(recording.id).name)


def _encoder(model: Any, recording: Any, args: opt.Options) -> tuple[Any, Any, Any]:
    """Likewise of the encoder's layers."""
    from hooked_whisper.lenses import encoder_lens

    mel, tokens = _tokens(model, recording, args)
    spoken = recording.labels.get("language") or args.language
    found = encoder_lens(model, mel, tokens, final_ln=not args.no_final_ln, language=spoken)
    said = model.to_string(tokens)[0].strip()
    line = {
        f"{layer} layers": {"text": float(texts[0].strip() == said), "log_prob": float(logprob)}
        for layer, texts, logprob in zip(
            found.layers, found.texts, found.mean_logprobs[:, 0], strict=True
        )
    }
    return found.to_dataframe(), line, found.plot(title=Path(recording.id).name)


_HEADS = {
    "first": "share of tokens that are the likeliest",
    "text": "share of recordings with all of the text",
    "log_prob": "log-prob of a token",
}


def _report(lines: list[Any], recordings: list[Any], folder: Path, args: opt.Options) -> None:
    """Print the means of each place, with intervals over several recordings."""
    import torch

    from hooked_whisper.analysis.intervals import bootstrap_interval

    rows = []
    for place in lines[0]:
        row: dict[str, Any] = {"after": place}
        for what in lines[0][place]:
            values = torch.tensor([line[place][what] for line in lines])
            row[what] = float(values.mean())
            if len(values) > 1:
                low, high = bootstrap_interval(values)
                row |= {f"{what}_low": float(low), f"{what}_high": float(high)}
        rows.append(row)
    if args.as_json:
        each = [
            {"recording": r.id, "places": line} for r, line in zip(recordings, lines, strict=True)
        ]
        opt.echo_json({"stack": args.stack, "places": rows, "recordings": each})
        return
    for what in lines[0][next(iter(lines[0]))]:
        click.echo(f"{what}: {_HEADS[what]}")
    opt.echo_table(rows)
    args.note(f"lens.csv and a picture of each recording are in {folder}.")
