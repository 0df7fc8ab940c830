"""Kinds of files that soundfile does not read: which a file is, and whether it is all there.

MP4 and its kin, Matroska, MPEG streams, AVI, FLV, ASF, bare AAC, AMR. FFmpeg reads a file that was
cut off as far as it goes, as libsndfile does; the sizes in the file tell.

Sources: ISO 14496-12 (MP4's boxes), RFC 8794 and 9559 (Matroska's elements), ISO 13818-1 (MPEG
streams), ISO 13818-7 (ADTS), RFC 4867 (AMR), and Microsoft's and Adobe's of AVI, ASF and FLV.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from hooked_whisper.speech.containers import FileBytes
from hooked_whisper.speech.streams import Length, behind_id3

_MAX_PARTS = 1_000_000
_UNFINISHED = Length(is_open=True, doubt="its last part is not all there")
_BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"sidx", b"wide")
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_AMR_BYTES = {
    b"#!AMR\n": (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1),
    b"#!AMR-WB\n": (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1),
}
"""Bytes of a frame, its own first one counted, by the frame's type."""


@dataclass(frozen=True)
class Medium:
    """A kind of file that FFmpeg's libraries read.

    Args:
        name: What people call it.
        demuxer: What FFmpeg calls it.
        examine: How long a file of it is, by the sizes in it.
        is_stream: Made to be joined in the middle: pieces that cannot be
            decoded are no proof that it was damaged.
        is_trimmed: The length of its sound is exact, and the last frame's
            padding goes.
    """

    name: str
    demuxer: str
    examine: Callable[[FileBytes], Length]
    is_stream: bool = False
    is_trimmed: bool = False


def find_medium(file: FileBytes) -> Medium | None:
    """The kind by how the file begins; None where it is none of these."""
    head = file.at(0, 400)
    if head[4:8] in _BOXES:
        return _MP4
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _AVI
    for start in (0, 4):
        if all(head[start + 188 * number :][:1] == b"\x47" for number in range(3)):
            return _TS
    for magic, medium in _BY_MAGIC.items():
        if head.startswith(magic):
            return medium
    start, _ = behind_id3(head, lambda place: file.at(place, len(head)))
    first = _adts_bytes(file, start)
    return _ADTS if first and _adts_bytes(file, start + first) else None


def _mp4(file: FileBytes) -> Length:
    """Boxes: a size, a name. `moov` says where the sound is; `moof` continues it."""
    place, has_index = 0, False
    for _ in range(_MAX_PARTS):
        size, name, header = file.number(place, ">I"), file.at(place + 4, 4), 8
        if size == 1:
            size, header = file.number(place + 8, ">Q"), 16
        is_last = size == 0
        if is_last:
            size = file.size - place
        if len(name) < 4 or size < header or not name.isascii():
            break  # the end, or something behind it
        if place + size > file.size:
            return Length(is_cut=True)
        has_index |= name == b"moov"
        place += size
        if is_last:
            break
    return Length(is_cut=not has_index)


def _matroska(file: FileBytes) -> Length:
    """Elements: a number that says what, a size. A live one has segments of unknown sizes."""
    place, is_open = 0, False
    for _ in range(_MAX_PARTS):
        if place >= file.size:
            break
        name, n_name = _ebml_number(file, place, keeps_mark=True)
        size, n_size = _ebml_number(file, place + n_name)
        if not n_name or not n_size:
            return _UNFINISHED if is_open else Length(is_cut=True)
        place += n_name + n_size
        if size == (1 << 7 * n_size) - 1:  # unknown: its parts follow
            is_open = True
            continue
        place += size
        if place > file.size:
            return _UNFINISHED if is_open else Length(is_cut=True)
        if name == _SEGMENT:
            return Length()
    return Length(is_open=is_open, is_cut=not is_open)  # a file without a segment is no file


def _ebml_number(file: FileBytes, place: int, keeps_mark: bool = False) -> tuple[int, int]:
    """A number whose first bits tell how many bytes it has, and how many; 0 where it is none."""
    first = file.number(place, "B")
    if first <= 0:
        return 0, 0
    n_bytes = 9 - first.bit_length()
    content = file.at(place, n_bytes)
    if len(content) < n_bytes:
        return 0, 0
    value = int.from_bytes(content, "big")
    return (value if keeps_mark else value ^ 1 << 7 * n_bytes), n_bytes


def _avi(file: FileBytes) -> Length:
    """RIFF, several in a row in large files; a size of 0 is one that nobody filled in."""
    place = 0
    while file.at(place, 4) == b"RIFF":
        size = file.number(place + 4, "<I")
        if size in (0, 0xFFFF_FFFF):
            return Length(is_open=True)
        place += 8 + size
    return Length(is_cut=place > file.size)


def _flv(file: FileBytes) -> Length:
    """Tags with the size of the tag before in front of each."""
    place = file.number(5, ">I") + 4
    for _ in range(_MAX_PARTS):
        if place >= file.size:
            return Length(is_open=True)
        place += 11 + (file.number(place, ">I") & 0xFF_FFFF) + 4
        if place > file.size:
            return _UNFINISHED
    return Length(is_open=True)


def _asf(file: FileBytes) -> Length:
    """One of its first objects says how long the file is, and whether that was known."""
    place = 30
    for _ in range(64):
        size = file.number(place + 16, "<Q")
        if file.at(place, 16) == _ASF_FILE:
            is_live = file.number(place + 88, "<I") & 1
            claimed = file.number(place + 40, "<Q")
            return Length(is_open=bool(is_live), is_cut=not is_live and claimed > file.size)
        if size < 24:
            break
        place += size
    return Length(is_cut=True)


def _transport(file: FileBytes) -> Length:
    """Packets of 188 bytes, on disks with 4 more in front."""
    n_bytes = 188 if file.at(0, 1) == b"\x47" == file.at(188, 1) else 192
    return _UNFINISHED if file.size % n_bytes else Length(is_open=True)


def _program(file: FileBytes) -> Length:
    """Packs and packets, each behind a code that begins with 00 00 01; an end code is rare."""
    place = 0
    for _ in range(_MAX_PARTS):
        head = file.at(place, 14)
        if head[:3] != b"\0\0\1" or len(head) < 4 or head[3] == 0xB9:
            break  # the end, or something behind it
        if head[3] != 0xBA:
            place += 6 + max(file.number(place + 4, ">H"), 0)
        elif len(head) == 14 and head[4] >> 6 == 1:
            place += 14 + (head[13] & 7)
        else:
            place += 12  # of MPEG-1
        if place > file.size:
            return _UNFINISHED
    return Length(is_open=True)


def _adts(file: FileBytes) -> Length:
    """Frames of AAC, as radio sends them: no count anywhere."""
    place, _ = behind_id3(file.at(0, 400), lambda place: file.at(place, 400))
    for _ in range(_MAX_PARTS):
        n_bytes = _adts_bytes(file, place)
        if not n_bytes:
            break
        place += n_bytes
    if place > file.size or file.at(place, 1) == b"\xff":
        return _UNFINISHED
    return Length(is_open=True)


def _adts_bytes(file: FileBytes, place: int) -> int:
    """Bytes of the frame that begins here; 0 where none does."""
    head = file.at(place, 7)
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    n_bytes = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return n_bytes if n_bytes > 7 else 0


def _amr(file: FileBytes) -> Length:
    """Frames of 20 ms of speech; the first byte of each tells its size."""
    magic = next((each for each in _AMR_BYTES if file.at(0, len(each)) == each), None)
    if magic is None:  # of several channels
        return Length(is_open=True)
    content, place = file.at(0, file.size), len(magic)
    while place < len(content):
        place += _AMR_BYTES[magic][content[place] >> 3 & 15]
    return _UNFINISHED if place > len(content) else Length(is_open=True)


_MP4 = Medium("MP4", "mov", _mp4, is_trimmed=True)
_AVI = Medium("AVI", "avi", _avi)
_TS = Medium("an MPEG transport stream", "mpegts", _transport, is_stream=True)
_ADTS = Medium("AAC", "aac", _adts, is_stream=True)
_BY_MAGIC = {
    struct.pack(">I", _EBML): Medium("Matroska or WebM", "matroska", _matroska),
    b"FLV\x01": Medium("FLV", "flv", _flv, is_stream=True),
    _ASF: Medium("WMA or WMV", "asf", _asf),
    b"#!AMR": Medium("AMR", "amr", _amr, is_stream=True),
    b"\x00\x00\x01\xba": Medium("an MPEG program stream", "mpeg", _program, is_stream=True),
}
REFUSED = {
    b"OggS": Medium("Ogg", "ogg", lambda file: Length()),
    b"caff": Medium("CAF", "caf", lambda file: Length()),
    b"RIFF": Medium("WAV", "wav", lambda file: Length()),
}
"""Kinds that soundfile reads unless what is in them is a video or a codec that it lacks."""
