"""`hooked-whisper cache`: activations of recordings into files."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt


@opt.command(
    opt.RECORDINGS,
    opt.hooks_option(opt.RESIDUAL_STREAM),
    opt.option("--text", help="What is said, for the decoder; else the recording's label."),
    opt.LANGUAGE,
    opt.option("--dtype", type=opt.DTYPE, help="What is stored.  [default: the model's]"),
    opt.flag("--all-frames", help="Keep the padding of the window too."),
    opt.option(
        "--window", type=(float, float), metavar="START END", help="Keep these seconds only."
    ),
    opt.flag("--last-position", help="Of the decoder, keep the last token only."),
    out=("A folder that gets a file a recording", "MODEL-cache"),
    examples="""
    hooked-whisper cache
    hooked-whisper cache clip.wav --model tiny --hook 'encoder.blocks.*.attn.hook_pattern'
    hooked-whisper cache clip.wav --window 0.5 1.2 --dtype fp16 --out moment
    hooked-whisper cache clip.wav --hook 'decoder.*hook_z' --text ' three one four'
    hooked-whisper cache --hook decoder.hook_logits --last-position --json
    """,
)
def cache(args: opt.Options) -> None:
    """Run the model over RECORDINGS and keep activations, for WhisperCache.load.

    Encoder positions that hold sound are kept, and all tokens. The decoder
    runs if one of its hooks is asked for, on --text, the recording's label in
    a manifest, or what the model itself writes down.
    """
    from hooked_whisper.config import POSITIONS_PER_SECOND
    from hooked_whisper.interventions.sites import check_window
    from hooked_whisper.io import make_folder
    from hooked_whisper.store.fingerprint import as_dtype

    window: tuple[float, float] | None = args.window
    if window and args.all_frames:
        raise click.UsageError("give one of --window and --all-frames.")
    recordings = args.listed_recordings()
    files = opt.file_names(recordings, "safetensors")
    folder = args.new_folder("cache", files)
    model = args.load_model()
    names = model.hook_names(list(args.hooks) or opt.RESIDUAL_STREAM)
    needs_tokens = any(name.startswith("decoder") for name in names)
    if window:
        check_window(window, model.cfg.window_s)
    rows = []
    for recording, file in args.with_bar(zip(recordings, files, strict=True), "caching"):
        mel = model.to_mel(recording.audio)
        tokens = None
        if needs_tokens:
            language = recording.language or args.language
            tokens = _tokens(model, mel, args.text or recording.text, language)
        frames = slice(0, int(mel.n_positions[0]))
        if window:
            frames = slice(*(round(time_s * POSITIONS_PER_SECOND) for time_s in window))
        _, kept = model.run_with_cache(
            mel,
            tokens,
            names_filter=names,
            dtype=as_dtype(args.dtype) if args.dtype else None,
            frame_slice=None if args.all_frames else frames,
            pos_slice=slice(-1, None) if args.last_position else None,
            return_type=None if tokens is None else "logits",
        )
        make_folder(folder)
        path = folder / file
        kept.save(path)
        rows.append(_row(path, recording, kept, model, tokens))
    if args.as_json:
        opt.echo_json({"model": args.source, "out": folder, "caches": rows})
        return
    shown = ("file", "activations", "mib", "text")
    opt.echo_table([{name: row[name] for name in shown} for row in rows])
    args.note(f"WhisperCache.load({str(folder / rows[0]['file'])!r}) reads one.")


def _tokens(model: Any, mel: Any, text: str | None, language: str | None) -> Any:
    """The tokens of what is said, or of what the model writes; of silence those before a text."""
    from hooked_whisper.data.batches import written_rows
    from hooked_whisper.model.language import spoken_language

    if text is not None:
        return model.to_tokens(opt.spaced(text), language=spoken_language(model, mel, language))
    written = model.generate(mel, language=language, skip_silence=True)
    return written.tokens[:, : len(written_rows(written, model.cfg)[0])]


def _row(path: Path, recording: Any, kept: Any, model: Any, tokens: Any) -> dict[str, Any]:
    shapes = {name: list(value.shape) for name, value in kept.items()}
    return {
        "file": path.name,
        "recording": recording.id,
        "activations": len(kept),
        "mib": kept.nbytes / 2**20,
        "text": None if tokens is None else model.to_string(tokens)[0].strip(),
        "shapes": shapes,
    }
