"""`hooked-whisper patch`: one run's activations into another, place by place."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import INTERRUPTED
from hooked_whisper.cli.pairs import MEASURED, RUNS, PatchRuns, check_runs, make_pair
from hooked_whisper.errors import InputError


@opt.command(
    *RUNS,
    opt.hooks_option(opt.ENCODER_STREAM),
    opt.option(
        "--per",
        type=click.Choice(["auto", "whole", "window", "pos", "head", "neuron"]),
        default="auto",
        help="What is patched at a time. auto: heads where there are some; else windows of time in "
        "the encoder, positions in the decoder.",
    ),
    opt.option("--window-s", type=opt.OVER_0, default=0.5, help="A window's length."),
    opt.flag("--all-frames", help="Windows over the padding too."),
    opt.option(
        "--direction",
        type=click.Choice(["denoising", "noising"]),
        default="denoising",
        help="Clean activations into the corrupted run, or the other way round.",
    ),
    *MEASURED,
    opt.option("--top", type=opt.COUNT_FROM_1, default=10, help="Places to print."),
    opt.flag("--resume", help="Go on with the unfinished sweep in the folder."),
    out=("A folder for the table, the plot and the result", "MODEL-patch"),
    examples="""
    hooked-whisper patch
    hooked-whisper patch --hook 'decoder.blocks.*.cross_attn.hook_z' --direction noising
    hooked-whisper patch yes.wav no.wav --model tiny.en --window-s 0.25 --out yes-no
    hooked-whisper patch yes.wav --corrupt silence --corrupt-window 0.4 0.9
    hooked-whisper patch ask.wav --model tiny.en --corrupt noise --corrupt-word not
    hooked-whisper patch ask.wav what.wav --model tiny.en --word country --at 2.1
    hooked-whisper patch --hook 'decoder.blocks.*.hook_resid_post' --per pos --metric log-prob
    hooked-whisper patch --hook encoder.blocks.1.hook_resid_post --metric transcript --top 3
    """,
)
def patch(args: opt.Options) -> None:
    """Patch a clean run into a corrupted one, and see what brings the answer back.

    CLEAN and CORRUPTED are recordings; both runs are given CLEAN's text. Words
    get their times from cross-attention; texts are compared word by word. The
    folder gets sweep.csv, sweep.png and sweep.safetensors, which is written as it
    grows. After Ctrl-C or a kill, it has what was done, and --resume does the rest.
    """
    check_runs(args)
    from hooked_whisper.io import make_folder
    from hooked_whisper.patching import SweepResult, patch_sweep

    folder = args.new_path("patch", goes_on=args.resume)
    if args.resume:  # what is there and cannot be read is told before anything is loaded
        SweepResult.load(folder / RESULT)
    model = args.load_model()
    names = model.hook_names(list(args.hooks) or opt.ENCODER_STREAM)
    pair = make_pair(model, args)
    if not args.resume:
        (folder / RESULT).unlink(missing_ok=True)  # of another sweep, to be replaced
    args.note(f"clean: {pair.clean_name}; corrupted: {pair.corrupted_name}; {pair.measures}.")
    make_folder(folder)
    result = patch_sweep(
        model,
        pair.clean,
        pair.corrupted,
        names,
        metric=pair.metric,
        per=_per(model, names, args.per),
        direction=args.direction,
        window_s=args.window_s,
        all_frames=args.all_frames,
        progress=not args.quiet,
        save_to=folder / RESULT,
    )
    _save(result, folder)
    _report(result, pair, folder, args)
    if not result.complete:
        opt.note("unfinished: the same command with --resume does the rest.")
        raise SystemExit(INTERRUPTED)


def _per(model: Any, names: list[str], per: str) -> Any:
    """What to patch one by one."""
    if per != "auto":
        return None if per == "whole" else per
    if all("head" in model.hook_dict[name].axes for name in names):
        return "head"
    return "window" if all(name.startswith("encoder") for name in names) else "pos"


RESULT = "sweep.safetensors"


def _save(result: Any, folder: Path) -> None:
    from hooked_whisper.io import write_whole

    text = result.to_dataframe().to_csv(index=False)
    write_whole(folder / "sweep.csv", lambda file: file.write(text.encode()))
    if result.n_done:
        figure = result.plot(effect=_has_effects(result))
        write_whole(folder / "sweep.png", lambda file: figure.savefig(file, format="png"))


def _has_effects(result: Any) -> bool:
    """Whether the metric differs between the two runs."""
    return not bool((result.clean == result.corrupted).any())


def _report(result: Any, pair: PatchRuns, folder: Path, args: opt.Options) -> None:
    """Print the best places, or all of them as JSON."""
    clean, corrupted = float(result.clean[0]), float(result.corrupted[0])
    if not _has_effects(result):
        raise InputError(
            f"{result.metric} is {clean:.4g} in both runs, so that no patch can "
            f"be told from another; the numbers are in {folder}. Choose another --metric or pair."
        )
    best = result.best(args.top)
    if args.as_json:
        document = {
            "clean": pair.clean_name,
            "corrupted": pair.corrupted_name,
            "measures": pair.measures,
            "direction": result.direction,
            "metric": result.metric,
            "metric_clean": clean,
            "metric_corrupted": corrupted,
            "complete": result.complete,
            "best": best,
            "patches": result.to_dataframe().to_dict("records"),
        }
        opt.echo_json(document)
        return
    click.echo(
        f"{result.metric}: {clean:.4g} in the clean run, {corrupted:.4g} in the corrupted one"
    )
    shown = ("name", "start_s", "end_s", "head", "pos", "neuron", "effect")
    opt.echo_table([{key: row[key] for key in shown if key in row} for row in best])
    args.note(f"sweep.csv, sweep.png and sweep.safetensors are in {folder}.")
