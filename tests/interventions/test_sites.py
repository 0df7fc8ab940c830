"""A site means the heads, positions, seconds and neurons that it says, in a pass and in a step."""

from typing import Any

import pytest
import torch

from hooked_whisper.errors import HookNameError, SiteError
from hooked_whisper.interventions.sites import (
    Site,
    first_pos,
    n_recordings,
    window_to_places,
)
from hooked_whisper.model.kv_cache import KVCache

RESID = "encoder.blocks.0.hook_resid_post"
OF_DECODER = "decoder.blocks.1.hook_resid_post"
Z = "decoder.blocks.0.attn.hook_z"
CROSS = "decoder.blocks.0.cross_attn.hook_attn_scores"


def chosen(model: Any, site: Site, shape: tuple[int, ...], start: int = 0) -> torch.Tensor | None:
    """True at the places of an activation of this shape that a site means."""
    (name,) = site.names(model)
    part = site.part(model.hook_dict[name], shape, start)
    if part is None:
        return None
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[part.local_index] = True
    return mask


@pytest.mark.parametrize(
    ("site", "shape", "index"),
    [
        (Site(RESID), (2, 30, 24), (slice(None),)),
        (Site(RESID, pos=3), (2, 30, 24), (slice(None), 3)),
        (Site(RESID, pos=-1), (2, 30, 24), (slice(None), 29)),
        (Site(RESID, pos=slice(4, 10, 2)), (2, 30, 24), (slice(None), [4, 6, 8])),
        (Site(RESID, pos=[1, -2]), (2, 30, 24), (slice(None), [1, 28])),
        (Site(RESID, window_s=(0.1, 0.2)), (2, 30, 24), (slice(None), slice(5, 10))),
        (Site(RESID, window_s=(0.595, 0.6)), (2, 30, 24), (slice(None), 29)),
        (Site(RESID, neuron=7), (2, 30, 24), (slice(None), slice(None), 7)),
        (Site(Z, head=1), (2, 7, 3, 8), (slice(None), slice(None), 1)),
        (Site(Z, head=[0, -1], pos=2, neuron=5), (2, 7, 3, 8), (slice(None), 2, [0, 2], 5)),
        (Site(CROSS, pos=4), (2, 3, 7, 30), (slice(None), slice(None), 4)),
        (
            Site(CROSS, head=0, pos=4, window_s=(0.0, 0.04)),
            (2, 3, 7, 30),
            (slice(None), 0, 4, slice(0, 2)),
        ),
        (
            Site("encoder.hook_mel", window_s=(0.1, 0.2)),
            (2, 80, 60),
            (slice(None), slice(None), slice(10, 20)),
        ),
        (
            Site("encoder.hook_conv2", window_s=(0.1, 0.2)),
            (2, 24, 30),
            (slice(None), slice(None), slice(5, 10)),
        ),
        (
            Site("encoder.blocks.0.attn.hook_pattern", window_s=(0.1, 0.2)),
            (2, 2, 30, 30),
            (slice(None), slice(None), slice(5, 10)),
        ),
        (
            Site("decoder.blocks.0.cross_attn.hook_k", window_s=(0.1, 0.2)),
            (2, 30, 3, 8),
            (slice(None), slice(5, 10)),
        ),
    ],
    ids=[
        "all",
        "one position",
        "last position",
        "slice",
        "several positions",
        "window",
        "window within the last position",
        "neuron",
        "head",
        "head, position and neuron",
        "query",
        "keys of a window",
        "mel frames",
        "positions last",
        "queries of a window",
        "cross-attention keys",
    ],
)
def test_a_part_is_what_an_index_would_be(tiny_model, site, shape, index):
    expected = torch.zeros(shape, dtype=torch.bool)
    expected[index] = True
    assert torch.equal(chosen(tiny_model, site, shape), expected)


@pytest.mark.parametrize(
    ("pos", "here"),
    [(5, 1), (-1, 2), (slice(5, None), [1, 2]), ([0, 6], 2), (2, None), (9, None)],
    ids=["number", "newest", "slice", "some of them", "earlier", "later"],
)
def test_in_a_step_positions_keep_their_numbers(tiny_model, pos, here):
    mask = chosen(tiny_model, Site(OF_DECODER, pos=pos), (1, 3, 24), start=4)
    if here is None:
        assert mask is None
    else:
        expected = torch.zeros(1, 3, 24, dtype=torch.bool)
        expected[:, here] = True
        assert torch.equal(mask, expected)


def test_a_part_tells_where_it_lies_in_the_whole_run(tiny_model):
    site = Site(OF_DECODER, pos=slice(5, None))
    part = site.part(tiny_model.hook_dict[OF_DECODER], (1, 3, 24), 4)
    assert part is not None
    assert torch.arange(3)[part.local_index[1]].tolist() == [1, 2]
    assert list(part.global_places[1]) == [5, 6]


def test_a_glob_means_several_hooks(tiny_model):
    assert Site("decoder.blocks.*.attn.hook_z", head=0).names(tiny_model) == [
        f"decoder.blocks.{layer}.attn.hook_z" for layer in range(3)
    ]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(RESID, head=0), r"has axes .*: no heads\. Leave out head"),
        (Site(Z, head=3), r"no head 3 at '.*hook_z': it has heads 0 to 2"),
        (Site(Z, head=-4), "no head -4"),
        (Site(Z, head=[]), r"head is \[\] .* can be an integer or several"),
        (Site(Z, head=True), "head is True"),
        (Site(RESID, neuron=24), "no neuron 24 .* 0 to 23"),
        (Site("encoder.blocks.0.ln1.hook_scale", neuron=1), "no neuron 1 .* 0 to 0"),
        (Site("encoder.hook_mel", neuron=1), r"no neurons\. Leave out neuron"),
        (Site("encoder.hook_mel", pos=1), r"no positions\. Leave out pos"),
        (Site("decoder.blocks.0.cross_attn.hook_k", pos=1), r"no positions\. Leave out pos"),
        (Site(RESID, pos=30), "no position 30 .* 0 to 29"),
        (Site(OF_DECODER, pos=20), "no position 20 .* 0 to 19"),
        (Site(RESID, pos=slice(40, 50)), r"position is slice\(40, 50, None\) .*: none of"),
        (Site(RESID, pos=slice(9, None, -1)), "its step must be at least 1"),
        (Site(OF_DECODER, window_s=(0.0, 0.1)), "none of which is the recording's time"),
        (Site("decoder.blocks.0.attn.hook_pattern", window_s=(0.0, 0.1)), "Give pos instead"),
        (Site(RESID, pos=1, window_s=(0.0, 0.1)), "both pos and window_s are given"),
        (Site(RESID, window_s=(0.5, 0.7)), r"the window is 0\.5 to 0\.7 s; .* 0 to 0\.6 s"),
        (Site(RESID, window_s=(0.3, 0.3)), "must lie in .* end after it starts"),
        (Site(RESID, window_s=(-0.1, 0.3)), r"the window is -0\.1 to 0\.3 s"),
    ],
    ids=lambda each: None if isinstance(each, str) else f"{each.name}-{each.head}{each.pos}",
)
def test_what_is_not_there_is_refused(tiny_model, site, message):
    with pytest.raises(SiteError, match=message):
        site.names(tiny_model)


def test_a_name_that_is_not_there_is_refused(tiny_model):
    with pytest.raises(HookNameError, match="decoder blocks 0 to 2"):
        Site("decoder.blocks.3.hook_resid_post").names(tiny_model)


@pytest.mark.parametrize(
    ("window_s", "axis", "places"),
    [
        ((0.5, 1.0), "pos", (25, 50)),
        ((0.5, 1.0), "frame", (50, 100)),
        ((0.101, 0.102), "pos", (5, 6)),
    ],
    ids=["positions", "frames", "at least one"],
)
def test_a_window_becomes_places(window_s, axis, places):
    assert window_to_places(window_s, axis) == places


def test_axis_sizes_are_those_of_a_run(fresh_model, tiny_mel, tiny_tokens):
    for flag in ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"):
        getattr(fresh_model, f"set_{flag}")(True)
        check_sizes(fresh_model, tiny_mel, tiny_tokens)


def check_sizes(model, mel, tokens):
    _, cache = model.run_with_cache(mel, tokens)
    for name, value in cache.items():
        sizes = model.axis_sizes(name)
        of_input = {"batch": 2, "pos": 7, "query": 7, "key": 7}
        expected = [
            of_input[axis] if size is None else size
            for axis, size in zip(cache.axes(name), sizes, strict=True)
        ]
        assert list(value.shape) == expected, name


def test_a_pass_knows_its_first_position_and_its_recordings(tiny_model, tiny_mel, tiny_tokens):
    seen = []

    def look(value, hook):
        name = hook.name
        rows = len(value)
        seen.append((first_pos(name), n_recordings(name, rows), rows))

    with torch.no_grad(), tiny_model.hooks([([RESID, OF_DECODER], look)]):
        encoded = tiny_model.encoder(tiny_mel)
        kv_cache = KVCache()
        tokens = tiny_tokens.repeat_interleave(3, dim=0)
        tiny_model.decoder(tokens[:, :4], encoded, kv_cache=kv_cache)
        tiny_model.decoder(tokens[:, 4:5], encoded, kv_cache=kv_cache)
        tiny_model.decoder(tokens, encoded[:1])
    assert seen == [(0, 2, 2), (0, 2, 6), (4, 2, 6), (0, 1, 6)]
