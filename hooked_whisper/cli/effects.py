"""Tables of effects as commands write and print them: what to patch, files, best places."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import INTERRUPTED
from hooked_whisper.cli.pairs import PatchRuns, make_pairs, say_pairs
from hooked_whisper.errors import InputError

PER = opt.option(
    "--per",
    type=click.Choice(["auto", "whole", "window", "pos", "head", "neuron"]),
    default="auto",
    help="What is patched at a time. auto: heads where there are some; else windows of time in "
    "the encoder, positions in the decoder.",
)
PLACES = (
    PER,
    opt.option("--window-s", type=opt.OVER_0, default=0.5, help="A window's length."),
    opt.flag("--all-frames", help="Windows over the padding too."),
)
"""Which parts of a hook."""


def per_of(model: Any, names: list[str], per: str) -> Any:
    """What to patch one by one."""
    if per != "auto":
        return None if per == "whole" else per
    if all("head" in model.hook_dict[name].axes for name in names):
        return "head"
    return "window" if all(name.startswith("encoder") for name in names) else "pos"


def sweep(run: Callable[..., Any], command: str, stem: str, args: opt.Options, **more: Any) -> None:
    """All of a command that patches places one by one: pairs, the sweep, its files, best places.

    Args:
        run: `patch_sweep`, or a function that takes the same.
        command: What the folder is called after.
        stem: The name of the files in it.
        args: The command's options.
        more: What `run` takes besides.
    """
    from hooked_whisper.io import make_folder
    from hooked_whisper.patching import SweepResult

    folder = args.new_path(command, goes_on=args.resume)
    path = folder / f"{stem}.safetensors"
    if args.resume:  # what is there and cannot be read is told before anything is loaded
        SweepResult.load(path)
    model = args.load_model()
    names = model.hook_names(list(args.hooks) or opt.ENCODER_STREAM)
    found = make_pairs(model, args)
    args.begin_anew(folder, path.name, f"{stem}.csv", f"{stem}.png")
    say_pairs(found, args)
    make_folder(folder)
    result = run(
        model,
        [pair.clean for pair in found],
        [pair.corrupted for pair in found],
        names,
        metric=[pair.metric for pair in found],
        per=per_of(model, names, args.per),
        direction=args.direction,
        window_s=args.window_s,
        all_frames=args.all_frames,
        progress=not args.quiet,
        save_to=path,
        **more,
    )
    write_effects(result, folder, stem, effect=has_effects(result))
    report_effects(result, found, folder, stem, args)
    if not result.complete:
        opt.note("unfinished: the same command with --resume does the rest.")
        raise SystemExit(INTERRUPTED)


def write_effects(result: Any, folder: Path, stem: str, *, effect: bool) -> None:
    """A result's table and, where anything is done, its picture."""
    from hooked_whisper.io import write_whole

    text = result.to_dataframe().to_csv(index=False)
    write_whole(folder / f"{stem}.csv", lambda file: file.write(text.encode()))
    if result.n_done:
        figure = result.plot(effect=effect)
        write_whole(folder / f"{stem}.png", lambda file: figure.savefig(file, format="png"))


def has_effects(result: Any) -> bool:
    """Whether the metric differs between the two runs of each pair."""
    return not bool((result.clean == result.corrupted).any())


def report_effects(
    result: Any, pairs: Sequence[PatchRuns], folder: Path, stem: str, args: opt.Options
) -> None:
    """Print the best places, with intervals over several pairs, or all of it as JSON.

    Raises:
        InputError: The metric is the same in both runs of a pair.
    """
    if not has_effects(result):
        value = float(result.clean[result.clean == result.corrupted][0])
        raise InputError(
            f"{result.metric} is {value:.4g} in both runs, so that no patch can "
            f"be told from another; the numbers are in {folder}. Choose another --metric or pair."
        )
    best = result.best(args.top, intervals=len(pairs) > 1 and result.complete)
    clean, corrupted = float(result.clean.nanmean()), float(result.corrupted.nanmean())
    if args.as_json:
        about = [
            {
                "clean": pair.clean_name,
                "corrupted": pair.corrupted_name,
                "measures": pair.measures,
                "metric_clean": float(of_clean),
                "metric_corrupted": float(of_corrupted),
            }
            for pair, of_clean, of_corrupted in zip(
                pairs, result.clean, result.corrupted, strict=True
            )
        ]
        opt.echo_json(
            {
                **(about[0] if len(pairs) == 1 else {"pairs": about}),
                "direction": result.direction,
                "metric": result.metric,
                "metric_clean": clean,
                "metric_corrupted": corrupted,
                "complete": result.complete,
                "best": best,
                "patches": result.to_dataframe().to_dict("records"),
            }
        )
        return
    mean = f", means of {len(pairs)} pairs" if len(pairs) > 1 else ""
    click.echo(
        f"{result.metric}: {clean:.4g} in the clean run, {corrupted:.4g} in the corrupted one{mean}"
    )
    shown = ["name", "sender", "start_s", "end_s", "pos", "neuron", "effect", "low", "high"]
    if "name" in best[0]:
        shown.insert(4, "head")
    opt.echo_table([{key: row[key] for key in shown if key in row} for row in best])
    args.note(f"{stem}.csv, {stem}.png and {stem}.safetensors are in {folder}.")
