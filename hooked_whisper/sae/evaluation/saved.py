"""Judgements that are not finished, on the disk: the sums so far, to go on from after a kill."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from typing_extensions import TypedDict

from hooked_whisper.analysis.massive_activations import SumsByNorm
from hooked_whisper.analysis.moments import RunningMoments
from hooked_whisper.data.recordings import Recording
from hooked_whisper.errors import InputError, StoreWriteError, shown
from hooked_whisper.hooks.splice_site import SpliceSite
from hooked_whisper.io import (
    as_path,
    checksum_of_audio,
    checksum_of_json,
    checksum_of_model,
    checksum_of_tensors,
    growing_file,
    parse_json,
    save_tensors,
)
from hooked_whisper.sae.evaluation.downstream import RecoveredMeter
from hooked_whisper.sae.evaluation.inputs import Inputs
from hooked_whisper.sae.evaluation.reconstruction import ReconstructionMeter, VarianceMeter
from hooked_whisper.sae.saving import explained_writing

METERS = (ReconstructionMeter, VarianceMeter, RecoveredMeter, RunningMoments, SumsByNorm)
"""What sums up: their attributes are numbers, tensors and one another."""
_REMEDY = "Remove it to begin anew, or name another file."


class Header(TypedDict):
    """What a file says beside tensors."""

    format: Literal["hooked_whisper.judging/1"]
    made_with: dict[str, Any]
    state: dict[str, Any]
    xxh3_128: str


@contextmanager
def kept_on_disk(
    save_to: str | os.PathLike[str] | None,
    made_with: Callable[[], dict[str, Any]],
    state: Callable[[], dict[str, Any]],
    take: Callable[[dict[str, Any]], object],
) -> Iterator[Callable[[], None]]:
    """Go on from a file, and write it now and then; where the block is broken off, no more.

    Args:
        save_to: The file; None keeps nothing.
        made_with: What the judgement is told apart by.
        state: All that is known so far, by name.
        take: Is given that of the file, if there is one.

    Yields:
        What to call where the state is whole.
    """
    if save_to is None:
        yield lambda: None
        return
    path, marks = as_path(save_to, InputError), made_with()

    def save() -> None:
        write_state(path, marks, state())

    with growing_file(path, "evaluation", save) as step:
        if path.exists():
            take(read_state(path, marks, state()))
        save()
        yield step
        save()


def what_is_judged(
    inputs: Inputs, sites: Sequence[SpliceSite], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a judgement is told apart by: all of the weights, and recordings with their sound."""
    saes = [
        checksum_of_model(site.sae) if isinstance(site.sae, nn.Module) else type(site.sae).__name__
        for site in sites
    ]
    named: dict[str, Any] = {
        "model": checksum_of_model(inputs.model),
        "autoencoders": saes,
        "hooks": [[site.hook_in, site.hook_out] for site in sites],
        "recordings": checksum_of_json([list(map(_of_recording, inputs.recordings)), inputs.given]),
        "batch_size": inputs.batch_size,
        "language": inputs.language,
        **{name: shown(value, 120) for name, value in options.items()},
    }
    return named


def _of_recording(recording: Recording) -> list[Any]:
    audio, found = recording.audio, None
    try:
        found = checksum_of_audio(audio)
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # it will be skipped, and listed
    return [recording.id, recording.text, recording.tokens, dict(recording.labels), found]


def write_state(path: Path, made_with: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write meters, numbers and texts by name, whole or not at all, with a checksum.

    Raises:
        StoreWriteError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = {name: _plain(value, name, tensors) for name, value in state.items()}
    header = {"format": "hooked_whisper.judging/1", "made_with": dict(made_with), "state": tree}
    header["xxh3_128"] = _checksum(header, tensors)
    with explained_writing(path, StoreWriteError, "What was kept before is whole."):
        save_tensors(path, tensors, {"judging": json.dumps(header)})


def read_state(path: Path, made_with: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """What `write_state` wrote, by name; meters are those of `state`, with their sums.

    Raises:
        InputError: It cannot be read, is damaged, or is of something else.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("judging", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {str(error)[:200]}. {_REMEDY}") from error
    header: dict[str, Any] = dict(parse_json(text, Header, InputError, str(path), _REMEDY))
    if header.pop("xxh3_128") != _checksum(header, tensors):
        raise InputError(f"{path} is damaged: its checksum is of other content. {_REMEDY}")
    for what, now in made_with.items():
        earlier = header["made_with"].get(what)
        if earlier != json.loads(json.dumps(now)):
            raise InputError(
                f"{path} holds a judgement of other {what}: {shown(earlier, 100)}, not "
                f"{shown(now, 100)}. {_REMEDY}"
            )
    try:
        return {name: _back(header["state"][name], tensors, state[name]) for name in state}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r:.100}. {_REMEDY}") from error


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return checksum_of_json([dict(header), checksum_of_tensors(tensors)])


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON has it; tensors are put with the others, under the names of their places."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone()
        return {"tensor": name}
    if isinstance(value, METERS):
        return {
            "meter": {key: _plain(v, f"{name}.{key}", tensors) for key, v in vars(value).items()}
        }
    if isinstance(value, dict):
        return {"dict": [[key, _plain(v, f"{name}.{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{name}.{i}", tensors) for i, each in enumerate(value)]
    return value


def _back(tree: Any, tensors: Mapping[str, Tensor], into: Any = None) -> Any:
    """The value that became this; `into` is a meter that takes the sums of one."""
    if isinstance(tree, list):
        return [_back(each, tensors) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "dict" in tree:
        return {key: _back(each, tensors) for key, each in tree["dict"]}
    for key in vars(into):
        setattr(into, key, _back(tree["meter"][key], tensors, getattr(into, key)))
    return into
