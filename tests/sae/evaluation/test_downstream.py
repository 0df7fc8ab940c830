"""Scores of transcripts, against words counted by hand."""

import math
from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.data import Recording
from hooked_whisper.digits import recordings
from hooked_whisper.errors import InputError
from hooked_whisper.sae import evaluate_sae, evaluate_saes
from hooked_whisper.sae.evaluation.downstream import RecoveredMeter, transcript_scores


def test_scores_of_transcripts() -> None:
    texts = ["one two", "three", "four five", "six"]
    model = ["One, two.", "three", "four", "six"]
    spliced = ["one two", "four", "four", "six seven"]
    found = transcript_scores(spliced, model, texts)
    assert found.sequence_accuracy_model == 3 / 4
    assert found.sequence_accuracy == 1 / 4
    assert found.same_as_model == 2 / 4
    assert found.wer_model == pytest.approx(1 / 6)
    assert found.wer == pytest.approx(3 / 6)
    assert found.wer_to_model == pytest.approx(2 / 5)
    exact = transcript_scores(spliced, model, texts, normalize=lambda text: text)
    assert exact.sequence_accuracy_model == 2 / 4
    unknown = transcript_scores(spliced, model)
    assert unknown.sequence_accuracy is None and unknown.same_as_model == 2 / 4
    some = transcript_scores(spliced, model, [texts[0], None, None, texts[3]])
    assert (some.n_recordings, some.same_as_model) == (4, 2 / 4)
    assert (some.sequence_accuracy, some.wer_model, some.wer) == (1 / 2, 0, 1 / 3)
    with pytest.raises(InputError, match="2 transcripts spliced, 4 of the model and no texts"):
        transcript_scores(spliced[:2], model)


def test_tokens_that_the_model_rules_out_add_no_divergence() -> None:
    clean = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    other = {kind: torch.tensor([[[0.0, 0.0, 1.0]]]) for kind in ("spliced", "zero", "mean")}
    meter = RecoveredMeter()
    with pytest.raises(InputError, match="no predictions"):
        meter.result()
    meter.update(clean, other, torch.tensor([[1]]), torch.tensor([[True]]))
    expected = math.log(2 + math.e) - math.log(2)
    assert meter.result().kl_spliced == pytest.approx(expected)


@pytest.fixture(scope="module")
def model() -> HookedWhisper:
    """The shipped model of spoken digits: real speech, with text."""
    return HookedWhisper.from_pretrained("digits", device="cpu")


def test_a_spliced_identity_and_spliced_noise(model: HookedWhisper, plain_sae: Any) -> None:
    """What gives everything back leaves the transcript as it is; noise does not."""
    same, noise = plain_sae(96, 192), plain_sae(96, 10)
    same.W_enc.copy_(torch.cat([torch.eye(96), -torch.eye(96)], 1))
    same.W_dec.copy_(same.W_enc.T)
    same.b_enc.zero_()
    same.b_dec.zero_()
    some = recordings()[2:3]
    saes = {"encoder.blocks.2.hook_resid_post": same, "decoder.blocks.2.hook_resid_post": noise}
    options: dict[str, Any] = {"max_new_tokens": 3, "progress": False}
    good, bad = evaluate_saes(saes, model, some, all_frames=False, **options).values()
    assert good.transcripts_model == ("seven",) == good.speech.texts != bad.speech.texts
    scores, lost = good.speech.transcripts, bad.speech.transcripts
    assert scores is not None and lost is not None
    assert (scores.sequence_accuracy, scores.wer, scores.same_as_model) == (1, 0, 1)
    assert (lost.sequence_accuracy_model, lost.sequence_accuracy, lost.same_as_model) == (1, 0, 0)
    assert lost.wer == lost.wer_to_model > 0
    assert good.speech.recovered.ce_recovered == pytest.approx(1, abs=1e-4)
    assert bad.speech.recovered.ce_recovered < 0.9
    assert good.speech.recovered.n_tokens == 2  # a word, and the end of the text
    assert good.speech.reconstruction.n_vectors == round(some[0].duration_s / 0.02)
    assert bad.speech.reconstruction.n_vectors == 5  # the prompt and the word

    # Where nobody said what is said, the model's own text takes its place.
    paths = [each.path for each in some]
    alone = evaluate_sae(noise, model, paths, bad.hook_name, transcripts=False, **options)
    assert alone.speech.transcripts is None
    assert alone.speech.recovered.ce_spliced == pytest.approx(bad.speech.recovered.ce_spliced)


def test_recordings_without_a_text_are_counted_and_leave_the_others_theirs(
    model: HookedWhisper, plain_sae: Any
) -> None:
    """One that cannot be used has no say in what is judged; of one that can, the result tells."""
    sae, name = plain_sae(96, 10), "encoder.blocks.2.hook_resid_post"
    told, untold = Recording("a", recordings()[2].path, text="seven"), recordings()[6].path
    options: dict[str, Any] = {"all_frames": False, "max_new_tokens": 5, "progress": False}

    def judge(*given: Any) -> Any:
        return evaluate_sae(sae, model, [*given], name, batch_size=2, **options)

    alone, other = judge(told), judge(untold)
    with pytest.warns(UserWarning, match="1 of 2 recordings cannot be used"):
        beside_bad = judge("nowhere.wav", told)
    assert beside_bad.speech.transcripts == alone.speech.transcripts
    assert beside_bad.speech.recovered == alone.speech.recovered
    assert (alone.n_without_text, beside_bad.n_without_text) == (0, 0)
    both = judge(untold, told)
    assert both.n_without_text == 1 and "1 window without a text" in repr(both)
    assert both.speech.transcripts.wer == alone.speech.transcripts.wer is not None
    assert both.speech.transcripts.n_recordings == 2
    assert other.n_without_text == 1 and other.speech.transcripts.wer is None
    parts = [each.speech.recovered for each in (alone, other)]
    n = sum(part.n_tokens for part in parts)
    ce = sum(part.n_tokens * part.ce_spliced for part in parts) / n
    assert both.speech.recovered.n_tokens == n
    assert both.speech.recovered.ce_spliced == pytest.approx(ce, rel=1e-4)


def test_texts_must_match_the_recordings(model: HookedWhisper, plain_sae: Any) -> None:
    some = [each.path for each in recordings()[:2]]
    with pytest.raises(InputError, match="1 texts and 2 recordings do not match"):
        evaluate_sae(plain_sae(96, 9), model, some, "encoder.hook_embed", ["one"])
