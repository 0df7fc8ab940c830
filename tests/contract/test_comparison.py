"""What docs/comparison.md says of other packages is so, in the versions that are installed.

A failure here says that another package has changed: look, and write the page anew. `make test-tl3`
has nnsight, pyvene and sae-lens; the others run everywhere.
"""

import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# What other packages warn of while they load and run is not this package's to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a package is missing, but not in `make test-tl3`, which is to have it."""
    missing = find_spec(package.replace("-", "_")) is None and "EXPECT_SAE_LENS" not in os.environ
    return pytest.mark.skipif(missing, reason=f"needs {package}, which `make test-tl3` installs")


def moved(after: Any, before: Any) -> float:
    """How far logits are from what they were."""
    return float((after - before).detach().abs().max())


@pytest.fixture(scope="module")
def small() -> Any:
    """transformers' Whisper, small, with random weights and eager attention."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    sizes = {
        f"{stack}_{what}": size
        for stack in ("encoder", "decoder")
        for what, size in {"layers": 2, "attention_heads": 2, "ffn_dim": 32}.items()
    }
    cfg = WhisperConfig(
        **sizes, d_model=16, num_mel_bins=8, max_source_positions=20, max_target_positions=20,
        vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
        init_std=0.5, attn_implementation="eager",
    )  # fmt: skip
    model = WhisperForConditionalGeneration(cfg).eval()
    model.generation_config.begin_suppress_tokens = None
    model.generation_config.suppress_tokens = None
    return model


@pytest.fixture(scope="module")
def inputs(small: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "input_features": torch.randn(1, 8, 40),
        "decoder_input_ids": torch.randint(3, 60, (1, 5)),
    }


@pytest.fixture(scope="module")
def before(small: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The logits without an edit."""
    with torch.no_grad():
        return small(**inputs).logits


def decoded_with_torch_hook(small: Any, mel: Tensor, **asked: Any) -> list[list[int]]:
    """What is written when the last layer's output is scaled by -3 in every step."""
    layer = small.model.decoder.layers[1]
    handle = layer.register_forward_hook(lambda module, args, output: output * -3)
    try:
        return small.generate(mel, **asked).tolist()
    finally:
        handle.remove()


# openai-whisper, with PyTorch's hooks


def test_openai_whisper_is_edited_by_torch_hooks(make_reference: Any) -> None:
    import whisper

    from hooked_whisper import HookedWhisper, load_audio
    from hooked_whisper.digits import recordings

    twin = make_reference(HookedWhisper.from_pretrained("digits"))
    audio = load_audio(recordings()[0].path).numpy()
    n_calls = []

    def silence(module: Any, args: Any, output: Tensor) -> Tensor:
        n_calls.append(output.shape[1])
        return output * 0

    handle = twin.decoder.blocks[1].register_forward_hook(silence)
    try:
        asked = {"language": "en", "fp16": False, "temperature": 0, "sample_len": 9}
        edited = whisper.transcribe(twin, audio, **asked)["text"]
    finally:
        handle.remove()
    assert edited != " three one four"
    assert len(n_calls) > 2 and set(n_calls[1:]) == {1}  # each step, one token


def test_scores_of_openai_whisper_can_be_read_but_not_edited(
    make_reference: Any, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    from whisper.model import disable_sdpa

    twin = make_reference(tiny_model)
    seen = []

    def flatten(module: Any, args: Any, output: Any) -> Any:
        seen.append(output[1])
        return output[0], None if output[1] is None else output[1] * 0

    with torch.no_grad():
        plain = twin(tiny_mel, tiny_tokens)
        handle = twin.decoder.blocks[0].cross_attn.register_forward_hook(flatten)
        twin(tiny_mel, tiny_tokens)
        with disable_sdpa():
            edited = twin(tiny_mel, tiny_tokens)
        handle.remove()
    assert seen[0] is None and seen[1].ndim == 4
    assert moved(edited, plain) < 1e-4


# TransformerLens


def test_transformer_lens_has_no_whisper() -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    assert not [name for name in SUPPORTED_ARCHITECTURES if "Whisper" in name]
    if metadata.version("transformer-lens") == "4.3.0":
        assert len(SUPPORTED_ARCHITECTURES) == 162


@pytest.mark.skipif(
    metadata.version("transformer-lens") < "4", reason="the page is of transformer-lens 4"
)
def test_patterns_of_a_bridged_t5_do_not_act(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    special = {"pad_token": "w0", "unk_token": "w0", "eos_token": "w1"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(
        tmp_path
    )
    sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    cfg = transformers.T5Config(**sizes, num_heads=2, decoder_start_token_id=0)
    t5 = transformers.T5ForConditionalGeneration(cfg).eval()
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *args, **kwargs: cfg)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers("t5", hf_model=t5, tokenizer=tokenizer)
    sound, text = torch.randint(3, 60, (2, 1, 6))
    plain = bridge(sound, decoder_input=text)
    fired = []

    def zero(value: Tensor, hook: Any) -> Tensor:
        fired.append(hook.name)
        return torch.zeros_like(value)

    def effect(name: str) -> float:
        hooks = [(name, zero)]
        return moved(bridge.run_with_hooks(sound, decoder_input=text, fwd_hooks=hooks), plain)

    patterns = [name for name in bridge.hook_dict if name.endswith(("pattern", "attn_scores"))]
    assert len(patterns) == 6
    assert [effect(name) for name in patterns] == [0] * 6
    assert fired == patterns
    assert effect("decoder_blocks.0.hook_resid_mid") > 0


# nnsight


@pytest.fixture(scope="module")
def traced(small: Any) -> Any:
    from nnsight import NNsight

    return NNsight(small)


@needs("nnsight")
def test_nnsight_edits_a_hidden_state(
    traced: Any, inputs: dict[str, Tensor], before: Tensor
) -> None:
    with traced.trace(**inputs):
        traced.model.encoder.layers[1].output[:] = 0
        after = traced.output.logits.save()
    with traced.trace(**inputs):
        traced.model.encoder.layers[0].self_attn.out_proj.input[..., :8] = 0  # the first head
        after_head = traced.output.logits.save()
    assert moved(after, before) > 0.1
    assert moved(after_head, before) > 0.01


@needs("nnsight")
def test_nnsight_edits_a_pattern_in_the_source_only(
    traced: Any, inputs: dict[str, Tensor], before: Tensor
) -> None:
    attention = traced.model.decoder.layers[0].encoder_attn
    with traced.trace(**inputs):
        pattern = attention.output[1].clone().save()
        attention.output[1][:] = 0
        after_output = traced.output.logits.save()
    with traced.trace(**inputs):
        attention.source.attention_interface_1.source.nn_functional_softmax_0.output[:] = 0
        after_source = traced.output.logits.save()
    assert pattern.shape == (1, 2, 5, 20)
    assert moved(after_output, before) == 0
    assert moved(after_source, before) > 0.1


@needs("nnsight")
@pytest.mark.parametrize("n_beams", [1, 3], ids=["greedy", "beams"])
def test_nnsight_edits_each_step_of_decoding(
    traced: Any, small: Any, inputs: dict[str, Tensor], n_beams: int
) -> None:
    mel, n = inputs["input_features"], 6
    asked = {"max_new_tokens": n, "min_new_tokens": n, "num_beams": n_beams}
    with traced.trace(input_features=mel, **asked, fn=traced.generate) as tracer:
        for _ in tracer.iter[:n]:
            traced.model.decoder.layers[1].output[:] = traced.model.decoder.layers[1].output * -3
        written = tracer.result.save()
    assert written.tolist() == decoded_with_torch_hook(small, mel, **asked)
    assert written.tolist() != small.generate(mel, **asked).tolist()


@needs("nnsight")
def test_nnsight_does_not_batch_features(traced: Any, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(NotImplementedError, match="does not support batching"):
        with traced.trace() as tracer:
            with tracer.invoke(**inputs):
                traced.model.encoder.layers[1].output.save()
            with tracer.invoke(**inputs):
                traced.model.encoder.layers[1].output.save()


# pyvene


def with_pyvene(small: Any, inputs: dict[str, Tensor], **place: Any) -> Tensor:
    """The logits after what is at this place is zeroed."""
    import pyvene

    edit = {"intervention": lambda base, source: base * 0, **place}
    _, after = pyvene.IntervenableModel([edit], model=small)(inputs)
    return after.logits


@needs("pyvene")
@pytest.mark.parametrize(
    "path",
    [
        "encoder.layers[1].output",
        "encoder.layers[0].self_attn.out_proj.input",
        "decoder.layers[0].encoder_attn.output",
    ],
)
def test_pyvene_edits_by_module_path(
    small: Any, inputs: dict[str, Tensor], before: Tensor, path: str
) -> None:
    assert moved(with_pyvene(small, inputs, component=f"model.{path}"), before) > 0.1


@needs("pyvene")
def test_pyvene_has_no_names_for_whisper(small: Any, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(AttributeError, match="has no attribute"):
        with_pyvene(small, inputs, layer=0, component="block_output")


@needs("pyvene")
def test_pyvene_reaches_no_pattern(small: Any, inputs: dict[str, Tensor]) -> None:
    path = "model.decoder.layers[0].encoder_attn.output[1]"
    with pytest.raises(UnboundLocalError, match="hook_type"):
        with_pyvene(small, inputs, component=path)


@needs("pyvene")
def test_pyvene_edits_each_step_of_decoding(small: Any, inputs: dict[str, Tensor]) -> None:
    import pyvene

    mel, asked = inputs["input_features"], {"max_new_tokens": 6, "min_new_tokens": 6}
    scale = lambda base, source: base * -3  # noqa: E731
    edit = {"component": "model.decoder.layers[1].output", "intervention": scale}
    edited = pyvene.IntervenableModel([edit], model=small)
    _, written = edited.generate({"input_features": mel}, intervene_on_prompt=True, **asked)
    assert written.tolist() == decoded_with_torch_hook(small, mel, **asked)
    assert written.tolist() != small.generate(mel, **asked).tolist()


# SAELens


@needs("sae-lens")
def test_sae_lens_lists_no_whisper() -> None:
    import sae_lens
    import yaml

    listed = (Path(sae_lens.__file__).parent / "pretrained_saes.yaml").read_text()
    releases = yaml.load(listed, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    models = {str(release["model"]) for release in releases.values()}
    assert len(models) > 30
    assert not [model for model in models if "whisper" in model.lower()]


@needs("sae-lens")
def test_sae_lens_trains_on_any_vectors() -> None:
    from sae_lens import TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=16, d_sae=32, k=4))
    start = sae.W_enc.detach().clone()
    cfg = SAETrainerConfig(
        total_training_samples=512, train_batch_size_samples=64, lr=1e-2, device="cpu",
        autocast=False, n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
        logger=LoggingConfig(log_to_wandb=False), lr_end=1e-2, lr_scheduler_name="constant",
        lr_warm_up_steps=0, adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0,
        n_restart_cycles=1, dead_feature_window=100, feature_sampling_window=100,
    )  # fmt: skip
    vectors = iter(lambda: torch.randn(64, 16), None)
    SAETrainer(cfg=cfg, sae=sae, data_provider=vectors).fit()
    assert moved(sae.W_enc, start) > 0
