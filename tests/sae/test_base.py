"""What an autoencoder says of itself."""

from collections.abc import Callable
from typing import Any

import torch

from hooked_whisper.sae import TopKConfig, make_sae


def test_it_shows_sizes_weights_and_training(shown: Callable[[Any], Any]) -> None:
    metadata = {"data": "<b>&", "labels": ["a", "b"], "training": {"lr": 0.0004, "n_steps": 1200}}
    sae = make_sae(TopKConfig(6, 64, k=4, hook_name="encoder.<i>", metadata=metadata))
    found = shown(sae)
    assert "TopKSAE 64 latents of width 6, torch.float32 on cpu" in found.text
    rows = {row[0]: row[1] for row in found.rows}
    assert (rows["architecture"], rows["hook_name"], rows["k"]) == ("topk", "encoder.<i>", "4")
    told = ("data", "labels", "training.lr", "training.n_steps")
    assert [rows[name] for name in told] == ["<b>&", "['a', 'b']", "0.0004", "1,200"]
    weights = {row[0]: row[1:] for row in found.rows if len(row) == 3}
    assert weights == {
        "W_dec": ["[64, 6]", "1.5 KiB"],
        "b_dec": ["[6]", "24 B"],
        "W_enc": ["[6, 64]", "1.5 KiB"],
        "b_enc": ["[64]", "256 B"],
    }


def test_its_repr_leaves_out_the_metadata() -> None:
    sae = make_sae(TopKConfig(6, 64, k=4, metadata={"history": list(range(10_000))}))
    assert "k=4" in repr(sae) and len(repr(sae)) < 500
    assert torch.equal(sae.W_enc, sae.W_dec.T * sae.first_length)
