"""Everything that an autoencoder is judged by, over recordings, in one call."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.data.windows import SkippedRecording, warn_of_skipped
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError
from hooked_whisper.hooks.passes import PassInfo, first_positions, running
from hooked_whisper.hooks.root import Hook
from hooked_whisper.hooks.splice import Splice, at_positions
from hooked_whisper.hooks.splice_site import VECTORS_AT_ONCE, SpliceSite
from hooked_whisper.hooks.splicing import splice_site
from hooked_whisper.model.language import put_languages
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.evaluation import report
from hooked_whisper.sae.evaluation.downstream import KINDS, RecoveredMeter, transcript_scores
from hooked_whisper.sae.evaluation.inputs import Batch, CleanRun, Inputs, own_rows, prepare
from hooked_whisper.sae.evaluation.reconstruction import ReconstructionMeter, decoder_cosines
from hooked_whisper.sae.evaluation.report import FrameEvaluation, SAEEvaluation
from hooked_whisper.sae.evaluation.resume import Encoded, Kept, resume_of
from hooked_whisper.sae.evaluation.saved import kept_on_disk, what_is_judged
from hooked_whisper.speech.tokens import has_tokenizer
from hooked_whisper.speech.wer import Normalize


@torch.no_grad()
def evaluate_sae(
    sae: Any,
    model: HookedWhisper,
    recordings: Any,
    hook_name: str | None = None,
    texts: Sequence[str] | None = None,
    *,
    hook_name_out: str | None = None,
    tokens: Any = None,
    all_frames: bool | None = None,
    transcripts: bool = True,
    max_new_tokens: int | None = None,
    language: str | None = None,
    normalize: Normalize = "auto",
    batch_size: int = 8,
    progress: bool = True,
    save_to: str | os.PathLike[str] | None = None,
) -> SAEEvaluation:
    """Judge an autoencoder by what it gives back, and by what it does to speech.

    Runs twice over the recordings, a batch at a time: once for the
    activations and their mean, once with the autoencoder, zeros and the mean
    in the activation's place. What the encoder made of the first 512 MB of
    windows (120 of tiny) is kept in between; memory does not grow beyond it.

    Args:
        sae: Anything with `encode` and `decode`.
        model: The model.
        recordings: What `hooked_whisper.data.as_recordings` takes; longer ones are
            judged window by window.
        hook_name: What it reads; None is what its configuration says.
        texts: What is said in each recording. Where it is unknown, the model's own
            transcripts stand in for cross-entropy and divergence, and word error rates
            leave the recording out; `n_without_text` counts such windows.
        hook_name_out: What it replaces, for transcoders.
        tokens: Rows of token ids instead of texts; predictions of all tokens
            but the first count, else of those behind the prompt.
        all_frames: True judges all frames of the window, False those of
            speech, None both, one after the other. A site in the decoder has
            no frames: there the tokens of the text count.
        transcripts: Whether to transcribe freely too, which takes the most time.
        max_new_tokens: Of a transcript, at most.
        language: Of the texts, unless a label `language` says otherwise; None has a
            multilingual model find out.
        normalize: What is done to texts before they are compared; see
            `speech.wer.Normalize`.
        batch_size: Recordings side by side.
        progress: Show a progress bar.
        save_to: A file that keeps what is done as it goes, and that is gone on from where
            it is there: after Ctrl-C, a kill, or a machine that stops. The recordings are
            read again then, but what they were run for is not.

    Raises:
        SpliceError: It does not fit the site, or gives values that are not finite.
        HookNameError: No such hook.
        InputError: Recordings and texts that do not match; a file of another judgement.
        StoreBusyError: Another process fills the file.
        StoreWriteError: The file cannot be written.
    """
    site = splice_site(model, sae, hook_name, hook_name_out).of_positions()
    inputs = prepare(model, recordings, texts, tokens, batch_size=batch_size, language=language)
    options = _Options(all_frames, transcripts, max_new_tokens, normalize)
    return _Judging(inputs, [site], options).run(progress, save_to)[0]


@torch.no_grad()
def evaluate_saes(
    saes: Mapping[str, Any],
    model: HookedWhisper,
    recordings: Any,
    texts: Sequence[str] | None = None,
    *,
    tokens: Any = None,
    all_frames: bool | None = None,
    transcripts: bool = True,
    max_new_tokens: int | None = None,
    language: str | None = None,
    normalize: Normalize = "auto",
    batch_size: int = 8,
    progress: bool = True,
    save_to: str | os.PathLike[str] | None = None,
) -> dict[str, SAEEvaluation]:
    """Judge several autoencoders, each at its hook and spliced in alone, in one go.

    The clean runs are shared, so that this is faster than one after the
    other. `evaluation_table(evaluations)` puts them side by side.

    Args:
        saes: Autoencoders by the hook that each reads.
        model: The model; see `evaluate_sae` for this and the rest.
    """
    if not saes:
        raise InputError("there are no autoencoders to judge; pass {hook_name: sae}.")
    sites = [splice_site(model, sae, name).of_positions() for name, sae in saes.items()]
    inputs = prepare(model, recordings, texts, tokens, batch_size=batch_size, language=language)
    options = _Options(all_frames, transcripts, max_new_tokens, normalize)
    judged = _Judging(inputs, sites, options).run(progress, save_to)
    return dict(zip(saes, judged, strict=True))


class _Options(NamedTuple):
    """What is judged beside reconstruction, and over what; see `evaluate_sae`."""

    all_frames: bool | None
    transcripts: bool
    max_new_tokens: int | None
    normalize: Normalize


@dataclass(eq=False)
class _Job:
    """One autoencoder over one extent: speech, all frames, or the text's tokens."""

    site: SpliceSite
    extent: str
    reconstruction: ReconstructionMeter = field(default_factory=ReconstructionMeter)
    recovered: RecoveredMeter = field(default_factory=RecoveredMeter)
    texts: list[str] = field(default_factory=list)

    @property
    def speech_only(self) -> bool:
        """Whether padding is left alone."""
        return self.extent == "speech"

    def mask(self, batch: Batch, n_pos: int) -> Bool[Tensor, "batch pos"]:
        """The positions that count."""
        lengths = batch.n_tokens if self.extent == "text" else batch.mel.n_positions
        if self.extent == "all":
            lengths = torch.full_like(lengths, n_pos)
        return first_positions(lengths, len(lengths), n_pos)

    def put(self, vector: Tensor, batch: Batch) -> Callable[[Tensor], Tensor]:
        """What puts one vector in the place of each of an activation's."""

        def function(value: Tensor) -> Tensor:
            vectors = vector.to(value).expand(value.numel() // self.site.d_out, -1)
            new = vectors.reshape(value.shape)
            if not self.speech_only:
                return new
            return at_positions(value, new, self.mask(batch, value.shape[1]))

        return function


_STATE = (
    *("n_read", "n_judged", "is_done", "skipped"),
    *("rows", "own_texts", "languages", "known_texts"),
)
_OF_JOB = ("reconstruction", "recovered", "texts")
"""What is kept of a judgement that goes on, and of each of its jobs."""


class _Judging:
    """Autoencoders over recordings, each spliced in alone."""

    def __init__(self, inputs: Inputs, sites: Sequence[SpliceSite], options: _Options) -> None:
        self.inputs, self.model, self.options = inputs, inputs.model, options
        self.has_decoder = self.model.cfg.has_decoder
        self.transcribes = options.transcripts and has_tokenizer(self.model.cfg)
        extents = ["all"] if options.all_frames else ["speech", "all"]
        extents = ["speech"] if options.all_frames is False else extents
        self.jobs = {
            site: [_Job(site, name) for name in (extents if site.stack == "encoder" else ["text"])]
            for site in sites
        }
        self.own_texts: list[str] = []
        self.languages: list[str] = []
        self.known_texts: list[str | None] = []
        self.rows: list[list[int]] = []
        self.skipped: list[SkippedRecording] | None = None
        self.n_read = self.n_judged = 0
        self.is_done = False
        cfg = self.model.cfg
        self.resumes = {site: resume_of(site.hook_in, site.hook_out, cfg) for site in sites}
        self.kept = Kept({each.stream for each in self.resumes.values() if each})

    def run(self, progress: bool, save_to: str | os.PathLike[str] | None) -> list[SAEEvaluation]:
        """Go through the recordings twice, and say what was found out of each site."""
        every_job = [job for jobs in self.jobs.values() for job in jobs]
        total = len(self.inputs) * (1 + len(every_job))
        about = partial(what_is_judged, self.inputs, list(self.jobs), self.options._asdict())
        with (
            kept_on_disk(save_to, about, self._state, self._take) as keep,
            progress_bar(total=total, desc="judging", unit="recording", show=progress) as bar,
        ):
            for number, batch in enumerate(self.inputs.batches() if self.skipped is None else ()):
                if number >= self.n_read:
                    self.rows += self._read(batch, number)
                    self.n_read += 1
                    keep()
                bar.update(batch.n_recordings)
            if self.skipped is None:
                self.skipped = list(self.inputs.skipped)
            warn_of_skipped(self.skipped, len(self.inputs))
            batches = self.inputs.batches(self.rows, self.languages)
            is_done = self.is_done or not self.has_decoder
            for number, batch in enumerate(() if is_done else batches):
                clean = self._clean_run(batch, number) if number >= self.n_judged else None
                for job in every_job:
                    if clean is not None:
                        self._splice(job, batch, clean)
                    bar.update(batch.n_recordings)
                self.n_judged = max(self.n_judged, number + 1)
                keep()
            self.is_done = True
        return [self._evaluation(site, jobs) for site, jobs in self.jobs.items()]

    def _state(self) -> dict[str, Any]:
        """All that is known between two batches."""
        jobs = enumerate(job for jobs in self.jobs.values() for job in jobs)
        of_jobs = {f"{i}.{name}": getattr(job, name) for i, job in jobs for name in _OF_JOB}
        return {name: getattr(self, name) for name in _STATE} | of_jobs

    def _take(self, found: Mapping[str, Any]) -> None:
        """Go on from a state; the sums are in their places already."""
        for name in _STATE:
            setattr(self, name, found[name])
        if self.skipped is not None:
            self.skipped = [SkippedRecording(*each) for each in self.skipped]
        for i, job in enumerate(job for jobs in self.jobs.values() for job in jobs):
            job.texts = found[f"{i}.texts"]

    def _read(self, batch: Batch, number: int) -> list[list[int]]:
        """Run the model as it is and take in the activations; gives the tokens."""
        model = self.model
        names = {site.hook_in for site in self.jobs} | {site.hook_out for site in self.jobs}
        in_decoder = sorted(name for name in names if name.startswith("decoder"))
        encoded = self._encode(batch, names - set(in_decoder))
        encoder_output, values = encoded.output, dict(encoded.values)
        if self.has_decoder:
            self.kept.add(number, encoded)
        languages = self.inputs.languages(batch, encoder_output)
        self.languages += languages
        if self.inputs.given is None:
            batch = replace(batch, rows=put_languages(model, batch.rows, languages))
        if self.has_decoder and (self.transcribes or not all(batch.rows)):
            limit = self.options.max_new_tokens
            own, texts = own_rows(self.inputs, encoder_output, languages, max_new_tokens=limit)
            self.own_texts += texts
            both = zip(batch.rows, own, strict=True)
            batch = replace(batch, rows=[row or written for row, written in both])
        self.known_texts += map(self.inputs.text_of, batch.windows)
        if in_decoder:
            _, cache = model.run_with_cache(
                None,
                batch.tokens,
                encoder_output=encoder_output,
                return_type=None,
                names_filter=in_decoder,
            )
            values |= dict(cache.items())
        for site, jobs in self.jobs.items():
            _measure(site, jobs, batch, values[site.hook_in], values[site.hook_out])
        return batch.rows

    def _encode(self, batch: Batch, names: set[str]) -> Encoded:
        """The encoder's output, some of its activations, and those that it is gone on from."""
        wanted = sorted(names | self.kept.streams)
        if not wanted:
            return Encoded(self.model.encoder(batch.mel), {})
        output, cache = self.model.run_with_cache(batch.mel, names_filter=wanted)
        return Encoded(output, dict(cache.items()))

    def _clean_run(self, batch: Batch, number: int) -> CleanRun:
        output, streams = self.kept.take(number) or self._encode(batch, set())
        return CleanRun(output, self.model(None, batch.tokens, encoder_output=output), streams)

    def _splice(self, job: _Job, batch: Batch, clean: CleanRun) -> None:
        """Run with reconstructions, zeros and the mean in the activation's place."""
        mean = job.reconstruction.mean
        splice = Splice(job.site, speech_only=job.speech_only)
        puts: dict[str, Callable[[Tensor], Tensor]] = {
            "spliced": splice,
            "zero": job.put(torch.zeros_like(mean), batch),
            "mean": job.put(mean, batch),
        }
        logits = {}
        for kind in KINDS:
            with self.model.hooks(self._hooks(splice, puts[kind])):
                output = self._encoder_output(splice, puts[kind], batch, clean)
                logits[kind] = self.model(None, batch.tokens, encoder_output=output)
                if kind == "spliced" and self.transcribes:
                    limit = self.options.max_new_tokens
                    options = {"max_new_tokens": limit}
                    job.texts += own_rows(self.inputs, output, batch.languages, **options)[1]
        job.recovered.update(clean.logits, logits, batch.targets, batch.mask)

    def _hooks(self, splice: Splice, put: Callable[[Tensor], Tensor]) -> list[Hook]:
        """What replaces an activation; none where the encoder is run from it on."""
        site, read = splice.site, splice.reader or (lambda value: value)
        resume = self.resumes[site]
        if resume is not None and resume.is_behind:
            return []
        return [
            (site.hook_in, lambda value, hook: read(value)),
            (site.hook_out, lambda value, hook: put(value)),
        ]

    def _encoder_output(
        self, splice: Splice, put: Callable[[Tensor], Tensor], batch: Batch, clean: CleanRun
    ) -> Tensor:
        """The encoder's output where an activation is replaced, with the hooks for it in place."""
        site, n_positions = splice.site, batch.mel.n_positions
        resume = self.resumes[site]
        if resume is not None:  # of the encoder's blocks only those from there on run
            resid = clean.streams[resume.stream]
            if resume.is_behind:
                with running(PassInfo(n_positions=n_positions)):
                    resid = put(resid)
            return self.model.run_from(("encoder", resume.block), resid, n_positions=n_positions)
        in_decoder = site.stack == "decoder"
        return clean.encoder_output if in_decoder else self.model.encoder(batch.mel)

    @property
    def _takes_texts(self) -> bool:
        return self.has_decoder and not self.inputs.given

    def _evaluation(self, site: SpliceSite, jobs: Sequence[_Job]) -> SAEEvaluation:
        extents = {}
        for job in jobs:
            scores = None
            if self.transcribes:
                normalize = self.options.normalize
                scores = transcript_scores(
                    job.texts, self.own_texts, self.known_texts, normalize, self.languages
                )
            recovered = job.recovered.result() if self.has_decoder else None
            extents[job.extent] = FrameEvaluation(
                job.reconstruction.result(), recovered, scores, tuple(job.texts)
            )
        return SAEEvaluation(
            hook_name=site.hook_in,
            hook_name_out=site.hook_out,
            architecture=report.architecture_of(site.sae),
            d_in=site.d_in,
            d_sae=site.d_sae,
            n_recordings=len(self.inputs) - len(self.skipped or ()),
            decoder=decoder_cosines(site.sae),
            extents=extents,
            transcripts_model=tuple(self.own_texts),
            k=report.k_of(site.sae),
            skipped=tuple(self.skipped or ()),
            n_without_text=self.known_texts.count(None) if self._takes_texts else 0,
        )


def _measure(
    site: SpliceSite,
    jobs: Sequence[_Job],
    batch: Batch,
    read: Float[Tensor, "batch pos ... d_in"],
    target: Float[Tensor, "batch pos ... d_out"],
) -> None:
    """Encode and decode once; count each vector in every extent that it belongs to."""
    masks = [job.mask(batch, read.shape[1]).to(read.device) for job in jobs]
    wanted = torch.stack(masks).any(dim=0)
    n_each = read[0, 0].numel() // site.d_in  # vectors of a position: heads
    x, y = read[wanted].reshape(-1, site.d_in), target[wanted].reshape(-1, site.d_out)
    inside = [mask[wanted].repeat_interleave(n_each) for mask in masks]
    for start in range(0, len(x), VECTORS_AT_ONCE):
        part = slice(start, start + VECTORS_AT_ONCE)
        latents = site.encode(x[part])
        recons = site.decode(latents)
        for job, mask in zip(jobs, inside, strict=True):
            counted = mask[part]
            job.reconstruction.update(y[part][counted], recons[counted], latents[counted])
