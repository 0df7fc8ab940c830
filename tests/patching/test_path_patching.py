"""Path patching equals the three passes of its definition, written as plain hooks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import (
    AlignmentError,
    InterventionError,
    MetricError,
    SiteError,
)
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.tokens import LogitDifference
from hooked_whisper.patching.grid import check_direction
from hooked_whisper.patching.path_patching import path_patch, path_patch_heads
from hooked_whisper.patching.paths import (
    Head,
    HeadInput,
    MLPLayer,
    all_senders,
    check_part,
    reaches,
)
from hooked_whisper.speech.mel import Mel

from .shared import DIFFERENCE, difference

WRITTEN = ["*.hook_z", "*.hook_mlp_out"]


def three_passes(
    model: Any, base: Example, source: Example, senders: list[Any], receivers: list[Any]
) -> Tensor:
    """The definition: record what receivers read with all else frozen, then put it in."""
    _, of_base = model.run_with_cache(base.mel, base.tokens, names_filter=WRITTEN)
    _, of_source = model.run_with_cache(source.mel, source.tokens, names_filter=WRITTEN)
    places = dict(map(input_place, receivers))

    def one(sender: Any) -> Tensor:
        wrote = f"{sender.stack}.blocks.{sender.layer}."
        wrote += f"{sender.kind}.hook_z" if isinstance(sender, Head) else "hook_mlp_out"

        def freeze(value: Tensor, hook: Any) -> Tensor:
            frozen = of_base[hook.name].clone()
            if hook.name == wrote:
                heads = sender.head if isinstance(sender, Head) else slice(None)
                frozen[:, :, heads] = of_source[wrote][:, :, heads]
            return frozen

        _, recorded = model.run_with_cache(
            base.mel, base.tokens, names_filter=list(places), fwd_hooks=[(WRITTEN, freeze)]
        )

        def put_in(value: Tensor, hook: Any) -> Tensor:
            for place in places[hook.name]:
                value[:, :, place] = recorded[hook.name][:, :, place]
            return value

        pairs = [(name, put_in) for name in places]
        return difference(model.run_with_hooks(base.mel, base.tokens, fwd_hooks=pairs))

    with torch.no_grad():
        return torch.stack([one(sender) for sender in senders], dim=1)


def input_place(receiver: Any) -> tuple[str, list[Any]]:
    """The hook of a receiver's input, and where in it."""
    if receiver == "logits":
        return "decoder.ln_final.hook_normalized", [slice(None)]
    if isinstance(receiver, MLPLayer):
        norm = "ln2" if receiver.stack == "encoder" else "ln3"
        name = f"{receiver.stack}.blocks.{receiver.layer}.{norm}.hook_normalized"
        return name, [slice(None)]
    head = receiver.head
    return f"{head.stack}.blocks.{head.layer}.{head.kind}.hook_{receiver.part}", [head.head]


SENDERS = [
    Head("encoder", 0, 1),
    MLPLayer("encoder", 1),
    Head("decoder", 0, 2),
    Head("decoder", 1, 0, "cross_attn"),
    MLPLayer("decoder", 0),
]
"""One of each kind; together they reach every receiver below."""

RECEIVERS = {
    "logits": ["logits"],
    "encoder q": [Head("encoder", 1, 0).q],
    "encoder k": [Head("encoder", 1, 1).k],
    "encoder v and mlp": [Head("encoder", 1, 1).v, MLPLayer("encoder", 1)],
    "encoder mlp 0": [MLPLayer("encoder", 0)],
    "cross k": [Head("decoder", 1, 2, "cross_attn").k],
    "cross v of two layers": [
        Head("decoder", 0, 1, "cross_attn").v,
        Head("decoder", 2, 0, "cross_attn").v,
    ],
    "cross q": [Head("decoder", 1, 2, "cross_attn").q],
    "decoder q, k, v": [Head("decoder", 2, 1).q, Head("decoder", 2, 1).k, Head("decoder", 1, 1).v],
    "decoder mlps": [MLPLayer("decoder", 1), MLPLayer("decoder", 2)],
    "both stacks": [
        Head("encoder", 1, 0).k,
        Head("decoder", 0, 0, "cross_attn").k,
        Head("decoder", 2, 0).v,
    ],
}


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("receivers", RECEIVERS.values(), ids=RECEIVERS)
def test_equals_the_three_passes(
    tiny_model: Any, clean: Example, corrupted: Example, receivers: list[Any]
) -> None:
    senders = [each for each in SENDERS if any(reaches(tiny_model, each, to) for to in receivers)]
    found = path_patch(tiny_model, clean, corrupted, senders, receivers, DIFFERENCE)
    by_hand = three_passes(tiny_model, corrupted, clean, senders, receivers)
    torch.testing.assert_close(found.values, by_hand, atol=1e-5, rtol=1e-5)
    changes = found.values - found.corrupted[:, None]
    assert (changes.abs().max(dim=0).values > 1e-4).all()  # something was patched at all


def test_noising_puts_the_corrupted_run_into_the_clean_one(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    receivers = RECEIVERS["both stacks"]
    options: dict[str, Any] = {"direction": "noising"}
    found = path_patch(tiny_model, clean, corrupted, SENDERS, receivers, difference, **options)
    by_hand = three_passes(tiny_model, clean, corrupted, SENDERS, receivers)
    torch.testing.assert_close(found.values, by_hand, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(found.clean, difference(tiny_model(clean.mel, clean.tokens)))
        assert torch.equal(found.corrupted, difference(tiny_model(corrupted.mel, corrupted.tokens)))
    way = (found.corrupted - found.clean)[:, None]
    torch.testing.assert_close(found.effect(), (by_hand - found.clean[:, None]) / way)


@pytest.mark.parametrize(("max_rows", "metric"), [(1, DIFFERENCE), (5, difference)])
def test_the_bound_on_rows_changes_nothing(
    tiny_model: Any, clean: Example, corrupted: Example, max_rows: int, metric: Any
) -> None:
    receivers = RECEIVERS["decoder mlps"]
    options: dict[str, Any] = {"max_rows": max_rows, "progress": False}
    found = path_patch_heads(tiny_model, clean, corrupted, receivers, metric, **options)
    plain = path_patch(tiny_model, clean, corrupted, found.senders, receivers, DIFFERENCE)
    torch.testing.assert_close(found.values, plain.values, atol=1e-5, rtol=1e-5)


def test_with_flags_on_and_hooks_of_ones_own(
    fresh_model: Any, clean: Example, corrupted: Example
) -> None:
    """Split inputs, heads' results and an ablation of the user's: every pass has them."""
    fresh_model.set_use_split_qkv_input(True)
    fresh_model.set_use_attn_result(True)
    fresh_model.set_use_hook_mlp_in(True)
    scale = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)  # which counts on two rows
    fresh_model.add_hook("decoder.blocks.1.attn.hook_q", lambda value, hook: scale * value)
    receivers = [Head("decoder", 1, 1).q, MLPLayer("encoder", 1)]
    senders = [Head("encoder", 0, 1), Head("decoder", 0, 1), MLPLayer("decoder", 0)]
    found = path_patch(fresh_model, clean, corrupted, senders, receivers, DIFFERENCE)
    by_hand = three_passes(fresh_model, corrupted, clean, senders, receivers)
    torch.testing.assert_close(found.values, by_hand, atol=1e-5, rtol=1e-5)


def test_a_sweep_takes_every_sender_with_a_path(
    tiny_model: Any, clean: Example, corrupted: Example
) -> None:
    receiver = Head("decoder", 1, 0, "cross_attn").q
    options: dict[str, Any] = {"progress": False, "with_mlps": False}
    found = path_patch_heads(tiny_model, clean, corrupted, receiver, difference, **options)
    before = [
        Head("decoder", 0, head, kind) for kind in ("attn", "cross_attn") for head in range(3)
    ]
    assert list(found.senders) == before + [Head("decoder", 1, head) for head in range(3)]
    assert len(all_senders(tiny_model)) == 2 * (2 + 1) + 3 * (3 + 3 + 1)


def test_the_table(tiny_model: Any, clean: Example, corrupted: Example) -> None:
    senders = [Head("decoder", 0, 2, "cross_attn"), MLPLayer("decoder", 1)]
    found = path_patch(tiny_model, clean, corrupted, senders, "logits", difference)
    table = found.to_dataframe()
    assert list(table["head"].dropna()) == [2, 2]
    assert list(table["sender"]) == ["decoder.0.cross_attn.2", "decoder.1.mlp"] * 2
    assert list(table["kind"]) == ["cross_attn", "mlp"] * 2
    assert list(table["pair"]) == [0, 0, 1, 1]
    assert table["effect"].to_numpy() == pytest.approx(found.effect().flatten().numpy())
    assert table["value"].to_numpy() == pytest.approx(found.values.flatten().numpy())


NO_PATH = {
    "itself": (MLPLayer("decoder", 1), MLPLayer("decoder", 1)),
    "head of the same layer": (Head("decoder", 1, 0), Head("decoder", 1, 1).q),
    "back": (MLPLayer("encoder", 1), Head("encoder", 0, 1).v),
    "encoder to the decoder's stream": (Head("encoder", 0, 0), "logits"),
    "encoder to cross q": (Head("encoder", 0, 0), Head("decoder", 2, 0, "cross_attn").q),
    "decoder to cross k": (Head("decoder", 0, 0), Head("decoder", 2, 0, "cross_attn").k),
    "decoder to the encoder": (Head("decoder", 0, 0), MLPLayer("encoder", 1)),
}


@pytest.mark.parametrize(("sender", "receiver"), NO_PATH.values(), ids=NO_PATH)
def test_no_direct_path(
    tiny_model: Any, clean: Example, corrupted: Example, sender: Any, receiver: Any
) -> None:
    with pytest.raises(InterventionError, match=r"has no direct path to"):
        path_patch(tiny_model, clean, corrupted, sender, receiver, difference)


def unchecked(made_by: type, **fields: Any) -> Any:
    """What a user can make, and the tests' own type checks would not let pass."""
    made = object.__new__(made_by)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


WRONG = {
    "head": (Head("decoder", 0, 3), SiteError, r"decoder\.0\.attn\.3: .* heads 0 to 2"),
    "layer": (Head("decoder", 3, 0), SiteError, r"layers 0 to 2"),
    "stack": (unchecked(MLPLayer, stack="coder", layer=0), SiteError, r"no stack 'coder'"),
    "cross-attention of the encoder": (Head("encoder", 0, 0, "cross_attn"), SiteError, r"kind"),
    "nothing": ([], InterventionError, r"no senders"),
}


@pytest.mark.parametrize(("sender", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_senders(
    tiny_model: Any, clean: Example, corrupted: Example, sender: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        path_patch(tiny_model, clean, corrupted, sender, "logits", _never)


def _never(logits: Tensor) -> Tensor:
    raise AssertionError("computed before the input was checked")


def test_wrong_receivers_and_options(tiny_model: Any, clean: Example, corrupted: Example) -> None:
    sender = Head("decoder", 0, 0)
    with pytest.raises(SiteError, match=r'its "q", "k" and "v"'):
        wrong = unchecked(HeadInput, head=sender, part="z")
        path_patch(tiny_model, clean, corrupted, sender, wrong, _never)
    with pytest.raises(InterventionError, match=r"no receivers"):
        path_patch(tiny_model, clean, corrupted, sender, [], _never)
    with pytest.raises(InterventionError, match=r'"logits" .* by itself'):
        both = [Head("decoder", 1, 0).q, "logits"]
        path_patch(tiny_model, clean, corrupted, sender, both, _never)
    with pytest.raises(InterventionError, match=r"max_rows is 0"):
        path_patch(tiny_model, clean, corrupted, sender, "logits", _never, max_rows=0)
    shorter = corrupted.with_tokens(corrupted.tokens[:, :-1])
    with pytest.raises(AlignmentError, match=r"7 tokens and the corrupted one 6"):
        path_patch(tiny_model, clean, shorter, sender, "logits", _never)
    with pytest.raises(MetricError, match=r"reads position -8"):
        metric = LogitDifference(3, 5, pos=-8)
        path_patch(tiny_model, clean, corrupted, sender, "logits", metric)
    with pytest.raises(MetricError, match=r"shape \(2, 7\)"):
        path_patch(tiny_model, clean, corrupted, sender, "logits", lambda logits: logits[..., 0])


def test_things_of_the_wrong_kind(tiny_model: Any) -> None:
    with pytest.raises(InterventionError, match=r"'decoder.blocks.0' is no sender"):
        check_part(tiny_model, "decoder.blocks.0", "sender")
    with pytest.raises(InterventionError, match=r"HeadInput\(.*\) is no sender"):
        check_part(tiny_model, Head("decoder", 0, 0).q, "sender")
    with pytest.raises(InterventionError, match=r"Head\(.*\) is no receiver. .*head\.q"):
        check_part(tiny_model, Head("decoder", 0, 0), "receiver")
    with pytest.raises(InterventionError, match=r'direction is "up"|direction is \'up\''):
        check_direction("up")


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_an_autoencoder_leaves_alone_what_is_padding_in_the_patched_run(
    tiny_model: Any, clean: Example, corrupted: Example, plain_autoencoder: Any, direction: Any
) -> None:
    """Four recordings of four lengths, and several senders side by side for each."""
    clean = Example(Mel(clean.mel.values, torch.tensor([52, 20])), clean.tokens)
    corrupted = Example(Mel(corrupted.mel.values, torch.tensor([12, 44])), corrupted.tokens)
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    senders, receivers = [Head("encoder", 0, 0), Head("encoder", 0, 1)], [Head("encoder", 1, 0).q]
    sae = {"encoder.blocks.1.hook_resid_post": plain_autoencoder(tiny_model.cfg.d_model)}
    with tiny_model.saes(sae, speech_only=True):
        found = path_patch(
            tiny_model, clean, corrupted, senders, receivers, DIFFERENCE, direction=direction
        )
        by_hand = three_passes(tiny_model, base, source, senders, receivers)
    torch.testing.assert_close(found.values, by_hand, atol=1e-5, rtol=1e-5)
    with tiny_model.saes(sae):
        everywhere = path_patch(
            tiny_model, clean, corrupted, senders, receivers, DIFFERENCE, direction=direction
        )
    assert ((everywhere.values - found.values).abs() > 1e-3).all()
