"""`hooked-whisper ablate`: what becomes of recordings without one head, layer or neuron."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import effects, pairs
from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import INTERRUPTED

RESULT = "ablation.safetensors"
HEADS = "decoder.blocks.*.cross_attn.hook_z"


@opt.command(
    opt.RECORDINGS,
    opt.LANGUAGE,
    opt.hooks_option(HEADS),
    *effects.PLACES,
    opt.option(
        "--with",
        "put_in",
        type=click.Choice(["zero", "mean"]),
        default="zero",
        help="What takes the place of activations: zeros, or their mean over the recordings.",
    ),
    opt.option(
        "--metric",
        type=click.Choice(["text-log-prob", "word-error-rate"]),
        default="text-log-prob",
        help="Of the text of the manifest; else of what the model itself writes.",
    ),
    pairs.TOP,
    opt.flag("--resume", help="Go on with the unfinished ablations in the folder."),
    out=("A folder for the table, the plot and the result", "MODEL-ablate"),
    examples="""
    hooked-whisper ablate
    hooked-whisper ablate --hook 'encoder.blocks.*.hook_mlp_out' --per whole --with mean
    hooked-whisper ablate list.csv --model tiny.en --metric word-error-rate
    """,
)
def ablate(args: opt.Options) -> None:
    """Take away one part of the model at a time, and see what becomes of the text.

    The change of the metric is a mean over recordings, with the bootstrap's
    interval of 95 %. The folder gets ablation.csv, ablation.png and
    ablation.safetensors, which is written as it grows: --resume goes on.
    """
    from hooked_whisper.interventions import mean_activations
    from hooked_whisper.io import make_folder
    from hooked_whisper.patching import SweepResult, patch_sweep

    folder = args.new_path("ablate", goes_on=args.resume)
    if args.resume:
        SweepResult.load(folder / RESULT)
    recordings = args.listed_recordings()
    model = args.load_model()
    names = model.hook_names(list(args.hooks) or HEADS)
    examples = [pairs.example_of(model, each, args.language) for each in recordings]
    args.begin_anew(folder, RESULT, "ablation.csv", "ablation.png")
    make_folder(folder)
    put_in: Any = "zero"
    if args.put_in == "mean":
        put_in = mean_activations(model, examples, names, progress=not args.quiet)
    result = patch_sweep(
        model,
        examples,
        put_in,
        names,
        metric=[_metric(model, each, args.metric) for each in examples],
        per=effects.per_of(model, names, args.per),
        direction="noising",
        window_s=args.window_s,
        all_frames=args.all_frames,
        progress=not args.quiet,
        save_to=folder / RESULT,
    )
    # What is of interest is what changes, of each recording by itself.
    change = replace(result, values=result.values - result.clean.view(-1, 1, 1, 1))
    _write(result, change, [each.id for each in recordings], folder)
    _report(result, change, folder, args)
    if not result.complete:
        opt.note("unfinished: the same command with --resume does the rest.")
        raise SystemExit(INTERRUPTED)


def _metric(model: Any, example: Any, name: str) -> Any:
    from hooked_whisper import metrics
    from hooked_whisper.model.language import language_of_tokens

    if name == "text-log-prob":
        return metrics.SequenceLogProb(example.tokens, start=model.to_tokens("").shape[1])
    text = model.to_string(example.tokens)[0].strip()
    spoken = language_of_tokens(model.cfg, example.tokens[0].tolist())
    return metrics.WordErrorRate(text, language=spoken)


def _write(result: Any, change: Any, ids: list[str], folder: Path) -> None:
    from hooked_whisper.io import write_whole

    table = result.to_dataframe()
    if len(table):
        table = table.drop(columns=["corrupted", "effect"])
        table.insert(1, "recording", [ids[pair] for pair in table["pair"]])
        table["change"] = table["value"] - table["clean"]
    text = table.to_csv(index=False)
    write_whole(folder / "ablation.csv", lambda file: file.write(text.encode()))
    if result.n_done:
        title = f"change of {result.metric}, {len(result.values)} recording(s)"
        figure = change.plot(effect=False, title=title)
        write_whole(folder / "ablation.png", lambda file: figure.savefig(file, format="png"))


def _report(result: Any, change: Any, folder: Path, args: opt.Options) -> None:
    """Print where most changes, or all of it as JSON."""
    places = change.places(args.top, intervals=len(change.values) > 1 and change.complete)
    clean = float(result.clean.nanmean())
    if args.as_json:
        opt.echo_json(
            {
                "metric": result.metric,
                "put_in": args.put_in,
                "recordings": len(result.values),
                "metric_clean": clean,
                "complete": result.complete,
                "greatest": places,
                "ablations": result.to_dataframe().to_dict("records"),
            }
        )
        return
    click.echo(f"{result.metric}: {clean:.4g} of the whole model, {len(result.values)} recordings")
    shown = ("name", "start_s", "end_s", "head", "pos", "neuron", "change", "low", "high")
    opt.echo_table([{key: row[key] for key in shown if key in row} for row in places])
    args.note(f"ablation.csv, ablation.png and ablation.safetensors are in {folder}.")
