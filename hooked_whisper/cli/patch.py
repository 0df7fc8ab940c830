"""`hooked-whisper patch`: one run's activations into another, place by place."""

from hooked_whisper.cli import effects, pairs
from hooked_whisper.cli import options as opt


@opt.command(
    *pairs.RUNS,
    opt.hooks_option(opt.ENCODER_STREAM),
    *effects.PLACES,
    pairs.DIRECTION,
    *pairs.MEASURED,
    pairs.TOP,
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
    hooked-whisper patch pairs.csv --model tiny.en --corrupt noise --window-s 0.3
    """,
)
def patch(args: opt.Options) -> None:
    """Patch a clean run into a corrupted one, and see what brings the answer back.

    CLEAN and CORRUPTED are recordings; both runs are given CLEAN's text. Words
    get their times from cross-attention; texts are compared word by word.

    In place of CLEAN a CSV, TSV or JSONL manifest names several pairs, with
    columns path, text, corrupted (a path), corrupt, corrupt_word,
    corrupt_start and corrupt_end, swap_with, language, token, word, at and
    metric; what a row leaves out is as the options say. The effects are then means over
    pairs, with the bootstrap's intervals of 95 %.

    The folder gets sweep.csv, sweep.png and sweep.safetensors, which is written
    as it grows. After Ctrl-C or a kill, it has what was done, and --resume does
    the rest.
    """
    pairs.check_runs(args)
    from hooked_whisper.patching import patch_sweep

    effects.sweep(patch_sweep, "patch", "sweep", args)
