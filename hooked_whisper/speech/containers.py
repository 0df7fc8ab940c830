"""How long the headers of an audio file say that it is, which libsndfile does not tell.

libsndfile reads a file that was cut off as far as it goes and calls that its length. Programs that
write to a pipe cannot go back to fill in a length, and leave a placeholder. Both have less sound
than the header says: `examine` tells them apart where that can be told.

Sources: the formats' specifications as kept at https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats;
RFC 3533 (Ogg); ISO 11172-3 (MPEG audio).
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase

from hooked_whisper.speech.streams import Length, examine_mpeg, examine_ogg, find_mpeg

_PLACEHOLDERS = (
    range(0x7F00_0000, 0x7F01_0000),  # sox, AIFF
    range(0x7FFE_0000, 0x8001_0000),  # sox, mplayer, espeak, GStreamer
    range(0xFFFE_0000, 0x1_0000_0000),  # ffmpeg, and AU's own mark
    range(0x7FFF_FFFF_FFFF_0000, 1 << 64),  # 64-bit sizes, and CAF's own mark
)
_IMPLAUSIBLE_BYTES = 1 << 29
_IMPLAUSIBLE_SHARE = 64
_MAX_BEHIND = 4096
_MAX_CHUNKS = 10_000
_MAX_HEADER_BYTES = 1 << 16

NO_LENGTH = "files of this kind do not say how long they are"
_UNCOMPRESSED = (1, 3, 6, 7, 0xFFFE)
"""WAV's numbers of formats in which each sample stands alone."""
_WAV_IDS = (b"RIFF", b"RIFX", b"RF64", b"BW64")


@dataclass(frozen=True)
class FileBytes:
    """A file's bytes at any place."""

    handle: BufferedIOBase
    size: int

    def at(self, place: int, n_bytes: int) -> bytes:
        """Bytes at a place; fewer at the end."""
        if not 0 <= place < self.size:
            return b""
        self.handle.seek(place)
        return self.handle.read(n_bytes)

    def number(self, place: int, form: str) -> int:
        """A number in `struct`'s notation; -1 behind the end."""
        content = self.at(place, struct.calcsize(form))
        return -1 if len(content) < struct.calcsize(form) else struct.unpack(form, content)[0]


def examine(handle: BufferedIOBase, size: int) -> Length:
    """What the headers of an audio file say of its length."""
    file = FileBytes(handle, size)
    head = file.at(0, 32)
    for magic, read in _KINDS.items():
        if head.startswith(magic):
            return read(file)
    start = find_mpeg(
        file.at(0, _MAX_HEADER_BYTES), lambda place: file.at(place, _MAX_HEADER_BYTES)
    )
    return Length() if start is None else examine_mpeg(file.at(0, size), start)


def _sized(file: FileBytes, start: int, claimed: int, outer: int | None = None) -> Length:
    """The length of sound that begins at a byte and has so many, as the header claims.

    Args:
        outer: The size that the whole file has by its header, without the few
            bytes in front; None where there is none.
    """
    there = file.size - start
    if 0 < claimed <= there:
        n_behind = _more_behind(file, start + claimed, claimed)
        if not n_behind:
            return Length()
        return Length(doubt=f"{n_behind:,} bytes follow that its header does not count as sound")
    if not claimed and not there:
        return Length()
    if claimed == 0 or _is_placeholder(claimed):
        return Length(is_open=True)
    if outer is not None and (outer < claimed or _is_placeholder(outer)):
        return Length(is_open=True, doubt="the sizes in its header contradict each other")
    if any(_is_round(number) for number in (claimed, outer)):
        return Length(
            is_open=True,
            doubt=f"its header names a round {claimed:,} bytes of sound, which looks like a "
            "placeholder of a program that wrote to a pipe",
        )
    if claimed >= _IMPLAUSIBLE_BYTES and claimed > _IMPLAUSIBLE_SHARE * there:
        return Length(
            is_open=True,
            doubt=f"its header names {claimed:,} bytes of sound and {max(there, 0):,} are there",
        )
    return Length(is_cut=True)


def _more_behind(file: FileBytes, end: int, claimed: int) -> int:
    """How many bytes follow the sound that are neither chunks, tags nor padding; 0 if few."""
    n_bytes = file.size - end
    if n_bytes <= max(_MAX_BEHIND, claimed // 10):
        return 0
    following = file.at(end, 16)
    is_named = any(re.match(rb"[A-Za-z][ -~]{2}", following[skip:]) for skip in (0, 1))
    return n_bytes if any(following) and not is_named else 0


def _is_placeholder(size: int) -> bool:
    """Whether a size is one that programs write who do not know it yet."""
    return size < 0 or any(size in known for known in _PLACEHOLDERS)


def _is_round(size: int | None) -> bool:
    """Whether somebody thought this size up."""
    return size is not None and size > 0 and (size % 10_000_000 == 0 or size % (1 << 24) == 0)


def _ends_in_a_sample(there: int, block: int) -> bool:
    """Whether streamed sound breaks off between the bytes of a sample; a pad byte is none."""
    is_padded = there % 2 == 0 and (there - 1) % max(block, 1) == 0
    return block > 1 and there % block != 0 and not is_padded


def _only_chunks(file: FileBytes, start: int, order: str) -> bool:
    """Whether the rest of the file is chunks, so that a size of 0 means no sound."""
    while start < file.size:
        name, size = file.at(start, 4), file.number(start + 4, order + "I")
        if not re.fullmatch(rb"[ -~]{4}", name) or not 0 <= size <= file.size - start - 8:
            return False
        start += 8 + size + size % 2
    return True


def _wav(file: FileBytes) -> Length:
    """WAV in both byte orders, and its 64-bit forms."""
    order = ">" if file.at(0, 4) == b"RIFX" else "<"
    riff, block, wide = file.number(4, order + "I"), 0, None
    place = 12
    for _ in range(_MAX_CHUNKS):
        name, size = file.at(place, 4), file.number(place + 4, order + "I")
        if size < 0:
            return Length()  # there is no sound; libsndfile says so
        if name == b"fmt " and file.number(place + 8, order + "H") in _UNCOMPRESSED:
            block = file.number(place + 20, order + "H")
        elif name == b"ds64":
            wide = place + 8
        elif name == b"data":
            break
        place += 8 + size + size % 2
    else:
        return Length()
    start, outer = place + 8, riff
    if wide is not None and size == 0xFFFF_FFFF:
        outer, size = (file.number(wide + 8 * number, "<q") for number in range(2))
    if size == 0 and _only_chunks(file, start, order):
        return Length()
    length = _sized(file, start, size, outer)
    there = file.size - start
    if not block and size % 2 == 1 and size == there:  # GSM's last block is lost without padding
        return length.patched({file.size: b"\0"})
    if not length.is_open:
        return length
    if not length.doubt and _ends_in_a_sample(there, block):
        length = Length(is_open=True, doubt="it ends in the middle of a sample")
    if wide is not None:
        sizes = struct.pack("<qqq", file.size - 8, there, there // max(block, 1))
        return length.patched({wide: sizes})
    known = min(there, 0xFFFF_FFFE)
    riff = min(file.size - 8, 0xFFFF_FFFE)
    return length.patched(
        {4: struct.pack(order + "I", riff), place + 4: struct.pack(order + "I", known)}
    )


def _iff(file: FileBytes) -> Length:
    """AIFF, AIFF-C, 8SVX and 16SV."""
    names = (b"SSND", b"BODY")
    outer, place, size, block = file.number(4, ">I"), 12, -1, 0
    for _ in range(_MAX_CHUNKS):
        name, size = file.at(place, 4), file.number(place + 4, ">I")
        if name in names or size < 0:
            break
        if name == b"COMM" and file.at(8, 4) == b"AIFF":
            block = file.number(place + 8, ">H") * ((file.number(place + 14, ">H") + 7) // 8)
        place += 8 + size + size % 2
    if size < 0 or name not in names:
        return Length()
    n_extra = 8 if name == b"SSND" else 0  # an offset and a block size, which count as data
    start = place + 8 + n_extra
    if size <= n_extra and _only_chunks(file, start, ">"):
        return Length()
    claimed = size if _is_placeholder(size) else max(size - n_extra, 0)
    length = _sized(file, start, claimed, outer)
    if not length.is_open:
        return length
    if not length.doubt and _ends_in_a_sample(file.size - start, block):
        length = Length(is_open=True, doubt="it ends in the middle of a sample")
    return length.patched(
        {
            4: struct.pack(">I", min(file.size - 8, 0xFFFF_FFFE)),
            place + 4: struct.pack(">I", min(file.size - place - 8, 0xFFFF_FFFE)),
        }
    )


def _au(file: FileBytes) -> Length:
    """AU in both byte orders."""
    order = ">" if file.at(0, 4) == b".snd" else "<"
    start, size = file.number(4, order + "I"), file.number(8, order + "I")
    length = _sized(file, start, size)
    return length.patched({8: b"\xff" * 4}) if length.is_open else length


def _w64(file: FileBytes) -> Length:
    """Sony's Wave64, whose sizes count the chunk's own header."""
    place = 40
    for _ in range(_MAX_CHUNKS):
        name, size = file.at(place, 4), file.number(place + 16, "<q")
        if name == b"data":
            claimed = size if _is_placeholder(size) else max(size - 24, 0)
            length = _sized(file, place + 24, claimed, file.number(16, "<q"))
            if not length.is_open:
                return length
            sizes = {16: file.size, place + 16: file.size - place}
            return length.patched({at: struct.pack("<q", size) for at, size in sizes.items()})
        if size < 24:
            break
        place += -(-size // 8) * 8
    return Length()


def _caf(file: FileBytes) -> Length:
    """Apple's CAF; what is compressed needs the table of packets behind the sound too."""
    place = 8
    for _ in range(_MAX_CHUNKS):
        name, size = file.at(place, 4), file.number(place + 4, ">q")
        if len(name) < 4:
            break
        start = place + 12
        if name == b"data":
            length = _sized(file, start, 0 if size == 4 else size)  # 4: a count of edits
            if length.is_open:
                return length.patched({place + 4: struct.pack(">q", file.size - start)})
            if length.is_cut:
                return length
        elif name == b"pakt" and start + size > file.size:
            return Length(is_cut=True)
        if size < 0:
            break
        place = start + size
    return Length()


def _voc(file: FileBytes) -> Length:
    """Creative Voice: blocks up to a last one of no type."""
    place = file.number(20, "<H")
    for _ in range(_MAX_CHUNKS):
        kind = file.at(place, 1)
        if kind == b"\0":
            return Length()
        if not kind:
            return Length(doubt="its last block, which marks the end, is not there")
        low, high = file.number(place + 1, "<H"), file.number(place + 3, "<B")
        place += 4 + max(low, 0) + (max(high, 0) << 16)
        if high < 0 or place > file.size:
            return Length(is_cut=True)
    return Length()


def _nist(file: FileBytes) -> Length:
    """NIST SPHERE, whose header is text."""
    count = re.search(rb"^sample_count -i (\d+)", file.at(0, 1024), re.M)
    if count is None or not int(count[1]):
        return Length(doubt="its header does not say how many samples it has")
    return _counted(int(count[1]))


def _counted(n_frames: int) -> Length:
    """The length by a count of samples, unless that is a placeholder."""
    if n_frames <= 0 or _is_placeholder(n_frames):
        return Length(doubt="its header does not say how many samples it has")
    return Length(n_frames=n_frames)


def _mat4(file: FileBytes) -> Length:
    """MATLAB 4: a matrix of one rate, then one of samples."""
    for order in "<>":
        name_bytes = file.number(16, order + "I")
        place = 20 + name_bytes + 8
        if 0 < name_bytes < 64 and 0 < file.number(place + 16, order + "I") < 64:
            return _counted(file.number(place + 8, order + "I"))
    return Length()


def _mat5(file: FileBytes) -> Length:
    """MATLAB 5: a matrix of one rate, then one of samples, with tags of 8 bytes."""
    order = "<" if file.at(126, 2) == b"IM" else ">"
    samples = 128 + 8 + file.number(132, order + "I")
    return _counted(file.number(samples + 36, order + "I"))


def _sds(file: FileBytes) -> Length:
    """MIDI sample dump: packets of 127 bytes with 120 of samples, 7 bits in each."""
    bits = file.number(6, "B")
    digits = file.at(10, 3)
    if len(digits) < 3 or not 0 < bits <= 28:
        return Length()
    n_frames = sum(digit << 7 * number for number, digit in enumerate(digits))
    per_packet = 120 // -(-bits // 7)
    return Length(is_cut=file.size < 21 + 127 * -(-n_frames // per_packet))


def _xi(file: FileBytes) -> Length:
    """FastTracker's instrument: headers of 40 bytes, then the samples of each."""
    n_samples = file.number(296, "<H")
    sizes = [file.number(298 + 40 * number, "<I") for number in range(min(n_samples, 64))]
    if not all(sizes):
        return Length(doubt=NO_LENGTH)
    return Length(is_cut=file.size < 298 + sum(40 + size for size in sizes))


_KINDS: dict[bytes, Callable[[FileBytes], Length]] = {
    **dict.fromkeys(_WAV_IDS, _wav),
    b"FORM": _iff,
    b".snd": _au,
    b"dns.": _au,
    b"riff\x2e\x91\xcf\x11": _w64,
    b"caff": _caf,
    b"Creative Voice File": _voc,
    b"NIST_1A": _nist,
    b"2BIT": lambda file: _counted(file.number(26, ">I")),  # AVR
    b"ALawSoundFile**": lambda file: _counted(file.number(18, ">I")),  # Psion
    b"\x01\x04": lambda file: _counted(file.number(30, "<I")),  # Akai MPC 2000
    b"Extended Instrument: ": _xi,
    b"MATLAB 5": _mat5,
    b"\xf0\x7e": _sds,
    b"\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00": _mat4,
    b"\x00\x00\x03\xe8\x00\x00\x00\x01\x00\x00\x00\x01": _mat4,
    b"OggS": lambda file: examine_ogg(file.at(0, file.size)),
    b"fLaC": lambda file: Length(),  # libsndfile keeps to its count, and to the ends of frames
    **dict.fromkeys(  # IRCAM in its four forms, Ensoniq PARIS, Portable Voice Format
        [
            b"\x64\xa3\x01\x00",
            b"\x64\xa3\x02\x00",
            b"\x64\xa3\x03\x00",
            b"\x64\xa3\x04\x00",
            b"\x00\x01\xa3\x64",
            b"\x00\x02\xa3\x64",
            b"\x00\x03\xa3\x64",
            b"\x00\x04\xa3\x64",
            b" paf",
            b"fap ",
            b"PVF1",
        ],
        lambda file: Length(doubt=NO_LENGTH),
    ),
}
"""The kinds by how they begin."""
