"""Which heads, layers, directions and latents carry a text where nobody speaks."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.display import progress_bar
from hooked_whisper.metrics import EndMargin
from hooked_whisper.patching import patch_sweep
from hooked_whisper.study.hallucinations.candidates import (
    NOTHING,
    Candidate,
    Head,
    direction_candidates,
    head_candidates,
    head_name,
    latent_candidates,
    subspace_candidates,
)
from hooked_whisper.study.hallucinations.clips import Clip
from hooked_whisper.study.hallucinations.judging import auroc, share
from hooked_whisper.study.hallucinations.listening import Listener

PARTS = ("hook_attn_out", "hook_cross_attn_out", "hook_mlp_out")
MOST_LATENTS = 40
"""In the table."""


class Carriers:
    """What the choosing half tells.

    Args:
        listener: Who has listened to all of it already.
        sounds: Sounds on which everything is measured.
        speech: Speech on which everything is measured.
        all_sounds: All sounds of the half.
        all_speech: All speech of the half.
        progress: Show bars.
    """

    def __init__(
        self,
        listener: Listener,
        sounds: Sequence[Clip],
        speech: Sequence[Clip],
        all_sounds: Sequence[Clip],
        all_speech: Sequence[Clip],
        *,
        progress: bool,
    ) -> None:
        self.listener, self.progress = listener, progress
        self.sounds, self.speech = sounds, speech
        self.all_sounds, self.all_speech = all_sounds, all_speech
        self.latents: list[dict[str, Any]] = []
        with self._bar(sounds, "gradients") as clips:
            for clip in clips:
                listener.gradient(clip)
        self._parts = self._changes(self._names(PARTS), None)
        by_head = self._changes(self._names(("hook_z",)), "head")
        self._heads: list[tuple[Head, float, float]] = [
            ((name, i), float(sounds_change[i]), float(speech_change[i]))
            for name, (sounds_change, speech_change) in by_head.items()
            for i in range(len(sounds_change))
        ]

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Every head, that which holds a text up most first."""
        ordered = sorted(self._heads, key=lambda each: -each[1])
        return [
            {"head": head_name(head), "hook": head[0], "sounds": sounds, "speech": speech}
            for head, sounds, speech in ordered
        ]

    def _bar(self, clips: Sequence[Clip], what: str) -> Any:
        return progress_bar(list(clips), desc=what, unit="clip", show=self.progress)

    def _names(self, endings: Sequence[str]) -> list[str]:
        return [
            name
            for name in self.listener.model.hook_dict
            if name.endswith(tuple(endings)) and ".blocks." in name
        ]

    def _changes(self, names: Sequence[str], per: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """By how much zeroing moves the end's margin: mean over sounds, and over speech."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for stack in ("decoder", "encoder"):  # which may have other numbers of heads
            of_stack = [name for name in names if name.startswith(stack)]
            for clips, what in ((self.sounds, "sounds"), (self.speech, "speech")):
                result = patch_sweep(
                    self.listener.model,
                    [self.listener.example(clip) for clip in clips],
                    "zero",
                    of_stack,
                    metric=EndMargin(self.listener.model),
                    per=per,
                    direction="noising",
                    progress=self.progress,
                    save_to=self.listener.folder / f"{what}-{stack}-{per or 'part'}.safetensors",
                )
                if not result.complete:  # Ctrl-C, which the sweep answers with what it has
                    raise KeyboardInterrupt
                changes = (result.values - result.clean.view(-1, 1, 1, 1)).mean(dim=0)
                for site, row in zip(changes, result.names, strict=True):
                    for change, name in zip(site, row, strict=True):
                        if name is not None:
                            found[name].append(change)
        return {name: (sounds, speech) for name, (sounds, speech) in found.items()}

    # Edits

    def candidates(self) -> list[Candidate]:
        """Every edit that is to be tried."""
        n_heads: dict[str, int] = {}
        for (name, i), *_ in self._heads:
            n_heads[name] = max(i + 1, n_heads.get(name, 0))
        ranked = [head for head, *_ in sorted(self._heads, key=lambda each: -each[1])]
        decoders = [head for head in ranked if head[0].startswith("decoder")]
        found = {each.name: each for each in head_candidates(decoders, n_heads)}
        found |= {each.name: each for each in head_candidates(ranked, n_heads)}
        pos = self.listener.prompt(self.all_sounds[0]).shape[1] - 1
        for name in self.listener.sites:
            of_sounds, of_speech = self._vectors(name, self.all_sounds), self._vectors(name)
            speech_mean = of_speech.mean(dim=0)
            away = speech_mean - of_sounds.mean(dim=0)
            vectors = {
                "the margin's gradient": self._gradient(name),
                "speech less sounds": away,
                "sounds less speech": -away,
            }
            at = pos if name.startswith("decoder") else None
            ends = self._ends(name)
            if len(ends):
                vectors["ends of texts less sounds"] = ends.mean(dim=0) - of_sounds.mean(dim=0)
                differences = of_sounds - ends.mean(dim=0)
                found |= {each.name: each for each in subspace_candidates(name, differences, pos)}
            length = float(of_sounds.norm(dim=-1).mean())
            found |= {each.name: each for each in direction_candidates(name, vectors, length, at)}
        for name in self.listener.saes:
            found |= {each.name: each for each in self._of_latents(name)}
        order = ("heads", "decoder direction", "encoder direction", "subspace", "latents")
        return sorted(found.values(), key=lambda each: order.index(each.family))

    def _vectors(self, site: str, clips: Sequence[Clip] | None = None) -> Tensor:
        """A vector of each clip; those of the half's speech unless told."""
        clips = self.all_speech if clips is None else clips
        return torch.stack([self.listener.vector(clip, site) for clip in clips])

    def _gradient(self, site: str) -> Float[Tensor, " d_model"]:
        return self._vectors(f"gradient {site}", self.sounds).mean(dim=0)

    def _ends(self, site: str) -> Float[Tensor, "clip d_model"]:
        """The decoder's vectors where speech's text ends."""
        found = [
            self.listener.vector(clip, f"end {site}")
            for clip in self.all_speech
            if self.listener.has_vector(clip, f"end {site}")
        ]
        return torch.stack(found) if found else torch.zeros(0, self.listener.model.cfg.d_model)

    def _of_latents(self, name: str) -> list[Candidate]:
        """Latents by how much they move the margin: their activity times their decoder's effect."""
        [sae] = self.listener.saes.values()
        activity, spoken = self._vectors("latents", self.all_sounds), self._vectors("latents")
        gradient = self._gradient(name).to(self.listener.model.device)
        with torch.enable_grad():
            at = activity.mean(dim=0).to(gradient.device).requires_grad_(True)
            decoded = sae.decode(at[None])[0]
            (effects,) = torch.autograd.grad((decoded * gradient).sum(), at)
        effects = effects.cpu()
        mean, of_speech = activity.mean(dim=0), spoken.mean(dim=0)
        order = (mean * effects).abs().argsort(descending=True)[:MOST_LATENTS].tolist()
        self.latents = [
            {
                "latent": i,
                "hook": name,
                "sounds": float(mean[i]),
                "speech": float(of_speech[i]),
                "effect": float(mean[i] * effects[i]),
                "auroc": auroc(activity[:, i], spoken[:, i]),
            }
            for i in order
        ]
        most = torch.cat([activity, spoken]).max(dim=0).values
        return list(latent_candidates(name, mean, effects, most))

    def screened(self, candidates: Sequence[Candidate], max_lost: float) -> list[dict[str, Any]]:
        """Every edit by its first token alone, in the order in which they are tried in full.

        First those that silence no more speech than may be lost; of these those with the fewest
        texts left; of equals those that leave most room on both sides.
        """
        margins: dict[str, list[list[float]]] = {"sounds": [], "speech": []}
        with progress_bar(
            total=len(self.sounds) + len(self.speech),
            desc="screening",
            unit="clip",
            show=self.progress,
        ) as bar:
            for what, clips in (("sounds", self.sounds), ("speech", self.speech)):
                for clip in clips:
                    margins[what].append(self.listener.screen(clip, [NOTHING, *candidates]))
                    bar.update()
        sounds, speech = (torch.tensor(margins[what]) for what in ("sounds", "speech"))
        rows = []
        for i, candidate in enumerate(candidates, start=1):
            lost = share((speech[:, i] > 0).tolist())
            room = min(sounds[:, i].quantile(0.1), (-speech[:, i]).quantile(0.1))
            rows.append(
                {
                    "family": candidate.family,
                    "edit": candidate.name,
                    "rate": share((sounds[:, i] < 0).tolist()),
                    "speech_silenced": lost,
                    "sounds_margin": float(sounds[:, i].mean()),
                    "speech_margin": float(speech[:, i].mean()),
                    "room": float(room),
                }
            )
        return sorted(
            rows,
            key=lambda row: (row["speech_silenced"] > max_lost, row["rate"], -row["room"]),
        )

    def layers(
        self, judged_sounds: Sequence[Clip], judged_speech: Sequence[Clip]
    ) -> list[dict[str, Any]]:
        """How well each site tells sounds from speech, and what each part does to the margin."""
        rows: list[dict[str, Any]] = []
        for site in self.listener.sites:
            direction = self._vectors(site, self.all_sounds).mean(dim=0) - self._vectors(site).mean(
                dim=0
            )
            sounds, speech = (
                self._vectors(site, clips) @ direction for clips in (judged_sounds, judged_speech)
            )
            rows.append({"place": site, "auroc": auroc(sounds, speech)})
        for name, (sounds, speech) in self._parts.items():
            rows.append({"place": name, "sounds": float(sounds), "speech": float(speech)})
        return rows
