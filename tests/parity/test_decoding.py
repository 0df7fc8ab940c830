"""whisper.decode gives the same results on this model as on openai-whisper's class.

At the full window both start from our encoder's output, whose bits test_forward.py compares.
"""

from typing import Any

import pytest
import torch

# openai-whisper's own: it leaves its vocabulary's file open, and sorts tensors with numpy.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

NO_SUPPRESSION = {"suppress_tokens": "", "suppress_blank": False}

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy-no-timestamps": {"without_timestamps": True},
    "greedy-nothing-suppressed": {"without_timestamps": True, **NO_SUPPRESSION},
    "greedy-prompt": {"prompt": "One, two, three."},
    "greedy-prefix": {"prefix": "four five", "without_timestamps": True},
    "greedy-prompt-and-prefix": {"prompt": [440, 220, 991], "prefix": [1000, 2000]},
    "greedy-late-start": {"max_initial_timestamp": None},
    "greedy-long": {"sample_len": 66, "without_timestamps": True},
    "sampled": {"temperature": 0.7},
    "sampled-no-timestamps": {"temperature": 1.0, "without_timestamps": True},
    "best-of-3": {"temperature": 0.9, "best_of": 3},
    "beam-3": {"beam_size": 3},
    "beam-5-patience": {"beam_size": 5, "patience": 2.0, "without_timestamps": True},
    "beam-4-length-penalty": {"beam_size": 4, "length_penalty": 0.6, "prompt": "Six."},
    "half-precision-greedy": {"fp16": True},
    "half-precision-beam": {"fp16": True, "beam_size": 3},
}
MULTILINGUAL = {
    "language-detected": {"language": None},
    "language-detected-beam": {"language": None, "beam_size": 2},
    "language-only": {"task": "lang_id"},
    "translated": {"task": "translate", "language": "de"},
}
CASES = [
    *[("short", name) for name in (*OPTIONS, *MULTILINGUAL)],
    *[("tiny.en", name) for name in ("greedy", "sampled", "greedy-prompt", "beam-5-patience")],
    ("large-v3", "greedy"),
    *[("turbo", name) for name in ("greedy", "beam-3", "language-detected")],
    ("tiny", "greedy"),
    *[("digits", name) for name in ("greedy", "beam-3")],
]


@pytest.mark.parametrize(("size", "option"), CASES, ids=["-".join(case) for case in CASES])
def test_same_result(make_family: Any, size: str, option: str) -> None:
    """On a batch of three, or, as openai-whisper searches one at a time only, on two in turn."""
    family = make_family(size)
    options = {"language": "en", "sample_len": 16, "fp16": False}
    options |= {**OPTIONS, **MULTILINGUAL}[option]
    if size in ("tiny", "large-v3"):
        options["sample_len"] = 5
    audio = family.encoded if family.hooked.cfg.n_audio_ctx == 1500 else family.mel
    is_search = bool({"beam_size", "best_of"} & set(options))
    mels = audio[:2].split(1) if is_search else [audio]
    decoded = []
    for mel in mels:
        ours, theirs = (decode(model, mel, options) for model in (family.hooked, family.openai))
        assert len(ours) == len(theirs) == len(mel)
        for our, their in zip(ours, theirs, strict=True):
            assert contents(our) == contents(their)
            assert torch.equal(our.audio_features, their.audio_features)
        decoded += ours
    if options.get("task") != "lang_id":
        assert any(result.tokens for result in decoded), "nothing was decoded and compared"


@pytest.mark.parametrize("option", ["greedy", "sampled", "greedy-no-timestamps"])
def test_same_result_for_a_batch_of_one(short: Any, option: str) -> None:
    options = {"language": "en", "sample_len": 16, "fp16": False, **OPTIONS[option]}
    ours, theirs = (decode(each, short.mel[:1], options) for each in (short.hooked, short.openai))
    assert [contents(our) for our in ours] == [contents(their) for their in theirs]


def test_a_single_mel(short: Any) -> None:
    """Without a batch axis there is one result, not a list."""
    options = {"language": "en", "fp16": False, "sample_len": 8}
    ours = short.hooked.decode(short.mel[0], **options)
    theirs = short.openai.decode(short.mel[0], **options)
    assert contents(ours) == contents(theirs)


def test_batches_of_searches_fail_within_openai_whisper(short: Any) -> None:
    """If this changes there, the test above should search batches too."""
    options = {"language": "en", "fp16": False, "sample_len": 2, "beam_size": 2}
    with pytest.raises((RuntimeError, AssertionError)):
        decode(short.openai, short.mel, options)
    with pytest.raises(AssertionError):
        decode(short.hooked, short.mel, options)


def test_rows_end_at_different_lengths(digits: Any) -> None:
    """One, three and five digits: the trained model ends each row where it should."""
    options = {"language": "en", "fp16": False, "sample_len": 9, "without_timestamps": True}
    ours, theirs = (
        decode(each, digits.encoded, options) for each in (digits.hooked, digits.openai)
    )
    assert [len(result.tokens) for result in ours] == [1, 3, 5]
    assert [contents(our) for our in ours] == [contents(their) for their in theirs]


def test_hooks_see_and_change_every_step(short: Any) -> None:
    options = {"language": "en", "fp16": False, "sample_len": 6, "without_timestamps": True}
    options |= NO_SUPPRESSION
    plain = decode(short.hooked, short.mel[:1], options)
    lengths: list[int] = []

    def note(value: Any, hook: Any) -> None:
        lengths.append(value.shape[1])

    with short.hooked.hooks([("decoder.blocks.1.hook_resid_post", note)]):
        assert contents(decode(short.hooked, short.mel[:1], options)[0]) == contents(plain[0])
    assert lengths[0] == 4  # the prompt, then a token at a time
    assert set(lengths[1:]) == {1}
    with short.hooked.hooks([("decoder.blocks.1.hook_mlp_out", lambda value, hook: 0 * value)]):
        assert decode(short.hooked, short.mel[:1], options)[0].tokens != plain[0].tokens


def decode(model: Any, mel: Any, options: dict[str, Any]) -> list[Any]:
    import whisper

    torch.manual_seed(5)
    return whisper.decode(model, mel, whisper.DecodingOptions(**options))


def contents(result: Any) -> dict[str, Any]:
    """Everything but the encoder's output, with NaN written so that it equals itself."""
    fields = {name: value for name, value in vars(result).items() if name != "audio_features"}
    return {name: "NaN" if value != value else value for name, value in fields.items()}
