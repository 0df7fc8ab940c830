"""`hooked-whisper patch`: one run's activations into another, place by place."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import INTERRUPTED, Command
from hooked_whisper.cli.options import (
    FILE,
    hooks_option,
    json_option,
    language_option,
    load_model,
    model_options,
    new_path,
    note,
    out_option,
    overwrite_option,
    quiet_option,
    short_name,
)
from hooked_whisper.cli.output import echo_json, echo_table
from hooked_whisper.cli.patch_pair import METRICS, Pair, make_pair
from hooked_whisper.errors import InputError

DEFAULT_HOOK = "encoder.blocks.*.hook_resid_post"


@click.command(
    cls=Command,
    examples="""
    hooked-whisper patch
    hooked-whisper patch --hook 'decoder.blocks.*.cross_attn.hook_z' --direction noising
    hooked-whisper patch yes.wav no.wav --model tiny.en --window-s 0.25 --out yes-no
    hooked-whisper patch yes.wav --corrupt silence --corrupt-window 0.4 0.9
    hooked-whisper patch --hook 'decoder.blocks.*.hook_resid_post' --per pos --metric log-prob
    hooked-whisper patch --hook encoder.blocks.1.hook_resid_post --metric transcript --top 3
    """,
)
@click.argument("clean", required=False, type=FILE)
@click.argument("corrupted", required=False, type=FILE)
@click.option("--corrupt", type=click.Choice(["silence", "noise"]), help="Instead of CORRUPTED.")
@click.option(
    "--corrupt-window",
    type=(float, float),
    metavar="START END",
    help="The seconds to corrupt.  [default: all]",
)
@click.option("--text", help="What is said in CLEAN; else the model writes it down.")
@language_option
@hooks_option(DEFAULT_HOOK)
@click.option(
    "--per",
    type=click.Choice(["auto", "whole", "window", "pos", "head", "neuron"]),
    default="auto",
    help="What is patched at a time. auto: heads where there are some; else windows of time in "
    "the encoder, positions in the decoder.",
)
@click.option(
    "--window-s", type=click.FloatRange(0, min_open=True), default=0.5, help="A window's length."
)
@click.option("--all-frames", is_flag=True, help="Windows over the padding too.")
@click.option(
    "--direction",
    type=click.Choice(["denoising", "noising"]),
    default="denoising",
    help="Clean activations into the corrupted run, or the other way round.",
)
@click.option("--metric", type=click.Choice(list(METRICS)), default="logit-difference")
@click.option(
    "--token",
    type=click.IntRange(0),
    help="Which token of the text is measured, from 0.  [default: the first that differs]",
)
@click.option("--top", type=click.IntRange(1), default=10, help="Places to print.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished sweep in the folder.")
@model_options
@out_option("A folder for the table, the plot and the result", "MODEL-patch")
@overwrite_option
@json_option
@quiet_option
def patch(
    clean: Path | None,
    corrupted: Path | None,
    corrupt: str | None,
    corrupt_window: tuple[float, float] | None,
    text: str | None,
    language: str,
    hooks: tuple[str, ...],
    per: str,
    window_s: float,
    all_frames: bool,
    direction: Any,
    metric: str,
    token: int | None,
    top: int,
    resume: bool,
    source: str,
    device: str | None,
    model_dtype: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Patch a clean run into a corrupted one, and see what brings the answer back.

    CLEAN and CORRUPTED are recordings; both runs are given CLEAN's text. The
    folder gets sweep.csv, sweep.png and sweep.safetensors. After Ctrl-C, it
    has what was done, and --resume does the rest.
    """
    if clean is not None and (corrupted is None) == (corrupt is None):
        raise click.UsageError("name a CORRUPTED recording, or give --corrupt; one of them.")
    if corrupt_window and not corrupt:
        raise click.UsageError("--corrupt-window needs --corrupt silence or --corrupt noise.")
    from hooked_whisper.patching import SweepResult, patch_sweep

    folder = new_path(out, f"{short_name(source)}-patch", overwrite=overwrite or resume)
    earlier = SweepResult.load(folder / "sweep.safetensors") if resume else None
    model = load_model(source, device, model_dtype)
    names = model.hook_names(list(hooks) or DEFAULT_HOOK)
    pair = make_pair(
        model, clean, corrupted, corrupt, corrupt_window, text, language, metric, token
    )
    note(f"clean: {pair.clean_name}; corrupted: {pair.corrupted_name}; {pair.measures}.", quiet)
    result = patch_sweep(
        model,
        pair.clean,
        pair.corrupted,
        names,
        metric=pair.metric,
        per=_per(model, names, per),
        direction=direction,
        window_s=window_s,
        all_frames=all_frames,
        progress=not quiet,
        resume=earlier,
    )
    _save(result, folder)
    _report(result, pair, folder, top, as_json=as_json, quiet=quiet)
    if not result.complete:
        note("unfinished: the same command with --resume does the rest.", False)
        raise SystemExit(INTERRUPTED)


def _per(model: Any, names: list[str], per: str) -> Any:
    """What to patch one by one."""
    if per != "auto":
        return None if per == "whole" else per
    axes = [model.hook_dict[name].axes for name in names]
    if all("head" in each for each in axes):
        return "head"
    return "window" if all(name.startswith("encoder") for name in names) else "pos"


def _save(result: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    result.save(folder / "sweep.safetensors")
    result.to_dataframe().to_csv(folder / "sweep.csv", index=False)
    if result.n_done:
        result.plot(effect=_tells(result)).savefig(folder / "sweep.png")


def _tells(result: Any) -> bool:
    """Whether the metric differs between the two runs."""
    return not bool((result.clean == result.corrupted).any())


def _report(result: Any, pair: Pair, folder: Path, top: int, *, as_json: bool, quiet: bool) -> None:
    if not _tells(result):
        raise InputError(
            f"{result.metric} is {float(result.clean[0]):.4g} in both runs, so that no patch can "
            f"be told from another; the numbers are in {folder}. Choose another --metric or pair."
        )
    best = result.best(top)
    if as_json:
        rows = result.to_dataframe().to_dict("records")
        echo_json({**pair.to_dict(), **_baselines(result), "best": best, "patches": rows})
        return
    click.echo(
        f"{result.metric}: {float(result.clean[0]):.4g} in the clean run, "
        f"{float(result.corrupted[0]):.4g} in the corrupted one"
    )
    shown = ("name", "start_s", "end_s", "head", "pos", "neuron", "effect")
    echo_table([{key: row[key] for key in shown if key in row} for row in best])
    note(f"sweep.csv, sweep.png and sweep.safetensors are in {folder}.", quiet)


def _baselines(result: Any) -> dict[str, Any]:
    return {
        "direction": result.direction,
        "metric": result.metric,
        "metric_clean": float(result.clean[0]),
        "metric_corrupted": float(result.corrupted[0]),
        "complete": result.complete,
    }
