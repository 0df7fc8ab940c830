"""Where tensors go: devices by their names, checked before anything is loaded or moved."""

from typing import Any

import torch

from hooked_whisper.errors import DeviceError


def as_device(device: torch.device | str | int | None) -> torch.device:
    """The device that a name means; None is CUDA where there is a GPU, and the CPU elsewhere.

    Raises:
        DeviceError: No such device, or one that this machine or this PyTorch cannot use.

    >>> as_device("cpu")
    device(type='cpu')
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise _refusal(device, "which PyTorch does not know") from error
    try:
        torch.empty(0, device=found)
    except NotImplementedError as error:
        built = f"which this build of PyTorch ({torch.__version__}) cannot use"
        raise _refusal(device, built) from error
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise _refusal(device, f"which cannot be used: {said}") from error
    return found


def _refusal(device: Any, why: str) -> DeviceError:
    has = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        has.append("mps")
    return DeviceError(
        f"device is {str(device)!r}, {why}. This machine has {', '.join(has)}; name one of these, "
        "or none to take a GPU where there is one."
    )
