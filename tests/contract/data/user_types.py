"""What a type checker says to a user of the package; checked by `make types`, and not run.

Each `assert_type` says what mypy has to find, and each `type: ignore` a mistake
that it has to see: one that is not needed is an error too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from hooked_whisper import Generation, HookedWhisper, HookPoint, Mel, WhisperCache, load_audio
from hooked_whisper.analysis import attention_entropy, residual_histogram, top_activations
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.digits import SpokenDigits, recordings
from hooked_whisper.interventions import (
    Example,
    Interventions,
    Site,
    TranscriptComparison,
    ZeroAblation,
    compare_transcripts,
    mean_activations,
)
from hooked_whisper.lenses import direct_attribution, encoder_lens, logit_lens
from hooked_whisper.metrics import LogitDifference
from hooked_whisper.model.calls import Output
from hooked_whisper.patching import (
    GreedyAblation,
    Head,
    PathEffects,
    SweepResult,
    attribution_patch,
    greedy_ablation,
    patch_sweep,
    path_patch,
)
from hooked_whisper.sae import SAE, TopKConfig, TrainingConfig, load_sae, load_suite, train_sae
from hooked_whisper.store import ActivationStore, ProbeResult, harvest, probe

if TYPE_CHECKING:
    from typing_extensions import assert_type


def running(model: HookedWhisper, tokens: Tensor) -> None:
    assert_type(HookedWhisper.from_pretrained("digits"), HookedWhisper)
    assert_type(model.cfg, HookedWhisperConfig)
    assert_type(recordings(), list[SpokenDigits])
    assert_type(load_audio("speech.flac"), Tensor)
    mel = model.to_mel(recordings()[0].path)
    assert_type(mel, Mel)
    assert_type(mel.values, Tensor)
    assert_type(mel.n_frames, Tensor)
    assert_type(model.to_tokens(" three"), Tensor)
    assert_type(model.to_str_tokens(tokens), list[str])
    assert_type(model(mel, tokens), Tensor)
    assert_type(model(mel, tokens, return_type="loss"), Tensor)
    both: Output = model(mel, tokens, return_type="both")
    assert_type(both.loss, Tensor)
    assert_type(model.embed_audio(mel), Tensor)
    generation = model.generate(mel, return_cache=True)
    assert_type(generation, Generation)
    assert_type(generation.texts, list[str])
    assert_type(generation.tokens, Tensor)
    assert_type(generation.cache, WhisperCache | None)
    said: str = model.transcribe("speech.flac")["text"]
    print(said)


def caching(model: HookedWhisper, mel: Mel, tokens: Tensor) -> None:
    logits, cache = model.run_with_cache(mel, tokens, names_filter="encoder.*")
    assert_type(logits, Tensor)
    assert_type(cache, WhisperCache)
    assert_type(cache["encoder", 0, "pattern"], Tensor)
    assert_type(cache["encoder.blocks.0.hook_resid_post"], Tensor)
    assert_type(cache.axes("encoder.hook_mel"), tuple[str, ...])
    assert_type(list(cache), list[str])

    assert_type(WhisperCache.load("cache.safetensors"), WhisperCache)
    assert_type(model.hook_names("decoder.*"), list[str])
    assert_type(model.hook_dict["encoder.hook_mel"], HookPoint)
    assert_type(model.W_U, Tensor)


def hooking(model: HookedWhisper, mel: Mel, tokens: Tensor) -> None:
    def twice(value: Tensor, hook: HookPoint) -> Tensor:
        assert_type(hook.axes, tuple[str, ...])
        return 2 * value

    name = "encoder.blocks.0.hook_mlp_out"
    assert_type(model.run_with_hooks(mel, tokens, fwd_hooks=[(name, twice)]), Tensor)
    with model.hooks(fwd_hooks=[(name, twice)]) as hooked:
        assert_type(hooked, HookedWhisper)
        assert_type(hooked.generate(mel), Generation)
    with Interventions(model, ZeroAblation(Site(name, window_s=(0.5, 1.0)))) as edits:
        assert_type(edits, Interventions)


def measuring(model: HookedWhisper, example: Example) -> None:
    metric = LogitDifference(1, 2, pos=4)
    assert_type(metric(model(example.mel, example.tokens)), Tensor)
    found = patch_sweep(model, example, example.with_silence(), "*", metric=metric, per="head")
    assert_type(found, SweepResult)
    assert_type(found.values, Tensor)
    assert_type(found.effect(), Tensor)
    assert_type(attribution_patch(model, example, example, metric=metric), SweepResult)
    head = Head("decoder", 2, 0, kind="cross_attn")
    assert_type(path_patch(model, example, example, head, "logits", metric), PathEffects)
    assert_type(greedy_ablation(model, example, metric, "heads", tolerance=0.1), GreedyAblation)
    assert_type(mean_activations(model, [example], "*.hook_z"), WhisperCache)
    assert_type(compare_transcripts(model, [Path("a.flac")], {}), TranscriptComparison)
    assert_type(logit_lens(model, example.mel, example.tokens).target_ranks, Tensor)
    assert_type(encoder_lens(model, example.mel).texts, list[list[str]])
    assert_type(direct_attribution(model, example.mel, example.tokens).labels, list[str])


def statistics(cache: WhisperCache, mel: Mel) -> None:
    assert_type(attention_entropy(cache["encoder", 0, "pattern"], mel.n_positions), Tensor)
    assert_type(residual_histogram(cache["encoder", -1, "resid_post"]).counts, Tensor)
    moments = top_activations(cache["encoder", -1, "resid_post"], mel.n_positions)
    assert_type(moments[0].start_s, float)


def autoencoders(model: HookedWhisper, mel: Mel) -> None:
    suite = load_suite("digits")
    assert_type(suite, dict[str, SAE])
    sae = load_sae("folder")
    assert_type(sae, SAE)
    assert_type(sae.encode(mel.values), Tensor)
    assert_type(sae.decode(mel.values), Tensor)
    assert_type(sae(mel.values), Tensor)
    assert_type(model.run_with_saes(mel, saes=suite), Tensor)
    assert_type(model.run_with_cache_with_saes(mel, saes=suite)[1], WhisperCache)
    with model.saes(suite, use_error_term=True) as spliced:
        assert_type(spliced, HookedWhisper)
    assert_type(train_sae(TrainingConfig(TopKConfig(96, 192, k=8), n_vectors=1), [mel.values]), SAE)


def harvesting(model: HookedWhisper) -> None:
    store = harvest(model, [Path("a.flac")], "encoder.*", "store")
    assert_type(store, ActivationStore)
    assert_type(store.rows("encoder.hook_embed", slice(0, 3)), dict[str, Tensor])
    assert_type(probe(store, "encoder.*", "speaker"), ProbeResult)


def mistakes(model: HookedWhisper, mel: Mel, cache: WhisperCache) -> None:
    """Each line is an error; were one not found, mypy would complain of an unused ignore."""
    model.run_with_cach(mel)  # type: ignore[operator]
    model.generate(mel, max_new_tokens="6")  # type: ignore[arg-type]
    model.generate(mel, return_cash=True)  # type: ignore[call-arg]
    model.generate(mel, beam_size=5)  # type: ignore[call-arg]
    model.transcribe("speech.flac", word_timestamp=True)  # type: ignore[call-arg]
    model.run_with_hooks_with_saes(mel, saes={}, hooks=[])  # type: ignore[call-overload]
    model.run_with_cache(mel, name_filter="encoder.*")  # type: ignore[call-overload]
    model(mel, return_type="logit")  # type: ignore[call-overload]
    cache[3]  # type: ignore[index]
    Site("*", heads=3)  # type: ignore[call-arg]
    load_suite("digits")[0]  # type: ignore[index]
    hook: Callable[[str], str] = ZeroAblation(Site("*"))  # type: ignore[assignment]
    print(hook)
