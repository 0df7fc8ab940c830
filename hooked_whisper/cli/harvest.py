"""`hooked-whisper harvest`: from recordings to an activation store."""

from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.store import summary


@opt.command(
    opt.RECORDINGS,
    opt.hooks_option(opt.RESIDUAL_STREAM),
    opt.out_option("The folder of the store", "MODEL-store"),
    opt.option("--dtype", type=opt.DTYPE, default="fp16", help="What is stored."),
    opt.flag("--all-frames", help="Store the padding of the window too."),
    opt.flag("--approximate", help="Have the encoder see 2 s of padding, not the window's."),
    opt.option(
        "--text",
        type=click.Choice(["label", "transcript"]),
        default="label",
        help="Where the decoder's tokens come from.",
    ),
    opt.LANGUAGE,
    opt.TASK,
    opt.option(
        "--long",
        type=click.Choice(["split", "cut", "skip"]),
        default="split",
        help="What to do with recordings that are longer than the window.",
    ),
    opt.option("--batch-size", type=opt.COUNT_FROM_1, default=16, help="Windows side by side."),
    opt.option(
        "--recordings-per-shard", type=opt.COUNT_FROM_1, help="[default: what fills 256 MiB]"
    ),
    opt.option(
        "--workers",
        "n_workers",
        type=opt.COUNT,
        help="Processes that read audio.  [default: by processors]",
    ),
    opt.option("--text-column", default="text", help="Where a manifest keeps what is said."),
    opt.option(
        "--audio-column", help="Where a manifest keeps the paths.  [default: path, audio, ...]"
    ),
    *opt.MODEL,
    opt.option("--note", "remark", default="", help="Put into the manifest.", show_default=False),
    opt.flag("--strict", help="Stop at a recording that cannot be used."),
    opt.flag("--verify", help="Check all checksums; make damaged shards again."),
    model=False,
    examples="""
    hooked-whisper harvest
    hooked-whisper harvest recordings/ --model tiny --hook 'encoder.blocks.*.hook_resid_post'
    hooked-whisper harvest list.csv --text-column sentence --hook 'decoder.*.hook_resid_post'
    hooked-whisper harvest list.csv --model small --out store --workers 8 --batch-size 32
    torchrun --nproc-per-node 8 -m hooked_whisper harvest list.csv --model small --out store
    """,
)
def harvest(args: opt.Options) -> None:
    """Store a model's activations on RECORDINGS: files, folders, CSV or JSONL manifests.

    The same command goes on after an interruption. Under torchrun, the
    processes share the work.
    """
    from hooked_whisper.distributed import is_first_rank, torchrun_group
    from hooked_whisper.store import harvest as run

    if args.all_frames and args.approximate:
        raise click.UsageError("give one of --all-frames and --approximate.")
    frames = "all" if args.all_frames else "approximate" if args.approximate else "speech"
    with torchrun_group() as own_device:
        paths = args.recordings
        chosen: Any = paths[0] if len(paths) == 1 else list(paths)
        if not paths:
            chosen = args.chosen_recordings(say=is_first_rank())
        store = run(
            args.load_model(own_device),
            chosen,
            list(args.hooks) or opt.RESIDUAL_STREAM,
            args.out_path("store"),
            frames=frames,
            note=args.remark,
            progress=not args.quiet,
            **args.besides("hooks", "all_frames", "approximate", "remark"),
        )
        if not is_first_rank():
            return
    for skipped in store.skipped:
        opt.note(f"skipped {skipped['id']}: {skipped['reason']}")
    if args.as_json:
        opt.echo_json(summary(store))
    else:
        click.echo(store)
