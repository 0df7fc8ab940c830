"""Attention edits act before the softmax: what is cut has no weight, and rows sum to 1."""

from typing import Any

import pytest
import torch

from hooked_whisper.digits import recordings
from hooked_whisper.errors import AlignmentError, HookNameError, InterventionError, SiteError
from hooked_whisper.interventions.attention_edits import (
    CutAttention,
    ReplacePattern,
    RestrictAttention,
)
from hooked_whisper.interventions.edits import Interventions

# openai-whisper leaves the file of its vocabulary to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning")

OF_ENCODER = "encoder.blocks.0.attn.hook_attn_scores"
OF_DECODER = "decoder.blocks.1.attn.hook_attn_scores"
CROSS = "decoder.blocks.1.cross_attn.hook_attn_scores"


def by_hand(model: Any, mel: Any, tokens: Any, names: Any, function: Any) -> Any:
    with torch.no_grad():
        return model.run_with_hooks(mel, tokens, fwd_hooks=[(names, function)])


def patterns(model: Any, mel: Any, tokens: Any, *edits: Any) -> Any:
    with torch.no_grad(), Interventions(model, *edits):
        return model.run_with_cache(mel, tokens, names_filter="*.hook_pattern")[1]


def check(model, mel, tokens, one_pass, in_steps, edit, names, function):
    """The edit is the hand-written hook, in a pass and step by step, and rows sum to 1."""
    expected = by_hand(model, mel, tokens, names, function)
    torch.testing.assert_close(one_pass(model, mel, tokens, edit), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(in_steps(model, mel, tokens, edit), expected, atol=1e-4, rtol=0)
    assert (expected - one_pass(model, mel, tokens)).abs().max() > 1e-3
    for pattern in patterns(model, mel, tokens, edit).values():
        torch.testing.assert_close(pattern.sum(dim=-1), torch.ones_like(pattern[..., 0]))


def band(n: int, half_width: int) -> torch.Tensor:
    """True where query and key are no further apart, written out place by place."""
    return torch.tensor([[abs(q - k) <= half_width for k in range(n)] for q in range(n)])


@pytest.mark.parametrize("half_width", [0, 2], ids=["itself", "2"])
@pytest.mark.parametrize(
    ("stack", "heads", "layers"),
    [
        ("encoder", None, None),
        ("encoder", 1, None),
        ("decoder", None, None),
        ("decoder", [0, 2], [1, -1]),
    ],
    ids=["encoder", "encoder head", "decoder", "some heads and layers"],
)
def test_restricted_attention(
    tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, stack, heads, layers, half_width
):
    n, n_layers = (30, 2) if stack == "encoder" else (7, 3)

    def function(scores, hook):
        scores = scores.clone()
        for head in range(scores.shape[1]) if heads is None else [heads, heads]:
            scores[:, head] = scores[:, head].masked_fill(~band(n, half_width), float("-inf"))
        return scores

    every = [layer % n_layers for layer in layers or range(n_layers)]
    names = [f"{stack}.blocks.{layer}.attn.hook_attn_scores" for layer in every]
    edit = RestrictAttention(stack, half_width, heads, layers)
    check(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, edit, names, function)


def test_a_restriction_wider_than_the_text_changes_nothing(
    tiny_model, tiny_mel, tiny_tokens, one_pass
):
    edited = one_pass(tiny_model, tiny_mel, tiny_tokens, RestrictAttention("decoder", 20))
    plain = one_pass(tiny_model, tiny_mel, tiny_tokens)
    torch.testing.assert_close(edited, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("edit", "index"),
    [
        (CutAttention(OF_ENCODER, key=4), (slice(None), slice(None), slice(None), 4)),
        (
            CutAttention(OF_ENCODER, query=slice(3, 9), window_s=(0.1, 0.3), head=1),
            (slice(None), 1, slice(3, 9), slice(5, 15)),
        ),
        (
            CutAttention(OF_DECODER, query=slice(1, None), key=0),
            (slice(None), slice(None), slice(1, None), 0),
        ),
        (
            CutAttention(OF_DECODER, query=5, key=[2, 3], head=[0]),
            (slice(None), 0, 5, [2, 3]),
        ),
        (
            CutAttention(CROSS, window_s=(0.1, 0.3)),
            (slice(None), slice(None), slice(None), slice(5, 15)),
        ),
        (
            CutAttention("decoder.blocks.*.cross_attn.hook_attn_scores", query=4, key=[0, -1]),
            (slice(None), slice(None), 4, [0, 29]),
        ),
        (
            CutAttention(CROSS, query=slice(4, None), window_s=(0.0, 0.3), head=2),
            (slice(None), 2, slice(4, None), slice(0, 15)),
        ),
    ],
    ids=[
        "encoder key",
        "encoder window",
        "start token",
        "decoder edges",
        "cross-attention window",
        "cross-attention keys of all layers",
        "later tokens",
    ],
)
def test_cut_edges(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, edit, index):
    def function(scores, hook):
        scores = scores.clone()
        scores[index] = float("-inf")
        return scores

    check(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, edit, edit.name, function)
    name = tiny_model.hook_names(edit.name)[0].replace("attn_scores", "pattern")
    assert patterns(tiny_model, tiny_mel, tiny_tokens, edit)[name][index].abs().max() == 0


@pytest.mark.parametrize("key", [0, slice(0, 2), [0, 1]], ids=["first", "slice", "list"])
def test_a_token_that_would_lose_all_keys_is_refused(tiny_model, key):
    with pytest.raises(InterventionError, match=r"query=slice\(1, None\)"):
        CutAttention(OF_DECODER, key=key).hooks(tiny_model)
    assert CutAttention(OF_DECODER, query=slice(2, None), key=key).hooks(tiny_model)
    assert CutAttention(OF_DECODER, key=2).hooks(tiny_model)  # the first two are there to see


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (CutAttention(CROSS), InterventionError, "query None would lose every key"),
        (CutAttention(CROSS, query=-1), InterventionError, "query -1 would lose every key"),
        (CutAttention(CROSS, window_s=(0.0, 0.6)), InterventionError, "lose every key"),
        (CutAttention(OF_ENCODER, key=slice(0, 30)), InterventionError, "lose every key"),
        (CutAttention(OF_DECODER, query=3), InterventionError, "query 3 would lose every key"),
        (CutAttention(CROSS, key=30), SiteError, "no key position 30 .* positions 0 to 29"),
        (
            CutAttention(CROSS, query=20, key=1),
            SiteError,
            "no query position 20 .* positions 0 to 19",
        ),
        (CutAttention(CROSS, key=1, head=3), SiteError, "no head 3"),
        (CutAttention(CROSS, key=1, window_s=(0.0, 0.1)), SiteError, "both key and window_s"),
        (CutAttention(CROSS, window_s=(0.5, 0.9)), SiteError, r"the window is 0\.5 to 0\.9 s"),
        (CutAttention(OF_DECODER, window_s=(0.0, 0.1)), SiteError, "tokens, which have no time"),
        (CutAttention("*.hook_pattern", key=1), SiteError, "is no place to edit attention"),
        (CutAttention("decoder.blocks.9.attn.hook_z"), HookNameError, "blocks 0 to 2"),
        (RestrictAttention("encoder", -1), InterventionError, "half_width is -1"),
        (RestrictAttention("encoder", 3, 2), SiteError, "no head 2"),
        (RestrictAttention("encoder", 3, layers=2), SiteError, "no layer 2 .* 0 to 1"),
        (ReplacePattern(CROSS, torch.ones(7, 30)), InterventionError, r"sums to 1 ± 29"),
        (ReplacePattern(CROSS, torch.full((7, 29), 1 / 29)), AlignmentError, r"be \[3, query, 30"),
        (ReplacePattern(OF_ENCODER, torch.eye(29)), AlignmentError, r"must be \[2, 30, 30\]"),
        (ReplacePattern(OF_DECODER, torch.eye(7)[:6]), AlignmentError, "as many as queries"),
        (ReplacePattern(OF_DECODER, torch.eye(7).flip(0)), InterventionError, "later tokens"),
        (ReplacePattern(CROSS, torch.eye(30)[None, None, None]), AlignmentError, "must be"),
        (ReplacePattern(CROSS, torch.eye(30).expand(2, 30, 30)), AlignmentError, "1 for all heads"),
        (
            ReplacePattern(CROSS, torch.tensor([[2.0, -1.0] + [0.0] * 28])),
            InterventionError,
            "least value is -1",
        ),
        (ReplacePattern(CROSS, torch.eye(30) * torch.nan), InterventionError, "sums to 1 ± nan"),
        (ReplacePattern(CROSS, torch.eye(30), head=5), SiteError, "no head 5"),
    ],
    ids=lambda each: None if isinstance(each, (str, type)) else type(each).__name__,
)
def test_what_cannot_be_done_is_refused_before_anything_runs(tiny_model, edit, error, message):
    with pytest.raises(error, match=message), Interventions(tiny_model, edit):
        pytest.fail("the block was entered")


def test_a_stack_that_is_not_there_is_refused(tiny_model, without_shape_checks):
    with pytest.raises(SiteError, match="stack is 'cross'"):
        RestrictAttention("cross", 3).hooks(tiny_model)


def test_edits_that_together_cut_every_key_are_refused(tiny_model, tiny_mel):
    edits = [CutAttention(OF_ENCODER, key=slice(3, 8), head=1), RestrictAttention("encoder", 1)]
    with pytest.raises(InterventionError, match=r"no key is left .* query 4 of head 1"):
        patterns(tiny_model, tiny_mel, None, *edits)
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_newest_positions_are_checked_in_the_pass(tiny_model, tiny_mel, tiny_tokens, one_pass):
    edit = CutAttention(OF_DECODER, query=0, key=-7)
    with pytest.raises(InterventionError, match=r"no key is left .* query 0"):
        one_pass(tiny_model, tiny_mel, tiny_tokens, edit)


def random_pattern(*shape: int, causal: bool = False) -> torch.Tensor:
    pattern = torch.rand(*shape, generator=torch.Generator().manual_seed(3)) ** 4
    pattern = pattern.tril() if causal else pattern
    return pattern / pattern.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "pattern", "head"),
    [
        (OF_ENCODER, random_pattern(30, 30), None),
        (OF_ENCODER, random_pattern(2, 30, 30), 1),
        (OF_DECODER, random_pattern(7, 7, causal=True), None),
        (OF_DECODER, random_pattern(3, 9, 9, causal=True), [0, 2]),
        (OF_DECODER, random_pattern(2, 3, 7, 7, causal=True), 1),
        (CROSS, random_pattern(7, 30), None),
        (CROSS, random_pattern(2, 1, 7, 30), None),
        (CROSS, torch.full((1, 30), 1 / 30), 2),
        ("decoder.blocks.*.cross_attn.hook_attn_scores", torch.eye(30)[3:12], 0),
    ],
    ids=[
        "encoder",
        "encoder head",
        "decoder",
        "longer than the text",
        "each row its own",
        "cross-attention",
        "each row its own cross-attention",
        "one row for all queries",
        "zeros",
    ],
)
def test_a_replaced_pattern_is_the_given_one(
    tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, name, pattern, head
):
    def function(value, hook):
        value = value.clone()
        heads = slice(None) if head is None else head
        n_query, n_key = value.shape[2:]
        given = pattern if pattern.shape[-2] == 1 else pattern[..., :n_query, :]
        value[:, heads] = given[..., :n_key].expand_as(value)[:, heads]
        return value

    edit = ReplacePattern(name, pattern, head)
    names = [each.replace("attn_scores", "pattern") for each in tiny_model.hook_names(name)]
    expected = by_hand(tiny_model, tiny_mel, tiny_tokens, names, function)
    edited = one_pass(tiny_model, tiny_mel, tiny_tokens, edit)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=0)
    stepped = in_steps(tiny_model, tiny_mel, tiny_tokens, edit)
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)
    assert (expected - one_pass(tiny_model, tiny_mel, tiny_tokens)).abs().max() > 1e-3


def test_replacing_by_its_own_pattern_changes_nothing(tiny_model, tiny_mel, tiny_tokens, one_pass):
    own = patterns(tiny_model, tiny_mel, tiny_tokens)
    edits = [
        ReplacePattern(name.replace("pattern", "attn_scores"), value) for name, value in own.items()
    ]
    edited = one_pass(tiny_model, tiny_mel, tiny_tokens, *edits)
    plain = one_pass(tiny_model, tiny_mel, tiny_tokens)
    torch.testing.assert_close(edited, plain, atol=1e-5, rtol=0)


def test_a_pattern_too_short_for_the_text_is_refused(tiny_model, tiny_mel, tiny_tokens, one_pass):
    for name, pattern, message in (
        (CROSS, random_pattern(5, 30), "or one for all queries"),
        (OF_DECODER, torch.eye(5), "5 queries, and this run 7 so far"),
    ):
        with pytest.raises(AlignmentError, match=message):
            one_pass(tiny_model, tiny_mel, tiny_tokens, ReplacePattern(name, pattern))


def test_gradients_stay_finite(tiny_model, tiny_mel, tiny_tokens):
    edits = [
        RestrictAttention("encoder", 3),
        CutAttention(OF_DECODER, query=slice(1, None), key=0),
        ReplacePattern(CROSS, torch.eye(30)[:7], head=1),
    ]
    with Interventions(tiny_model, *edits):
        tiny_model(tiny_mel, tiny_tokens, return_type="loss").backward()
    gradients = [parameter.grad for parameter in tiny_model.parameters()]
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("i", [0, 1], ids=["first recording", "second recording"])
def test_cutting_a_digits_time_takes_that_digit_and_leaves_those_before(digits_model, i):
    recording = recordings()[i]
    words = recording.text.split()
    with torch.no_grad():
        encoded = digits_model(digits_model.to_mel(recording.path))
    options = {"without_timestamps": True, "language": "en", "sample_len": 6, "beam_size": 2}
    for which, word in enumerate(recording.words):
        edit = CutAttention(
            "decoder.blocks.*.cross_attn.hook_attn_scores", window_s=(word.start_s, word.end_s)
        )
        with Interventions(digits_model, edit):
            texts = [digits_model.generate(None, 6, encoder_output=encoded).texts[0]]
            texts += (
                [each.text for each in digits_model.decode(encoded, **options)]
                if which == 1
                else []
            )
        for heard in map(str.split, texts):
            assert heard[:which] == words[:which]
            assert heard[which : which + 1] != words[which : which + 1]


def test_an_encoder_that_sees_one_position_hears_no_digits(digits_model):
    recording = recordings()[0]
    with Interventions(digits_model, RestrictAttention("encoder", 0)):
        assert digits_model.generate(digits_model.to_mel(recording.path), 6).texts != [
            recording.text
        ]
