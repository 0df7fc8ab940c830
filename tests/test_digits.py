"""The shipped recordings show themselves, with sound."""

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hooked_whisper.digits import recordings


def test_a_recording_is_played_beside_its_words(shown: Callable[[Any], Any]) -> None:
    recording = replace(recordings()[0], speaker="<i>jackson")
    found = shown(recording)
    (sound,) = found.all("audio")
    kind, _, body = sound["src"].partition(",")
    assert kind == "data:audio/flac;base64"
    assert base64.b64decode(body) == recording.path.read_bytes()
    assert "jackson-3-1-4.flac 'three one four', <i>jackson, 3.20 s" in found.text
    assert [row[0] for row in found.rows] == ["word", "three", "one", "four"]


def test_the_former_name_of_a_recordings_class_works_and_warns() -> None:
    from hooked_whisper import digits

    with pytest.warns(DeprecationWarning, match="digits.Recording is SpokenDigits now"):
        assert digits.Recording is digits.SpokenDigits
    with pytest.raises(AttributeError, match="no attribute 'Recordings'"):
        digits.Recordings  # noqa: B018
