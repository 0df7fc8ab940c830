"""Audio that is a chain of small pieces, MPEG's frames and Ogg's pages: how long it is, and whole.

Sources: ISO 11172-3 and 13818-3 (frames); RFC 3533 (pages); the headers of Xing and VBRI as
https://www.codeproject.com/Articles/8295/MPEG-Audio-Frame-Header has them.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Length:
    """What a file says of its own length, against the bytes that are there.

    Args:
        is_cut: Bytes that it says it has are not there.
        is_open: It says that its length was unknown when it was begun.
        doubt: Why nobody can tell whether it is whole; empty where one can.
        n_frames: Samples of each channel that must come out; None where only
            bytes are counted.
        patches: Bytes to change, by their place, so that libsndfile reads all of it.
        prefix: Bytes to put in front, for the same, in place of the first `start`.
        n_skip: Samples at the beginning that come of them.
    """

    is_cut: bool = False
    is_open: bool = False
    doubt: str = ""
    n_frames: int | None = None
    patches: Mapping[int, bytes] = field(default_factory=dict)
    prefix: bytes = b""
    start: int = 0
    n_skip: int = 0

    def patched(self, patches: Mapping[int, bytes]) -> "Length":
        """The same, with bytes to change."""
        return replace(self, patches=patches)

    def apply(self, content: bytes) -> bytearray:
        """The file as libsndfile can read it."""
        changed = bytearray(content)
        for place, patch in self.patches.items():
            changed[place : place + len(patch)] = patch
        return bytearray(self.prefix) + changed[self.start :]


@dataclass(frozen=True)
class _Frame:
    """What the header of one MPEG frame says."""

    n_bytes: int
    n_samples: int
    rate_hz: int
    layer: int


_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""By the header's number of a version: 1, 2 and 2.5."""
_KBPS_1 = {
    1: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_KBPS_2 = {
    1: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_DECODER_DELAY = 529
"""Samples that the decoder leaves out at the beginning where frames are counted."""
_MAX_FRAME_BYTES = 4096
_N_SILENT = 8
"""The decoder's buffers turn round in so many frames, and then round as without these."""
_COUNTING_KBPS = 9
"""The number of a bit rate whose frames have space for a count at every rate in Hz."""


def _frame(header: bytes) -> _Frame | None:
    """The frame that four bytes begin; None where they begin none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    kbps, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or kbps in (0, 15) or rate == 3:
        return None
    rate_hz = _RATES_HZ[version][rate]
    bit_rate = 1000 * (_KBPS_1 if version == 3 else _KBPS_2)[layer][kbps - 1]
    n_samples = 384 if layer == 1 else 1152 if layer == 2 or version == 3 else 576
    if layer == 1:
        n_bytes = (12 * bit_rate // rate_hz + padding) * 4
    else:
        n_bytes = n_samples // 8 * bit_rate // rate_hz + padding
    return _Frame(n_bytes, n_samples, rate_hz, layer)


def behind_id3(content: bytes, read: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Where the sound begins behind the tags in front of it, and what is there.

    Args:
        content: The beginning of the file.
        read: As much from another place.
    """
    start = 0
    while content[:3] == b"ID3" and len(content) >= 10:
        n_bytes = 0
        for byte in content[6:10]:
            n_bytes = n_bytes << 7 | byte & 0x7F
        start += 10 + n_bytes + (10 if content[5] & 0x10 else 0)
        content = read(start)
    return start, content


def find_mpeg(content: bytes, read: Callable[[int], bytes]) -> int | None:
    """Where the first of MPEG's frames begins; None where the file is something else.

    Args:
        content: The beginning of the file.
        read: As much from another place, for what stands behind a tag.
    """
    start, content = behind_id3(content, read)
    skipped = 0
    while skipped < len(content) and content[skipped] == 0:
        skipped += 1
    content = content[skipped:]
    if content[:1] != b"\xff" or len(content) < 4 or content[1] & 0xE0 != 0xE0:
        return None
    if _frame(content[:4]) and len(content) < _MAX_FRAME_BYTES:
        return start + skipped  # nothing follows it that could speak for it
    first = _next_frame(content, 0, len(content))
    return None if first == len(content) else start + skipped + first


def examine_mpeg(content: bytes, start: int) -> Length:
    """How long MP3 is, frame by frame: what its decoder says is an estimate.

    Args:
        start: Where the first frame begins.
    """
    first = _frame(content[start : start + 4])
    if first is None:
        return Length()
    n_frames, is_broken = _count_frames(content, start, _before_tags(content))
    if first.layer != 3:
        doubt = "its last frame is not all there" if is_broken else ""
        return Length(doubt=doubt, n_frames=n_frames * first.n_samples)
    head = content[start : start + first.n_bytes]
    place = next((at for mark in (b"Xing", b"Info") if (at := head.find(mark, 0, 64)) > 0), -1)
    if place > 0 or head[36:40] == b"VBRI":
        n_frames -= 1  # the one that holds this header is silent
    if place < 0 or len(head) < place + 12 or not head[place + 7] & 1:  # VBRI is not read either
        doubt = "it has no count of its frames, and the last one is not all there"
        return Length(
            is_open=True,
            doubt=doubt if is_broken else "",
            prefix=_counting_frames(head, n_frames),
            start=start,
            n_skip=_N_SILENT * first.n_samples - _DECODER_DELAY,
        )
    promised = struct.unpack_from(">I", head, place + 8)[0]
    flags, n_bytes = head[place + 7], head[place + 12 : place + 16]
    is_short = flags & 2 and len(content) - start < int.from_bytes(n_bytes, "big")
    if n_frames < promised - 1 or ((is_broken or is_short) and n_frames < promised):
        return Length(is_cut=True)
    if n_frames > promised + 1:  # one more: some encoders count the header's own frame, some not
        return Length(
            doubt=f"its header counts {promised:,} frames and it has {n_frames:,}: several may "
            "have been joined",
            patches={place + start + 8: struct.pack(">I", n_frames)},
        )
    return Length()


def _before_tags(content: bytes) -> int:
    """Where the sound ends at the latest, before the tags at a file's end."""
    end = len(content)
    if content[end - 128 : end - 125] == b"TAG":
        end -= 128
    if content[end - 32 : end - 24] == b"APETAGEX":
        size, _, flags = struct.unpack_from("<III", content, end - 20)
        end -= size + (32 if flags >> 31 else 0)
    return end if end > 0 else len(content)


def _count_frames(content: bytes, start: int, end: int) -> tuple[int, bool]:
    """How many whole frames there are, and whether a last one breaks off."""
    sizes: dict[bytes, int] = {}  # most headers are alike
    n_frames, place = 0, start
    while place + 4 <= end:
        header = content[place : place + 3]
        n_bytes = sizes.get(header)
        if n_bytes is None:
            frame = _frame(content[place : place + 4])
            n_bytes = sizes[header] = 0 if frame is None else frame.n_bytes
        if n_bytes == 0:
            place = _next_frame(content, place + 1, end)
            continue
        if place + n_bytes > end:
            return n_frames, True
        place += n_bytes
        n_frames += 1
    return n_frames, content[place:end].startswith(b"\xff")


def _next_frame(content: bytes, place: int, end: int) -> int:
    """Where the next frame begins after something else; the end where none does."""
    while 0 <= (place := content.find(b"\xff", place, end)):
        frame = _frame(content[place : place + 4])
        if frame and _frame(content[place + frame.n_bytes : place + frame.n_bytes + 4]):
            return place
        place += 1
    return end


def _counting_frames(header: bytes, n_frames: int) -> bytes:
    """A frame that counts the others in Xing's form, and some silent ones.

    Without a count, the decoder takes the length for what frames of the first's size would make.
    """
    first = _silent_frame(header, _COUNTING_KBPS)
    is_mono, is_short = header[3] >> 6 == 3, header[1] >> 3 & 3 != 3
    place = (13 if is_mono else 21) if is_short else (21 if is_mono else 36)
    count = b"Xing" + struct.pack(">II", 1, n_frames + _N_SILENT)
    first = first[:place] + count + first[place + len(count) :]
    return first + _silent_frame(header, 1) * _N_SILENT


def _silent_frame(header: bytes, kbps: int) -> bytes:
    """A frame without sound that may stand in front of another one."""
    new = bytes([0xFF, header[1] | 1, kbps << 4 | header[2] & 0x0C, header[3]])  # no checksum
    frame = _frame(new)
    assert frame is not None
    return new.ljust(frame.n_bytes, b"\0")


def examine_ogg(content: bytes) -> Length:
    """Whether the pages of an Ogg file go on up to the one that is marked as the last."""
    place, first, ended, expected = 0, None, False, 0
    running: set[int] = set()  # a video has a stream of pictures and one of sound
    is_broken, n_lost, n_more = False, 0, 0
    while 0 <= (place := content.find(b"OggS", place)):
        head = content[place : place + 27]
        lacing = content[place + 27 : place + 27 + head[26]] if len(head) == 27 else b""
        end = place + 27 + len(lacing) + sum(lacing)
        is_broken = len(head) < 27 or len(lacing) < head[26] or end > len(content)
        if is_broken:
            break
        serial, number = struct.unpack_from("<II", head, 14)
        if first is None:
            first, expected = serial, number
        if serial == first or (head[5] & 2 and not ended):
            running.add(serial)
        if head[5] & 4:
            running.discard(serial)
        if serial == first and not ended:
            n_lost += number != expected
            expected, ended = number + 1, bool(head[5] & 4)
        elif ended and head[5] & 2:
            n_more += 1
        place = end
    if is_broken and running:
        return Length(is_cut=True)
    if n_more:
        return Length(
            doubt=f"{n_more + 1} streams are joined in it, of which only the first can be read"
        )
    if n_lost:
        return Length(doubt="pages are missing in it")
    if running:
        return Length(is_open=True, doubt="none of its pages is marked as the last one")
    return Length()
