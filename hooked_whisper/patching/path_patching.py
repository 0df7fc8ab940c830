"""Path patching: what one component tells another one, with everything between held still.

The residual stream is a sum, so that a sender's direct path to a receiver can
be followed exactly: with every head and MLP between frozen to the base run,
the receiver reads the base run's stream plus the change of what the sender
wrote. Its LayerNorm is computed anew on that sum, and from the receivers on
the model runs normally.

Source: Goldowsky-Dill et al. 2023 "Localizing Model Behavior with Path
Patching"; Wang et al. 2022 "Interpretability in the Wild", appendix B, which
freezes the heads only; here the MLPs between are frozen too.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import Stack
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InterventionError
from hooked_whisper.hooks.points import HookPoint, is_watched
from hooked_whisper.interventions.examples import Example, check_pair
from hooked_whisper.metrics.base import (
    as_metric,
    check_values,
    metric_name,
    resolve_positions,
)
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import Direction, check_direction
from hooked_whisper.patching.partial_result import fingerprints
from hooked_whisper.patching.paths import (
    HeadInput,
    MLPLayer,
    PathEffects,
    Receiver,
    Sender,
    acts_at,
    all_senders,
    block_of,
    check_part,
    put_at,
    reaches,
    read_through,
    reads_audio,
    written_at,
)
from hooked_whisper.patching.saved import going_on


def path_patch(
    model: HookedWhisper,
    clean: Example,
    corrupted: Example,
    senders: Sender | Sequence[Sender],
    receivers: Receiver | Sequence[Receiver],
    metric: Callable[[Tensor], Any],
    *,
    direction: Direction = "denoising",
    max_rows: int = 16,
    progress: bool = False,
    resume: PathEffects | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> PathEffects:
    """The metric when a sender's output of the other run reaches the receivers directly only.

    Between sender and receivers all heads and MLPs keep what they wrote in
    the base run. An encoder's sender reaches the decoder through the
    encoder's last LayerNorm and cross-attention's keys and values. Each
    sender is patched on its own; several receivers are patched together, and
    one behind another reads nothing of what the first one changes.

    Args:
        model: The model.
        clean: One run.
        corrupted: The other, with as many recordings and tokens.
        senders: A head or an MLP, or several, each for itself.
        receivers: A head's `q`, `k` or `v`, or an MLP; several at once; or `"logits"`.
        metric: From logits to one number for each row.
        direction: `"denoising"` puts the clean run's output into the corrupted
            run; `"noising"` the other way round.
        max_rows: Rows that run side by side, which bounds the memory.
        progress: Show a progress bar on stderr.
        resume: An unfinished result of the same paths, to go on with. It is not changed.
        save_to: A file that keeps what is done as it goes, and that is gone on from where
            it is there: after Ctrl-C, a kill, or a machine that stops.

    Returns:
        The metric for each path. After Ctrl-C, what was done so far:
        `result.complete` is False.

    Raises:
        InterventionError: No direct path from a sender to any receiver.
        AlignmentError: Runs of other lengths.
        SweepError: Something went wrong on the way; `error.result` has what was done.

    Source: Goldowsky-Dill et al. 2023; Wang et al. 2022, appendix B.
    """
    many = list(senders) if isinstance(senders, Sequence) else [senders]
    targets = _several(receivers)
    paths = _Paths(model, clean, corrupted, many, targets, metric, direction)
    for sender in many:
        if not any(reaches(model, sender, receiver) for receiver in targets):
            raise InterventionError(
                f"{sender} has no direct path to {', '.join(map(str, targets))}: a sender comes "
                "before its receivers, in their stack; the encoder reaches the decoder through "
                "the k and v of cross-attention only."
            )
    return paths.run(max_rows, progress, resume, save_to)


def path_patch_heads(
    model: HookedWhisper,
    clean: Example,
    corrupted: Example,
    receivers: Receiver | Sequence[Receiver],
    metric: Callable[[Tensor], Any],
    *,
    with_mlps: bool = True,
    direction: Direction = "denoising",
    max_rows: int = 16,
    progress: bool = True,
    resume: PathEffects | None = None,
    save_to: str | os.PathLike[str] | None = None,
) -> PathEffects:
    """`path_patch` from every head, and every MLP, that has a path to one of the receivers.

    Args:
        with_mlps: Whether MLPs are senders too.

    The others are `path_patch`'s.
    """
    targets = _several(receivers)
    for receiver in targets:
        check_part(model, receiver, "receiver")
    found = [
        sender
        for sender in all_senders(model, with_mlps=with_mlps)
        if any(reaches(model, sender, receiver) for receiver in targets)
    ]
    return path_patch(
        model,
        clean,
        corrupted,
        found,
        targets,
        metric,
        direction=direction,
        max_rows=max_rows,
        progress=progress,
        resume=resume,
        save_to=save_to,
    )


class _Paths:
    """The two runs of a path patch, and the passes that start from them."""

    def __init__(
        self,
        model: HookedWhisper,
        clean: Example,
        corrupted: Example,
        senders: list[Sender],
        receivers: list[Receiver],
        metric: Callable[[Tensor], Any],
        direction: Direction,
    ) -> None:
        check_direction(direction)
        if not senders:
            raise InterventionError("no senders; pass a Head or an MLPLayer.")
        for sender in senders:
            check_part(model, sender, "sender")
        for receiver in receivers:
            check_part(model, receiver, "receiver")
        if "logits" in receivers and len(receivers) > 1:
            raise InterventionError(
                '"logits" can be a receiver by itself only: put in, they would hide what the other '
                "receivers do. Call path_patch for it apart."
            )
        check_pair(model, clean, corrupted)
        self.model, self.metric, self.direction = model, as_metric(metric), direction
        self.metric.check(len(clean), clean.n_pos, model.cfg.d_vocab)
        self.senders, self.receivers = senders, receivers
        self.base, self.source = (
            (corrupted, clean) if direction == "denoising" else (clean, corrupted)
        )
        # Hooks of the user's own may count on whole runs of one row of edits at a time.
        self.is_hooked = is_watched(*model.hook_dict.values())
        positions = resolve_positions(self.metric, clean.n_pos)
        self.positions = None if self.is_hooked else positions

    @torch.no_grad()
    def run(
        self, max_rows: int, progress: bool, resume: PathEffects | None, save_to: Any
    ) -> PathEffects:
        """Both runs, then a pass for every few senders, from the first receiver on."""
        if max_rows < 1:
            raise InterventionError(f"max_rows is {max_rows}; it must be at least 1.")
        result, n_pairs = self._empty_result(), len(self.base)
        n = 1 if self.is_hooked else max(1, max_rows // n_pairs)
        with (
            going_on(
                result,
                save_to,
                resume,
                "path patching",
                lambda: f"{result.n_done} of {result.n_cells} paths",
            ) as keep,
            progress_bar(
                total=result.n_cells, initial=result.n_done, desc="paths", show=progress
            ) as bar,
        ):
            todo = result.values.isnan().any(dim=0).nonzero().flatten().tolist()
            if todo:
                self._run_both(result)
            for first in range(0, len(todo), n):
                places = todo[first : first + n]
                result.values[:, places] = self._patched([self.senders[i] for i in places]).cpu()
                bar.update(len(places) * n_pairs)
                keep()
        return result

    def _empty_result(self) -> PathEffects:
        """The table to fill."""
        n_pairs, n_senders = len(self.base), len(self.senders)
        nan = torch.full((n_pairs,), torch.nan)
        return PathEffects(
            torch.full((n_pairs, n_senders), torch.nan),
            {"pair": list(range(n_pairs)), "sender": [str(each) for each in self.senders]},
            nan,
            nan.clone(),
            self.direction,
            metric_name(self.metric),
            tuple(self.senders),
            tuple(self.receivers),
            conditions=fingerprints(
                self.model, [self.metric], patched_runs=[self.base], runs_put_in=[self.source]
            ),
        )

    def _run_both(self, result: PathEffects) -> None:
        """Both runs without a patch: the baselines, and what the passes start from."""
        written = sorted({written_at(sender) for sender in self.senders})
        needed = {*written, *(read_through(self.model, receiver)[0] for receiver in self.receivers)}
        needed |= {self._start[1], "encoder.ln_final.hook_normalized"}
        logits, self.base_cache = self.model.run_with_cache(
            self.base.mel, self.base.tokens, names_filter=sorted(needed)
        )
        base = check_values(self.metric(logits), len(logits), self.metric)
        logits, self.source_cache = self.model.run_with_cache(
            self.source.mel, self.source.tokens, names_filter=written
        )
        source = check_values(self.metric(logits), len(logits), self.metric)
        clean, corrupted = (source, base) if self.direction == "denoising" else (base, source)
        result.clean, result.corrupted = clean.cpu(), corrupted.cpu()

    @property
    def _start(self) -> tuple[tuple[Stack, int], str]:
        """The first block that reads anything patched, and the stream before it."""
        cfg = self.model.cfg
        places = [acts_at(self.model, receiver) for receiver in self.receivers]
        encoder = [layer for stack, layer in places if stack == "encoder"]
        if encoder:
            return ("encoder", min(encoder)), f"encoder.blocks.{min(encoder)}.hook_resid_pre"
        layer = min(layer for _, layer in places)
        if layer == cfg.n_text_layers:
            return ("decoder", layer), f"decoder.blocks.{layer - 1}.hook_resid_post"
        return ("decoder", layer), f"decoder.blocks.{layer}.hook_resid_pre"

    def _patched(self, senders: list[Sender]) -> Float[Tensor, "pair sender"]:
        """The metric with each sender's path patched, all side by side."""
        model, n = self.model, len(senders)
        (stack, layer), name = self._start
        resid = self.base_cache[name].repeat_interleave(n, dim=0)
        tokens = self.base.tokens.repeat_interleave(n, dim=0)
        audio = self.base_cache["encoder.ln_final.hook_normalized"]
        with model.hooks(fwd_hooks=[self._hook(each, senders) for each in self.receivers]):
            if stack == "encoder":
                n_positions = self.base.mel.n_positions
                audio = model.run_from((stack, layer), resid, n_positions=n_positions)
                layer = model.cfg.n_text_layers
                resid = model.decoder(tokens, audio, stop_at_layer=layer)
            elif any(map(reads_audio, self.receivers)):
                audio = audio.repeat_interleave(n, dim=0)  # each row has keys of its own
            logits = model.decoder.run_from(layer, resid, audio, self.positions)
        # A metric may have a token for each row, so that it takes one sender's rows at a time.
        read = self.metric if self.positions is None else self.metric.of_positions
        logits = logits.unflatten(0, (-1, n))
        return torch.stack(
            [check_values(read(logits[:, i]), len(logits), self.metric) for i in range(n)], dim=1
        )

    def _hook(self, receiver: Receiver, senders: list[Sender]) -> tuple[str, Callable[..., Any]]:
        """What puts the receiver's new input in its place."""
        new = self._new_input(receiver, senders)

        def put(value: Tensor, hook: HookPoint) -> Tensor:
            if not isinstance(receiver, HeadInput):
                return new
            value = value.clone()
            value[:, :, receiver.head.head] = new
            return value

        return put_at(receiver), put

    def _new_input(self, receiver: Receiver, senders: list[Sender]) -> Tensor:
        """The receiver's input: the base run's stream with each sender's change, normalized."""
        name, norm = read_through(self.model, receiver)
        resid = self.base_cache[name]
        changes = [
            self._change(sender) if reaches(self.model, sender, receiver) else 0 * resid
            for sender in senders
        ]
        x = (resid[:, None] + torch.stack(changes, dim=1)).flatten(0, 1)
        if receiver == "logits" and self.positions is not None:
            x = x[:, self.positions]
        x = norm(x)
        if not isinstance(receiver, HeadInput):
            return x
        head = receiver.head
        attention = getattr(block_of(self.model, head), head.kind)
        linear = {"q": attention.query, "k": attention.key, "v": attention.value}[receiver.part]
        point = getattr(attention, f"hook_{receiver.part}")  # the user's hooks act here too
        return point(linear(x).unflatten(-1, (attention.n_heads, -1)))[:, :, head.head]

    def _change(self, sender: Sender) -> Float[Tensor, "batch pos d_model"]:
        """What the sender writes in the other run, less what it writes in the base run."""
        name = written_at(sender)
        change = self.source_cache[name] - self.base_cache[name]
        if isinstance(sender, MLPLayer):
            return change
        W_O = getattr(block_of(self.model, sender), sender.kind).W_O[sender.head]
        return change[:, :, sender.head] @ W_O.to(change.dtype)


def _several(receivers: Receiver | Sequence[Receiver]) -> list[Receiver]:
    if isinstance(receivers, str) or not isinstance(receivers, Iterable):
        return [receivers]
    if not receivers:
        raise InterventionError('no receivers; pass head.q, an MLPLayer, "logits", or several.')
    return list(receivers)
