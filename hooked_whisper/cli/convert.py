"""`hooked-whisper convert`: weights of any format that is read, written in one of three."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt

FORMATS = ("hooked_whisper", "huggingface", "openai")


@opt.command(
    click.Argument(["source"], metavar="IN"),
    opt.file_argument("target", metavar="OUT"),
    opt.option(
        "--format",
        "to",
        type=click.Choice(FORMATS),
        help="Who reads it.  [default: openai where OUT ends in .pt, else huggingface]",
    ),
    opt.option(
        "--dtype",
        type=opt.DTYPE,
        help="Of what is written.  [default: as it is stored; fp32 of integers]",
    ),
    model=False,
    quiet=False,
    examples="""
    hooked-whisper convert digits digits.pt
    hooked-whisper convert ggml-small.bin small-hf
    hooked-whisper convert faster-whisper-small small.pt --dtype fp32
    """,
)
def convert(args: opt.Options) -> None:
    """Write the weights of IN, in any format that can be read, to OUT.

    IN is what --model takes elsewhere: a release, a checkpoint of OpenAI, a
    file of whisper.cpp, a folder of Hugging Face, CTranslate2 or MLX, or a hub
    id. OUT is a new file that ends in .pt, for openai-whisper, or a new folder,
    for transformers.
    """
    from hooked_whisper.model.whisper import HookedWhisper
    from hooked_whisper.store.fingerprint import as_dtype

    target: Path = args.target
    dtype: Any = as_dtype(args.dtype) if args.dtype else "auto"
    to: Any = args.to or ("openai" if target.suffix == ".pt" else "huggingface")
    model = HookedWhisper.from_pretrained(args.source, device="cpu", dtype=dtype)
    model.save_pretrained(target, format=to)
    written = str(model.dtype).removeprefix("torch.")
    n_parameters = sum(weights.numel() for weights in model.parameters())
    if args.as_json:
        numbers = {"dtype": written, "n_parameters": n_parameters}
        opt.echo_json({"source": args.source, "out": target, "format": to, **numbers})
    else:
        click.echo(f"{target}: {to}, {n_parameters:,} parameters in {written}.")
