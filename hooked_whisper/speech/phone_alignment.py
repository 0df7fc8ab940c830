"""When the words and phones of a text are said: forced alignment by PocketSphinx, English only."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.errors import LabelError, shown
from hooked_whisper.speech.labels import TimedLabel
from hooked_whisper.speech.phones import MANNER, guessed_phones, is_silence

if TYPE_CHECKING:
    from pocketsphinx import Decoder

STEP_S = 0.01
"""PocketSphinx's grid."""
_CENTRE_S = 0.0256 / 2 - STEP_S / 2
"""How much later than its number says a step lies: its window of 25.6 ms is heard in the middle."""
_WIDE = 1e-200
"""A beam that no speech falls out of; tried where the default one loses the text."""


class Alignment(NamedTuple):
    """When the words and phones of a text are said.

    Args:
        words: Lower case, without marks, as they come in the text.
        phones: ARPAbet without stress; none in words that no dictionary has.
        unknown: These words.
    """

    words: tuple[TimedLabel, ...]
    phones: tuple[TimedLabel, ...]
    unknown: tuple[str, ...]


class PhoneAligner:
    """PocketSphinx's US English model, with its dictionary of 134,000 words.

    Args:
        pronunciations: More words, or others' pronunciations: ARPAbet with spaces between.

    Raises:
        LabelError: PocketSphinx, of the extra `labels`, cannot be imported; a pronunciation of
            phones that it does not have.

    Source: Huggins-Daines et al. 2006; the acoustic model "en-us" of CMUSphinx.
    """

    def __init__(self, pronunciations: Mapping[str, str] | None = None) -> None:
        try:
            import pocketsphinx  # noqa: F401
        except ImportError as error:
            raise LabelError(
                f"phones are aligned by PocketSphinx, which cannot be imported ({error}). Install "
                "it: pip install 'hooked-whisper[labels]'"
            ) from error
        self.pronunciations = {
            word.lower(): " ".join(phones.upper().split())
            for word, phones in (pronunciations or {}).items()
        }
        known = {phone for phone in MANNER if phone in _CMU_PHONES}
        for word, phones in self.pronunciations.items():
            if not phones or not known.issuperset(re.sub(r"\d", "", phones).split()):
                raise LabelError(
                    f"the pronunciation of {shown(word)} is {shown(phones)}; it must be phones of "
                    f"ARPAbet with spaces between: {' '.join(sorted(known))}."
                )

    @cached_property
    def _decoder(self) -> "Decoder":
        return self._new()

    def _new(self, **settings: Any) -> "Decoder":
        from pocketsphinx import Decoder

        # The best path through a lattice may leave a phone less than its three states.
        decoder = Decoder(
            samprate=SAMPLE_RATE_HZ, loglevel="FATAL", lm=None, bestpath=False, **settings
        )
        for word, phones in self.pronunciations.items():
            decoder.add_word(_own(word), re.sub(r"\d", "", phones), True)
        return decoder

    def align(self, samples: Float[Tensor, " sample"], text: str) -> Alignment:
        """When the words and phones of a text are said.

        Raises:
            LabelError: The text has no words, or the sound does not follow it.
        """
        words = words_of(text)
        if not words:
            raise LabelError(f"the text {shown(text)} has no words.")
        data = (samples.numpy().clip(-1, 1) * 32767).astype("<i2").tobytes()
        spoken, unknown = self._spoken(self._decoder, words)
        found = _run(self._decoder, spoken, data)
        if found is None:
            # One that has failed once may fail again: what it knew is gone with it.
            self.__dict__.pop("_decoder")
            wide = self._new(beam=_WIDE, pbeam=_WIDE, wbeam=_WIDE)
            self._spoken(wide, words)
            found = _run(wide, spoken, data)
        if found is None:
            raise LabelError(f"the sound does not follow the text {shown(text)}.")
        said = [entry for entry in found if not is_silence(entry[0].value)]
        if len(said) != len(words):
            raise LabelError(f"the sound does not follow the text {shown(text)}.")
        timed = [piece._replace(value=word) for (piece, _), word in zip(said, words, strict=True)]
        phones = [
            phone
            for (_, of_word), word in zip(said, words, strict=True)
            if word not in unknown
            for phone in of_word
        ]
        return Alignment(tuple(timed), tuple(phones), tuple(unknown))

    def _spoken(self, decoder: "Decoder", words: list[str]) -> tuple[list[str], list[str]]:
        """The words as the decoder's dictionary has them, and those that it had not."""
        spoken, unknown = [], []
        for word in words:
            names = (_own(word), word, word.strip("'"), word.removesuffix("'s"))
            name = next((name for name in names if name and decoder.lookup_word(name)), None)
            if name is None or word in unknown:
                name = f"~{word}"
                if not decoder.lookup_word(name):
                    phones = " ".join(guessed_phones(word)) or "AH"
                    decoder.add_word(name, phones, True)
                unknown += [] if word in unknown else [word]
            spoken.append(name)
        return spoken, unknown


_CMU_PHONES = frozenset(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W "
    "Y Z ZH".split()
)


def _own(word: str) -> str:
    """The name of a word whose pronunciation is given: the dictionary keeps its own."""
    return f"={word}"


def words_of(text: str) -> list[str]:
    """The words of a text as a dictionary has them: lower case, apostrophes kept.

    >>> words_of("Don't—they said: “No.”")
    ["don't", 'they', 'said', 'no']
    """
    plain = text.lower().replace("’", "'")
    return [word for word in re.findall(r"[^\W_]+(?:'[^\W_]+)*'?", plain)]


def _run(
    decoder: "Decoder", words: list[str], data: bytes
) -> list[tuple[TimedLabel, list[TimedLabel]]] | None:
    """Each word with its phones, silences too; None where the sound does not follow."""
    try:
        decoder.set_align_text(" ".join(words))
        for last in (False, True):
            decoder.start_utt()
            decoder.process_raw(data, full_utt=True)
            decoder.end_utt()
            if not last:
                decoder.set_alignment()  # the second pass finds the phones within the words
        alignment = decoder.get_alignment()
    except RuntimeError:
        return None
    return [(_piece(word), [_piece(phone) for phone in word]) for word in alignment.words()]


def _piece(entry: Any) -> TimedLabel:
    start_s = entry.start * STEP_S + _CENTRE_S if entry.start else 0.0
    end_s = (entry.start + entry.duration) * STEP_S + _CENTRE_S
    name = re.sub(r"\(\d+\)$", "", entry.name)
    return TimedLabel(round(start_s, 4), round(end_s, 4), name)
