"""A page on which to listen to sounds and to read what was found out about each."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_SECOND, SAMPLE_RATE_HZ
from hooked_whisper.errors import ReportError
from hooked_whisper.io import as_path
from hooked_whisper.reports.html import encode_mel, write_page
from hooked_whisper.speech.audio import encode_audio
from hooked_whisper.speech.mel import Mel

Sound = tuple[Float[Tensor, " sample"] | None, Mel, Mapping[str, Any]]
"""Its samples at 16 kHz (None: it cannot be played), its log-mel, and what is known of it."""
_FEWEST_FRAMES = 2


def sound_page(
    sounds: Sequence[Sound],
    path: str | os.PathLike[str],
    *,
    title: str,
    lead: Sequence[str] = (),
    tables: Sequence[tuple[str, Markup]] = (),
    play_s: float | int = 6.0,
) -> Path:
    """Write one HTML file with a table of sounds that sorts and plays, and tables above it.

    Args:
        sounds: What each is, with the same names for all; of a text called `name` the row is
            called.
        path: The file.
        title: Of the page.
        lead: Sentences above.
        tables: Tables, as HTML, with what they are called.
        play_s: How much of each sound the page holds, from its beginning, in seconds; 7 kB each.

    Returns:
        The path.

    Raises:
        ReportError: No path.
        StoreWriteError: It cannot be written.
    """
    target = as_path(path, ReportError)
    rows: list[dict[str, Any]] = []
    media: list[str] = []
    for samples, mel, known in sounds:
        row: dict[str, Any] = {"known": dict(known), "media": None}
        if samples is not None and len(samples):
            n = round(play_s * SAMPLE_RATE_HZ)
            row["media"] = len(media)
            row["seconds"] = min(len(samples), n) / SAMPLE_RATE_HZ
            media.append(encode_audio(samples[:n]))
        n_frames = min(int(mel.n_frames[0]), round(play_s * FRAMES_PER_SECOND))
        row["mel"] = encode_mel(mel.values[0, :, : max(_FEWEST_FRAMES, n_frames)])
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row["known"]))
    data = {"names": names, "rows": rows, "lead": list(lead), "play_s": float(play_s)}
    shown = [{"title": name, "table": html} for name, html in tables]
    write_page(target, "sounds", data, title, media, tables=shown)
    return target
