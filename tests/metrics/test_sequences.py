"""Metrics of many tokens, against their formulas written out position by position."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.errors import AlignmentError, MetricError
from hooked_whisper.metrics.sequences import (
    ExactSequence,
    KLDivergence,
    Loss,
    SequenceLogProb,
)

N_POS, D_VOCAB = 6, 11
OF_TEXT = pytest.mark.parametrize("kind", [SequenceLogProb, Loss, ExactSequence])
batches = pytest.mark.parametrize("n_rows", [1, 2, 5], ids=lambda n: f"{n} rows")
starts = pytest.mark.parametrize("start", [1, 3, 5, -1, -5], ids=lambda start: f"from {start}")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)


def make_run(n_rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits, and tokens that they may have been given with."""
    logits = (3 * torch.randn(n_rows, N_POS, D_VOCAB)).to(dtype)
    return logits, torch.randint(D_VOCAB, (n_rows, N_POS))


def written_out(logits: Tensor, tokens: Tensor, start: int) -> list[list[float]]:
    """Log-probability of each token of each row, one after the other."""
    first = start if start > 0 else N_POS + start
    rows = []
    for row in range(len(logits)):
        row_tokens = tokens[row % len(tokens)]
        found = []
        for pos in range(first, N_POS):
            weights = logits[row, pos - 1].double().exp()
            found.append(float((weights[row_tokens[pos]] / weights.sum()).log()))
        rows.append(found)
    return rows


@starts
@batches
@dtypes
def test_log_prob_and_loss(start: int, n_rows: int, dtype: torch.dtype) -> None:
    logits, tokens = make_run(n_rows, dtype)
    log_probs = torch.tensor(written_out(logits, tokens, start))
    total = SequenceLogProb(tokens, start)(logits)
    torch.testing.assert_close(total, log_probs.sum(dim=1), atol=1e-5, rtol=1e-5)
    loss = Loss(tokens, start)(logits)
    torch.testing.assert_close(loss, -log_probs.mean(dim=1), atol=1e-5, rtol=1e-5)


def test_loss_is_the_models(tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor) -> None:
    with torch.no_grad():
        logits, loss = tiny_model(tiny_mel, tiny_tokens, return_type="both")
    rows = Loss(tiny_tokens)(logits)
    torch.testing.assert_close(rows.mean(), loss)
    for row in range(2):
        one = tiny_model.loss(logits[row : row + 1], tiny_tokens[row : row + 1])
        torch.testing.assert_close(rows[row], one)


def test_one_row_of_tokens_serves_every_row() -> None:
    logits, tokens = make_run(3)
    one = SequenceLogProb(tokens[:1], start=2)(logits)
    assert torch.equal(one, SequenceLogProb(tokens[:1].expand(3, -1), start=2)(logits))


def test_padding_does_not_count() -> None:
    logits, tokens = make_run(2)
    log_probs = written_out(logits, tokens, start=2)
    expected = [sum(log_probs[0][:2]), sum(log_probs[1][:4])]
    total = SequenceLogProb(tokens, start=2, n_tokens=[4, 6])(logits)
    torch.testing.assert_close(total, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    mean = Loss(tokens, start=2, n_tokens=[4, 6])(logits)
    torch.testing.assert_close(
        mean, torch.tensor([-expected[0] / 2, -expected[1] / 4]), atol=1e-5, rtol=1e-5
    )
    same = SequenceLogProb(tokens, start=2, n_tokens=4)(logits)
    torch.testing.assert_close(same[1].item(), sum(log_probs[1][:2]), atol=1e-5, rtol=1e-5)


def test_impossible_padding_spoils_nothing() -> None:
    """A suppressed token has a log-probability of minus infinity."""
    logits, tokens = make_run(1)
    logits[0, 4] = -torch.inf
    logits[0, 4, 0] = 0.0
    tokens[0, 5] = 3
    logits.requires_grad_()
    SequenceLogProb(tokens, n_tokens=5)(logits).sum().backward()
    assert bool(torch.isfinite(logits.grad).all())


@batches
def test_exact_sequence(n_rows: int) -> None:
    logits, tokens = make_run(n_rows)
    best = logits.argmax(dim=-1)
    tokens[:, 1:] = best[:, :-1]
    assert ExactSequence(tokens)(logits).tolist() == [1.0] * n_rows
    tokens[0, 2] = (tokens[0, 2] + 1) % D_VOCAB
    expected = [0.0] + [1.0] * (n_rows - 1)
    assert ExactSequence(tokens)(logits).tolist() == expected
    assert ExactSequence(tokens, start=3)(logits).tolist() == [1.0] * n_rows
    assert ExactSequence(tokens, n_tokens=2)(logits).tolist() == [1.0] * n_rows


def test_the_first_token_is_given_and_the_last_position_predicts_nothing() -> None:
    _, tokens = make_run(2)
    assert SequenceLogProb(tokens).positions == (0, 1, 2, 3, 4)
    assert SequenceLogProb(tokens, start=-2).positions == (3, 4)


def test_later_edits_of_the_tokens_change_nothing() -> None:
    logits, tokens = make_run(1)
    metric = SequenceLogProb(tokens)
    before = metric(logits)
    tokens += 1
    assert torch.equal(metric(logits), before)


# The divergence


@pytest.mark.parametrize("pos", [None, 2, -1, [0, -1], [3, 1]], ids=str)
@batches
@dtypes
def test_divergence(pos: Any, n_rows: int, dtype: torch.dtype) -> None:
    logits, _ = make_run(n_rows, dtype)
    reference, _ = make_run(n_rows, dtype)
    wanted = list(range(N_POS)) if pos is None else [pos] if isinstance(pos, int) else pos
    expected = []
    for row in range(n_rows):
        total = 0.0
        for each in wanted:
            p, q = (x[row, each].double().softmax(dim=0) for x in (reference, logits))
            total += float((p * (p / q).log()).sum())
        expected.append(total / len(wanted))
    found = KLDivergence(reference, pos)(logits)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_no_divergence_from_itself() -> None:
    logits, _ = make_run(2)
    assert KLDivergence(logits)(logits).abs().max() < 1e-6
    assert KLDivergence(logits)(logits + 3).abs().max() < 1e-6  # the same probabilities


def test_one_reference_serves_every_row() -> None:
    logits, _ = make_run(3)
    found = KLDivergence(logits[:1])(logits)
    assert found[0].abs() < 1e-6 < found[1:].min()


def test_a_token_that_the_reference_rules_out() -> None:
    reference = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    assert KLDivergence(reference)(logits).item() == 0
    other = torch.zeros(1, 1, 3, requires_grad=True)
    found = KLDivergence(reference)(other)
    found.backward()
    assert found.item() == pytest.approx(torch.tensor(1.5).log().item())
    torch.testing.assert_close(other.grad, torch.tensor([[[-1 / 6, -1 / 6, 1 / 3]]]))


# Gradients


@pytest.mark.parametrize("kind", ["sequence", "loss", "divergence"])
def test_gradient(kind: str) -> None:
    """Of a cross-entropy: probabilities less the target, as every textbook has it."""
    logits, tokens = make_run(2)
    reference, _ = make_run(2)
    probs = logits.softmax(dim=-1)
    expected = torch.zeros_like(logits)
    if kind == "divergence":
        KLDivergence(reference)(logits.requires_grad_()).sum().backward()
        expected = (probs - reference.softmax(dim=-1)).detach() / N_POS
    else:
        target = torch.nn.functional.one_hot(tokens[:, 3:], D_VOCAB)
        expected[:, 2:-1] = probs[:, 2:-1] - target
        metric = SequenceLogProb(tokens, 3) if kind == "sequence" else Loss(tokens, 3)
        metric(logits.requires_grad_()).sum().backward()
        expected = -expected if kind == "sequence" else expected / 3
    torch.testing.assert_close(logits.grad, expected)


def test_no_gradient_to_the_reference() -> None:
    logits, _ = make_run(1)
    reference = logits.clone().requires_grad_()
    assert not KLDivergence(reference)(logits).requires_grad


# What is refused


@OF_TEXT
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 0}, r"start is 0; with 6 tokens it can be 1 to 5, or -5 to -1"),
        ({"start": 6}, r"start is 6; with 6 tokens"),
        ({"start": -6}, r"start is -6; with 6 tokens"),
        ({"start": True}, r"start is True; it must be a decoder position"),
        ({"n_tokens": 7}, r"n_tokens is 7; .* from 2 to 6, or one for each of the 2 rows"),
        ({"n_tokens": 1}, r"n_tokens is 1; it must"),
        ({"n_tokens": [4, 5, 6]}, r"n_tokens is \[4, 5, 6\]; it must"),
        ({"n_tokens": [3, 6], "start": 3}, r"n_tokens is \[3, 6\]; .* from 4 to 6"),
        ({"tokens": torch.zeros(2, 1, dtype=torch.long)}, r"shape \(2, 1\); a row needs two"),
    ],
    ids=str,
)
def test_bad_text(kind: Any, changes: dict[str, Any], message: str) -> None:
    _, tokens = make_run(2)
    with pytest.raises(MetricError, match=message):
        kind(**{"tokens": tokens, **changes})


@OF_TEXT
def test_a_run_that_does_not_fit_the_text(kind: Any) -> None:
    logits, tokens = make_run(3)
    metric = kind(tokens[:2])
    with pytest.raises(MetricError, match=r"has 2 rows of tokens for 3 rows of logits"):
        metric(logits)
    with pytest.raises(MetricError, match=r"has 2 rows of tokens for 3 rows of logits"):
        metric.check(3, N_POS, D_VOCAB)
    with pytest.raises(MetricError, match=r"reads position 3; there are 3"):
        kind(tokens)(logits[:, :3])
    with pytest.raises(MetricError, match=r"6 positions were given to .*, which reads 5"):
        kind(tokens).of_positions(logits)
    with pytest.raises(MetricError, match=r"tokens go from \d+ to \d+; ids go from 0 to 2"):
        kind(tokens)(logits[:, :, :3])


def test_runs_of_other_lengths_have_no_divergence() -> None:
    logits, _ = make_run(2)
    metric = KLDivergence(logits)
    for other in (logits[:, :4], logits[:, :, :5], logits[:1].expand(3, -1, -1)):
        with pytest.raises(AlignmentError, match=r"the reference logits are \(2, 6, 11\) and the"):
            metric(other)
        with pytest.raises(AlignmentError, match=r"the reference logits are \(2, 6, 11\) and the"):
            metric.check(*other.shape)
    with pytest.raises(AlignmentError, match=r"the reference has \(2, 1, 11\) logits at the"):
        KLDivergence(logits, pos=-1).of_positions(logits)


@pytest.mark.parametrize(
    ("pos", "message"),
    [
        (6, r"KLDivergence reads position 6; there are 6"),
        ([], r"pos is empty\. Give at least one position, or None"),
        ([True], r"pos is True; it must be a decoder position"),
    ],
    ids=str,
)
def test_bad_positions_of_a_divergence(pos: Any, message: str) -> None:
    logits, _ = make_run(1)
    with pytest.raises(MetricError, match=message):
        KLDivergence(logits, pos)


def test_a_reference_that_is_no_prediction() -> None:
    logits, _ = make_run(1)
    logits[0, 2, 3] = torch.nan
    with pytest.raises(MetricError, match="the reference logits hold NaN"):
        KLDivergence(logits)
    KLDivergence(logits, pos=[0, 1, 3])


# On real speech


def test_what_is_said_is_exact_and_what_is_not_is_not() -> None:
    model = HookedWhisper.from_pretrained("digits")
    said = recordings()[0]
    mel = model.to_mel(said.path)
    right = model.to_tokens(" " + said.text, append_eot=True)
    wrong = model.to_tokens(" three one five", append_eot=True)
    with torch.no_grad():
        encoder_output = model(mel)
        given_right, given_wrong = (
            model(None, tokens, encoder_output=encoder_output) for tokens in (right, wrong)
        )
    assert ExactSequence(right, start=4)(given_right).item() == 1
    assert ExactSequence(wrong, start=4)(given_wrong).item() == 0
    assert SequenceLogProb(right, 4)(given_right) > SequenceLogProb(wrong, 4)(given_wrong) + 1
