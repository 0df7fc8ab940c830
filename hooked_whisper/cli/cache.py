"""`hooked-whisper cache`: activations of recordings into files."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli.commands import Command
from hooked_whisper.cli.options import (
    DTYPES,
    RESIDUAL_STREAM,
    chosen_recordings,
    file_names,
    hooks_option,
    json_option,
    language_option,
    listed,
    load_model,
    model_options,
    new_path,
    note,
    out_option,
    overwrite_option,
    quiet_option,
    recordings_argument,
    short_name,
    spaced,
    with_bar,
)
from hooked_whisper.cli.output import echo_json, echo_table

POSITIONS_PER_SECOND = 50


@click.command(
    cls=Command,
    examples="""
    hooked-whisper cache
    hooked-whisper cache clip.wav --model tiny --hook 'encoder.blocks.*.attn.hook_pattern'
    hooked-whisper cache clip.wav --window 0.5 1.2 --dtype fp16 --out moment
    hooked-whisper cache clip.wav --hook 'decoder.*hook_z' --text ' three one four'
    hooked-whisper cache --hook decoder.hook_logits --last-position --json
    """,
)
@recordings_argument
@hooks_option(RESIDUAL_STREAM)
@click.option("--text", help="What is said, for the decoder; else the recording's label.")
@language_option
@click.option("--dtype", type=DTYPES, help="What is stored.  [default: the model's]")
@click.option("--all-frames", is_flag=True, help="Keep the padding of the window too.")
@click.option("--window", type=(float, float), metavar="START END", help="Keep these seconds only.")
@click.option("--last-position", is_flag=True, help="Of the decoder, keep the last token only.")
@model_options
@out_option("A folder that gets a file a recording", "MODEL-cache")
@overwrite_option
@json_option
@quiet_option
def cache(
    recordings: tuple[Path, ...],
    hooks: tuple[str, ...],
    text: str | None,
    language: str,
    dtype: str | None,
    all_frames: bool,
    window: tuple[float, float] | None,
    last_position: bool,
    source: str,
    device: str | None,
    model_dtype: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the model over RECORDINGS and keep activations, for WhisperCache.load.

    Encoder positions that hold sound are kept, and all tokens. The decoder
    runs if one of its hooks is asked for, on --text, the recording's label in
    a manifest, or what the model itself writes down.
    """
    from hooked_whisper.store.fingerprint import as_dtype

    if window and all_frames:
        raise click.UsageError("give one of --window and --all-frames.")
    chosen = listed(chosen_recordings(recordings, quiet))
    files = file_names(chosen, "safetensors")
    folder = new_path(out, f"{short_name(source)}-cache", overwrite=overwrite)
    model = load_model(source, device, model_dtype)
    names = model.hook_names(list(hooks) or RESIDUAL_STREAM)
    needs_tokens = any(name.startswith("decoder") for name in names)
    if window:
        _check_window(model, window)
    rows = []
    for each, file in with_bar(list(zip(chosen, files, strict=True)), "caching", quiet):
        mel = model.to_mel(each.audio)
        tokens = _tokens(model, mel, text or each.text, language) if needs_tokens else None
        n_frames = int(mel.n_positions[0])
        frames = slice(0, n_frames)
        if window:
            frames = slice(*(round(time_s * POSITIONS_PER_SECOND) for time_s in window))
        _, kept = model.run_with_cache(
            mel,
            tokens,
            names_filter=names,
            dtype=as_dtype(dtype) if dtype else None,
            frame_slice=None if all_frames else frames,
            pos_slice=slice(-1, None) if last_position else None,
            return_type=None if tokens is None else "logits",
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file
        kept.save(path)
        rows.append(_row(path, each, kept, model, tokens))
    if as_json:
        echo_json({"model": source, "out": folder, "caches": rows})
        return
    shown = ("file", "activations", "mib", "text")
    echo_table([{name: row[name] for name in shown} for row in rows])
    note(f"WhisperCache.load({str(folder / rows[0]['file'])!r}) reads one.", quiet)


def _check_window(model: Any, window: tuple[float, float]) -> None:
    from hooked_whisper.interventions.sites import check_window

    check_window(window, model.cfg.window_s)


def _tokens(model: Any, mel: Any, text: str | None, language: str) -> Any:
    """The tokens of what is said, or of what the model writes."""
    if text is None:
        return model.generate(mel, language=language).tokens[:, :-1]
    return model.to_tokens(spaced(text), language=language)


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
