"""Which heads of cross-attention follow the speech: OpenAI's own list for its releases.

A file seldom names them. A release is known again, whatever format and type its weights
are in, by a vector that no format quantises and any training moves: the scale of the decoder's
last layer norm, whose checksum in bfloat16 stands here for the releases that were at hand. Another
OpenAI file that bears its release's name is held against OpenAI's own SHA-256.
"""

import base64
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import xxhash
from jaxtyping import Bool
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig, release_names
from hooked_whisper.errors import CheckpointError, WeightShapeError, shown
from hooked_whisper.io import bytes_of
from hooked_whisper.weights.files import PIECE_BYTES, is_file, read_json
from hooked_whisper.weights.loaded import LoadedWeights

_FINGERPRINT = "decoder.ln_final.weight"
RELEASES = {"18004473043cffe9": "tiny.en", "b0ad83756daeb19d": "base"}
"""Releases by `fingerprint`."""


def default_heads(cfg: HookedWhisperConfig) -> Bool[Tensor, "layer head"]:
    """What openai-whisper takes where it knows none: all heads of the later half of the layers."""
    heads = torch.zeros(cfg.n_text_layers, cfg.n_text_heads, dtype=torch.bool, device="cpu")
    heads[cfg.n_text_layers // 2 :] = True
    return heads


def release_heads(name: str, cfg: HookedWhisperConfig) -> Bool[Tensor, "layer head"]:
    """The alignment heads of a release, in openai-whisper's registry."""
    import whisper

    return unpack_heads(whisper._ALIGNMENT_HEADS[name], cfg)


def unpack_heads(dump: bytes, cfg: HookedWhisperConfig) -> Bool[Tensor, "layer head"]:
    """A mask of OpenAI's form: a boolean for each head, in gzip, in base 85.

    Raises:
        CheckpointError: It is none.
        WeightShapeError: It is of another number of heads.
    """
    try:
        flat = gzip.decompress(base64.b85decode(dump))
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise CheckpointError(
            f"{shown(dump, 60)} are no alignment heads as OpenAI writes them, gzip in base 85: "
            f"{error}. Pass pairs of layer and head instead."
        ) from error
    if len(flat) != cfg.n_text_layers * cfg.n_text_heads:
        raise WeightShapeError(f"the alignment heads are a mask of {len(flat)}; {_sizes(cfg)}.")
    return torch.tensor(list(flat), dtype=torch.bool).reshape(cfg.n_text_layers, cfg.n_text_heads)


def pack_heads(heads: Bool[Tensor, "layer head"]) -> bytes:
    """A mask in OpenAI's form, as `unpack_heads` reads it."""
    flat = bytes(heads.flatten().tolist())
    return base64.b85encode(gzip.compress(flat, mtime=0))


def as_heads(heads: Any, cfg: HookedWhisperConfig) -> Bool[Tensor, "layer head"]:
    """Alignment heads in any form in which people have them.

    Args:
        heads: Pairs of layer and head; a boolean mask `[layer head]`; the name of a release,
            whose own these are; OpenAI's compressed bytes; a JSON file with `alignment_heads`,
            such as `generation_config.json` or what `AlignmentHeads.save` wrote; or anything
            with a `mask`, as `find_alignment_heads` returns.
        cfg: Of the model.

    Raises:
        CheckpointError: Something else, or no head at all.
        WeightShapeError: Heads that this model does not have.
    """
    cfg.need_decoder()
    heads = getattr(heads, "mask", heads)
    if isinstance(heads, bytes):
        return unpack_heads(heads, cfg)
    if isinstance(heads, str) and heads in release_names():
        return release_heads(heads, cfg)
    if isinstance(heads, str | os.PathLike):
        heads = _from_file(Path(os.fspath(heads)).expanduser())
    if isinstance(heads, Tensor):
        if heads.shape != (cfg.n_text_layers, cfg.n_text_heads):
            raise WeightShapeError(
                f"the mask of alignment heads is {tuple(heads.shape)}; {_sizes(cfg)}."
            )
        heads = heads.to_dense().bool().nonzero().tolist()
    return _from_pairs(heads, cfg)


def find_release(loaded: LoadedWeights, file: Path | None = None) -> str | None:
    """The release whose weights these are; None where they are none that is known.

    Args:
        loaded: Of any format.
        file: The OpenAI checkpoint that they come from.
    """
    vector = loaded.tensors.get(_FINGERPRINT)
    if vector is None:
        return None
    name = RELEASES.get(fingerprint(vector.take(torch.device("cpu"), torch.float32)))
    if name is None and file is not None and file.stem in release_names():
        name = file.stem if _sha256(file) == _sha256_of(file.stem) else None
    if name is None:
        return None
    sizes = ("n_audio_layers", "n_audio_heads", "n_text_layers", "n_text_heads", "d_model")
    release = HookedWhisperConfig.for_release(name)
    fits = all(getattr(release, size) == getattr(loaded.cfg, size) for size in sizes)
    return name if fits else None


def add_known_heads(loaded: LoadedWeights, file: Path | None = None) -> LoadedWeights:
    """The weights with the heads of the release that they are, where the source names none.

    Converters that know none write down `default_heads`, which counts as none.
    """
    heads = loaded.alignment_heads
    if not loaded.cfg.has_decoder:
        return loaded
    if heads is None or torch.equal(heads, default_heads(loaded.cfg)):
        name = find_release(loaded, file)
        loaded.alignment_heads = heads if name is None else release_heads(name, loaded.cfg)
    return loaded


def fingerprint(vector: Tensor) -> str:
    """A checksum of values in bfloat16, which is the same whichever type they went through."""
    return xxhash.xxh3_64(bytes_of(vector.to(torch.bfloat16).contiguous())).hexdigest()


def _sha256(file: Path) -> str:
    state = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            state.update(piece)
    return state.hexdigest()


def _sha256_of(name: str) -> str:
    """What the address of a release says its file's SHA-256 is."""
    import whisper

    return str(whisper._MODELS[name].split("/")[-2])


def _from_file(path: Path) -> Any:
    """What a JSON file has under `alignment_heads`."""
    known = f"a release ({', '.join(release_names())})"
    if not is_file(path):
        raise CheckpointError(
            f"alignment_heads {shown(str(path))} is neither {known} nor a JSON file that is there."
        )
    values = read_json(path)
    if "alignment_heads" not in values:
        raise CheckpointError(f"{path} has no 'alignment_heads'. Name another file, or {known}.")
    return values["alignment_heads"]


def _from_pairs(pairs: Any, cfg: HookedWhisperConfig) -> Bool[Tensor, "layer head"]:
    found = list(pairs) if isinstance(pairs, Iterable) else []
    mask = torch.zeros(cfg.n_text_layers, cfg.n_text_heads, dtype=torch.bool)
    for pair in found:
        numbers = list(pair) if isinstance(pair, Iterable) else []
        if len(numbers) != 2 or not all(type(number) is int for number in numbers):
            raise CheckpointError(
                f"{shown(pair, 60)} is no alignment head: each is a pair of layer and head, both "
                "counted from 0."
            )
        layer, head = numbers
        if not (0 <= layer < cfg.n_text_layers and 0 <= head < cfg.n_text_heads):
            raise WeightShapeError(
                f"the alignment head {shown(pair, 60)} is none of this model; {_sizes(cfg)}."
            )
        mask[layer, head] = True
    if not mask.any():
        raise CheckpointError(
            f"{shown(pairs, 60)} names no alignment head. Pass pairs of layer and head, a mask, "
            "the name of a release, or a JSON file with them."
        )
    return mask


def _sizes(cfg: HookedWhisperConfig) -> str:
    return (
        f"this one has decoder layers 0 to {cfg.n_text_layers - 1} and heads 0 to "
        f"{cfg.n_text_heads - 1}"
    )
