"""Everything that an autoencoder is judged by, over recordings, in one call."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.evaluation.downstream import (
    KINDS,
    RecoveredMeter,
    transcript_scores,
)
from hooked_whisper.sae.evaluation.inputs import Batch, Inputs, has_tokenizer, own_rows, prepare
from hooked_whisper.sae.evaluation.reconstruction import ReconstructionMeter, decoder_cosines
from hooked_whisper.sae.evaluation.report import FrameEvaluation, SAEEvaluation
from hooked_whisper.sae.evaluation.site import (
    VECTORS_AT_ONCE,
    JudgedSite,
    counted_positions,
    judged_site,
    put_in,
    replaced,
)
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
    language: str = "en",
    normalize: Normalize = "basic",
    batch_size: int = 8,
    progress: bool = True,
) -> SAEEvaluation:
    """Judge an autoencoder by what it gives back, and by what it does to speech.

    Runs twice over the recordings, a batch at a time: once for the
    activations and their mean, once with the autoencoder, zeros and the mean
    in the activation's place. Memory does not grow with their number.

    Args:
        sae: Anything with `encode` and `decode`.
        model: The model.
        recordings: A list of what `model.to_mel` takes, or of anything with a
            `.path` (and `.text`), such as `digits.recordings()`; or a `Mel`.
        hook_name: What it reads; None is what its configuration says.
        texts: What is said in each recording. Where it is unknown, the
            model's own transcripts stand in for cross-entropy and divergence.
        hook_name_out: What it replaces, for transcoders.
        tokens: Rows of token ids instead of texts; predictions of all tokens
            but the first count, else of those behind the prompt.
        all_frames: True judges all frames of the window, False those of
            speech, None both, one after the other. A site in the decoder has
            no frames: there the tokens of the text count.
        transcripts: Whether to transcribe freely too, which takes the most time.
        max_new_tokens: Of a transcript, at most.
        language: Of the texts.
        normalize: What is done to texts before they are compared; see
            `speech.wer.Normalize`.
        batch_size: Recordings side by side.
        progress: Show a progress bar.

    Raises:
        SpliceError: It does not fit the site, or gives values that are not finite.
        HookNameError: No such hook.
        InputError: Recordings and texts that do not match.
    """
    sites = [judged_site(model, sae, hook_name, hook_name_out)]
    inputs = prepare(model, recordings, texts, tokens, batch_size=batch_size, language=language)
    judges = _judge(inputs, sites, all_frames, transcripts, max_new_tokens, normalize, progress)
    return judges[0]


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
    language: str = "en",
    normalize: Normalize = "basic",
    batch_size: int = 8,
    progress: bool = True,
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
    sites = [judged_site(model, sae, name) for name, sae in saes.items()]
    inputs = prepare(model, recordings, texts, tokens, batch_size=batch_size, language=language)
    judged = _judge(inputs, sites, all_frames, transcripts, max_new_tokens, normalize, progress)
    return dict(zip(saes, judged, strict=True))


class _Job:
    """One autoencoder over one extent: speech, all frames, or the text's tokens."""

    def __init__(self, site: JudgedSite, all_frames: bool) -> None:
        self.site = site
        self.all_frames = all_frames
        self.reconstruction = ReconstructionMeter()
        self.recovered = RecoveredMeter()
        self.texts: list[str] = []


def _judge(
    inputs: Inputs,
    sites: Sequence[JudgedSite],
    all_frames: bool | None,
    transcripts: bool,
    max_new_tokens: int | None,
    normalize: Normalize,
    progress: bool,
) -> list[SAEEvaluation]:
    transcripts = transcripts and has_tokenizer(inputs.model)
    extents = [False, True] if all_frames is None else [all_frames]
    jobs = {
        site: [_Job(site, each) for each in (extents if site.stack == "encoder" else [False])]
        for site in sites
    }
    flat = [job for each in jobs.values() for job in each]
    n_rounds = inputs.n_batches * (1 + len(flat))
    own: list[str] = []
    with progress_bar(total=n_rounds, desc="judging", unit="run", show=progress) as bar:
        rows: list[list[int]] = []
        for first, mel in inputs.mels():
            batch, texts = _read(inputs, first, mel, jobs, transcripts, max_new_tokens)
            rows += batch.rows
            own += texts
            bar.update()
        options = {"language": inputs.language, "max_new_tokens": max_new_tokens}
        for batch in inputs.with_rows(rows).batches():
            clean = _clean_run(inputs.model, sites, batch)
            for job in flat:
                _splice(inputs.model, job, batch, clean, options if transcripts else None)
                bar.update()
    return [
        _evaluation(inputs, site, each, own, transcripts, normalize) for site, each in jobs.items()
    ]


def _read(
    inputs: Inputs,
    first: int,
    mel: Any,
    jobs: Mapping[JudgedSite, Sequence[_Job]],
    transcripts: bool,
    max_new_tokens: int | None,
) -> tuple[Batch, list[str]]:
    """Run the model as it is and take in the activations; the tokens, and its transcripts."""
    model = inputs.model
    names = {site.hook_name for site in jobs} | {site.hook_name_out for site in jobs}
    heard = sorted(name for name in names if name.startswith("encoder"))
    written = sorted(names - set(heard))
    values: dict[str, Tensor] = {}
    if heard:
        encoder_output, cache = model.run_with_cache(mel, names_filter=heard)
        values |= dict(cache.items())
    else:
        encoder_output = model.encoder(mel)
    texts: list[str] = []
    rows = None if inputs.rows is None else list(inputs.rows[first : first + len(mel)])
    if transcripts or rows is None:
        own, texts = own_rows(inputs, encoder_output, max_new_tokens=max_new_tokens)
        rows = own if rows is None else rows
    batch = Batch(first, mel, rows, inputs.start)
    if written:
        _, cache = model.run_with_cache(
            None,
            batch.tokens,
            encoder_output=encoder_output,
            return_type=None,
            names_filter=written,
        )
        values |= dict(cache.items())
    for site, each in jobs.items():
        _measure(site, each, batch, values[site.hook_name], values[site.hook_name_out])
    return batch, texts


def _measure(
    site: JudgedSite,
    jobs: Sequence[_Job],
    batch: Batch,
    read: Float[Tensor, "batch pos ... d_in"],
    target: Float[Tensor, "batch pos ... d_out"],
) -> None:
    """Encode and decode once; count each vector in every extent that it belongs to."""
    n_rows, n_pos = read.shape[:2]
    masks = []
    for job in jobs:
        lengths = batch.n_tokens if site.stack == "decoder" else batch.mel.n_positions
        masks.append(counted_positions(None if job.all_frames else lengths, n_pos, n_rows))
    masks = [mask.to(read.device) for mask in masks]
    wanted = torch.stack(masks).any(dim=0)
    x, y = (value[wanted] for value in (read, target))
    n_each = read[0, 0].numel() // site.d_in  # vectors of a position: heads
    x, y = x.reshape(-1, site.d_in), y.reshape(-1, site.d_out)
    inside = [mask[wanted].repeat_interleave(n_each) for mask in masks]
    for start in range(0, len(x), VECTORS_AT_ONCE):
        part = slice(start, start + VECTORS_AT_ONCE)
        latents = site.encode(x[part])
        recons = site.decode(latents)
        for job, mask in zip(jobs, inside, strict=True):
            counted = mask[part]
            job.reconstruction.update(y[part][counted], recons[counted], latents[counted])


class _Clean(NamedTuple):
    """What the model makes of a batch as it is.

    Args:
        encoder_output: What the decoder reads.
        logits: Of the batch's tokens.
        streams: The encoder's residual stream where autoencoders replace it.
    """

    encoder_output: Tensor
    logits: Tensor
    streams: Mapping[str, Tensor]


def _clean_run(model: HookedWhisper, sites: Sequence[JudgedSite], batch: Batch) -> _Clean:
    names = [site.hook_name for site in sites if site.stream_layer is not None]
    streams: Mapping[str, Tensor] = {}
    if names:
        output, streams = model.run_with_cache(batch.mel, names_filter=names)
    else:
        output = model.encoder(batch.mel)
    return _Clean(output, _logits(model, batch, output), streams)


def _splice(
    model: HookedWhisper, job: _Job, batch: Batch, clean: _Clean, transcribe: dict[str, Any] | None
) -> None:
    """Run with reconstructions, zeros and the mean in the activation's place."""
    mean = job.reconstruction.mean
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "spliced": job.site.reconstruct,
        "zero": lambda x: x.new_zeros(x.numel() // job.site.d_in, job.site.d_out),
        "mean": lambda x: mean.to(x).expand(x.numel() // job.site.d_in, -1),
    }
    logits = {}
    for kind in KINDS:
        with _replacing(model, job, batch, functions[kind]):
            output = _encoder_output(model, job, batch, functions[kind], clean)
            logits[kind] = _logits(model, batch, output)
            if kind == "spliced" and transcribe is not None:
                job.texts += model.generate(None, encoder_output=output, **transcribe).texts
    job.recovered.update(clean.logits, logits, batch.targets, batch.counts)


def _encoder_output(
    model: HookedWhisper,
    job: _Job,
    batch: Batch,
    function: Callable[[Tensor], Tensor],
    clean: _Clean,
) -> Tensor:
    """What the encoder gives with the activation replaced: of its blocks only those behind run."""
    if job.site.stack == "decoder":
        return clean.encoder_output
    layer = job.site.stream_layer
    if layer is None:
        return model.encoder(batch.mel)
    stream = clean.streams[job.site.hook_name]
    resid = put_in(stream, function(stream), _counts(model, job, batch))
    return model.run_from(("encoder", layer + 1), resid, n_positions=batch.mel.n_positions)


def _replacing(
    model: HookedWhisper, job: _Job, batch: Batch, function: Callable[[Tensor], Tensor]
) -> AbstractContextManager[None]:
    """The activation replaced by hooks, where that is not done by hand."""
    if job.site.stream_layer is not None:
        return nullcontext()
    return replaced(model, job.site, function, _counts(model, job, batch))


def _counts(model: HookedWhisper, job: _Job, batch: Batch) -> Bool[Tensor, "batch pos"] | None:
    """The positions to replace; None is all of them."""
    if job.site.stack == "decoder" or job.all_frames:
        return None
    return counted_positions(batch.mel.n_positions, model.cfg.n_audio_ctx, len(batch.mel))


def _logits(
    model: HookedWhisper, batch: Batch, encoder_output: Tensor
) -> Float[Tensor, "batch pos vocab"]:
    return model(None, batch.tokens, encoder_output=encoder_output)


def _evaluation(
    inputs: Inputs,
    site: JudgedSite,
    jobs: Sequence[_Job],
    own: Sequence[str],
    transcripts: bool,
    normalize: Normalize,
) -> SAEEvaluation:
    found = {}
    for job in jobs:
        scores = None
        if transcripts:
            scores = transcript_scores(job.texts, own, inputs.texts, normalize)
        extent = "text" if site.stack == "decoder" else "all" if job.all_frames else "speech"
        found[extent] = FrameEvaluation(
            job.reconstruction.result(), job.recovered.result(), scores, tuple(job.texts)
        )
    return SAEEvaluation(
        hook_name=site.hook_name,
        hook_name_out=site.hook_name_out,
        architecture=_architecture(site.sae),
        d_in=site.d_in,
        d_sae=site.d_sae,
        n_recordings=len(inputs),
        decoder=decoder_cosines(site.sae),
        extents=found,
        transcripts_model=tuple(own),
    )


def _architecture(sae: Any) -> str:
    cfg = getattr(sae, "cfg", None)
    name = getattr(cfg, "architecture", None)
    name = name() if callable(name) else name
    return name if isinstance(name, str) else type(sae).__name__
