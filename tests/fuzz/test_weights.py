"""Damaged weights load to finite ones of the right shapes, or are refused with an error of ours."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.weights.vocabulary import Told, own_vocabulary

from ..weights.ct2 import convert_to_ct2, small_vocabulary
from ..weights.ggml_blocks import random_blocks
from ..weights.ggml_files import write_ggml
from ..weights.mlx_files import write_mlx
from ..weights.peft_files import adapted, save_adapter
from ..weights.test_towers import qwen
from .mutations import SEEDS, N, Outcomes, of_bytes, of_json_file


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, make_model: Any, tiny_cfg: Any) -> Path:
    """A small model in each format."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from hooked_whisper.weights.rename import openai_name

    folder, model = tmp_path_factory.mktemp("weights"), make_model(tiny_cfg)
    model.save_pretrained(folder / "native")
    state = {openai_name(key): value for key, value in model.state_dict().items()}
    (folder / "pt").mkdir()
    content = {"dims": dict(vars(tiny_cfg.dims)), "model_state_dict": state}
    torch.save(content, folder / "pt" / "a.pt")
    sizes = {"d_model": 32, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 60}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 10}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 1)
    config = WhisperConfig(**sizes, **layers, **heads, **ids, decoder_start_token_id=1)
    theirs = WhisperForConditionalGeneration(config)
    theirs.generation_config.suppress_tokens = None
    theirs.generation_config.begin_suppress_tokens = None
    theirs.save_pretrained(folder / "hf")
    adapters = {
        "peft": {"use_dora": True},
        "peft-bin": {"lora_bias": True, "modules_to_save": ["fc1"]},
    }
    for kind, options in adapters.items():
        peft = adapted(theirs, r=2, target_modules=["q_proj", "fc2"], **options)
        peft.peft_config["default"].base_model_name_or_path = str(folder / "hf")
        save_adapter(peft, folder / kind)
        (folder / kind / "README.md").unlink(missing_ok=True)
    path = folder / "peft-bin" / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    theirs.model.encoder.save_pretrained(folder / "encoder")
    qwen().save_pretrained(folder / "tower")
    (folder / "tower" / "generation_config.json").unlink()
    shutil.copytree(folder / "hf", folder / "bin")
    (folder / "bin" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "bin" / "pytorch_model.bin")
    for kind in ("float16", "int8"):
        convert_to_ct2(theirs, folder / f"ct2-{kind}", kind, small_vocabulary(60))
    small = HookedWhisper.from_hf(theirs)
    state = {openai_name(key): value for key, value in small.state_dict().items()}
    for kind, quantise in (("f16", None), ("q8_0", lambda rows: random_blocks("q8_0", rows.size))):
        (folder / f"ggml-{kind}").mkdir()
        path = folder / f"ggml-{kind}" / "a.bin"
        write_ggml(path, vars(small.cfg.dims), state, kind, quantise=quantise)
    write_mlx(folder / "mlx", vars(small.cfg.dims), state, heads=[[0, 1]])
    write_mlx(folder / "mlx-npz", vars(small.cfg.dims), state, "weights.npz", bits=4)
    return folder


FILES = ("pt", "ggml-f16", "ggml-q8_0")
FOLDERS = (
    "native",
    "hf",
    "bin",
    "peft",
    "peft-bin",
    "encoder",
    "tower",
    "ct2-float16",
    "ct2-int8",
    "mlx",
    "mlx-npz",
)


@pytest.mark.parametrize("kind", [*FOLDERS, *FILES])
def test_every_outcome_is_a_model_or_an_error_of_ours(
    sources: Path, tmp_path: Path, kind: str, without_shape_checks: None, outcomes: Outcomes
) -> None:
    folder = tmp_path / kind
    shutil.copytree(sources / kind, folder)
    paths = sorted(folder.iterdir())
    for seed in SEEDS:
        path = paths[seed % len(paths)]
        before = path.read_bytes()
        if path.suffix == ".json":
            path.write_text(of_json_file(before.decode(), seed))
        else:
            path.write_bytes(of_bytes(before, seed))
        source = path if kind in FILES else folder
        model = outcomes.read(
            f"{seed}: {path.name}",
            lambda source=source: HookedWhisper.from_pretrained(source, device="cpu"),
        )
        if model is not None:
            assert all(value.isfinite().all() for value in model.state_dict().values()), seed
            n_tokens = model.W_E.shape[0] if model.cfg.has_decoder else 0
            assert n_tokens == model.cfg.d_vocab, seed
        path.write_bytes(before)
    assert 0 < outcomes["refused"] < N


def test_the_tokenizers_files_of_fine_tunes(tmp_path: Path, outcomes: Outcomes) -> None:
    cfg = HookedWhisperConfig.for_release("tiny", d_vocab=51868)
    told = Told(frozenset({51865}), "the test")
    row = {"id": 51865, "content": "[UH]", "special": False}
    texts: dict[str, Any] = {
        "tokenizer.json": {"added_tokens": [row], "model": {"vocab": {"a": 64, "Ġb": 51867}}},
        "added_tokens.json": {"<|x|>": 51866},
        "tokenizer_config.json": {"added_tokens_decoder": {"51865": row}},
        "special_tokens_map.json": {"additional_special_tokens": ["<|x|>", row]},
        "vocab.json": {"a": 64, "[UH]": 51865},
    }
    for seed in SEEDS:
        name = list(texts)[seed % len(texts)]
        for other, values in texts.items():
            (tmp_path / other).write_text(json.dumps(values))
        (tmp_path / name).write_text(of_json_file(json.dumps(texts[name]), seed))
        found = outcomes.read(f"{seed}: {name}", lambda: own_vocabulary(tmp_path, cfg, told))
        if found is not None:
            replace(cfg, vocabulary=found)
