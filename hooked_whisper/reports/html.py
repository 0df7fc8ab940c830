"""A page as one file: a template, its data, pictures, styles and scripts, with nothing to fetch."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.display import data_uri, json_value
from hooked_whisper.errors import InputError
from hooked_whisper.io import make_folder, write_whole

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

PALETTE = "cividis"
"""The colours of every spectrogram: readable in greyscale and by the colour-blind."""

_DATA_URI = re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64,[A-Za-z0-9+/]*=*")


def render(
    template: str,
    data: Mapping[str, Any],
    title: str,
    media: Sequence[str] = (),
    **shown: Any,
) -> str:
    """One self-contained HTML file, as text.

    `templates/{template}.html` extends `page.html`. Styles and scripts of
    `static/page.*`, and behind them those of `static/{template}*` by their
    names, stand in the file. The data is there as JSON, which `hw.data` of `page.js` reads; the
    template sees it as `data`. A content security policy forbids every
    connection.

    Args:
        template: Its name without the ending: `"features"`.
        data: What JSON can hold, and numbers that are not finite, which become null.
        title: Of the page; any text.
        media: Data URIs of what is large, which `hw.media(number)` reads when it is needed;
            the page opens without reading them.
        shown: What else the template shows, such as tables as HTML.

    Raises:
        InputError: Data that JSON cannot hold, or media that are no data URIs.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    for uri in media:
        if not _DATA_URI.fullmatch(uri):
            raise InputError(f"{uri[:40]!r}... is no data URI in base64, as encode_mel makes them.")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        lstrip_blocks=True,
    )
    text: str = environment.get_template(f"{template}.html").render(
        title=title,
        data=data,
        media=[Markup(uri) for uri in media],
        json=Markup(safe_json(data)),
        css=Markup(_static(template, "css")),
        js=Markup(_static(template, "js")),
        **shown,
    )
    # Half of a surrogate pair, as in an undecodable file name, cannot be written as UTF-8.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def write_page(
    path: Path,
    template: str,
    data: Mapping[str, Any],
    title: str,
    media: Sequence[str] = (),
    **shown: Any,
) -> int:
    """Write what `render` gives, whole or not at all, into a folder that is made; in bytes."""
    encoded = render(template, data, title, media, **shown).encode("utf-8")
    make_folder(path.parent)
    write_whole(path, lambda file: file.write(encoded))
    return len(encoded)


def safe_json(data: Any) -> str:
    r"""JSON that can stand in a `<script>` whatever it holds.

    >>> safe_json({"name": "</script>", "value": float("nan")})
    '{"name":"\\u003c/script\\u003e","value":null}'
    """
    try:
        text = json.dumps(
            json_value(data), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"the page's data cannot be written as JSON: {error}.") from error
    # In JSON these stand inside of strings only; U+2028 and U+2029 end a line in old scripts.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_styles() -> str:
    """The styles that all pages share, to be put into a page of one's own."""
    return (STATIC / "page.css").read_text(encoding="utf-8")


def _static(template: str, ending: str) -> str:
    """The shared styles or scripts, and the template's own behind them."""
    files = [STATIC / f"page.{ending}", *sorted(STATIC.glob(f"{template}*.{ending}"))]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return "\n".join(texts)


def encode_mel(mel: Float[Tensor, "mel frame"]) -> str:
    """A log-mel spectrogram as the data URI of an image, a pixel for each frame and band.

    Low bands are at the bottom; dark is quiet. WebP, about 2 kB a second.

    Args:
        mel: One recording's: `mel.values[0, :, :n_frames]`.

    Raises:
        InputError: No frames.
    """
    if not mel.numel():
        raise InputError(f"the mel has shape {tuple(mel.shape)}; there is nothing to draw.")
    values = mel.detach().float().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    return encode_image((values[::-1] - low) / ((high - low) or 1.0))


def encode_image(values: Any, *, quality: int = 75) -> str:
    """A matrix `[row column]` of numbers from 0 to 1 as the data URI of an image, row 0 on top.

    `quality` is WebP's; 100 keeps every pixel as it is.
    """
    import matplotlib
    from PIL import Image

    steps = (np.asarray(values, dtype=np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    colours = matplotlib.colormaps[PALETTE](np.arange(256), bytes=True)[:, :3]
    file = io.BytesIO()
    Image.fromarray(colours[steps]).save(
        file, "WEBP", quality=quality, lossless=quality >= 100, method=4
    )
    return data_uri("image/webp", file.getvalue())


def encode_values(
    values: Float[Tensor, "..."], low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """Numbers as one byte each, which `hw.values` of `page.js` reads.

    Args:
        values: In any number of axes, which become one.
        low: What the byte 0 stands for; None is the least of them.
        high: What 255 stands for; None is the greatest.

    Returns:
        `low`, `high` and `bytes` in base64. A number comes back within
        (high - low) / 510.
    """
    flat = values.detach().double().cpu().flatten().numpy()
    if not np.isfinite(flat).all():
        raise InputError("values that are NaN or infinite cannot be written as bytes.")
    low = (float(flat.min()) if len(flat) else 0.0) if low is None else float(low)
    high = (float(flat.max()) if len(flat) else 0.0) if high is None else float(high)
    scaled = (flat - low) / ((high - low) or 1.0) * 255
    raw = scaled.round().clip(0, 255).astype(np.uint8).tobytes()
    return {"low": low, "high": high, "bytes": base64.b64encode(raw).decode()}
