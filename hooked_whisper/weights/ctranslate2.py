"""CTranslate2's folders, which faster-whisper and WhisperX run.

`model.bin` is a number of its layout, the name of the model's kind with a revision, and the
tensors, each after its name, shape and type; at its end are other names of the same tensors.
Query, key and value lie in one matrix. Integers stand for themselves over a scale, one for each
row (int8) or for the whole matrix (int16).

Source: `model_spec.py`, `converters/transformers.py` and `dequantize_cpu.cc` in CTranslate2.
"""

import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hooked_whisper import io
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import ArchitectureError, CheckpointError, WeightNameError, shown
from hooked_whisper.weights.files import (
    FLOAT_DTYPES,
    PieceTensor,
    check_floats,
    equal_tensors,
    is_file,
    read_json,
)
from hooked_whisper.weights.loaded import LoadedWeights
from hooked_whisper.weights.native import CONFIG_FILE, heads_mask
from hooked_whisper.weights.openai import config_from_dims
from hooked_whisper.weights.pieces import RawTensor, ScaledTensor, SomeRows
from hooked_whisper.weights.rename import match_tensors
from hooked_whisper.weights.vocabulary import (
    NAMES,
    Told,
    as_it_says,
    suppressed_tokens,
    told_by_files,
    told_by_tokens,
)

CT2_FILE = "model.bin"
CT2_KEY = "suppress_ids"
"""Of the config of a Whisper; the other formats have no such key."""
VOCABULARY_FILES = ("vocabulary.json", "vocabulary.txt")

_VERSION, _SPEC, _REVISION = 6, "WhisperSpec", 3
_DTYPES = (
    torch.float32,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.float16,
    torch.bfloat16,
)
"""By their number in the file."""
_MOST_TENSORS = 10_000
"""A large Whisper has 1,300 with their scales."""
_FIXED = {
    "decoder/activation": 3,  # GELU
    "decoder/alibi": 0,
    "decoder/alibi_use_positive_positions": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_alibi": 0,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
"""Switches that every Whisper has so; each may be missing."""
_HEADS = ("encoder/num_heads", "decoder/num_heads")
_CONV = "encoder/conv1/weight"
_POSITIONS = ("encoder/position_encodings/encodings", "decoder/position_encodings/encodings")
_UNREAD = ("decoder/alignment_heads", "decoder/alignment_layer")
"""For translation models; a Whisper's heads are in `config.json`."""

_EMBEDDING, _UNEMBEDDING = "decoder/embeddings/weight", "decoder/projection/weight"
_SIZED = (_CONV, *_POSITIONS, _EMBEDDING)
_FUSED = (
    (r"/self_attention/linear_0/(weight|bias)$", ("query", "key", "value")),
    (r"^decoder/.*/attention/linear_0/(weight|bias)$", ("query",)),
    (r"^decoder/.*/attention/linear_1/(weight|bias)$", ("key", "value")),
)
_NAMES = (
    (r"\.blocks\.", "/layer_"),
    (r"\.attn\.(query|key|value)\.(\w+)$", r"/self_attention/linear_0/\2[\1]"),
    (r"\.attn\.out\.", "/self_attention/linear_1/"),
    (r"\.cross_attn\.query\.(\w+)$", r"/attention/linear_0/\1[query]"),
    (r"\.cross_attn\.(key|value)\.(\w+)$", r"/attention/linear_1/\2[\1]"),
    (r"\.cross_attn\.out\.", "/attention/linear_2/"),
    (r"\.ln1\.", "/self_attention/layer_norm/"),
    (r"^(encoder.*)\.ln2\.", r"\1/ffn/layer_norm/"),
    (r"\.ln2\.", "/attention/layer_norm/"),
    (r"\.ln3\.", "/ffn/layer_norm/"),
    (r"\.mlp\.fc_in\.", "/ffn/linear_0/"),
    (r"\.mlp\.fc_out\.", "/ffn/linear_1/"),
    (r"\.ln_final\.", "/layer_norm/"),
    (r"(layer_norm/)weight$", r"\1gamma"),
    (r"(layer_norm/)bias$", r"\1beta"),
    (r"\.token_embedding\.", "/embeddings/"),
    (r"\.positional_embedding$", "/position_encodings/encodings"),
    (r"\.", "/"),
)


def ct2_name(name: str) -> str:
    """The name of a tensor in CTranslate2's file; in brackets, which part of a matrix of several.

    >>> ct2_name("decoder.blocks.0.attn.key.weight")
    'decoder/layer_0/self_attention/linear_0/weight[key]'
    """
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def ct2_kind(path: Path) -> str | None:
    """What kind of model a file of CTranslate2 says it holds; None where it is no such file."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return None
    match = re.match(rb"[\x02-\x1f]\0\0\0[\x02-\x30]\0(\w+Spec)\0", start)
    return match[1].decode() if match else None


def read_ct2_folder(folder: Path, d_vocab: int | None = None) -> LoadedWeights:
    """Weights of a folder that CTranslate2's converter wrote, in any of its types.

    float16, bfloat16 and float32 are what they were; integers become what CTranslate2 itself
    makes of them in float32: the integer times 1 / scale.
    """
    path = folder / CT2_FILE
    raw, aliases = _read_tensors(path)
    held = _unscale(raw, path)
    _check_switches(held, path)
    cfg = config_from_dims(_dims(held, path), folder.resolve().name, f"the shapes in {path}")
    config = _read_config(folder)
    told = told_by_vocabulary(folder) or told_by_files(folder) or _told_by_languages(config)
    stored = _split(_tie(held, aliases, path), path)
    check_floats(stored, path)
    loaded = LoadedWeights(
        cfg=cfg,
        tensors=match_tensors(stored, cfg, ct2_name, str(path)),
        source=str(path),
        alignment_heads=heads_mask(config.get("alignment_heads"), cfg, folder / CONFIG_FILE),
    )
    loaded = as_it_says(loaded, told, d_vocab)
    _compare_suppressed(config, loaded.cfg, folder / CONFIG_FILE)
    return loaded


def told_by_vocabulary(folder: Path) -> Told | None:
    """What the list of tokens says about the vocabulary; it is no condition for loading."""
    for name in VOCABULARY_FILES:
        path = folder / name
        if not is_file(path):
            continue
        try:
            if path.suffix == ".json":
                remedy = "It must be a list of tokens."
                tokens = io.read_json(path, list[str], CheckpointError, remedy)
            else:
                tokens = path.read_text(encoding="utf-8").split("\n")
        except (CheckpointError, OSError, UnicodeDecodeError):
            continue
        return told_by_tokens({token: number for number, token in enumerate(tokens)}, name)
    return None


# The file


def _read_tensors(path: Path) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Every tensor by its name, and other names that some have, none of them read yet."""
    n_held = path.stat().st_size
    try:
        with path.open("rb") as file:
            version, spec = _number(file, "I"), _string(file)
            revision = _number(file, "I")
            if (version, spec, revision) != (_VERSION, _SPEC, _REVISION):
                raise ArchitectureError(
                    f"{path} is a CTranslate2 model {shown(spec, 40)} of revision {revision} in "
                    f"version {version} of its layout; {_SPEC} of revision {_REVISION} in version "
                    f"{_VERSION} is read. Convert the model with a CTranslate2 of 3.0 or later."
                )
            found: dict[str, RawTensor] = {}
            for _ in range(_count(file)):
                tensor = _read_header(file, path)
                if tensor.place + tensor.n_bytes > n_held or tensor.key in found:
                    raise ValueError(f"{tensor.key!r} lies beyond its end, or is there twice")
                found[tensor.key] = tensor
                file.seek(tensor.place + tensor.n_bytes)
            aliases = {_string(file): _string(file) for _ in range(_count(file))}
            if file.read(1):
                raise ValueError("something follows its last tensor")
    except (OSError, ValueError, struct.error) as error:
        if isinstance(error, ArchitectureError):
            raise
        raise CheckpointError(
            f"{path} cannot be read as a CTranslate2 model ({str(error)[:120]}): it was cut short, "
            "damaged, or is another kind of file. Download or convert it again."
        ) from error
    return found, aliases


def _read_header(file: BinaryIO, path: Path) -> RawTensor:
    name = _string(file)
    shape = tuple(_number(file, "I") for _ in range(_number(file, "B")))
    number, n_bytes = _number(file, "B"), _number(file, "I")
    if number >= len(_DTYPES):
        raise ValueError(f"{name!r} has the unknown type {number}")
    tensor = RawTensor(path, name, shape, _DTYPES[number], file.tell())
    if tensor.n_bytes != n_bytes:
        raise ValueError(f"{name!r} is {shape} and has {n_bytes} bytes")
    return tensor


def _number(file: BinaryIO, kind: str) -> int:
    """One unsigned number; struct.error where the file ends."""
    number: int = struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]
    return number


def _count(file: BinaryIO) -> int:
    count = _number(file, "I")
    if count > _MOST_TENSORS:
        raise ValueError(f"it claims {count} tensors")
    return count


def _string(file: BinaryIO) -> str:
    data = file.read(_number(file, "H"))
    if not data.endswith(b"\0"):
        raise ValueError("a name in it has no end")
    return data[:-1].decode()


# From its tensors to Whisper's


def _unscale(held: Mapping[str, RawTensor], path: Path) -> dict[str, PieceTensor]:
    """Integers with their scales, as one tensor each."""
    found: dict[str, PieceTensor] = {}
    for name, tensor in held.items():
        if name.endswith("_scale") and name.removesuffix("_scale") in held:
            continue
        scale = held.get(f"{name}_scale")
        if scale is None:
            found[name] = tensor
            continue
        rows = [(), (1,), tensor.shape[:1]]
        if tensor.dtype not in (torch.int8, torch.int16) or scale.dtype != torch.float32:
            raise CheckpointError(f"{name!r} in {path} has a scale, and is not int8 or int16.")
        if scale.shape not in rows or not tensor.shape:
            raise CheckpointError(
                f"the scale of {name!r} in {path} is {scale.shape}; it must be one number, or one "
                f"for each of its {tensor.shape[:1]} rows."
            )
        found[name] = ScaledTensor(tensor, scale)
    return found


def _check_switches(held: dict[str, PieceTensor], path: Path) -> None:
    """Take the single numbers out but for the heads, once they are those of a Whisper."""
    for name, wanted in _FIXED.items():
        if name in held and (value := _single(held.pop(name), path)) != wanted:
            raise ArchitectureError(
                f"{name} in {path} is {value}; every Whisper of OpenAI has {wanted}, and only that "
                "is computed here."
            )
    for name in _UNREAD:
        held.pop(name, None)


def _single(tensor: PieceTensor, path: Path) -> int:
    if tensor.shape or tensor.dtype in FLOAT_DTYPES:
        raise CheckpointError(f"{path} has {tensor.shape} numbers where one switch belongs.")
    return int(tensor.rows(0, 1))


def _dims(held: dict[str, PieceTensor], path: Path) -> dict[str, int]:
    """OpenAI's dimensions, told from shapes; the numbers of heads are taken out."""
    if missing := [name for name in (*_HEADS, *_SIZED) if name not in held]:
        raise WeightNameError(f"{path} lacks {missing}. A checkpoint must be whole.")

    def size(name: str, axis: int, n_axes: int) -> int:
        if len(shape := held[name].shape) != n_axes:
            raise ArchitectureError(f"{name!r} in {path} is {shape}; it must have {n_axes} axes.")
        return shape[axis]

    def n_layers(stack: str) -> int:
        found = [re.match(rf"{stack}/layer_(\d{{1,4}})/", name) for name in held]
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    return {
        "n_mels": size(_CONV, 1, 3),
        "n_audio_ctx": size(_POSITIONS[0], 0, 2),
        "n_audio_state": size(_CONV, 0, 3),
        "n_audio_head": _single(held.pop(_HEADS[0]), path),
        "n_audio_layer": n_layers("encoder"),
        "n_vocab": size(_EMBEDDING, 0, 2),
        "n_text_ctx": size(_POSITIONS[1], 0, 2),
        "n_text_state": size(_EMBEDDING, 1, 2),
        "n_text_head": _single(held.pop(_HEADS[1]), path),
        "n_text_layer": n_layers("decoder"),
    }


def _tie(
    held: Mapping[str, PieceTensor], aliases: Mapping[str, str], path: Path
) -> dict[str, PieceTensor]:
    """Every tensor by each of its names, but for the unembedding, which is the embedding."""
    stored = dict(held)
    for alias, name in aliases.items():
        if name not in held or alias in held:
            raise CheckpointError(
                f"{path} calls {shown(name, 60)}, which it does not hold, {shown(alias, 60)} too. "
                "Convert the model again."
            )
        if alias != _UNEMBEDDING and len(held[name].shape) > 1:
            raise CheckpointError(
                f"{path} has one matrix for {shown(name, 60)} and {shown(alias, 60)}; only the "
                "embedding and the unembedding of a Whisper are the same."
            )
        stored[alias] = held[name]
    embedding = stored[_EMBEDDING]
    unembedding = stored.pop(_UNEMBEDDING, embedding)
    if unembedding is not embedding and not equal_tensors(unembedding, embedding):
        raise ArchitectureError(
            f"{_UNEMBEDDING!r} in {path} differs from {_EMBEDDING!r}; Whisper's unembedding is its "
            "embedding. Tie them before converting the model."
        )
    return stored


def _split(stored: Mapping[str, PieceTensor], path: Path) -> dict[str, PieceTensor]:
    """Query, key and value by themselves, without the key's bias, which must be 0."""
    found: dict[str, PieceTensor] = {}
    for name, tensor in stored.items():
        parts = next((parts for pattern, parts in _FUSED if re.search(pattern, name)), None)
        if parts is None:
            found[name] = tensor
            continue
        if not tensor.shape or tensor.shape[0] % len(parts):
            raise ArchitectureError(
                f"{name!r} in {path} is {tensor.shape}; its rows are those of {', '.join(parts)}."
            )
        n_rows = tensor.shape[0] // len(parts)
        for number, part in enumerate(parts):
            key = f"{name}[{part}]"
            rows = SomeRows(tensor, key, number * n_rows, n_rows)
            if key.endswith("bias[key]"):
                if len(tensor.shape) == 1 and rows.rows(0, n_rows).any():
                    raise ArchitectureError(
                        f"{key!r} in {path} is not 0; the keys of OpenAI's Whisper have no bias."
                    )
                continue
            found[key] = rows
    return found


# What lies beside the file


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    return read_json(path) if is_file(path) else {}


def _told_by_languages(config: Mapping[str, Any]) -> Told | None:
    """Which vocabulary the languages' tokens are of; English-only models list 99 as well."""
    ids = config.get("lang_ids")
    if not isinstance(ids, list) or len(ids) < 2 or any(type(number) is not int for number in ids):
        return None
    sizes = {50357: frozenset({51864, 51865}), 50358: frozenset({51866})}.get(max(ids))
    return Told(sizes, f"lang_ids in {CONFIG_FILE} lists {len(ids)} languages") if sizes else None


def _compare_suppressed(config: Mapping[str, Any], cfg: HookedWhisperConfig, path: Path) -> None:
    """Say where this model suppresses other tokens than OpenAI does, as decoding here does too."""
    ids = config.get(CT2_KEY)
    if not isinstance(ids, list) or not ids or cfg.d_vocab not in NAMES:
        return
    if set(ids) != set(suppressed_tokens(cfg)):
        warnings.warn(
            f"suppress_ids in {path} are other tokens than OpenAI's list, which decoding here "
            "suppresses. For transcripts like CTranslate2's pass suppress_tokens with these ids.",
            stacklevel=2,
        )
