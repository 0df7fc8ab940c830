"""`hooked-whisper path`: what heads and MLPs tell others straight through the stream."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hooked_whisper.cli import effects, pairs
from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import INTERRUPTED
from hooked_whisper.errors import InputError

RESULT = "paths.safetensors"


@opt.command(
    *pairs.RUNS,
    opt.option(
        "--to",
        "receivers",
        multiple=True,
        help="A receiver; several are patched together: logits, decoder.3.mlp, "
        "decoder.2.cross_attn.0.k (head 0's keys), encoder.1.attn.4.q.  [default: logits]",
    ),
    opt.flag("--no-mlps", help="Heads alone are senders."),
    pairs.DIRECTION,
    *pairs.MEASURED,
    opt.option("--max-rows", type=opt.COUNT_FROM_1, default=16, help="Senders side by side."),
    pairs.TOP,
    opt.flag("--resume", help="Go on with the unfinished paths in the folder."),
    out=("A folder for the table, the plot and the result", "MODEL-path"),
    examples="""
    hooked-whisper path
    hooked-whisper path --to decoder.3.mlp --direction noising --no-mlps
    hooked-whisper path yes.wav no.wav --model tiny.en --to decoder.2.cross_attn.1.v --out yes-no
    hooked-whisper path pairs.csv --model tiny.en --corrupt noise
    """,
)
def path(args: opt.Options) -> None:
    """Patch what each head and MLP tells a receiver straight through the residual stream.

    All between sender and receiver keeps what it wrote. CLEAN, CORRUPTED and
    manifests of pairs are those of `patch`. The folder gets paths.csv, paths.png
    and paths.safetensors; of several pairs also a file each, which is written
    as it grows.
    """
    pairs.check_runs(args)
    from hooked_whisper.io import make_folder
    from hooked_whisper.patching import path_patch_heads

    receivers = [_receiver(text) for text in args.receivers or ("logits",)]
    folder = args.new_path("path", goes_on=args.resume)
    model = args.load_model()
    found = pairs.make_pairs(model, args)
    pairs.say_pairs(found, args)
    make_folder(folder)
    files = [RESULT] if len(found) == 1 else [f"pair-{i}.safetensors" for i in range(len(found))]
    of_pairs = {each.name for each in folder.glob("pair-*.safetensors")}
    args.begin_anew(folder, RESULT, "paths.csv", "paths.png", *of_pairs)
    results = []
    for pair, file in zip(found, files, strict=True):
        result = path_patch_heads(
            model,
            pair.clean,
            pair.corrupted,
            receivers,
            pair.metric,
            with_mlps=not args.no_mlps,
            direction=args.direction,
            max_rows=args.max_rows,
            progress=not args.quiet,
            save_to=folder / file,
        )
        results.append(result)
        if not result.complete:
            opt.note("unfinished: the same command with --resume does the rest.")
            raise SystemExit(INTERRUPTED)
    joined = _joined(results)
    if len(results) > 1:
        joined.save(Path(folder / RESULT))
    effects.write_effects(joined, folder, "paths", effect=effects.has_effects(joined))
    effects.report_effects(joined, found, folder, "paths", args)


def _receiver(text: str) -> Any:
    """The receiver that a name stands for.

    Raises:
        InputError: None.
    """
    from hooked_whisper.patching.paths import HeadInput, MLPLayer, part_from

    try:
        found = part_from(text)
    except Exception:
        found = None
    if found == "logits" or isinstance(found, HeadInput | MLPLayer):
        return found
    raise InputError(
        f"--to is {text!r}; it can be logits, an MLP such as decoder.3.mlp, or a head's q, k or v "
        "such as decoder.2.cross_attn.0.k or encoder.1.attn.4.q."
    )


def _joined(results: list[Any]) -> Any:
    """Results of several pairs as one."""
    import torch

    first = results[0]
    tensors = {
        name: torch.cat([getattr(each, name) for each in results])
        for name in ("values", "clean", "corrupted")
    }
    axes = {**first.axes, "pair": list(range(len(results)))}
    return replace(first, **tensors, axes=axes)
