"""Ablations put in zeros, means and other examples' values, also while decoding."""

from typing import Any

import pytest
import torch

from hooked_whisper import WhisperCache
from hooked_whisper.digits import recordings
from hooked_whisper.errors import AlignmentError, HookNameError, InterventionError, SiteError
from hooked_whisper.interventions.ablation import (
    MeanAblation,
    ResampleAblation,
    SkipLayer,
    ZeroAblation,
    ablate_head_everywhere,
)
from hooked_whisper.interventions.edits import Interventions
from hooked_whisper.interventions.sites import Site

# openai-whisper leaves the file of its vocabulary to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning")

RESID = "encoder.blocks.0.hook_resid_post"
OF_DECODER = "decoder.blocks.1.hook_resid_mid"
Z = "decoder.blocks.0.attn.hook_z"


def by_hand(model: Any, mel: Any, tokens: Any, name: str, function: Any) -> Any:
    with torch.no_grad():
        return model.run_with_hooks(mel, tokens, fwd_hooks=[(name, function)])


@pytest.fixture
def other(tiny_model: Any, tiny_mel: Any, tiny_tokens: Any) -> WhisperCache:
    """Activations of three other examples."""
    generator = torch.Generator().manual_seed(5)
    mel = torch.rand((3, *tiny_mel.shape[1:]), generator=generator)
    tokens = torch.randint(0, 101, (3, 7), generator=generator)
    with torch.no_grad():
        return tiny_model.run_with_cache(mel, tokens)[1]


def check(model, mel, tokens, one_pass, in_steps, edit, name, function):
    """The edit is the hand-written hook, in a pass and step by step."""
    expected = by_hand(model, mel, tokens, name, function)
    torch.testing.assert_close(one_pass(model, mel, tokens, edit), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(in_steps(model, mel, tokens, edit), expected, atol=1e-4, rtol=0)
    assert (expected - one_pass(model, mel, tokens)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("site", "index"),
    [
        (Site(RESID, window_s=(0.1, 0.3)), (slice(None), slice(5, 15))),
        (Site("encoder.blocks.1.attn.hook_z", head=1), (slice(None), slice(None), 1)),
        (Site(Z, head=1, pos=slice(3, None)), (slice(None), slice(3, None), 1)),
        (Site("decoder.blocks.2.hook_cross_attn_out"), (slice(None),)),
        (Site("decoder.blocks.2.mlp.hook_post", neuron=9), (slice(None), slice(None), 9)),
    ],
    ids=["window", "encoder head", "decoder head", "cross-attention", "neuron"],
)
def test_zeros(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, site, index):
    def function(value, hook):
        value = value.clone()
        value[index] = 0
        return value

    edit = ZeroAblation(site)
    check(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, edit, site.name, function)


def test_a_zeroed_head_reads_nothing_and_the_layer_keeps_its_bias(tiny_model, tiny_mel):
    name = "encoder.blocks.0.hook_attn_out"
    with torch.no_grad(), Interventions(tiny_model, ablate_head_everywhere("encoder", [0, 1])):
        _, cache = tiny_model.run_with_cache(tiny_mel, names_filter=name)
    bias = tiny_model.encoder.blocks[0].attn.b_O.detach()
    torch.testing.assert_close(cache[name], bias.expand_as(cache[name]))


@pytest.mark.parametrize(
    ("stack", "kind", "n_layers"),
    [("encoder", "attn", 2), ("decoder", "attn", 3), ("decoder", "cross_attn", 3)],
    ids=["encoder", "decoder", "cross-attention"],
)
def test_a_head_is_zeroed_in_every_layer(
    tiny_model, tiny_mel, tiny_tokens, one_pass, stack, kind, n_layers
):
    def function(value, hook):
        value[:, :, 1] = 0
        return value

    names = [f"{stack}.blocks.{layer}.{kind}.hook_z" for layer in range(n_layers)]
    expected = by_hand(tiny_model, tiny_mel, tiny_tokens, names, function)
    edited = one_pass(tiny_model, tiny_mel, tiny_tokens, ablate_head_everywhere(stack, 1, kind))
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 1, -1], ids=lambda layer: f"layer {layer}")
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_skipped_layer_is_the_identity(tiny_model, tiny_mel, tiny_tokens, stack, layer):
    with torch.no_grad(), Interventions(tiny_model, SkipLayer(stack, layer)):
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, names_filter="*.hook_resid_p*")
    assert torch.equal(cache[stack, layer, "resid_post"], cache[stack, layer, "resid_pre"])
    rest = [n for n in range(cache.n_layers(stack)) if n != layer % cache.n_layers(stack)]
    for kept in rest:
        assert not torch.equal(cache[stack, kept, "resid_post"], cache[stack, kept, "resid_pre"])


def test_a_layer_is_skipped_in_steps_too(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps):
    edit = SkipLayer("decoder", 1)
    expected = one_pass(tiny_model, tiny_mel, tiny_tokens, edit)
    stepped = in_steps(tiny_model, tiny_mel, tiny_tokens, edit)
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("site", "mean", "index"),
    [
        (Site(OF_DECODER, pos=[1, 4]), torch.arange(24.0), (slice(None), [1, 4])),
        (Site(Z, head=1), torch.arange(24.0).view(3, 8) - 5, (slice(None), slice(None), 1)),
        (Site(OF_DECODER), torch.randn(1, 9, 24), (slice(None),)),
        (Site(RESID, window_s=(0.1, 0.3)), torch.randn(30, 24), (slice(None), slice(5, 15))),
    ],
    ids=["a vector", "a head's", "of positions", "of encoder positions"],
)
def test_given_means(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, site, mean, index):
    def function(value, hook):
        value = value.clone()
        whole = mean[:, : value.shape[1]] if mean.ndim == 3 else mean
        value[index] = whole.expand_as(value)[index]
        return value

    edit = MeanAblation(site, mean)
    check(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, edit, site.name, function)


def test_means_of_a_cache(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, other):
    mean = WhisperCache(
        {name: other[name].mean(dim=(0, 1), keepdim=True) for name in (RESID, OF_DECODER)},
        {name: other.axes(name) for name in (RESID, OF_DECODER)},
    )

    def function(value, hook):
        return mean[hook.name].expand_as(value).clone()

    edit = MeanAblation(Site([RESID, OF_DECODER]), mean)
    names = [RESID, OF_DECODER]
    check(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, edit, names, function)


@pytest.mark.parametrize(
    ("name", "axis"), [(RESID, 1), ("encoder.hook_conv1", 2)], ids=["positions", "frames"]
)
def test_the_mean_of_the_run_itself(tiny_model, tiny_mel, tiny_tokens, one_pass, name, axis):
    def function(value, hook):
        n = value.shape[axis] // 3
        part = value.narrow(axis, 0, n)
        part.copy_(part.mean(dim=axis, keepdim=True).expand_as(part))
        return value

    expected = by_hand(tiny_model, tiny_mel, tiny_tokens, name, function)
    edit = MeanAblation(Site(name, window_s=(0.0, 0.2)))
    edited = one_pass(tiny_model, tiny_mel, tiny_tokens, edit)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [RESID, OF_DECODER, Z], ids=["encoder", "decoder", "head"])
def test_a_resampled_row_is_one_of_the_examples(
    tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, other, name
):
    site = Site(name, pos=[1, 4])
    for seed in (0, 1):
        edit = ResampleAblation(site, other, seed)
        with torch.no_grad(), Interventions(tiny_model, edit):
            _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, names_filter=name)
        drawn = [
            next(i for i in range(3) if torch.equal(row[[1, 4]], other[name][i, [1, 4]]))
            for row in cache[name]
        ]
        assert (
            drawn == torch.randint(3, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
        )
        expected = one_pass(tiny_model, tiny_mel, tiny_tokens, edit)
        assert torch.equal(one_pass(tiny_model, tiny_mel, tiny_tokens, edit), expected)
        stepped = in_steps(tiny_model, tiny_mel, tiny_tokens, edit)
        torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(4), ids=lambda seed: f"seed {seed}")
def test_no_row_is_resampled_from_itself(tiny_model, tiny_mel, seed):
    mel = torch.cat([tiny_mel, -tiny_mel, 0.5 * tiny_mel])
    edit = ResampleAblation(Site(RESID), seed=seed)
    with torch.no_grad():
        _, plain = tiny_model.run_with_cache(mel, names_filter=RESID)
        with Interventions(tiny_model, edit):
            _, cache = tiny_model.run_with_cache(mel, names_filter=RESID)
    drawn = [next(i for i in range(6) if torch.equal(row, plain[RESID][i])) for row in cache[RESID]]
    assert sorted(drawn) == list(range(6))
    assert all(i != j for i, j in enumerate(drawn))


@pytest.mark.parametrize("own", [True, False], ids=["of the run", "of a cache"])
def test_hypotheses_of_a_recording_are_resampled_alike(
    tiny_model, tiny_mel, tiny_tokens, other, own
):
    edit = ResampleAblation(Site(OF_DECODER, pos=2), None if own else other)
    with torch.no_grad(), Interventions(tiny_model, edit):
        encoded = tiny_model.encoder(tiny_mel)
        each = tiny_model.decoder(tiny_tokens, encoded)
        groups = tiny_model.decoder(tiny_tokens.repeat_interleave(3, dim=0), encoded)
    torch.testing.assert_close(groups, each.repeat_interleave(3, dim=0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (ZeroAblation(Site(Z, head=5)), SiteError, "no head 5"),
        (SkipLayer("encoder", 2), SiteError, "no encoder layer 2 to skip: .* 0 to 1"),
        (SkipLayer("decoder", -4), SiteError, "no decoder layer -4"),
        (MeanAblation(Site(OF_DECODER)), SiteError, r"Pass mean=mean_activations\("),
        (MeanAblation(Site(RESID), torch.zeros(23)), AlignmentError, "'d_model' must be 24"),
        (MeanAblation(Site(RESID), torch.zeros(2, 30, 24)), AlignmentError, "2 rows; it must be"),
        (MeanAblation(Site(RESID), torch.zeros(1, 1, 1, 24)), AlignmentError, "has axes"),
        (MeanAblation(Site(RESID), WhisperCache({}, {})), HookNameError, "the cache: no hook"),
        (ResampleAblation(Site(RESID), torch.zeros(30, 24)), AlignmentError, "remove_batch_dim"),
        (ResampleAblation(Site(RESID), torch.zeros(0, 30, 24)), AlignmentError, "0, 30, 24"),
        (ResampleAblation(Site(RESID), torch.zeros(4, 9, 24)), AlignmentError, "must be 30"),
    ],
    ids=lambda each: None if isinstance(each, (str, type)) else type(each).__name__,
)
def test_what_cannot_be_done_is_refused_before_anything_runs(tiny_model, edit, error, message):
    with pytest.raises(error, match=message), Interventions(tiny_model, edit):
        pytest.fail("the block was entered")


def test_a_run_of_one_has_no_other_rows(tiny_model, tiny_mel, one_pass, tiny_tokens):
    with pytest.raises(InterventionError, match=r"this run has one\. Pass a cache"):
        one_pass(tiny_model, tiny_mel[:1], tiny_tokens[:1], ResampleAblation(Site(RESID)))


def test_a_mean_too_short_for_the_text_is_refused(tiny_model, tiny_mel, one_pass, tiny_tokens):
    with pytest.raises(AlignmentError, match="has 4 places on 'pos'; place 6"):
        edit = MeanAblation(Site(OF_DECODER), torch.zeros(1, 4, 24))
        one_pass(tiny_model, tiny_mel, tiny_tokens, edit)


@pytest.mark.parametrize(
    ("stack", "kind", "message"),
    [
        ("encoder", "cross_attn", "kind is 'cross_attn'; the encoder has 'attn'"),
        ("decoder", "self", "the decoder has 'attn' and 'cross_attn'"),
        ("both", "attn", "stack is 'both'"),
    ],
    ids=["cross-attention of the encoder", "kind", "stack"],
)
def test_attention_that_is_not_there_is_refused(without_shape_checks, stack, kind, message):
    with pytest.raises(SiteError, match=message):
        ablate_head_everywhere(stack, 0, kind)


def test_a_stack_that_is_not_there_is_refused(tiny_model, without_shape_checks):
    with pytest.raises(SiteError, match="stack is 'middle'"):
        SkipLayer("middle", 0).hooks(tiny_model)


def test_ablations_while_transcribing(digits_model):
    recording = recordings()[0]
    mel = digits_model.to_mel(recording.path)
    edit = ZeroAblation(Site("decoder.blocks.*.hook_cross_attn_out"))
    with Interventions(digits_model, edit):
        greedy = digits_model.generate(mel, 8).texts[0]
        options = {"without_timestamps": True, "language": "en", "sample_len": 8}
        beam = digits_model.decode(mel, beam_size=3, **options)[0].text
        transcript = digits_model.transcribe(recording.path, temperature=0, **options)["text"]
    assert recording.text not in (greedy, beam, transcript.strip())
    assert digits_model.generate(mel).texts == [recording.text]
