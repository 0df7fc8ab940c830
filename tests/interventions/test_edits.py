"""Patches put in what another run had, and a `with` block of edits leaves nothing behind."""

from typing import Any

import pytest
import torch

from hooked_whisper import Mel, WhisperCache
from hooked_whisper.errors import AlignmentError, HookNameError, InterventionError, SiteError
from hooked_whisper.interventions.ablation import ZeroAblation
from hooked_whisper.interventions.edits import Interventions, Patch
from hooked_whisper.interventions.sites import Site

RESID = "encoder.blocks.0.hook_resid_post"
OF_DECODER = "decoder.blocks.1.hook_resid_post"
Z = "decoder.blocks.0.attn.hook_z"
CROSS_V = "decoder.blocks.0.cross_attn.hook_v"
PATTERN = "decoder.blocks.0.attn.hook_pattern"

OF_PARTS = [
    (Site(RESID), (slice(None),)),
    (Site(RESID, window_s=(0.1, 0.3)), (slice(None), slice(5, 15))),
    (Site(OF_DECODER, pos=[1, 4]), (slice(None), [1, 4])),
    (Site(Z, head=1, pos=slice(3, None)), (slice(None), slice(3, None), 1)),
    (Site(CROSS_V, window_s=(0.0, 0.3), head=2), (slice(None), slice(0, 15), 2)),
    (Site(PATTERN, head=0, pos=5), (slice(None), 0, 5)),
    (
        Site("decoder.blocks.2.mlp.hook_post", neuron=[3, 9]),
        (slice(None), slice(None), [3, 9]),
    ),
]
parts = pytest.mark.parametrize(
    ("site", "index"), OF_PARTS, ids=[f"{site.name}" for site, _ in OF_PARTS]
)


@pytest.fixture
def other(tiny_model: Any, tiny_mel: Any, tiny_tokens: Any) -> WhisperCache:
    """Everything in a run of other recordings and other tokens."""
    generator = torch.Generator().manual_seed(5)
    mel = torch.rand(tiny_mel.shape, generator=generator)
    with torch.no_grad():
        return tiny_model.run_with_cache(mel, (tiny_tokens + 17) % 101)[1]


def by_hand(model: Any, mel: Any, tokens: Any, name: str, index: Any, source: Any) -> Any:
    """Logits with a hand-written hook."""

    def function(value, hook):
        value = value.clone()
        value[index] = source[index]
        return value

    with torch.no_grad():
        return model.run_with_hooks(mel, tokens, fwd_hooks=[(name, function)])


@parts
def test_a_patch_is_the_hand_written_hook(
    tiny_model, tiny_mel, tiny_tokens, other, one_pass, in_steps, site, index
):
    expected = by_hand(tiny_model, tiny_mel, tiny_tokens, site.name, index, other[site.name])
    patched = one_pass(tiny_model, tiny_mel, tiny_tokens, Patch(site, other))
    torch.testing.assert_close(patched, expected, atol=1e-5, rtol=0)
    stepped = in_steps(tiny_model, tiny_mel, tiny_tokens, Patch(site, other))
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)
    plain = one_pass(tiny_model, tiny_mel, tiny_tokens)
    assert (patched - plain).abs().max() > 1e-3


def test_a_glob_patches_each_hook_from_its_own(tiny_model, tiny_mel, tiny_tokens, other, one_pass):
    names = [f"decoder.blocks.{layer}.attn.hook_z" for layer in range(3)]
    expected = one_pass(
        tiny_model, tiny_mel, tiny_tokens, *[Patch(Site(name, head=0), other) for name in names]
    )
    glob = Patch(Site("decoder.blocks.*.attn.hook_z", head=0), other)
    assert torch.equal(one_pass(tiny_model, tiny_mel, tiny_tokens, glob), expected)


def test_one_row_serves_all(tiny_model, tiny_mel, tiny_tokens, other, one_pass):
    row = other[OF_DECODER][:1]
    expected = by_hand(
        tiny_model, tiny_mel, tiny_tokens, OF_DECODER, (slice(None), 3), row.expand(2, -1, -1)
    )
    patched = one_pass(tiny_model, tiny_mel, tiny_tokens, Patch(Site(OF_DECODER, pos=3), row))
    torch.testing.assert_close(patched, expected, atol=1e-5, rtol=0)


def test_hypotheses_get_their_recordings_row(tiny_model, tiny_mel, tiny_tokens, other):
    edit = Patch(Site(OF_DECODER, pos=3), other)
    with torch.no_grad(), Interventions(tiny_model, edit):
        encoded = tiny_model.encoder(tiny_mel)
        each = tiny_model.decoder(tiny_tokens, encoded)
        groups = tiny_model.decoder(tiny_tokens.repeat_interleave(3, dim=0), encoded)
    torch.testing.assert_close(groups, each.repeat_interleave(3, dim=0), atol=1e-4, rtol=0)


def test_gradients_flow_through_a_patch(tiny_model, tiny_mel, tiny_tokens, other):
    source = other[OF_DECODER].clone().requires_grad_()
    edit = Patch(Site(OF_DECODER, pos=3), source)
    logits = tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=edit.hooks(tiny_model))
    logits[:, -1].sum().backward()
    assert source.grad[:, 3].abs().sum() > 0
    assert source.grad[:, 2].abs().sum() == 0


@pytest.mark.parametrize(
    ("site", "source", "error", "message"),
    [
        (Site(RESID), torch.zeros(30, 24), AlignmentError, "Cache it without remove_batch_dim"),
        (Site(RESID), torch.zeros(1, 30, 96), AlignmentError, "'d_model' must be 24"),
        (Site(RESID), torch.zeros(1, 1500, 24), AlignmentError, "'pos' must be 30"),
        (Site(Z), torch.zeros(1, 7, 4, 8), AlignmentError, "'head' must be 3"),
        (Site(RESID, pos=30), torch.zeros(1, 30, 24), SiteError, "no position 30"),
        (
            Site(RESID),
            WhisperCache({}, {}),
            HookNameError,
            "the cache: no hook 'encoder.blocks.0.hook_resid_post'",
        ),
    ],
    ids=["axes", "width", "positions", "heads", "site", "not in the cache"],
)
def test_a_bad_patch_is_refused_before_anything_runs(tiny_model, site, source, error, message):
    with pytest.raises(error, match=message), Interventions(tiny_model, Patch(site, source)):
        pytest.fail("the block was entered")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 7, 24), "has 3 rows and the run 2"),
        ((1, 4, 24), r"has 4 places on 'pos'; place 6 is asked for\. .* inputs of one length"),
    ],
    ids=["rows", "length"],
)
def test_a_source_that_does_not_fit_the_run_is_refused(
    tiny_model, tiny_mel, tiny_tokens, one_pass, shape, message
):
    with pytest.raises(AlignmentError, match=message):
        one_pass(tiny_model, tiny_mel, tiny_tokens, Patch(Site(OF_DECODER), torch.zeros(shape)))


def test_rows_of_the_encoder_are_never_hypotheses(tiny_model, tiny_mel):
    edit = Patch(Site(RESID), torch.zeros(2, 30, 24))
    with pytest.raises(AlignmentError, match="has 2 rows and the run 4"), torch.no_grad():
        tiny_model.run_with_hooks(tiny_mel.repeat(2, 1, 1), fwd_hooks=edit.hooks(tiny_model))


def test_edits_act_in_their_order(tiny_model, tiny_mel, tiny_tokens, other, one_pass):
    patch, zero = Patch(Site(RESID), other), ZeroAblation(Site(RESID, pos=slice(0, 20)))
    both = one_pass(tiny_model, tiny_mel, tiny_tokens, patch, zero)
    swapped = one_pass(tiny_model, tiny_mel, tiny_tokens, zero, patch)
    patched = one_pass(tiny_model, tiny_mel, tiny_tokens, patch)
    assert torch.equal(swapped, patched)
    assert not torch.allclose(both, patched, atol=1e-3)


def test_a_block_can_be_entered_again_and_within_itself(tiny_model, tiny_mel, tiny_tokens):
    edits = Interventions(tiny_model, ZeroAblation(Site(RESID)))
    with torch.no_grad():
        plain = tiny_model(tiny_mel, tiny_tokens)
        for _ in range(2):
            with edits:
                with edits:
                    pass
                assert not torch.equal(tiny_model(tiny_mel, tiny_tokens), plain)
            assert torch.equal(tiny_model(tiny_mel, tiny_tokens), plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "Ctrl-C"])
def test_nothing_is_left_behind(tiny_model, tiny_mel, error):
    def fail(value, hook):
        raise error("stop here")

    edits = Interventions(tiny_model, ZeroAblation(Site(RESID)))
    with pytest.raises(error, match="stop here"), edits:
        tiny_model.run_with_hooks(tiny_mel, fwd_hooks=[(RESID, fail)])
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_a_refused_edit_leaves_the_others_out(tiny_model):
    edits = Interventions(tiny_model, ZeroAblation(Site(RESID)), ZeroAblation(Site(RESID, head=1)))
    with pytest.raises(SiteError, match="no heads"), edits:
        pytest.fail("the block was entered")
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_what_is_no_edit_is_refused(tiny_model, without_shape_checks):
    with pytest.raises(InterventionError, match=r"'encoder' is no edit\. Pass edits such as Patch"):
        Interventions(tiny_model, "encoder")


def test_an_input_stays_as_it_was(tiny_model, tiny_mel):
    before = tiny_mel.clone()
    with torch.no_grad(), Interventions(tiny_model, ZeroAblation(Site("encoder.hook_mel"))):
        tiny_model(Mel(tiny_mel, torch.tensor([60, 60])))
    assert torch.equal(tiny_mel, before)


def test_what_a_hook_before_it_kept_stays_as_it_was(tiny_model, tiny_mel):
    kept, name = [], "encoder.blocks.0.hook_attn_out"
    edit = ZeroAblation(Site(name)).hooks(tiny_model)
    with torch.no_grad():
        tiny_model.run_with_hooks(
            tiny_mel, fwd_hooks=[(name, lambda value, hook: kept.append(value)), *edit]
        )
    assert kept[0].abs().max() > 0


def test_a_cache_made_in_the_block_holds_what_the_edits_left(tiny_model, tiny_mel):
    with torch.no_grad(), Interventions(tiny_model, ZeroAblation(Site(RESID, pos=3))):
        _, cache = tiny_model.run_with_cache(tiny_mel, names_filter=RESID)
    assert cache[RESID][:, 3].abs().max() == 0
    assert cache[RESID][:, 4].abs().max() > 0
