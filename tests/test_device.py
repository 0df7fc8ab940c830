"""A device that is not there is refused everywhere, before anything is loaded or moved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from hooked_whisper import HookedWhisper, WhisperCache
from hooked_whisper.cli import main
from hooked_whisper.device import as_device
from hooked_whisper.errors import DeviceError
from hooked_whisper.sae import TopKConfig, TrainingConfig, load_sae, load_suite
from hooked_whisper.speech.mel import to_mel

ABSENT = "cuda:99"
"""No machine has so many GPUs."""

CALLS: dict[str, Callable[[HookedWhisper, Any, Any], Any]] = {
    "from_pretrained": lambda *_: HookedWhisper.from_pretrained("no such file", device=ABSENT),
    "from_openai": lambda model, *_: HookedWhisper.from_openai(model, device=ABSENT),
    "to": lambda model, *_: model.to(ABSENT),
    "to by name": lambda model, *_: model.to(device=torch.device(ABSENT), dtype=torch.float64),
    "run_with_cache": lambda model, mel, tokens: model.run_with_cache(mel, tokens, device=ABSENT),
    "cache.to": lambda model, mel, _: model.run_with_cache(mel)[1].to(ABSENT),
    "WhisperCache.load": lambda *_: WhisperCache.load("no such file", device=ABSENT),
    "to_mel": lambda *_: to_mel("no such file", n_mels=80, n_frames=3000, device=ABSENT),
    "load_sae": lambda *_: load_sae("no such file", device=ABSENT),
    "load_suite": lambda *_: load_suite("digits", device=ABSENT),
    "TrainingConfig": lambda *_: TrainingConfig(
        TopKConfig(d_in=4, d_sae=8, k=2), n_steps=1, device=ABSENT
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_everything_that_takes_a_device_refuses_one_that_is_not_there(
    call: Callable[..., Any],
    fresh_model: HookedWhisper,
    reference_model: Any,
    tiny_mel: Any,
    tiny_tokens: Any,
    request: pytest.FixtureRequest,
) -> None:
    model = reference_model if "from_openai" in request.node.name else fresh_model
    with pytest.raises(DeviceError, match=r"device is 'cuda:99', .*This machine has cpu"):
        call(model, tiny_mel, tiny_tokens)
    assert {(each.device.type, each.dtype) for each in fresh_model.parameters()} == {
        ("cpu", torch.float32)
    }


@pytest.mark.parametrize("command", ["info", "transcribe", "cache"])
def test_the_command_line_says_it_in_one_line(command: str, tmp_path: Path) -> None:
    out = [] if command == "info" else ["--out", str(tmp_path / "out")]
    answer = CliRunner().invoke(main, [command, "--device", ABSENT, *out])
    assert answer.exit_code == 1
    assert "Error: device is 'cuda:99', which" in answer.output
    assert "unexpected" not in answer.output


@pytest.mark.parametrize("name", ["tpu", "", "gpu", "cuda:x", "CPU"])
def test_a_word_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"device is '{name}', which PyTorch does not know"):
        as_device(name)


def test_none_is_a_device_that_can_be_used() -> None:
    assert torch.zeros(1, device=as_device(None)).sum() == 0
