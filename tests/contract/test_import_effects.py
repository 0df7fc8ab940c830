"""`import hooked_whisper` is cheap and changes nothing: heavy packages load when first used."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

HEAVY = ("whisper", "numba", "matplotlib", "soundfile", "soxr", "transformers", "huggingface_hub")

# What transformer_lens does at import is its own affair: the picture is taken after it.
SCRIPT = """
import json, logging, os, random, signal, sys, warnings
import torch, transformer_lens
import numpy

def picture():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(numpy.random.get_state()),
        "Python's random state": str(random.getstate()),
        "warnings filters": [str(entry) for entry in warnings.filters],
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "log handlers": [str(handler) for handler in logging.getLogger().handlers],
        "log level": logging.getLogger().level,
        "interrupt handler": str(signal.getsignal(signal.SIGINT)),
        "numpy's error handling": numpy.geterr(),
        "hooks on every module": len(torch.nn.modules.module._global_forward_hooks),
    }

opened = []
def watch(event, args):
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so")):
        opened.append(str(args[0]))
    if event.startswith(("socket.", "subprocess.")):
        opened.append(event)

modules = set(sys.modules)
before = picture()
sys.addaudithook(watch)
import hooked_whisper
from hooked_whisper import HookedWhisper
seen = list(opened)
after = picture()
print(json.dumps({
    "modules": sorted(set(sys.modules) - modules),
    "changed": sorted(key for key in before if before[key] != after[key]),
    "opened": seen,
    "backend": "matplotlib" in sys.modules and sys.modules["matplotlib"].rcParams["backend"],
}))
"""


@pytest.fixture(scope="module")
def effects() -> dict[str, Any]:
    """What `import hooked_whisper` did in a process of its own, after transformer_lens."""
    # Unchecked and without bytecode written: as a user imports it, but leaving no files.
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_wait_until_they_are_used(effects: dict[str, Any], package: str) -> None:
    loaded = [name for name in effects["modules"] if name.split(".")[0] == package]
    assert loaded == []


def test_it_brings_little_beside_transformer_lens(effects: dict[str, Any]) -> None:
    """Lazily loaded parts (figures, the command line) and other packages stay away."""
    new = {name.split(".")[0] for name in effects["modules"]}
    # The standard library is free to grow; what is installed beside us is not.
    third_party = {name for name in new if name not in sys.stdlib_module_names}
    light = {"jaxtyping", "einops", "safetensors", "torch", "tqdm", "markupsafe"}
    assert third_party <= light | {"hooked_whisper"}


def test_nothing_global_changes(effects: dict[str, Any]) -> None:
    assert effects["changed"] == []


def test_no_file_is_opened_and_nothing_is_started(effects: dict[str, Any]) -> None:
    assert effects["opened"] == []


def test_no_plotting_backend_is_chosen(effects: dict[str, Any]) -> None:
    assert effects["backend"] is False
