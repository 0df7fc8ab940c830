"""The phones of English in ARPAbet: how and where each is made, and the silences of aligners.

Sources: the ARPAbet of the CMU Pronouncing Dictionary (39 phones; stress as a digit behind a
vowel) and the reduced ones that TIMIT adds; manner and place of the consonants as in the chart of
the International Phonetic Association (2020), of the vowels by the height and backness of the
vowel, or of a diphthong's beginning (Ladefoged and Johnson 2014, chapters 2 and 4).
"""

import re
from collections.abc import Iterable
from typing import Any

_TABLE = """
plosive      bilabial      P B
plosive      alveolar      T D DX
plosive      velar         K G
affricate    postalveolar  CH JH
fricative    labiodental   F V
fricative    dental        TH DH
fricative    alveolar      S Z
fricative    postalveolar  SH ZH
fricative    glottal       HH
nasal        bilabial      M EM
nasal        alveolar      N EN NX
nasal        velar         NG ENG
lateral      alveolar      L EL
approximant  labial-velar  W
approximant  postalveolar  R
approximant  palatal       Y
vowel        front         IY IH EH EY AE
vowel        central       AH ER AX IX AXR UX AW AY
vowel        back          UW UH OW AO AA OY
"""

MANNER: dict[str, str] = {}
"""How each phone is made: plosive, affricate, fricative, nasal, lateral, approximant, vowel."""
PLACE: dict[str, str] = {}
"""Where each phone is made; of vowels, where in the mouth the tongue is: front, central, back."""
for _manner, _place, *_phones in map(str.split, _TABLE.strip().splitlines()):
    MANNER.update(dict.fromkeys(_phones, _manner))
    PLACE.update(dict.fromkeys(_phones, _place))

SILENCES = frozenset({"", "_", "-", "#", "h#", "sil", "sp", "spn", "nsn", "pau"})
"""What aligners call silence and noise; whatever stands in brackets is none of speech either."""


def plain_phone(label: Any) -> str:
    """A phone without stress and in capitals where it is ARPAbet; any other as it is.

    >>> plain_phone("ae1"), plain_phone("ʃ")
    ('AE', 'ʃ')
    """
    text = str(label).strip()
    phone = text.rstrip("012").upper()
    return phone if phone in MANNER else text


def is_silence(label: Any) -> bool:
    """Whether a word or phone of an alignment is what its author wrote for silence or noise.

    >>> [is_silence(each) for each in ("<eps>", "SIL", "+SPN+", "[laughter]", "silence")]
    [True, True, True, True, False]
    """
    text = str(label).strip().lower()
    return text in SILENCES or re.fullmatch(r"<.*>|\[.*\]|\{.*\}|\+.*\+", text) is not None


def in_order(phones: Iterable[str]) -> list[str]:
    """Phones as tables of manner and place have them; what is no ARPAbet comes last.

    >>> in_order(["AH", "x", "S", "P"])
    ['P', 'S', 'AH', 'x']
    """
    place = {phone: i for i, phone in enumerate(MANNER)}
    return sorted(phones, key=lambda phone: (place.get(phone, len(place)), phone))


_SOUNDS = """
tch CH | sh SH | ch CH | th TH | ph F | wh W | ng NG | ck K | qu K W | gh G | kn N | wr R
ee IY | ea IY | oo UW | ai EY | ay EY | ei EY | ey IY | ie IY | oa OW | ou AW | ow OW | oy OY
oi OY | au AO | aw AO | er ER | ir ER | ur ER | ar AA R | or AO R
a AE | b B | c K | d D | e EH | f F | g G | h HH | i IH | j JH | k K | l L | m M | n N | o AA
p P | q K | r R | s S | t T | u AH | v V | w W | x K S | y IY | z Z
"""
_LETTERS = {
    letters: tuple(phones)
    for letters, *phones in (each.split() for each in _SOUNDS.replace("\n", "|").split("|") if each)
}


def guessed_phones(word: str) -> tuple[str, ...]:
    """What a word that no dictionary has might sound like, letter by letter.

    Good enough to find when it is said; wrong too often to tell which phones are.

    >>> guessed_phones("shoppy")
    ('SH', 'AA', 'P', 'IY')
    """
    phones: list[str] = []
    at = 0
    letters = word.lower()
    while at < len(letters):
        size = next((n for n in (3, 2, 1) if letters[at : at + n] in _LETTERS), 0)
        found = _LETTERS.get(letters[at : at + size], ())
        if found[:1] != tuple(phones[-1:]):  # a doubled letter is one sound
            phones += found
        at += max(size, 1)
    return tuple(phones)
