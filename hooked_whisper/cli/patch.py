"""`hooked-whisper patch`: one run's activations into another, place by place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import INTERRUPTED
from hooked_whisper.errors import InputError

METRICS = (
    "logit-difference",
    "log-prob",
    "probability",
    "text-log-prob",
    "transcript",
    "word-error-rate",
)


@opt.command(
    opt.file_argument("clean", required=False),
    opt.file_argument("corrupted", required=False),
    opt.option(
        "--corrupt",
        type=click.Choice(["silence", "noise", "swap"]),
        help="Instead of CORRUPTED. swap: two words in each other's place.",
    ),
    opt.option(
        "--corrupt-window",
        type=(float, float),
        metavar="START END",
        help="The seconds to corrupt.  [default: all]",
    ),
    opt.option("--corrupt-word", help="The word to corrupt, at its own time."),
    opt.option("--swap-with", help="The word that --corrupt swap puts there."),
    opt.option("--text", help="What is said in CLEAN; else the model writes it down."),
    opt.LANGUAGE,
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
    opt.option("--metric", type=click.Choice(METRICS), default="logit-difference"),
    opt.option(
        "--token",
        type=opt.COUNT,
        help="Which token of the text is measured, from 0.  [default: the first that differs]",
    ),
    opt.option("--word", help="The word whose first token is measured, instead of --token."),
    opt.option(
        "--at",
        "at_s",
        type=opt.FROM_0,
        metavar="SECONDS",
        help="When it is said: instead of --word, or to tell words alike apart.",
    ),
    opt.HEADS,
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
    if args.clean is not None and (args.corrupted is None) == (args.corrupt is None):
        raise click.UsageError("name a CORRUPTED recording, or give --corrupt; one of them.")
    if (args.corrupt_window or args.corrupt_word) and not args.corrupt:
        raise click.UsageError("--corrupt-window and --corrupt-word need --corrupt.")
    if args.corrupt_window and args.corrupt_word:
        raise click.UsageError("give one of --corrupt-window and --corrupt-word.")
    if (args.corrupt == "swap") != (args.swap_with is not None) or (
        args.corrupt == "swap" and args.corrupt_word is None
    ):
        raise click.UsageError("--corrupt swap takes --corrupt-word and --swap-with, two words.")
    if args.token is not None and (args.word is not None or args.at_s is not None):
        raise click.UsageError("give --token, or --word and --at.")
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


@dataclass(frozen=True)
class PatchRuns:
    """Two runs on the same tokens.

    Args:
        clean: The run that is right.
        corrupted: The run that is not.
        clean_name: What the first is called.
        corrupted_name: What the second is called.
        metric: What is measured.
        measures: The same in words.
    """

    clean: Any
    corrupted: Any
    clean_name: str
    corrupted_name: str
    metric: Any
    measures: str


def make_pair(model: Any, args: opt.Options) -> PatchRuns:
    """The two runs and the metric; of the shipped recordings where none is named.

    Raises:
        InputError: Both runs predict the same tokens, or there is no such token.
    """
    from hooked_whisper import digits
    from hooked_whisper.interventions import Example
    from hooked_whisper.interventions.spoken_words import choose_word, spoken_words

    clean, corrupted, text = args.clean, args.corrupted, args.text
    if clean is None:
        first, second = digits.recordings()[:2]
        clean, text = first.path, text or first.text
        corrupted = None if args.corrupt else second.path
    spoken = None if text is None else opt.spaced(text)
    right = Example.from_audio(model, clean, spoken, language=args.language)
    window, words = args.corrupt_window, []
    named = (args.corrupt_word, args.word, args.at_s)
    if any(each is not None for each in named):
        words = spoken_words(model, right, model.to_tokens("").shape[1])
    if args.corrupt_word is not None:
        word = choose_word(words, args.corrupt_word, args.at_s)
        window = word.window_s
        if args.word is None:  # what is measured, unless told otherwise
            args.word, args.at_s = word.word, sum(window) / 2
    if corrupted is not None:
        wrong, name = Example(model.to_mel(corrupted), right.tokens), corrupted.name
    elif args.corrupt == "swap":
        other = choose_word(words, args.swap_with, None)
        wrong, name = right.swapped(window, other.window_s), f"{other.word!r} swapped in"
    elif args.corrupt == "silence":
        wrong, name = right.with_silence(window), "silence"
    else:
        wrong, name = right.with_white_noise(model, window), "noise"
    if corrupted is None and window:
        name += f" from {window[0]:.4g} to {window[1]:.4g} s"
    if args.word is not None or args.at_s is not None:
        args.token = choose_word(words, args.word, args.at_s).token
    metric, measures = _metric(model, right, wrong, args)
    return PatchRuns(right, wrong, clean.name, name, metric, measures)


def _metric(model: Any, right: Any, wrong: Any, args: opt.Options) -> tuple[Any, str]:
    """The metric, and what it measures in words."""
    from hooked_whisper import metrics
    from hooked_whisper.model.language import language_of_tokens

    n_prompt = model.to_tokens("").shape[1]
    text = model.to_string(right.tokens)[0].strip()
    spoken = language_of_tokens(model.cfg, right.tokens[0].tolist())
    if args.metric == "transcript":
        exact = metrics.ExactTranscript(text, "auto", spoken)
        return exact, f"measured is whether the transcript is {text!r}"
    if args.metric == "word-error-rate":
        rate = metrics.WordErrorRate(text, language=spoken)
        return rate, f"measured is the word error rate to {text!r}"
    if args.metric == "text-log-prob":
        whole = metrics.SequenceLogProb(right.tokens, start=n_prompt)
        return whole, f"measured is the log-probability of {text!r}"
    place, good, bad = _contrast(model, right, wrong, n_prompt, args)
    names = [repr(model.to_string([[token]])[0]) for token in (good, bad)]
    measures = f"measured is {names[0]} as token {place} of the text"
    pos = n_prompt + place - 1
    if args.metric == "log-prob":
        return metrics.LogProb(good, pos=pos), measures
    if args.metric == "probability":
        return metrics.Probability(good, pos=pos), measures
    return metrics.LogitDifference(good, bad, pos=pos), f"{measures} against {names[1]}"


def _contrast(
    model: Any, right: Any, wrong: Any, n_prompt: int, args: opt.Options
) -> tuple[int, int, int]:
    """Which token of the text is measured, its id, and what the corrupted run has there."""
    import torch

    with torch.no_grad():
        predicted = model(wrong.mel, right.tokens)[0, n_prompt - 1 : -1].argmax(dim=-1).tolist()
    wanted = right.tokens[0, n_prompt:].tolist()
    token: int | None = args.token
    if not wanted:
        raise InputError("the clean text is empty; give --text, or another recording.")
    if token is not None and token >= len(wanted):
        raise InputError(f"--token is {token}; the text has tokens 0 to {len(wanted) - 1}.")
    differ = [i for i, pair in enumerate(zip(wanted, predicted, strict=True)) if pair[0] != pair[1]]
    places = differ if token is None else [i for i in differ if i == token]
    if not places and token is not None and args.metric != "logit-difference":
        places = [token]
    if not places:
        which = "every token" if token is None else f"token {token}"
        raise InputError(
            f"the corrupted run predicts {which} of the clean text too, so that there is nothing "
            "to tell apart. Choose another pair, or --metric log-prob with --token."
        )
    return places[0], wanted[places[0]], predicted[places[0]]


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
