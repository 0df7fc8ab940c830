"""An adapter of peft over tiny.en: merged, on and off, against peft itself."""

import copy
from pathlib import Path

import pytest
import torch

from hooked_whisper import HookedWhisper

from ..weights.peft_files import adapted, merged, save_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
]


def test_lora_on_real_weights(
    model: HookedWhisper, weights: Path, short: list[Path], tmp_path: Path
) -> None:
    """Trained for a few steps on a sentence, over the OpenAI file and over transformers' folder."""
    from transformers import WhisperForConditionalGeneration

    model.save_pretrained(tmp_path / "hf", format="huggingface")
    base = WhisperForConditionalGeneration.from_pretrained(tmp_path / "hf")
    theirs = adapted(base, r=4, target_modules=["q_proj", "v_proj", "fc1"], use_rslora=True)
    mel = model.to_mel(short[0]).values
    tokens = model.to_tokens(" And so, my fellow Americans.", append_eot=True)
    optimizer = torch.optim.SGD([w for w in theirs.parameters() if w.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        out = theirs(input_features=mel, decoder_input_ids=tokens[:, :-1], labels=tokens[:, 1:])
        losses.append(float(out.loss.detach()))
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        on = theirs(input_features=mel, decoder_input_ids=tokens).logits
        off = base(input_features=mel, decoder_input_ids=tokens).logits
        whole = merged(copy.deepcopy(theirs))(input_features=mel, decoder_input_ids=tokens).logits
    bound = 1e-5 * float(on.abs().max())
    assert (on - off).abs().max() > 100 * bound
    folder = save_adapter(theirs, tmp_path / "adapter")
    for named in (weights, tmp_path / "hf"):
        ours = HookedWhisper.from_pretrained(folder, base=named, device="cpu")
        with torch.no_grad():
            for expected in (on, whole):
                assert (ours(mel, tokens) - expected).abs().max() < bound
            with ours.adapter(False):
                assert torch.equal(ours(mel, tokens), model(mel, tokens))
                assert (ours(mel, tokens) - off).abs().max() < bound
            kept = ours.merge_adapter()(mel, tokens)
        assert (kept - whole).abs().max() < bound
