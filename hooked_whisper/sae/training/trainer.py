"""One autoencoder while it is trained: all that changes is in one object."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.distributed import ProcessGroup, has_restarted
from hooked_whisper.errors import TrainingError
from hooked_whisper.interrupts import uninterrupted
from hooked_whisper.io import as_path
from hooked_whisper.sae.architectures import make_sae
from hooked_whisper.sae.base import SAE, Losses
from hooked_whisper.sae.evaluation.reconstruction import VarianceMeter
from hooked_whisper.sae.saving import CFG_NAME, WEIGHTS_NAME
from hooked_whisper.sae.training.checkpoint import (
    CHECKPOINT_FILE,
    check_same,
    check_whole,
    read_checkpoint,
    write_checkpoint,
)
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.distributed import SharedBatch, losses_on_all_ranks
from hooked_whisper.sae.training.held_out import Best, HeldOut, judge
from hooked_whisper.sae.training.optim import (
    DeadLatents,
    first_b_dec,
    lr_share,
    seed_of_step,
    warm_up_share,
)
from hooked_whisper.sae.training.preparation import Preparation, Prepared
from hooked_whisper.sae.training.sources import Batches, Position

FVUS = ("fvu", "fvu_without_massive", "fvu_normalized")
"""What a line of the log says of the variance; as in `Reconstruction`."""

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Trainer:
    """An autoencoder, its optimizer, its counters, and its place in the data.

    A step computes `gradients` and then does the `update`. Where several processes train
    it, each has all of this, the same: they get the same batches, compute the gradients
    of their own parts of each, put them together, and do the same update.

    Args:
        cfg: What to train and how.
        name: What it is called where several are trained.
        data: A description of the data's order, which a resumed run must share.
        ranks: The processes that train it together; None is this one alone.
        held_out: What it is judged on while it trains.
    """

    def __init__(
        self,
        cfg: TrainingConfig,
        name: str = "",
        data: Any = None,
        ranks: ProcessGroup | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.cfg, self.name, self.data, self.held_out = cfg, name, data, held_out
        if cfg.early_stopping is not None and held_out is None:
            raise TrainingError(
                f"early_stopping is {cfg.early_stopping}, and nothing is held out{self._of}. Pass "
                "held_out=, or a source that holds some out: Epochs(store, held_out=0.1)."
            )
        self.ranks = ranks or ProcessGroup(error=TrainingError)
        self.sae: SAE = make_sae(cfg.sae, torch.Generator().manual_seed(cfg.seed)).train()
        self.has_target = cfg.sae.is_transcoder
        self.folder = None if cfg.folder is None else as_path(cfg.folder, TrainingError)
        self.batches, self.position = Batches(), Position()
        self.step = self.n_vectors = 0
        self.preparation = Preparation(cfg, self.sae)
        self.best = Best()
        self._last: Tensor | None = None
        self.log: list[dict[str, Any]] = []
        self.latest: dict[str, Any] = {}
        self.dead = DeadLatents(cfg.sae.d_sae, cfg.dead_after_vectors)
        self.parameters = dict(self.sae.named_parameters())
        self.optimizer = torch.optim.Adam(self.parameters.values(), betas=cfg.betas, fused=True)
        self._is_placed = False

    # Where it is

    @property
    def is_done(self) -> bool:
        """Whether all activations that were asked for were trained on."""
        return self.n_vectors >= self.cfg.total_vectors or self.has_stopped

    @property
    def has_stopped(self) -> bool:
        """Whether held-out vectors have not been given back better for long."""
        limit = self.cfg.early_stopping
        return limit is not None and self.best.n_worse >= limit

    @property
    def next_size(self) -> int:
        """Vectors in the next batch."""
        return min(self.cfg.batch_size, self.cfg.total_vectors - self.n_vectors)

    @property
    def can_step(self) -> bool:
        """Whether a whole batch is waiting."""
        return not self.is_done and self.batches.n_waiting >= self.next_size

    # A step

    def do_step(self, *, watch: bool = False) -> None:
        """Learn from the next batch, or from what is waiting where that is less.

        Ctrl-C waits until the step is whole. A step that fails leaves no trace.

        Args:
            watch: Measure this step also where the log has no line of it; not with
                several ranks, each of which has only part of the reconstruction.
        """
        with uninterrupted():
            n = min(self.next_size, self.batches.n_waiting)
            x, target = self.batches.take(n)
            x, target = self._prepare(x, target)
            is_logged = self.step % self.cfg.log_every == 0 or (
                self.n_vectors + n >= self.cfg.total_vectors
            )
            with self._untouched_on_failure():
                losses = self.gradients(x, target)
                self._check(losses)
                if is_logged:
                    recons = SharedBatch(self.ranks, len(x)).whole_recons(losses.recons)
                    losses = losses._replace(recons=recons)
            lr = self.cfg.lr * lr_share(
                self.step, self.cfg.total_steps, self.cfg.lr_warm_up, self.cfg.lr_decay
            )
            self.update(losses, n, lr)
            if is_logged or (watch and self.ranks.n == 1):
                self._measure(losses, x if target is None else target, lr)
            self._last = x
            if is_logged:
                self._judge()
                self.log.append(self.latest)

    def gradients(
        self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"] | None
    ) -> Losses:
        """The losses of a batch, with their gradient in the weights; `recons` of the own part."""
        cfg, batch = self.cfg, SharedBatch(self.ranks, len(x))
        x = x[batch.own_part]
        target = None if target is None else target[batch.own_part]
        warm_up = warm_up_share(self.step, cfg.total_steps, cfg.sparsity_warm_up)
        kind = self.sae.device.type
        autocast = torch.autocast(kind, torch.bfloat16) if cfg.autocast else nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        devices = [self.sae.device] if kind == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            # By step, so that no random state has to be kept between them.
            generator = torch.default_generator
            if devices:
                generator = torch.cuda.default_generators[devices[0].index or 0]
            generator.manual_seed(seed_of_step(cfg.seed, self.step))
            ranks = self.ranks if batch.is_cut else None
            with autocast:
                losses = self._losses(
                    x, target, warm_up=warm_up, dead=self.dead.is_dead, ranks=ranks
                )
            batch.go_backward(losses)
        losses = batch.whole_losses(losses)
        self.sae.project_gradients_()
        return losses

    def update(self, losses: Losses, n_vectors: int, lr: float) -> None:
        """Change weights and counters by what `gradients` found."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.sae.constrain_()
        self.dead.update(losses.active, n_vectors)
        self.step += 1
        self.n_vectors += n_vectors
        self.position = self.batches.position

    def _prepare(self, x: Tensor, target: Tensor | None) -> Prepared:
        """A batch as the autoencoder gets it; the first one sets all up."""
        if not self._is_placed:
            self._place(torch.device(self.cfg.device or x.device))
        if not self.step:
            self.preparation.begin(x, target, self.ranks)
            self._begin(*self.preparation(x, target))
        return self.preparation(x, target)

    def _place(self, device: torch.device) -> None:
        """Bring everything that takes part in a step to one device."""
        self.sae.to(device)
        self.dead.n_since_active = self.dead.n_since_active.to(device)
        for moments in self.optimizer.state.values():
            moments.update({name: value.to(device) for name, value in moments.items()})
        for group in self.optimizer.param_groups:
            group["fused"] = device.type in ("cpu", "cuda")
        self._losses = losses_on_all_ranks(self.sae, self.ranks)
        self._is_placed = True

    @torch.no_grad()
    def _begin(self, x: Tensor, target: Tensor | None) -> None:
        """The first weights, as far as they follow from the first batch."""
        self.sae.b_dec.copy_(first_b_dec(self.cfg.init_b_dec, x if target is None else target))
        for value in self._weights().values():
            self.ranks.broadcast_(value)

    @contextmanager
    def _untouched_on_failure(self) -> Iterator[None]:
        """Put back what a loss changes beside gradients (such as running thresholds)."""
        before = {name: value.clone() for name, value in self.sae.named_buffers()}
        try:
            yield
        except BaseException:
            for name, value in self.sae.named_buffers():
                value.copy_(before[name])
            self.optimizer.zero_grad(set_to_none=True)
            raise

    def _check(self, losses: Losses) -> None:
        """Refuse to learn from what is not finite; cut gradients that are too long."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(losses.total + length):
            raise TrainingError(
                f"step {self.step}{self._of}: the loss is {float(losses.total.detach())} and its "
                f"gradient has length {float(length)}. The weights are those before this step. "
                "Lower lr, or look for very large activations."
            )
        limit = self.cfg.clip_grad_norm
        if limit is not None and length > limit:
            for gradient in gradients:
                gradient.mul_(limit / (length + 1e-6))

    @torch.no_grad()
    def _measure(self, losses: Losses, target: Tensor, lr: float) -> None:
        """What the log says of a step, whose losses are those before its update."""
        variance = VarianceMeter()
        variance.update(target, losses.recons)
        numbers = variance.numbers()
        self.latest = {
            **({"sae": self.name} if self.name else {}),
            "step": self.step,
            "n_vectors": self.n_vectors,
            "lr": lr,
            "loss": float(losses.total),
            **{f"loss_{name}": float(value) for name, value in losses.parts.items()},
            **{name: numbers[name] if isfinite(numbers[name]) else None for name in FVUS},
            "l0": float(losses.l0),
            "dead": self.dead.share(self.n_vectors),
            "never_active": self.dead.never_active(self.n_vectors),
        }

    def _judge(self) -> None:
        """Add what the held-out vectors say, and see whether it gets better."""
        self.calibrate()
        if self.held_out is None:
            return
        self.latest |= judge(self.sae, *self.preparation(*self.held_out))
        if self.cfg.early_stopping is not None:
            self.best.see(self.latest, self._weights())

    def calibrate(self) -> None:
        """Set what the autoencoder needs in use, such as a threshold, by the last batch."""
        if self._last is not None:
            self.sae.calibrate_(self._last)

    @property
    def _of(self) -> str:
        return f" of {self.name!r}" if self.name else ""

    # Files

    def save(self) -> None:
        """The first rank writes a checkpoint, where there is a folder and something to keep."""
        if self.folder is None or not self.step or not self.ranks.is_first:
            return
        tensors = {f"sae.{name}": value for name, value in self._weights().items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"adam.{name}.{each}": value for each, value in moments.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.weights.items()}
        tensors["n_since_active"] = self.dead.n_since_active
        values = {
            "cfg": self.cfg.to_dict(),
            "data": self.data,
            "step": self.step,
            "n_vectors": self.n_vectors,
            "position": list(self.position),
            "scales": [self.preparation.scale_in, self.preparation.scale_out],
            "longest": self.preparation.longest,
            "best": self.best.to_dict(),
            "log": self.log,
        }
        with uninterrupted():
            write_checkpoint(self.folder, tensors, values)

    def save_result(self) -> SAE:
        """The autoencoder that it came to; written where there is a folder and it is not there."""
        sae = self.result()

        def write() -> None:
            names = (CFG_NAME, WEIGHTS_NAME)
            if self.folder and not all((self.folder / name).exists() for name in names):
                sae.save(self.folder)

        self.ranks.run_on_first(write)
        return sae

    def save_when_due(self) -> None:
        """Write a checkpoint where `cfg.checkpoint_every` asks for one after this step."""
        every = self.cfg.checkpoint_every
        if every is not None and self.step % every == 0:
            self.save()

    def prepare_folder(self, *, resume: bool) -> None:
        """Go on from the folder's checkpoint if asked to, or restarted by torchrun.

        Of several ranks, the first one alone needs the folder, which is there and locked.
        """
        found = self.ranks.run_on_first(lambda: self._find_checkpoint(resume=resume))
        if found is not None:
            self._restore(*found)

    def _find_checkpoint(self, *, resume: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint to go on from, if there is one."""
        if self.folder is None:
            return None
        resume = resume or has_restarted()
        found = read_checkpoint(self.folder)
        if found is not None and not resume:
            raise TrainingError(
                f"{self.folder} holds a training that came to step {found[1]['step']}. Go on with "
                "resume=True, or name another folder."
            )
        if found is not None:
            check_same(self.folder, found[1], self.cfg, self.data)
            check_whole(self.folder / CHECKPOINT_FILE, found[0], self._wanted(found[1]))
        return found

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, value in self._weights().items():
                value.copy_(tensors[f"sae.{name}"])
        for name, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                each: tensors[f"adam.{name}.{each}"].clone() for each in _MOMENTS
            }
        self.dead.n_since_active.copy_(tensors["n_since_active"])
        self.step, self.n_vectors = values["step"], values["n_vectors"]
        self.position = Position(*values["position"])
        self.batches = Batches(self.position)
        self.preparation.scale_in, self.preparation.scale_out = values["scales"]
        self.preparation.longest = values.get("longest", 0.0)
        self.best = Best.of(values.get("best"), tensors)
        self.log = values["log"]
        self.latest = self.log[-1] if self.log else {}

    def _wanted(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a whole checkpoint's tensors are like."""
        wanted = {f"sae.{name}": value for name, value in self._weights().items()}
        if values.get("best", {}).get("line") is not None:
            wanted |= {f"best.{name}": value for name, value in self._weights().items()}
        for name, parameter in self.parameters.items():
            wanted |= {f"adam.{name}.{each}": parameter for each in _MOMENTS[:2]}
            wanted[f"adam.{name}.step"] = torch.zeros(())
        return wanted | {"n_since_active": self.dead.n_since_active}

    def _weights(self) -> dict[str, Tensor]:
        return {**dict(self.sae.named_parameters()), **dict(self.sae.named_buffers())}

    # The end

    def settle(self) -> None:
        """Take the weights that had the best held-out FVU, where they were kept, for the last."""
        with torch.no_grad():
            for name, value in self._weights().items():
                value.copy_(self.best.weights.get(name, value))
        self.calibrate()

    def result(self) -> SAE:
        """The autoencoder as it is now, of activations as they are: the scale is folded in."""
        sae = copy.deepcopy(self.sae).eval()
        self.preparation.undo_(sae)
        training = {name: v for name, v in self.cfg.to_dict().items() if name != "sae"}
        line = self.best.line or (self.log[-1] if self.log else {})
        last = {name: line.get(name) for name in (*FVUS, "l0", "dead", "never_active")}
        last |= {name: value for name, value in line.items() if name.startswith("held_out_")}
        training |= {"n_vectors": self.n_vectors, "n_steps": self.step, **last}
        sae.cfg = replace(sae.cfg, metadata={**sae.cfg.metadata, "training": training})
        return sae
