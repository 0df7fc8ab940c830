"""The table of phones, held against PocketSphinx's own, and what aligners write for silence."""

from pathlib import Path

import pytest

from hooked_whisper.speech.phones import (
    MANNER,
    PLACE,
    guessed_phones,
    in_order,
    is_silence,
    plain_phone,
)


def dictionary() -> dict[str, list[str]]:
    """Every hundredth word of PocketSphinx's dictionary, with its phones."""
    pocketsphinx = pytest.importorskip("pocketsphinx", reason="needs the extra `labels`")
    path = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"))
    lines = path.read_text(encoding="utf-8").splitlines()[::100]
    return {word: phones for word, *phones in map(str.split, lines)}


def test_every_phone_of_the_dictionary_has_a_manner_and_a_place() -> None:
    phones = {phone for phones in dictionary().values() for phone in phones}
    assert len(phones) == 39
    assert phones <= MANNER.keys() == PLACE.keys()


@pytest.mark.parametrize(
    ("phones", "manner", "place"),
    [
        ("P B", "plosive", "bilabial"),
        ("S Z", "fricative", "alveolar"),
        ("SH ZH", "fricative", "postalveolar"),
        ("NG", "nasal", "velar"),
        ("IY AE", "vowel", "front"),
        ("UW AO", "vowel", "back"),
    ],
    ids=lambda value: value,
)
def test_phones_are_made_how_and_where_the_chart_says(phones: str, manner: str, place: str) -> None:
    assert {(MANNER[phone], PLACE[phone]) for phone in phones.split()} == {(manner, place)}


def test_stress_goes_and_what_is_no_arpabet_stays() -> None:
    assert [*map(plain_phone, ["AE1", "ih0", "t", "ɪ", "tʃ", " HH "])] == [
        *("AE", "IH", "T", "ɪ", "tʃ", "HH")
    ]


@pytest.mark.parametrize("label", ["", "sil", "SP", "<eps>", "[NOISE]", "+SPN+", "_", "{SL}"])
def test_silences(label: str) -> None:
    assert is_silence(label)


@pytest.mark.parametrize("label", ["silence", "s", "eps", "noise", "a<b", "0"])
def test_words_that_look_like_silences(label: str) -> None:
    assert not is_silence(label)


def test_the_order_is_that_of_the_table() -> None:
    assert in_order({"AH", "ɪ", "NG", "P", "S", "T"}) == ["P", "T", "S", "NG", "AH", "ɪ"]


def test_a_guess_has_about_as_many_phones_as_the_dictionary_and_only_phones() -> None:
    off, n = 0, 0
    for word, phones in dictionary().items():
        guess = guessed_phones(word.partition("(")[0])
        assert set(guess) <= MANNER.keys()
        off += abs(len(guess) - len(phones))
        n += len(phones)
    assert off / n < 0.15
