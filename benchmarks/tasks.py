"""What is measured: each task, its contestants, and the target that this package has in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import Models, make_inputs, prompt_ids, tokenizer_of

RESIDUALS = ["*.hook_resid_pre", "*.hook_resid_mid", "*.hook_resid_mid_cross", "*.hook_resid_post"]

OURS, OPENAI = "hooked_whisper", "openai-whisper"
HF_SDPA, HF_EAGER = "transformers sdpa", "transformers eager"


@dataclass(frozen=True)
class Run:
    """One contestant of a task.

    Args:
        label: What to call it.
        model: The attribute of `Models` that it runs.
        call: Runs the task on that model.
    """

    label: str
    model: str
    call: Callable[[Any], Any]


@dataclass(frozen=True)
class Task:
    """Something to measure.

    Args:
        name: Short, for the command line.
        title: For the table.
        runs: This package first.
        base: The label that ratios are to.
        target: What this package's ratio should be at most.
    """

    name: str
    title: str
    runs: list[Run]
    base: str
    target: float | None = None


def make_tasks(models: Models, n_tokens: int, n_new: int) -> list[Task]:
    """Every task that the models' dtype allows."""
    mel, tokens = make_inputs(models, n_tokens)
    tasks = [_forward(mel, tokens), _residuals(mel, tokens), _everything(mel, tokens)]
    if models.dtype != torch.bfloat16:  # openai-whisper decodes in float32 or float16 only
        tasks += [_generation(models, mel, n_new), _decoding(models, mel, n_new)]
    return tasks


def _forward(mel: Tensor, tokens: Tensor) -> Task:
    return Task(
        "forward",
        f"Forward of the encoder and {tokens.shape[1]} tokens, no hooks",
        [
            Run(OURS, "hooked", lambda model: model(mel, tokens)),
            Run(OPENAI, "openai", lambda model: model(mel, tokens)),
            *_hf_runs(lambda model: _hf_forward(model, mel, tokens)),
        ],
        base=OPENAI,
        target=1.0,
    )


def _residuals(mel: Tensor, tokens: Tensor) -> Task:
    def ours(model: Any) -> Any:
        return model.run_with_cache(mel, tokens, names_filter=RESIDUALS)

    def openai(model: Any) -> Any:
        blocks = [*model.encoder.blocks, *model.decoder.blocks]
        return _with_block_outputs(blocks, lambda: model(mel, tokens))

    def hf(model: Any) -> Any:
        blocks = [*model.model.encoder.layers, *model.model.decoder.layers]
        return _with_block_outputs(blocks, lambda: _hf_forward(model, mel, tokens))

    return Task(
        "residuals",
        "Cache of every residual stream: before, between and after all sublayers",
        [
            Run(OURS, "hooked", ours),
            Run(f"{OPENAI}, plain forward", "openai", lambda model: model(mel, tokens)),
            Run(f"{OPENAI}, torch hooks on blocks (a third of it)", "openai", openai),
            Run(f"{HF_SDPA}, torch hooks on blocks", "hf_sdpa", hf),
        ],
        base=f"{OPENAI}, plain forward",
        target=1.03,
    )


def _everything(mel: Tensor, tokens: Tensor) -> Task:
    def openai(model: Any) -> Any:
        from whisper.model import disable_sdpa

        with disable_sdpa():
            return model(mel, tokens)

    def hf(model: Any) -> Any:
        return _hf_forward(model, mel, tokens, output_attentions=True, output_hidden_states=True)

    return Task(
        "everything",
        "Cache of every activation, scores and patterns included",
        [
            Run(OURS, "hooked", lambda model: model.run_with_cache(mel, tokens)),
            Run(f"{OPENAI}, SDPA disabled, nothing kept", "openai", openai),
            Run(f"{HF_EAGER}, hidden states and attentions", "hf_eager", hf),
        ],
        base=f"{OPENAI}, SDPA disabled, nothing kept",
        target=1.3,
    )


def _generation(models: Models, mel: Tensor, n_new: int) -> Task:
    options = _decoding_options(models, n_new)

    def ours(model: Any) -> Any:
        suppressed = options["suppress_tokens"]
        generation = model.generate(mel, n_new, suppress_tokens=suppressed)
        return generation.tokens[0, -n_new:].tolist()

    return Task(
        "generation",
        f"{n_new} greedy tokens from a mel",
        [
            Run(OURS, "hooked", ours),
            Run(f"{OURS}, whisper.decode", "hooked", lambda model: _decode(model, mel, options)),
            Run(OPENAI, "openai", lambda model: _decode(model, mel, options)),
            *_hf_runs(lambda model: _hf_generate(model, models, n_new, input_features=mel)),
        ],
        base=OPENAI,
        target=0.9,
    )


def _decoding(models: Models, mel: Tensor, n_new: int) -> Task:
    options = _decoding_options(models, n_new)
    shape = (1, models.cfg.n_audio_ctx, models.cfg.d_model)
    generator = torch.Generator().manual_seed(models.seed + 2)
    features = torch.randn(shape, generator=generator).to(mel.device, mel.dtype)

    def hf(model: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        outputs = BaseModelOutput(last_hidden_state=features)
        return _hf_generate(model, models, n_new, encoder_outputs=outputs)

    return Task(
        "decoding",
        f"{n_new} greedy tokens from the encoder's output",
        [
            Run(OURS, "hooked", lambda model: _decode(model, features, options)),
            Run(OPENAI, "openai", lambda model: _decode(model, features, options)),
            *_hf_runs(hf),
        ],
        base=OPENAI,
    )


def _hf_runs(call: Callable[[Any], Any]) -> list[Run]:
    return [Run(HF_SDPA, "hf_sdpa", call), Run(HF_EAGER, "hf_eager", call)]


def _hf_forward(model: Any, mel: Tensor, tokens: Tensor, **kwargs: Any) -> Any:
    out = model(input_features=mel, decoder_input_ids=tokens, use_cache=False, **kwargs)
    return out if kwargs else out.logits


def _hf_generate(model: Any, models: Models, n_new: int, **inputs: Any) -> list[int]:
    tokenizer, prompt = tokenizer_of(models), prompt_ids(models)
    tokens = model.generate(
        **inputs,
        decoder_input_ids=torch.tensor([prompt], device=models.device),
        max_new_tokens=n_new,
        min_new_tokens=n_new,
        suppress_tokens=_suppressed(tokenizer),
        do_sample=False,
        num_beams=1,
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
    )
    return tokens[0, -n_new:].tolist()


def _decode(model: Any, mel: Tensor, options: dict[str, Any]) -> list[int]:
    from whisper.decoding import DecodingOptions, decode

    return decode(model, mel, DecodingOptions(**options))[0].tokens


def _decoding_options(models: Models, n_new: int) -> dict[str, Any]:
    """Greedy decoding that never stops before `n_new` tokens."""
    return {
        "language": "en",
        "without_timestamps": True,
        "suppress_blank": False,
        "suppress_tokens": [-1, tokenizer_of(models).eot],
        "sample_len": n_new,
        "fp16": models.dtype == torch.float16,
    }


def _suppressed(tokenizer: Any) -> list[int]:
    """What openai-whisper makes of `suppress_tokens=[-1, eot]`."""
    names = ("transcribe", "translate", "sot", "sot_prev", "sot_lm", "no_speech", "eot")
    return sorted({*tokenizer.non_speech_tokens, *(getattr(tokenizer, name) for name in names)})


def _with_block_outputs(blocks: list[Any], call: Callable[[], Any]) -> Any:
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        return call(), kept
    finally:
        for handle in handles:
            handle.remove()
