"""Sound and videos as cameras, browsers and telephones write them, encoded by PyAV."""

import io
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np

RATE_HZ = 48_000


def sweep(seconds: float = 1.5, n_channels: int = 2, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A tone that rises, `[channel sample]`: like itself at no other time."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    tone = 0.4 * np.sin(2 * np.pi * (200 * times + 400 * times**2))
    return np.stack([tone * (1 - 0.5 * channel) for channel in range(n_channels)]).astype("f4")


def encode(
    samples: np.ndarray,
    form: str,
    codec: str,
    *,
    rate_hz: int = RATE_HZ,
    n_streams: int = 1,
    has_video: bool = False,
    is_piped: bool = False,
    **options: str,
) -> bytes:
    """A file of some format, with streams of sound, and pictures where asked for.

    Args:
        is_piped: Written to what cannot be sought in, so that no length is filled in.
        options: FFmpeg's, for the format.
    """
    import av

    pipe, file = io.BytesIO(), Path(mkdtemp()) / "file"
    sink = type("Pipe", (), {"write": pipe.write})() if is_piped else file
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(sink, "w", format=form, options=options) as out:
        if has_video:
            video: Any = out.add_stream("mpeg1video" if form == "mpeg" else "mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        streams: list[Any] = []
        for _ in range(n_streams):
            stream: Any = out.add_stream(codec, rate=rate_hz, layout=layout)
            stream.bit_rate = 128_000
            streams.append(stream)
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate_hz, 0
            resampler = av.AudioResampler(stream.format.name, layout, rate_hz)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(stream.encode(piece))
            out.mux(stream.encode(None))
        if has_video:
            for number in range(int(25 * samples.shape[1] / rate_hz)):
                picture = np.full((32, 32, 3), number, np.uint8)
                out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(video.encode(None))
    content = pipe.getvalue() if is_piped else file.read_bytes()
    rmtree(file.parent)
    return content


KINDS: dict[str, dict[str, Any]] = {
    "m4a": {"form": "ipod", "codec": "aac"},
    "m4a, index first": {"form": "ipod", "codec": "aac", "movflags": "faststart"},
    "alac": {"form": "ipod", "codec": "alac"},
    "mp4": {"form": "mp4", "codec": "aac", "has_video": True},
    "mp4 in fragments": {"form": "mp4", "codec": "aac", "movflags": "frag_keyframe+empty_moov"},
    "mov": {"form": "mov", "codec": "pcm_s16le", "has_video": True},
    "webm": {"form": "webm", "codec": "libopus"},
    "webm, live": {"form": "webm", "codec": "libopus", "is_piped": True},
    "mkv": {"form": "matroska", "codec": "aac", "has_video": True},
    "aac": {"form": "adts", "codec": "aac"},
    "avi": {"form": "avi", "codec": "pcm_s16le", "has_video": True},
    "flv": {"form": "flv", "codec": "aac"},
    "wma": {"form": "asf", "codec": "wmav2"},
    "ts": {"form": "mpegts", "codec": "aac", "has_video": True},
    "mpg": {"form": "mpeg", "codec": "mp2", "has_video": True},
    "wav of AC-3": {"form": "wav", "codec": "ac3"},
}
"""Kinds that libsndfile does not read, and how to write them."""
