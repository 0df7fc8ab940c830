"""Listening with and without edits; what was heard is kept, so that no kill costs much."""

import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.data import window_batches
from hooked_whisper.errors import ReportError
from hooked_whisper.interventions import Example, SiteEdit
from hooked_whisper.io import (
    checksum_of_json,
    growing_file,
    make_folder,
    read_json,
    save_tensors,
    write_json,
)
from hooked_whisper.metrics import CompressionRatio, EndMargin, Metric
from hooked_whisper.study.hallucinations.candidates import NOTHING, Candidate
from hooked_whisper.study.hallucinations.clips import Clip

BATCH = 8
"""Clips that are heard side by side."""
LOOP = 2.4
"""From which compression ratio on openai-whisper takes a text for a loop."""
WORK = "heard"
"""The folder that an interrupted study goes on from."""
_TEXTS, _VECTORS = "texts.json", "vectors.safetensors"


@dataclass(frozen=True)
class Written:
    """What a model wrote of a clip.

    Args:
        text: The text, whatever gates say.
        avg_logprob: Mean log-probability of its tokens, in nats.
        no_speech_prob: Probability of `<|nospeech|>`.
        openai_gate: Whether openai-whisper's `transcribe` drops it.
        gate: Whether this package's does (`skip_silence`).
        prompt: The tokens before it.
        language: That they name.
    """

    text: str
    avg_logprob: float
    no_speech_prob: float
    openai_gate: bool
    gate: bool
    prompt: tuple[int, ...]
    language: str

    @property
    def is_loop(self) -> bool:
        """Whether it says the same again and again."""
        return CompressionRatio()(self.text) > LOOP


class Listener:
    """A model that listens to clips, with edits or without.

    Args:
        model: The model.
        folder: Where what was heard is kept: it is made, and emptied of another study's.
        head: What it depends on, as JSON has it: another study's is not used.
        saes: The autoencoder by the hook that it reads, if there is one.
        max_bytes: Of encoder outputs that are kept.
        options: For `generate`.
    """

    def __init__(
        self,
        model: HookedWhisper,
        folder: Path,
        head: Any,
        saes: Mapping[str, Any],
        max_bytes: int,
        **options: Any,
    ) -> None:
        self.model, self.folder, self.saes = model, folder / WORK, saes
        self.language = options.pop("language", None)
        self.options, self.max_bytes = options, max_bytes
        self.mark = checksum_of_json(head)
        self.texts: dict[str, dict[str, Any]] = {}
        self.margins: dict[str, float] = {}
        self.vectors: dict[str, Tensor] = {}
        self._outputs: OrderedDict[str, Tensor] = OrderedDict()
        self._read()

    @property
    def sites(self) -> list[str]:
        """Where clips have a vector: behind every block, and the encoder's output."""
        cfg = self.model.cfg
        names = [f"encoder.blocks.{layer}.hook_resid_post" for layer in range(cfg.n_audio_layers)]
        names.append("encoder.ln_final.hook_normalized")
        return names + [
            f"decoder.blocks.{layer}.hook_resid_post" for layer in range(cfg.n_text_layers)
        ]

    # What was heard

    def _read(self) -> None:
        texts, vectors = self.folder / _TEXTS, self.folder / _VECTORS
        try:
            found = read_json(texts, dict[str, Any], ReportError, "")
            with safe_open(vectors, "pt") as file:
                if {found.get("mark"), (file.metadata() or {}).get("mark")} == {self.mark}:
                    self.vectors = {name: file.get_tensor(name) for name in file.keys()}
                    self.texts, self.margins = dict(found["texts"]), dict(found["margins"])
                    return
        except (ReportError, SafetensorError, OSError, KeyError):  # none, or damaged
            self.vectors = {}
        shutil.rmtree(self.folder, ignore_errors=True)  # another study's: listen anew
        make_folder(self.folder)

    def _save(self) -> None:
        save_tensors(self.folder / _VECTORS, self.vectors, {"mark": self.mark})
        texts = {"mark": self.mark, "texts": self.texts, "margins": self.margins}
        write_json(self.folder / _TEXTS, texts)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep what is heard in the block: now and then, and at its end however that comes."""
        with growing_file(self.folder / _TEXTS, "study", self._save) as step:
            self.step = step
            try:
                yield
            finally:
                self._save()

    def forget(self) -> None:
        """Remove what was kept: the report is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def vector(self, clip: Clip, site: str) -> Tensor:
        """What `first` left of a clip."""
        return self.vectors[f"{clip.name}|{site}"]

    def has_vector(self, clip: Clip, site: str) -> bool:
        """Whether it left any."""
        return f"{clip.name}|{site}" in self.vectors

    # Listening

    def mel(self, clip: Clip) -> Mel:
        """The clip's log-mel."""
        [batch] = window_batches(self.model, [clip.window], 1)
        return batch.mel

    def output(self, clip: Clip) -> Float[Tensor, "one pos d_model"]:
        """The encoder's output without edits."""
        if clip.name not in self._outputs:
            return self._keep(clip, self.model.encoder(self.mel(clip)))
        self._outputs.move_to_end(clip.name)
        return self._outputs[clip.name]

    def _keep(self, clip: Clip, output: Tensor) -> Tensor:
        self._outputs[clip.name] = output
        while len(self._outputs) > max(1, self.max_bytes // output.nbytes):
            self._outputs.popitem(last=False)
        return output

    def first(self, clip: Clip) -> Written:
        """What is written without edits."""
        return self.listen([clip])[0]

    def listen(
        self, clips: Sequence[Clip], candidate: Candidate = NOTHING, bar: Any = None
    ) -> list[Written]:
        """What is written of each clip, with edits or without; several are heard side by side."""
        keys = {clip.name: f"{candidate.name}|{clip.name}" for clip in clips}
        is_first = candidate is NOTHING
        todo = [
            clip
            for clip in clips
            if keys[clip.name] not in self.texts
            or (is_first and not self.has_vector(clip, self.sites[0]))
        ]
        if bar is not None:
            bar.update(len(clips) - len(todo))
        for some in (todo[i : i + BATCH] for i in range(0, len(todo), BATCH)):
            found = self._first(some) if is_first else self._edited(some, candidate)
            for row, clip in enumerate(some):
                self._take(keys[clip.name], found, row)
            self.step()
            if bar is not None:
                bar.update(len(some))
        return [self._written(key) for key in keys.values()]

    def _first(self, clips: Sequence[Clip]) -> Any:
        """Listen without edits, and keep the clips' vectors.

        Of the encoder the mean over positions of sound, of the decoder that of the position
        which predicts the first token; `end ...` is that which predicts the text's end;
        `latents` the autoencoder's mean activations.
        """
        mel = self._mels(clips)
        counts = mel.n_positions.tolist()

        def keep(row: int, name: str, vector: Tensor) -> None:
            self.vectors[f"{clips[row].name}|{name}"] = vector.float().cpu().clone()

        def mean(value: Tensor, hook: Any) -> None:
            for row, n in enumerate(counts):
                keep(row, hook.name, value[row, :n].float().mean(dim=0))

        def latents(value: Tensor, hook: Any) -> None:
            [sae] = self.saes.values()
            for row, n in enumerate(counts):
                keep(row, "latents", sae.encode(value[row, :n]).float().mean(dim=0))

        names = [name for name in self.sites if name.startswith("encoder")]
        with self.model.hooks([(names, mean), *((name, latents) for name in self.saes)]):
            output = self.model.encoder(mel)
        for row, clip in enumerate(clips):
            self._keep(clip, output[row : row + 1].clone())
        streams = [name for name in self.sites if name.startswith("decoder")]
        found = self._generate(clips, output, return_cache=True, names_filter=streams)
        eot = EndMargin(self.model).end
        for row, tokens in enumerate(found.tokens.tolist()):
            for name in streams:
                value = found.cache[name][row]
                keep(row, name, value[found.n_prompt - 1])
                if eot in tokens[found.n_prompt :]:
                    keep(row, f"end {name}", value[tokens.index(eot, found.n_prompt) - 1])
        return found

    def _edited(self, clips: Sequence[Clip], candidate: Candidate) -> Any:
        known = None
        if candidate.layer is None:
            known = torch.cat([self.output(clip) for clip in clips])
        with candidate.acting(self.model, self.saes):
            output = self.model.encoder(self._mels(clips)) if known is None else known
            return self._generate(clips, output)

    def _generate(self, clips: Sequence[Clip], output: Tensor, **more: Any) -> Any:
        languages = [clip.window.language or self.language for clip in clips]
        told: Any = languages if self.model.cfg.is_multilingual and any(languages) else None
        return self.model.generate(encoder_output=output, language=told, **self.options, **more)

    def _mels(self, clips: Sequence[Clip]) -> Mel:
        [batch] = window_batches(self.model, [clip.window for clip in clips], len(clips))
        return batch.mel

    def _take(self, key: str, found: Any, row: int) -> None:
        self.texts[key] = asdict(
            Written(
                text=found.texts[row],
                avg_logprob=float(found.avg_logprob[row]),
                no_speech_prob=float(found.no_speech_prob[row]),
                openai_gate=bool(found.unsure_silence[row]),
                gate=bool(found.silence[row]),
                prompt=tuple(found.tokens[row, : found.n_prompt].tolist()),
                language=found.languages[row],
            )
        )

    def _written(self, key: str) -> Written:
        kept = self.texts[key]
        return Written(**{**kept, "prompt": tuple(kept["prompt"])})

    def screen(self, clip: Clip, candidates: Sequence[Candidate]) -> list[float]:
        """By how much the end lies above all other tokens behind the prompt, with each of them."""
        todo = [each for each in candidates if f"{each.name}|{clip.name}" not in self.margins]
        in_decoder = [each for each in todo if each.layer is None]
        if in_decoder:
            self._note(clip, in_decoder, self._side_by_side(clip, in_decoder))
        in_encoder = [each for each in todo if each.layer is not None]
        if in_encoder:
            streams, n_positions = self._streams(clip, in_encoder), self.mel(clip).n_positions
            for each in in_encoder:
                layer = min(each.layer or 0, self.model.cfg.n_audio_layers)
                with each.acting(self.model, self.saes):
                    logits = self.model.run_from(
                        ("encoder", layer),
                        streams[layer],
                        self.prompt(clip),
                        n_positions=n_positions,
                    )
                self._note(clip, [each], logits)
        return [self.margins[f"{each.name}|{clip.name}"] for each in candidates]

    def _note(self, clip: Clip, candidates: Sequence[Candidate], logits: Tensor) -> None:
        for each, margin in zip(candidates, EndMargin(self.model)(logits).tolist(), strict=True):
            self.margins[f"{each.name}|{clip.name}"] = margin
        self.step()

    def _side_by_side(
        self, clip: Clip, candidates: Sequence[Candidate]
    ) -> Float[Tensor, "candidate pos vocab"]:
        """One pass of the decoder with a row for each, which all hear the same output."""
        at: dict[str, list[tuple[int, SiteEdit]]] = {}
        for row, each in enumerate(candidates):
            for edit in each.edits:
                for name in edit.site.names(self.model):
                    at.setdefault(name, []).append((row, edit))

        def change(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            for row, edit in at[hook.name]:
                edit.write_to(value[row : row + 1], hook, 0)
            return value

        tokens = self.prompt(clip).repeat(len(candidates), 1)
        with self.model.hooks([(name, change) for name in at]):
            logits: Tensor = self.model(None, tokens, encoder_output=self.output(clip))
        return logits

    def prompt(self, clip: Clip) -> Int64[Tensor, "one pos"]:
        """The tokens before its text."""
        prompt = self.first(clip).prompt
        return torch.tensor([prompt], device=self.model.device)

    def example(self, clip: Clip) -> Example:
        """The clip with the tokens before its text."""
        return Example(self.mel(clip), self.prompt(clip))

    def _streams(self, clip: Clip, candidates: Sequence[Candidate]) -> dict[int, Tensor]:
        """The encoder's residual stream before each block that some edits begin at."""
        n = self.model.cfg.n_audio_layers
        wanted = {min(each.layer, n) for each in candidates if each.layer is not None}
        if not wanted:
            return {}
        names = {
            layer: f"encoder.blocks.{layer}.hook_resid_pre"
            if layer < n
            else f"encoder.blocks.{n - 1}.hook_resid_post"
            for layer in wanted
        }
        _, cache = self.model.run_with_cache(self.mel(clip), names_filter=list(names.values()))
        return {layer: cache[name] for layer, name in names.items()}

    def gradient(self, clip: Clip) -> None:
        """Keep, at every site, the vector along which the end rises fastest over all others."""
        if self.has_vector(clip, f"gradient {self.sites[0]}"):
            return
        prompt = self.prompt(clip)
        device = self.model.device
        names = list(dict.fromkeys([*self.sites, *self.saes]))
        shifts = {
            name: torch.zeros(
                self.model.axis_sizes(name)[-1] or 0, device=device, requires_grad=True
            )
            for name in names
        }

        def shift(value: Tensor, hook: Any) -> Tensor:
            if hook.name.startswith("encoder"):
                return value + shifts[hook.name]
            return torch.cat([value[:, :-1], value[:, -1:] + shifts[hook.name]], dim=1)

        with torch.enable_grad(), self.model.hooks([(names, shift)]):
            logits = self.model(self.mel(clip), prompt)
            metric: Metric = EndMargin(self.model)
            found = torch.autograd.grad(metric(logits).sum(), list(shifts.values()))
        for name, vector in zip(shifts, found, strict=True):
            self.vectors[f"{clip.name}|gradient {name}"] = vector.float().cpu().clone()
        self.step()
