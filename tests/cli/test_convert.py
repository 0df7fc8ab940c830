"""`hooked-whisper convert`: from any format to OpenAI's, transformers' and this package's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.weights.rename import openai_name

from ..weights.ct2 import convert_to_ct2, small_vocabulary
from ..weights.ggml_files import write_ggml
from ..weights.mlx_files import write_mlx


@pytest.fixture(scope="module")
def model(make_model: Any, tiny_cfg: Any) -> HookedWhisper:
    return make_model(tiny_cfg).half()


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, model: HookedWhisper, tiny_cfg: Any
) -> dict[str, Path]:
    """The same weights in float16, in each format that is read."""
    from transformers import WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("sources")
    found = {"hf": folder / "hf", "native": folder / "native", "pt": folder / "a.pt"}
    model.save_pretrained(found["hf"], format="huggingface")
    model.save_pretrained(found["native"])
    model.save_pretrained(found["pt"], format="openai")
    theirs = WhisperForConditionalGeneration.from_pretrained(found["hf"], dtype=torch.float16)
    tokens = small_vocabulary(tiny_cfg.d_vocab)
    found["ct2"] = convert_to_ct2(theirs, folder / "ct2", "float16", tokens)
    state = {openai_name(name): value for name, value in model.state_dict().items()}
    found |= {"ggml": folder / "ggml-a.bin", "mlx": folder / "mlx"}
    write_ggml(found["ggml"], vars(tiny_cfg.dims), state)
    write_mlx(found["mlx"], vars(tiny_cfg.dims), state)
    return found


@pytest.mark.parametrize("target", ["b.pt", "b"])
@pytest.mark.parametrize("source", ["hf", "native", "pt", "ct2", "ggml", "mlx"])
def test_every_format_to_every_other(
    run: Any,
    tmp_path: Path,
    sources: dict[str, Path],
    model: HookedWhisper,
    source: str,
    target: str,
) -> None:
    done = run("convert", str(sources[source]), str(tmp_path / target), "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["format"] == ("openai" if target == "b.pt" else "huggingface")
    assert said["dtype"] == ("float32" if source == "ggml" else "float16")
    again = HookedWhisper.from_pretrained(tmp_path / target, device="cpu", dtype="auto")
    assert str(again.dtype) == f"torch.{said['dtype']}"
    for name, value in model.state_dict().items():
        if source != "mlx" or name != "encoder.positional_embedding":
            assert torch.equal(again.state_dict()[name].half(), value), name


def test_what_is_asked_for(run: Any, tmp_path: Path, sources: dict[str, Path]) -> None:
    out = tmp_path / "x"
    done = run(
        "convert", str(sources["pt"]), str(out), "--format", "hooked_whisper", "--dtype", "fp32"
    )
    assert done.exit_code == 0, done.output
    assert "hooked_whisper, " in done.stdout and "parameters in float32" in done.stdout
    assert HookedWhisper.from_pretrained(out, dtype="auto").dtype == torch.float32
    assert json.loads((out / "config.json").read_text())["format"] == "hooked_whisper"


def test_what_is_refused(run: Any, tmp_path: Path, sources: dict[str, Path]) -> None:
    (tmp_path / "there.pt").write_text("mine")
    done = run("convert", str(sources["hf"]), str(tmp_path / "there.pt"))
    assert done.exit_code == 1 and "exists already. Name a new path" in done.stderr
    assert (tmp_path / "there.pt").read_text() == "mine"
    done = run("convert", str(sources["hf"] / "model.safetensors"), str(tmp_path / "new.pt"))
    assert done.exit_code == 1 and "is one file of a checkpoint" in done.stderr
    assert run("convert", "digits").exit_code == 2
