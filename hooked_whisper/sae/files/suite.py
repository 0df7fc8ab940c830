"""Suites: autoencoders of several sites of one model, a folder each, and the one that ships."""

import os
from pathlib import Path

import torch

import hooked_whisper.digits as digits
from hooked_whisper.errors import SAEFileError
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.files.load import load_sae

SHIPPED = {"digits": digits.FOLDER.parent / "saes"}
"""Suites that come with the package, by the name of their model."""


def load_suite(
    source: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> dict[str, SAE]:
    """The autoencoders of a suite by the hook that each belongs to, ready for `model.saes`.

    Args:
        source: `"digits"`, which ships with the package; or a folder with a
            folder for each autoencoder, as `sae.save` writes it.
        dtype: Of the weights; None is the files' own.
        device: Of the weights.

    Raises:
        SAEFileError: No such folder, none in it, one that cannot be read or does not say where
            it belongs, or two that belong to one hook.
        DeviceError: A device that is not there.

    >>> list(load_suite("digits"))[:2]
    ['decoder.blocks.0.hook_resid_post', 'decoder.blocks.1.hook_resid_post']
    """
    folder = SHIPPED.get(os.fspath(source)) or Path(source).expanduser()
    if not folder.is_dir():
        raise SAEFileError(f"there is no folder {folder}. Shipped are: {', '.join(SHIPPED)}.")
    suite: dict[str, SAE] = {}
    for path in sorted(each for each in folder.iterdir() if (each / "cfg.json").is_file()):
        sae = load_sae(path, dtype=dtype, device=device)
        name = sae.cfg.hook_name
        if name is None or name in suite:
            what = (
                "does not say which hook it belongs to" if name is None else f"is a second {name!r}"
            )
            raise SAEFileError(f"{path} {what}; a suite has one autoencoder for each hook.")
        suite[name] = sae
    if not suite:
        raise SAEFileError(f"{folder} holds no folder with an autoencoder, as sae.save writes it.")
    return suite
