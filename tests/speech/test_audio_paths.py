"""Paths that lead to no sound, and headers that say what cannot be: errors that name the remedy."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hooked_whisper.data import Recording
from hooked_whisper.errors import AudioError, AudioFileError
from hooked_whisper.speech import load_audio

from .test_audio_files import RATE_HZ, SOUND, noise, outcome, wav, written


class TestHeaderless:
    def test_text_called_au_is_no_sound(self, tmp_path: Path) -> None:
        (tmp_path / "text.au").write_text("hello " * 5000)
        with pytest.raises(AudioFileError, match=r"text\.au' cannot be read .*no header.*ffmpeg"):
            load_audio(tmp_path / "text.au")

    @pytest.mark.parametrize("suffix", ["vox", "gsm"])
    def test_telephone_formats_are_read_with_a_warning(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"call.{suffix}"
        path.write_bytes(bytes(3300))
        with pytest.warns(UserWarning, match=r"it has no header: it is taken for"):
            assert len(load_audio(path)) > 3000


def folder_of_bad_paths(folder: Path) -> dict[str, Callable[[], Path | str]]:
    """Paths that lead to no ordinary file."""

    def fifo() -> Path:
        os.mkfifo(folder / "fifo.wav")
        return folder / "fifo.wav"

    def listening() -> Path:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "socket.wav"))
        return folder / "socket.wav"

    def loop() -> Path:
        (folder / "loop.wav").symlink_to(folder / "loop.wav")
        return folder / "loop.wav"

    def file_as_folder() -> Path:
        (folder / "file").touch()
        return folder / "file" / "x.wav"

    return {
        "fifo": fifo,
        "socket": listening,
        "loop": loop,
        "file as folder": file_as_folder,
        "device": lambda: "/dev/zero",
        "terminal": lambda: "/dev/null",
        "NUL": lambda: "a\0b.wav",
        "long name": lambda: "x" * 5000 + ".wav",
        "long path": lambda: "folder/" * 3000,
        "surrogate": lambda: "\udcff.wav",
        "broken surrogate": lambda: "\ud800.wav",
        "nobody's home": lambda: "~nosuchuser/x.wav",
        "empty": lambda: "",
    }


class TestPaths:
    @pytest.mark.parametrize("kind", folder_of_bad_paths(Path()))
    def test_what_is_no_file(self, tmp_path: Path, kind: str) -> None:
        path = folder_of_bad_paths(tmp_path)[kind]()
        with pytest.raises(AudioFileError, match=r"there is no file|is no path|is a|folder") as got:
            load_audio(path)
        assert len(str(got.value)) < 600

    def test_name_that_is_no_utf8(self, tmp_path: Path) -> None:
        path = os.path.join(os.fsencode(tmp_path), b"\xff.wav")
        soundfile.write(path, noise(), RATE_HZ, format="WAV")
        assert load_audio(os.fsdecode(path)).shape == (8000,)

    def test_folder_that_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        with pytest.raises(AudioFileError, match=r"no file 'x\.wav' \(from a folder that is gone"):
            load_audio("x.wav")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_unreadable_file(self, tmp_path: Path) -> None:
        path = written(tmp_path, "WAV", "PCM_16")
        path.chmod(0)
        with pytest.raises(AudioFileError, match=r"Permission denied.*may read it"):
            load_audio(path)


class TestHeaders:
    def test_cut_header_in_memory_leaves_no_noise(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """libsndfile seeks before the beginning, and Python's traceback of it went to stderr."""
        content = written(tmp_path, "AIFF", "PCM_16").read_bytes()
        for size in range(12, 60):
            outcome(content[:size])
        assert "Traceback" not in capfd.readouterr().err

    def test_hundreds_of_channels(self, tmp_path: Path) -> None:
        path = written(tmp_path, "WAV", "PCM_16", samples=np.zeros((500, 257), np.float32))
        with pytest.raises(AudioError, match=r"has 257 channels; up to 256 .*ffmpeg -ac 1"):
            load_audio(path)

    @pytest.mark.parametrize(
        "place_and_number",
        [(22, b"\0\0"), (24, bytes(4)), (24, b"\xff" * 4), (34, b"\0\0"), (32, b"\0\0")],
        ids=["no channels", "no rate", "absurd rate", "no bits", "no block"],
    )
    def test_absurd_numbers(self, place_and_number: tuple[int, bytes]) -> None:
        place, number = place_and_number
        data = bytearray(wav(len(SOUND), SOUND))
        data[place : place + len(number)] = number
        try:
            samples = Recording("x", bytes(data)).load()
        except AudioError as error:
            assert len(str(error)) < 600
        else:
            assert len(samples) == 8000

    def test_bytes_of_a_file_are_read_as_the_file_is(self, tmp_path: Path) -> None:
        content = written(tmp_path, "WAV", "PCM_16").read_bytes()
        assert Recording("x", content).load().shape == (8000,)
        with pytest.raises(AudioFileError, match=r"audio of 16,043 bytes is cut off"):
            Recording("x", content[:-1]).load()
        with pytest.raises(AudioFileError, match=r"audio is empty"):
            Recording("x", b"").load()
