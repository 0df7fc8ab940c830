"""`hooked-whisper attention`: a page on which heads are seen and heard at work."""

from typing import Any

import click

from hooked_whisper.cli import options as opt


@opt.command(
    opt.file_argument("recording", required=False),
    opt.option("--text", help="What is said; else the model writes it down."),
    opt.LANGUAGE,
    opt.flag("--cut", help="Take the first 30 s of what is longer."),
    opt.option(
        "--max-mb",
        type=opt.OVER_0,
        default=12.0,
        help="Megabytes for the patterns; fewer make them coarser.",
    ),
    out=("The HTML file", "MODEL-attention.html"),
    examples="""
    hooked-whisper attention
    hooked-whisper attention clip.wav --model tiny.en --out clip.html
    hooked-whisper attention clip.wav --text ' three one four'
    hooked-whisper attention speech.mp3 --model small --language de --cut --max-mb 4
    """,
)
def attention(args: opt.Options) -> None:
    """Write a page of all heads' attention on a RECORDING, to look at and to listen to.

    Choose heads from small patterns; point at a token or a time to see where
    it looks, and play the recording from there. One file, no network.
    """
    from hooked_whisper.reports.attention import attention_page

    path = args.new_path("attention.html")
    recording: Any = args.recording
    if recording is None:
        from hooked_whisper import digits

        recording = digits.recordings()[0]
        name = recording.path.name
        args.note(f"no recording named: taking {name}, which comes with the package.")
    page = attention_page(
        args.load_model(),
        recording,
        path,
        text=None if args.text is None else opt.spaced(args.text),
        language=args.language,
        cut=args.cut,
        max_mb=args.max_mb,
    )
    if args.as_json:
        opt.echo_json(
            {"page": page.path, "bytes": page.n_bytes, "text": page.text, "bins": page.bins}
        )
    else:
        click.echo(path)
