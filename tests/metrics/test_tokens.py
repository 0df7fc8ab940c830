"""Metrics of single tokens, against their formulas in plain torch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.errors import MetricError, TokenError
from hooked_whisper.metrics.base import check_position
from hooked_whisper.metrics.tokens import (
    LogitDifference,
    LogProb,
    NoSpeechProb,
    Probability,
    TokenRank,
    token_ids,
)

D_VOCAB = 11
positions = pytest.mark.parametrize("pos", [0, 2, 4, -1, -5], ids=lambda pos: f"pos {pos}")
batches = pytest.mark.parametrize("n_rows", [1, 2, 5], ids=lambda n: f"{n} rows")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)


def make_logits(n_rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(n_rows, 5, D_VOCAB)).to(dtype)


@positions
@batches
@dtypes
def test_logit_difference(pos: int, n_rows: int, dtype: torch.dtype) -> None:
    logits = make_logits(n_rows, dtype)
    right, wrong = torch.randint(D_VOCAB, (2, n_rows))
    expected = [
        float(logits[row, pos, right[row]]) - float(logits[row, pos, wrong[row]])
        for row in range(n_rows)
    ]
    torch.testing.assert_close(LogitDifference(right, wrong, pos)(logits), torch.tensor(expected))
    same = LogitDifference(int(right[0]), int(wrong[0]), pos)(logits)
    torch.testing.assert_close(
        same, (logits[:, pos, right[0]].float() - logits[:, pos, wrong[0]].float())
    )


@positions
@batches
@dtypes
def test_log_prob_and_probability(pos: int, n_rows: int, dtype: torch.dtype) -> None:
    logits = make_logits(n_rows, dtype)
    token = torch.randint(D_VOCAB, (n_rows,)).tolist()
    expected = []
    for row in range(n_rows):
        weights = logits[row, pos].double().exp()
        expected.append(float(weights[token[row]] / weights.sum()))
    torch.testing.assert_close(Probability(token, pos)(logits), torch.tensor(expected))
    torch.testing.assert_close(LogProb(token, pos)(logits), torch.tensor(expected).log())


@positions
@batches
def test_rank(pos: int, n_rows: int) -> None:
    logits = make_logits(n_rows)
    token = torch.randint(D_VOCAB, (n_rows,)).tolist()
    ranked = [row.argsort(descending=True).tolist() for row in logits[:, pos]]
    expected = [order.index(each) for order, each in zip(ranked, token, strict=True)]
    assert TokenRank(token, pos)(logits).tolist() == expected


def test_rank_does_not_count_equals() -> None:
    logits = torch.tensor([[[1.0, 2.0, 2.0, 0.0]]])
    assert [TokenRank(token)(logits).item() for token in range(4)] == [2, 0, 0, 3]


def test_extreme_logits_have_finite_log_probabilities() -> None:
    logits = torch.tensor([[[-1e4, 1e4]]])
    assert LogProb(0)(logits).item() == -2e4
    assert Probability(0)(logits).item() == 0


# Gradients


def test_gradient_of_logit_difference() -> None:
    logits = make_logits(2).requires_grad_()
    LogitDifference((3, 4), 7, pos=1)(logits).sum().backward()
    expected = torch.zeros(2, 5, D_VOCAB)
    expected[0, 1, 3] = expected[1, 1, 4] = 1
    expected[:, 1, 7] = -1
    assert torch.equal(logits.grad, expected)


@pytest.mark.parametrize("kind", [LogProb, Probability], ids=["log-probability", "probability"])
def test_gradient_of_a_probability(kind: Any) -> None:
    logits = make_logits(2).requires_grad_()
    kind(3, pos=-2)(logits).sum().backward()
    probs = logits[:, -2].detach().softmax(dim=-1)
    expected = -probs
    expected[:, 3] += 1  # of the logarithm: 1 at the token, less the probabilities
    if kind is Probability:
        expected = expected * probs[:, 3:4]
    torch.testing.assert_close(logits.grad[:, -2], expected)
    assert logits.grad[:, [0, 1, 2, 4]].abs().sum() == 0


# What it takes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5),
        (torch.tensor(5), 5),
        (torch.tensor(5).numpy(), 5),
        ([5, 7], (5, 7)),
        (torch.tensor([5, 7]), (5, 7)),
        ([torch.tensor(5), torch.tensor(7)], (5, 7)),
    ],
    ids=["int", "0-d tensor", "numpy", "list", "tensor", "list of tensors"],
)
def test_token_ids_become_plain_numbers(value: Any, expected: Any) -> None:
    assert token_ids(value, "token") == expected
    assert LogProb(value) == LogProb(expected)
    assert repr(LogProb(value)) == f"LogProb(token={expected}, pos=-1)"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (" seven", r"token is ' seven'; it must be a token id"),
        (5.0, r"token is 5\.0; it must be"),
        (True, r"token is True; it must be"),
        (-1, r"token is -1; it must be"),
        (None, r"token is None; .* model\.to_tokens"),
        ([], r"token is empty; give one"),
        (torch.tensor([[5]]), r"token is a tensor of shape \(1, 1\) and dtype torch\.int64"),
        (torch.tensor([0.5]), r"token is a tensor of shape \(1,\) and dtype torch\.float32"),
    ],
    ids=["text", "float", "bool", "negative", "None", "empty", "two axes", "float tensor"],
)
def test_what_is_no_token_id(value: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        LogProb(value)


@pytest.mark.parametrize("pos", [1.0, None, "-1", True], ids=repr)
def test_what_is_no_position(pos: Any) -> None:
    with pytest.raises(MetricError, match=r"pos is .*; it must be a decoder position"):
        check_position(pos)


def test_its_position_is_checked() -> None:
    with pytest.raises(MetricError, match=r"pos is True; it must be a decoder position"):
        LogProb(5, pos=True)


def test_the_wrong_field_is_named() -> None:
    with pytest.raises(MetricError, match=r"wrong is 'x'; it must be a token id"):
        LogitDifference(5, "x")


def test_as_many_tokens_as_rows() -> None:
    metric = LogitDifference(1, (2, 3))
    with pytest.raises(MetricError, match=r"wrong has 2 token ids for 3 rows of logits"):
        metric(make_logits(3))
    with pytest.raises(MetricError, match=r"wrong has 2 token ids for 3 rows of logits"):
        metric.check(3, 5, D_VOCAB)
    assert LogitDifference((1,), (2,))(make_logits(3)).shape == (3,)


def test_a_token_out_of_the_vocabulary() -> None:
    with pytest.raises(MetricError, match=r"token is 11, out of the vocabulary: ids .* 0 to 10"):
        LogProb((3, 11))(make_logits(2))
    with pytest.raises(MetricError, match=r"token is 11, out of the vocabulary"):
        LogProb(11).check(2, 5, D_VOCAB)


def test_logits_of_more_positions_than_it_reads() -> None:
    with pytest.raises(MetricError, match=r"5 positions were given to LogProb, which reads one"):
        LogProb(3).of_positions(make_logits(2))


# On real speech


@pytest.fixture(scope="module")
def digits() -> HookedWhisper:
    return HookedWhisper.from_pretrained("digits")


def test_no_speech_as_openai_whisper_computes_it(digits_model: HookedWhisper) -> None:
    from whisper.decoding import DecodingOptions, decode

    mel = digits_model.to_mel([recordings()[1].path, recordings()[4].path])
    found = NoSpeechProb(digits_model)(digits_model(mel, digits_model.to_tokens(["", ""])).detach())
    theirs = decode(digits_model, mel.values, DecodingOptions(language="en", fp16=False))
    assert found.tolist() == pytest.approx([each.no_speech_prob for each in theirs], rel=1e-4)
    assert NoSpeechProb(digits_model).positions == (0,)


def test_no_speech_behind_a_prompt(digits_model: HookedWhisper) -> None:
    """Where the start token is not first, its position says where to look."""
    logits = torch.zeros(1, 4, digits_model.cfg.d_vocab)
    metric = NoSpeechProb(digits_model, pos=2)
    logits[0, 2, metric.token] = 20.0
    assert metric(logits).item() == pytest.approx(1.0, abs=1e-3)
    assert NoSpeechProb(digits_model)(logits).item() < 1e-4
    assert digits_model.to_str_tokens(torch.tensor([metric.token]))[0] in (
        "<|nospeech|>",
        "<|nocaptions|>",
    )


def test_no_speech_needs_whispers_vocabulary(tiny_model: Any) -> None:
    with pytest.raises(TokenError, match="d_vocab is 101; Whisper's tokenizer has"):
        NoSpeechProb(tiny_model)


def test_they_tell_right_from_wrong(digits_model: HookedWhisper) -> None:
    said = recordings()[0]
    seven = digits_model.to_tokens(" seven", prepend_sot=False)[0, 0]
    first = digits_model.to_tokens(" " + said.words[0].word, prepend_sot=False)[0, 0]
    with torch.no_grad():
        logits = digits_model(digits_model.to_mel(said.path), digits_model.to_tokens(""))
    assert LogitDifference(first, seven)(logits) > 1
    assert Probability(first)(logits) > 0.8
    assert TokenRank(first)(logits) == 0 < TokenRank(seven)(logits)
