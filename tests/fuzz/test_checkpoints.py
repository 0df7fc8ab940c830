"""A damaged checkpoint of a training is refused, or comes to the weights of the whole one."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hooked_whisper.sae import SAE, TopKConfig, TrainingConfig, train_sae

from .mutations import SEEDS, N, Outcomes, of_bytes, of_json_file


def test_damaged_checkpoints(
    tmp_path: Path, without_shape_checks: None, outcomes: Outcomes
) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(16, 6, generator=generator) for _ in range(5)]
    sae = TopKConfig(d_in=6, d_sae=10, k=2)
    cfg = TrainingConfig(sae, n_steps=5, batch_size=16, lr=1e-2, folder=tmp_path)

    def stopped() -> object:
        yield from data[:3]
        raise InterruptedError

    def resume() -> SAE:
        return train_sae(cfg, data, resume=True, progress=False)

    try:
        train_sae(cfg, stopped(), progress=False)
    except InterruptedError:
        pass
    path = tmp_path / "checkpoint.safetensors"
    before = path.read_bytes()
    with safe_open(path, "pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
        header = file.metadata()
    whole = resume()
    for seed in SEEDS:
        match seed % 4:
            case 0:
                text = of_json_file(header["training"], seed)
                save_file(tensors, path, {**header, "training": text})
            case 1:
                changed = of_json_file(json.dumps(header), seed)
                try:
                    texts = {key: str(value) for key, value in json.loads(changed).items()}
                    save_file(tensors, path, texts)
                except (ValueError, AttributeError, RecursionError):
                    path.write_bytes(of_bytes(before, seed))
            case _:
                path.write_bytes(of_bytes(before, seed))
        found = outcomes.read(seed, resume)
        if found is not None:
            for name, value in whole.state_dict().items():
                assert torch.equal(found.state_dict()[name], value), (seed, name)
    assert outcomes["refused"] > N / 3
