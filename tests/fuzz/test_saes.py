"""Damaged files of autoencoders: an error of ours, or an autoencoder of finite numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.errors import SAEError
from hooked_whisper.sae import SAE, load_sae
from hooked_whisper.sae.architectures import config_from_dict, make_sae

from .mutations import SEEDS, N, Outcomes, of_bytes, of_json_file

FOLDERS = ("standard", "topk", "jumprelu", "gated")


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[Path, Path]]:
    """What is loaded, and each file of it that is damaged."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in FOLDERS:
        cfg = {"architecture": name, "d_in": 6, "d_sae": 10, "hook_name": "encoder.hook_mel"}
        cfg |= {"k": 3} if name == "topk" else {}
        folder = make_sae(config_from_dict(cfg), generator).save(tmp_path / name)
        if name == "standard":
            values = json.loads((folder / "cfg.json").read_text())
            values["normalize_activations"] = "expected_average_only_in"
            (folder / "cfg.json").write_text(json.dumps(values))
            (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
        found += [(folder, file) for file in sorted(folder.iterdir())]
    (tmp_path / "dictionary").mkdir()
    path = tmp_path / "dictionary" / "ae.pt"
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (10, 6), "encoder.bias": (10,)}
    shapes |= {"decoder.weight": (6, 10), "b_dec": (6,)}
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    torch.save({**state, "k": torch.tensor(3), "threshold": torch.tensor(0.5)}, path)
    trainer = {"dict_class": "BatchTopKSAE", "k": 3, "activation_dim": 6, "dict_size": 10}
    path.with_name("config.json").write_text(json.dumps({"trainer": trainer}))
    found += [(path.parent, file) for file in sorted(path.parent.iterdir())]
    return found


def use(sae: SAE) -> None:
    """Everything that a loaded autoencoder must be able to do."""
    repr(sae)
    sae._repr_html_()
    x = torch.randn(3, sae.cfg.d_in, generator=torch.Generator().manual_seed(1))
    assert sae.encode(x).shape == (3, sae.cfg.d_sae)
    sae(x)
    assert all(bool(value.isfinite().all()) for value in sae.state_dict().values())


def test_damaged_files(
    files: list[tuple[Path, Path]], without_shape_checks: None, outcomes: Outcomes
) -> None:
    for seed in SEEDS:
        loaded, file = files[seed % len(files)]
        before = file.read_bytes()
        is_json = file.suffix == ".json"
        after = of_json_file(before.decode(), seed).encode() if is_json else of_bytes(before, seed)
        file.write_bytes(after)
        outcomes.read(f"{seed}: {file}", lambda loaded=loaded: use(load_sae(loaded)))
        file.write_bytes(before)
    assert outcomes["refused"] > N / 3


@pytest.mark.parametrize(
    "path", ["a\0b", "x" * 5000, "~nosuchuser/x", 5, None, "/dev/null", "/proc/self/mem"]
)
def test_paths_that_are_none(path: Any, without_shape_checks: None) -> None:
    with pytest.raises(SAEError) as caught:
        load_sae(path)
    assert len(str(caught.value)) <= 600
