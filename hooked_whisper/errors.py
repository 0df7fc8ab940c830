"""Every exception that hooked_whisper raises on purpose.

    HookedWhisperError
    ├── ConfigError              (ValueError)  a configuration that no Whisper can have
    ├── DeviceError              (ValueError)  a device that this machine or PyTorch does not have
    ├── HookError
    │   ├── HookNameError        (KeyError)    no such hook, or a glob that matches nothing
    │   │   └── HookDisabledError              a hook behind a flag that is off
    │   └── HookResultError      (ValueError)  a hook returned another shape, dtype or device
    ├── CacheError               (ValueError)  a question that this cache cannot answer
    ├── NoDecoderError           (ValueError)  an encoder alone was asked for what a decoder does
    ├── InputError               (ValueError)
    │   ├── AudioError                         audio with no usable samples, NaN or infinity
    │   │   ├── AudioFileError   (OSError)     no such file, or a file that is no audio
    │   │   ├── AudioRateError                 an unknown or impossible sampling rate
    │   │   └── AudioLengthError               too short, too long, wrong number of frames
    │   ├── MelError                           a mel with the wrong bands, axes, dtype or values
    │   ├── LabelError                         words or phones whose times cannot be found or read
    │   ├── TokenError                         tokens out of the vocabulary, too many, not integers
    │   └── ArgumentError    (TypeError)       an argument of a type that the function cannot take
    ├── InterventionError        (ValueError)  an edit or a sweep that cannot be done
    │   ├── SiteError                          a part of an activation that does not exist
    │   ├── AlignmentError                     two runs that do not match in length or shape
    │   ├── MetricError                        a metric that gives no number, or NaN
    │   └── SweepError                         a sweep broke off; it holds what was done
    ├── SAEError
    │   ├── SAEConfigError       (ValueError)  sizes or switches that no autoencoder can have
    │   ├── SAEFileError         (ValueError)  a file that is no autoencoder, or an inconsistent one
    │   ├── SpliceError          (ValueError)  an autoencoder that does not fit its site
    │   └── TrainingError        (ValueError)  training that cannot go on: NaN, no data, k too large
    ├── StoreError               (ValueError)  an activation store that cannot be made or read so
    │   ├── StoreMismatchError                 the folder holds another harvest
    │   ├── StoreDamagedError                  shards that are missing, cut short or changed
    │   ├── StoreBusyError       (OSError)     another process writes into the folder
    │   ├── StoreWriteError      (OSError)     a full disk, or no permission to write
    │   ├── RecordingsError                    no recordings, or one that cannot be used
    │   └── ProbeError                         labels that no probe can learn
    ├── ReportError              (ValueError)  a report that is there already, or cannot be written
    └── WeightsError
        ├── SourceError          (ValueError)  a name or path that leads to no weights
        ├── DownloadError        (OSError)     no network, wrong hash, broken off, refused
        ├── CheckpointError      (ValueError)  a file that cannot be read as plain tensors
        ├── ArchitectureError    (ValueError)  weights of something that is not a Whisper
        ├── WeightNameError      (KeyError)    missing or unexpected tensors
        └── WeightShapeError     (ValueError)  a tensor of another shape than the config needs

Each also derives from the built-in exception named beside it, so that code
which catches the built-in one goes on working.
"""

import math
import numbers
import sys


def shown(value: object, most: int = 160) -> str:
    """A value as an error quotes it: in so many characters at most."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more than 4,300 digits, a list 1,000 deep
        text = f"a huge {type(value).__name__}"
    return cut(text, most)


def describe(value: object) -> str:
    """A short name of what was not what it should be: a tensor's shape, a value, or its type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "a tensor" if type(value).__module__.startswith("torch") else "an array"
        return f"{kind} of shape {tuple(value.shape)} and dtype {value.dtype}"
    return shown(value) if isinstance(value, str | int | float | None) else type(value).__name__


def check_count(name: str, value: object, least: int, error: type[Exception]) -> None:
    """Raise an error for what is no integer from `least` to a billion."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or not least <= value <= 10**9:  # type: ignore[operator]
        raise error(f"{name} is {shown(value)}; it must be an integer of at least {least}.")


def check_number(
    name: str, value: object, error: type[Exception], least: float | int = -math.inf
) -> None:
    """Raise an error for what is no finite number of at least `least`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not least <= value <= sys.float_info.max:  # type: ignore[operator]
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise error(f"{name} is {shown(value)}; it must be a finite number{bound}.")


def check_index(name: str, value: object, n: int, error: type[Exception]) -> None:
    """Raise an error for what is no place among so many, from the front or the back."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or not -n <= value < n:  # type: ignore[operator]
        raise error(f"{name} is {shown(value)}; it must be an integer from {-n} to {n - 1}.")


def cut(text: str, most: int) -> str:
    """A text in so many characters at most, of which the last three say that some are missing."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


MOST = 600
"""Characters of a message that are shown."""


class HookedWhisperError(Exception):
    """Base of every error raised on purpose by this package.

    A message that quotes something long, such as a path or a tensor, is shown without its
    middle: what is wrong stands first, and what to do last. `args` holds all of it.
    """

    def __str__(self) -> str:
        # KeyError would show the repr of its message; users read sentences.
        text = " ".join(str(part) for part in self.args)
        if len(text) <= MOST:
            return text
        return f"{text[: MOST // 2]} ... {text[5 - MOST // 2 :]}"


class ConfigError(HookedWhisperError, ValueError):
    """A configuration that no Whisper can have."""


class DeviceError(HookedWhisperError, ValueError):
    """A device that this machine, or this build of PyTorch, does not have."""


class HookError(HookedWhisperError):
    """Base of the errors about hooks."""


class HookNameError(HookError, KeyError):
    """A hook name that the model does not have, or a filter that matches nothing."""


class HookDisabledError(HookNameError):
    """A hook that exists behind a flag which is off, so that it would never fire."""


class HookResultError(HookError, ValueError):
    """A hook function returned something that cannot take the activation's place."""


class CacheError(HookedWhisperError, ValueError):
    """A question that this cache cannot answer with what it holds."""


class NoDecoderError(HookedWhisperError, ValueError):
    """A model that is an encoder alone was asked for tokens, logits or text."""

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message
            or "this model is an encoder alone: it has no decoder, so that it takes no tokens and "
            "has no logits or text. model(mel), run_with_cache(mel), harvest and autoencoders at "
            "the encoder's hooks are what it can do; for the rest load a whole Whisper."
        )


class InputError(HookedWhisperError, ValueError):
    """Base of the errors about what a model is given to run on."""


class AudioError(InputError):
    """Audio that cannot be used: empty, NaN or infinite samples, wrong axes."""


class AudioFileError(AudioError, OSError):
    """A path that leads to no file, or to a file that is no audio."""


class AudioRateError(AudioError):
    """A sampling rate that is missing or impossible."""


class AudioLengthError(AudioError):
    """Audio or a mel that is too short, too long, or not the model's window."""


class MelError(InputError):
    """A mel spectrogram with the wrong bands, axes, dtype or values."""


class LabelError(InputError):
    """Words or phones whose times cannot be found in a recording, or read from a file."""


class TokenError(InputError):
    """Tokens that are out of the vocabulary, too many, or not integers."""


class ArgumentError(InputError, TypeError):
    """An argument of a type that the function cannot take."""


class InterventionError(HookedWhisperError, ValueError):
    """An edit, a metric or a sweep that cannot be done as it was asked for."""


class SiteError(InterventionError):
    """A part of an activation that does not exist: a head, a position, a time."""


class AlignmentError(InterventionError):
    """Two runs that do not match in length or shape, so that one cannot go into the other."""


class MetricError(InterventionError):
    """A metric that gives no number for each row, or NaN."""


class SweepError(InterventionError):
    """Something went wrong in the middle of a sweep.

    Args:
        message: What, and after how much.
        result: What was done until then.
    """

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class SAEError(HookedWhisperError):
    """Base of the errors about sparse autoencoders."""


class SAEConfigError(SAEError, ValueError):
    """Sizes or switches that no sparse autoencoder can have."""


class SAEFileError(SAEError, ValueError):
    """A file that holds no sparse autoencoder, or one that does not fit together."""


class SpliceError(SAEError, ValueError):
    """An autoencoder that does not fit the site that it is spliced into."""


class TrainingError(SAEError, ValueError):
    """Training that cannot begin or go on as it was asked for."""


class StoreError(HookedWhisperError, ValueError):
    """An activation store that cannot be made or read as it was asked for."""


class StoreMismatchError(StoreError):
    """A folder that holds the store of another harvest."""


class StoreDamagedError(StoreError):
    """A store with shards that are missing, cut short or changed."""


class StoreBusyError(StoreError, OSError):
    """A folder that another process harvests, trains or writes a report into."""


class StoreWriteError(StoreError, OSError):
    """A store that cannot be written: a full disk, or no permission."""


class RecordingsError(InputError, StoreError):
    """No recordings, a list of them that cannot be read, or one that cannot be used."""


class ProbeError(StoreError):
    """Labels that no probe can learn: missing, or all the same."""


class ReportError(HookedWhisperError, ValueError):
    """A report of a study that is there already, or a folder that cannot take one."""


class WeightsError(HookedWhisperError):
    """Base of the errors about finding and reading weights."""


class SourceError(WeightsError, ValueError):
    """A name or path that leads to no weights."""


class DownloadError(WeightsError, OSError):
    """A download that failed: no network, wrong hash, broken off, refused."""


class CheckpointError(WeightsError, ValueError):
    """A file that cannot be read as plain tensors: cut short, pickled objects, another format."""


class ArchitectureError(WeightsError, ValueError):
    """Weights or a config of something that is not a Whisper."""


class WeightNameError(WeightsError, KeyError):
    """A checkpoint with missing or unexpected tensors."""


class WeightShapeError(WeightsError, ValueError):
    """A tensor of another shape than the configuration needs."""
