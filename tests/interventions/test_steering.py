"""Steering adds a direction where it is told to; projecting out leaves nothing along it."""

from typing import Any

import pytest
import torch

from hooked_whisper import Mel, WhisperCache
from hooked_whisper.digits import recordings
from hooked_whisper.errors import (
    AlignmentError,
    CacheError,
    HookNameError,
    InputError,
    InterventionError,
    SiteError,
)
from hooked_whisper.interventions.edits import Interventions
from hooked_whisper.interventions.means import mean_activations
from hooked_whisper.interventions.sites import Site
from hooked_whisper.interventions.steering import ProjectOut, Steer, class_mean_difference

# openai-whisper leaves the file of its vocabulary to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning")

RESID = "encoder.blocks.0.hook_resid_post"
OF_DECODER = "decoder.blocks.1.hook_resid_post"
Z = "decoder.blocks.0.cross_attn.hook_z"


def by_hand(model: Any, mel: Any, tokens: Any, name: str, function: Any) -> Any:
    with torch.no_grad():
        return model.run_with_hooks(mel, tokens, fwd_hooks=[(name, function)])


def check(model, mel, tokens, one_pass, in_steps, edit, name, function):
    """The edit is the hand-written hook, in a pass and step by step."""
    expected = by_hand(model, mel, tokens, name, function)
    torch.testing.assert_close(one_pass(model, mel, tokens, edit), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(in_steps(model, mel, tokens, edit), expected, atol=1e-4, rtol=0)
    assert (expected - one_pass(model, mel, tokens)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("site", "shape", "index"),
    [
        (Site(RESID), (24,), (slice(None),)),
        (Site(RESID, window_s=(0.1, 0.3)), (24,), (slice(None), slice(5, 15))),
        (Site(RESID, pos=[3, 20]), (30, 24), (slice(None), [3, 20])),
        (Site(OF_DECODER, pos=slice(4, None)), (24,), (slice(None), slice(4, None))),
        (Site(OF_DECODER, pos=5), (1, 7, 24), (slice(None), 5)),
        (Site(Z, head=1), (8,), (slice(None), slice(None), 1)),
        (Site(Z, head=[0, 2]), (3, 8), (slice(None), slice(None), [0, 2])),
        (Site("decoder.blocks.0.mlp.hook_post", neuron=5), (), (slice(None), slice(None), 5)),
        (Site("encoder.hook_conv2"), (24, 1), (slice(None),)),
    ],
    ids=[
        "everywhere",
        "window",
        "positions, each its own",
        "later tokens",
        "a token's own",
        "head",
        "heads, each its own",
        "neuron",
        "width not last",
    ],
)
def test_steering(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, site, shape, index):
    vector = torch.randn(shape)

    def function(value, hook):
        value = value.clone()
        value[index] = value[index] - 2.5 * vector.expand_as(value)[index]
        return value

    edit = Steer(site, vector, -2.5)
    check(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, edit, site.name, function)


def test_no_strength_changes_nothing(tiny_model, tiny_mel, tiny_tokens, one_pass):
    edit = Steer(Site(RESID), torch.ones(24), 0)
    plain = one_pass(tiny_model, tiny_mel, tiny_tokens)
    assert torch.equal(one_pass(tiny_model, tiny_mel, tiny_tokens, edit), plain)


@pytest.mark.parametrize("n", [1, 2, 5], ids=lambda n: f"{n} directions")
@pytest.mark.parametrize(
    ("name", "width", "index"),
    [
        (RESID, 24, (slice(None), slice(5, 15))),
        (OF_DECODER, 24, (slice(None), slice(4, None))),
    ],
    ids=["encoder", "decoder"],
)
def test_projecting_out(
    tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, name, width, index, n
):
    directions = torch.randn(n, width) * torch.tensor([10.0, 1, 0.1, 3, 1])[:n, None]
    directions[-1] += directions[0]  # not orthogonal to each other

    def function(value, hook):
        value = value.clone()
        # By least squares: what the directions explain best.
        part = value[index].flatten(0, 1).double()
        basis = directions.double().T
        weights = torch.linalg.lstsq(basis, part.T).solution
        value[index] = (part.T - basis @ weights).T.view_as(value[index]).float()
        return value

    where = {"window_s": (0.1, 0.3)} if name == RESID else {"pos": slice(4, None)}
    direction = directions[0] if n == 1 else directions
    edit = ProjectOut(Site(name, **where), direction)
    check(tiny_model, tiny_mel, tiny_tokens, one_pass, in_steps, edit, name, function)
    with torch.no_grad(), Interventions(tiny_model, edit):
        _, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, names_filter=name)
    left = cache[name][index] @ (directions / directions.norm(dim=-1, keepdim=True)).T
    torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-4, rtol=0)


def test_directions_that_depend_on_each_other(tiny_model, tiny_mel, tiny_tokens, one_pass):
    direction = torch.randn(24)
    several = torch.stack([direction, -3 * direction])
    expected = one_pass(tiny_model, tiny_mel, tiny_tokens, ProjectOut(Site(RESID), direction))
    edited = one_pass(tiny_model, tiny_mel, tiny_tokens, ProjectOut(Site(RESID), several))
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (Steer(Site(RESID), torch.ones(23)), AlignmentError, "the vector .* 'd_model' must be 24"),
        (Steer(Site(RESID), torch.ones(29, 24)), AlignmentError, "'pos' must be 30"),
        (Steer(Site(RESID), torch.ones(2, 30, 24)), AlignmentError, "2 rows; it must be one"),
        (Steer(Site(RESID), torch.ones(24) / 0), InterventionError, "must be finite"),
        (Steer(Site(RESID), torch.ones(24), float("nan")), InterventionError, "strength is nan"),
        (Steer(Site(RESID, head=1), torch.ones(24)), SiteError, "no heads"),
        (ProjectOut(Site(RESID), torch.ones(23)), AlignmentError, "are 24 wide"),
        (ProjectOut(Site(RESID), torch.ones(1)), AlignmentError, "are 24 wide"),
        (ProjectOut(Site(RESID), torch.ones(2, 3, 24)), AlignmentError, r"\[direction width\]"),
        (
            ProjectOut(Site(RESID), torch.eye(24)[:2] * torch.tensor([[1.0], [0.0]])),
            InterventionError,
            "a direction is zero",
        ),
        (ProjectOut(Site(RESID), torch.ones(24) * torch.nan), InterventionError, "must be finite"),
        (ProjectOut(Site(RESID, neuron=3), torch.ones(24)), SiteError, "leave neuron out"),
        (ProjectOut(Site("encoder.hook_conv1"), torch.ones(60)), SiteError, "no vectors"),
    ],
    ids=lambda each: None if isinstance(each, (str, type)) else type(each).__name__,
)
def test_what_cannot_be_done_is_refused_before_anything_runs(tiny_model, edit, error, message):
    with pytest.raises(error, match=message), Interventions(tiny_model, edit):
        pytest.fail("the block was entered")


def test_integers_are_no_vector(tiny_model, without_shape_checks):
    with pytest.raises(InterventionError, match=r"is torch\.int64"):
        Steer(Site(RESID), torch.ones(24, dtype=torch.int64)).hooks(tiny_model)


@pytest.fixture
def caches(tiny_model: Any, tiny_mel: Any, tiny_tokens: Any) -> tuple[WhisperCache, WhisperCache]:
    """Two runs, of recordings of 20 and 55 frames, and of 60."""
    first = Mel(tiny_mel, torch.tensor([20, 55]))
    second = Mel(-tiny_mel[:1], torch.tensor([60]))
    with torch.no_grad():
        return (
            tiny_model.run_with_cache(first, tiny_tokens)[1],
            tiny_model.run_with_cache(second, tiny_tokens[:1])[1],
        )


def test_class_means_count_sound_alone(caches):
    first, second = caches
    sound = torch.cat([first[RESID][0, :10], first[RESID][1, :28]])
    expected = sound.mean(dim=0) - second[RESID][0].mean(dim=0)
    difference = class_mean_difference(first, second, RESID)
    torch.testing.assert_close(difference, expected)
    same = class_mean_difference([first], [second, second], ("encoder", 0, "resid_post"))
    torch.testing.assert_close(same, expected)
    unit = class_mean_difference(first, second, RESID, unit_norm=True)
    torch.testing.assert_close(unit, expected / expected.norm())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (RESID, lambda value: value.mean(dim=(0, 1))),
        (OF_DECODER, lambda value: value.mean(dim=(0, 1))),
        (Z, lambda value: value.mean(dim=(0, 1))),
        ("encoder.hook_conv1", lambda value: value.mean(dim=(0, 2))),
        ("decoder.blocks.0.cross_attn.hook_v", lambda value: value.mean(dim=(0, 1))),
    ],
    ids=["encoder", "decoder", "heads", "frames", "cross-attention values"],
)
def test_class_means_of_all_frames(caches, name, count):
    first, second = caches
    expected = count(first[name]) - count(second[name])
    difference = class_mean_difference(first, second, name, all_frames=True)
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("encoder.hook_conv1", lambda value: value[0, :, :20].sum(1) + value[1, :, :55].sum(1)),
        ("encoder.hook_conv2", lambda value: value[0, :, :10].sum(1) + value[1, :, :28].sum(1)),
        (
            "decoder.blocks.0.cross_attn.hook_v",
            lambda value: value[0, :10].sum(0) + value[1, :28].sum(0),
        ),
    ],
    ids=["frames", "positions last", "cross-attention values"],
)
def test_sound_is_found_on_every_axis_of_time(caches, name, total):
    first, _ = caches
    zeros = WhisperCache(
        {name: torch.zeros_like(first[name])}, {name: first.axes(name)}, first.n_frames
    )
    mean = class_mean_difference(first, zeros, name)
    n = 75 if name.endswith("conv1") else 38
    torch.testing.assert_close(mean, total(first[name]) / n, atol=1e-5, rtol=1e-5)


def test_class_means_of_tensors():
    first, second = torch.randn(3, 5, 8), [torch.randn(8), torch.randn(2, 8)]
    expected = first.mean(dim=(0, 1)) - torch.cat([second[0][None], second[1]]).mean(dim=0)
    torch.testing.assert_close(class_mean_difference(first, second), expected)


def test_class_means_of_averages(tiny_model, tiny_mel, caches):
    first, second = caches
    means = [
        mean_activations(tiny_model, mel, RESID, progress=False)
        for mel in (Mel(tiny_mel, first.n_frames), Mel(-tiny_mel[:1], second.n_frames))
    ]
    expected = class_mean_difference(first, second, RESID)
    torch.testing.assert_close(class_mean_difference(*means, RESID), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("positive", "negative", "options", "error", "message"),
    [
        ([], torch.ones(3), {}, InputError, "the positive class is empty"),
        (torch.ones(3), "x", {}, InputError, "a class holds a str"),
        (torch.ones(3), torch.ones(4), {}, AlignmentError, r"\(3,\) and the negative one \(4,\)"),
        (torch.ones(3), torch.ones(()), {}, InputError, "a class is one number"),
        (torch.ones(3), torch.ones(2, 3), {"unit_norm": True}, InterventionError, "same mean"),
    ],
    ids=["empty", "text", "widths", "a number", "same"],
)
def test_classes_that_cannot_be_compared(positive, negative, options, error, message):
    with pytest.raises(error, match=message):
        class_mean_difference(positive, negative, **options)


def test_caches_that_cannot_be_compared(tiny_model, tiny_mel, caches):
    first, second = caches
    with pytest.raises(InputError, match="name is missing"):
        class_mean_difference(first, second)
    with pytest.raises(HookNameError, match="the cache: no hook 'resid'"):
        class_mean_difference(first, second, "resid")
    with pytest.raises(InputError, match="has no vectors"):
        class_mean_difference(first, second, "encoder.blocks.0.attn.hook_pattern")
    with torch.no_grad():
        _, unknown = tiny_model.run_with_cache(tiny_mel, names_filter=RESID)
        _, silent = tiny_model.run_with_cache(
            Mel(tiny_mel, torch.tensor([0, 0])), names_filter=RESID
        )
    with pytest.raises(CacheError, match="does not know how much"):
        class_mean_difference(first, unknown, RESID)
    with pytest.raises(InputError, match="the negative class holds no sound"):
        class_mean_difference(first, silent, RESID)
    assert class_mean_difference(first, unknown, RESID, all_frames=True).shape == (24,)


def test_steering_turns_one_digit_into_another(digits_model):
    """By a direction from "three" to "one" of other recordings, over one digit's time."""
    first, *others = recordings()
    spoken: dict[str, list[torch.Tensor]] = {"three": [], "one": []}
    for recording in others:
        if not set(spoken) & set(recording.text.split()):
            continue
        with torch.no_grad():
            encoded = digits_model(digits_model.to_mel(recording.path))
        for word in recording.words:
            if word.word in spoken:
                places = slice(round(50 * word.start_s), round(50 * word.end_s))
                spoken[word.word].append(encoded[0, places])
    direction = class_mean_difference(spoken["one"], spoken["three"])
    time = (first.words[0].start_s, first.words[0].end_s)
    edit = Steer(Site("encoder.ln_final.hook_normalized", window_s=time), direction)
    assert first.text == "three one four"
    with Interventions(digits_model, edit):
        heard = digits_model.generate(digits_model.to_mel(first.path), 6).texts[0].split()
    assert heard[:3] == ["one", "one", "four"]
