"""sae-lens's own trainer, told line by line what to do; runs where sae-lens is installed.

Started by `benchmarks.sae_training`. Each line of the input is an order in JSON, each line of
the output its answer:

    {"begin": {...}}    make an autoencoder and its trainer   -> {"version": ...}
    {"steps": n}        do n training steps                   -> {"seconds": [...]}
    {"judge": [...]}    reconstruct these batches             -> {"fvu": ..., "l0": ...}
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.sae_data import Activations


class Peer:
    """One autoencoder in training."""

    def begin(self, order: dict[str, Any]) -> dict[str, Any]:
        """Make the autoencoder and its trainer."""
        import sae_lens
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.set_num_threads(order["threads"])
        torch.manual_seed(order["seed"])
        self.data, self.batch_size = Activations(order["d_in"]), order["batch_size"]
        self.sae = _make(order)
        self.trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=order["n_steps"] * self.batch_size,
                train_batch_size_samples=self.batch_size,
                lr=order["lr"],
                lr_end=order["lr"] / 10,  # its runner's default; unused with a constant rate
                logger=LoggingConfig(log_to_wandb=False),
            ),
            self.sae,
            _nothing(),
        )
        self.number = 0
        return {"version": sae_lens.__version__, "torch": torch.__version__}

    def steps(self, n: int) -> dict[str, Any]:
        """Some training steps, each timed without the making of its batch."""
        seconds = []
        for _ in range(n):
            batch = self.data.batch(self.number, self.batch_size)
            start = time.perf_counter()
            self.trainer.maybe_reset_sparsity()
            self.trainer.step(batch)
            self.trainer.n_training_steps += 1
            seconds.append(time.perf_counter() - start)
            self.number += 1
        return {"seconds": seconds}

    @torch.no_grad()
    def judge(self, numbers: list[int]) -> dict[str, Any]:
        """How well batches are reconstructed, and with how many latents."""
        x = torch.cat([self.data.batch(number, self.batch_size) for number in numbers])
        latents, recons = [], []
        for part in x.split(self.batch_size):
            latents.append(self.sae.encode(part))
            recons.append(self.sae.decode(latents[-1]))
        error = (torch.cat(recons) - x).square().sum()
        active = sum(float((each != 0).sum()) for each in latents)
        spread = (x - x.mean(dim=0)).square().sum()
        return {"fvu": float(error / spread), "l0": active / len(x)}


def _make(order: dict[str, Any]) -> Any:
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )

    sizes = {"d_in": order["d_in"], "d_sae": order["d_sae"]}
    if order["architecture"] == "standard":
        return StandardTrainingSAE(
            StandardTrainingSAEConfig(**sizes, l1_coefficient=order["l1_coefficient"])
        )
    if order["architecture"] == "topk":
        return TopKTrainingSAE(
            TopKTrainingSAEConfig(
                **sizes, k=order["k"], use_sparse_activations=order.get("sparse", False)
            )
        )
    return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=order["k"]))


def _nothing() -> Iterator[Tensor]:
    """What the trainer would take batches from; it is handed each one instead."""
    yield from ()


def main() -> None:
    """Do what the lines of the input say."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not answer
    peer = Peer()
    for line in sys.stdin:
        order = json.loads(line)
        (name,) = order
        answer = getattr(peer, name)(order[name])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
