"""Lenses, direct attribution, spliced autoencoders, harvests: against openai-whisper's streams."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.lenses import direct_attribution, encoder_lens, logit_lens
from hooked_whisper.sae import TopKConfig, TopKSAE
from hooked_whisper.store import harvest
from tests.real.conftest import Run, torch_hooks


@torch.no_grad()
def test_the_logit_lens_reads_each_blocks_stream(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run]
) -> None:
    run = runs[0]
    _, cache = model.run_with_cache(
        None, run.tokens, encoder_output=run.features, names_filter="decoder.*.hook_resid_*"
    )
    lens = logit_lens(model, cache, sites=["resid_post"], pos=slice(2, None))
    for layer in range(4):
        stream = reference.decoder.ln(run.streams[f"decoder.{layer}"][:, 2:])
        theirs = stream @ reference.decoder.token_embedding.weight.T
        torch.testing.assert_close(lens.logits(layer), theirs, atol=5e-3, rtol=0)
    torch.testing.assert_close(lens.logits(3), run.logits[:, 2:], atol=2e-3, rtol=0)
    ranks = lens.target_ranks[:, 0].float().mean(dim=-1)
    assert ranks[0] > ranks[2] > ranks[3] == 0


@pytest.mark.parametrize(
    "final_ln", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["with LN", "without"]
)
@torch.no_grad()
def test_the_encoder_lens_reads_what_fewer_layers_give(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run], final_ln: bool
) -> None:
    run, layers = runs[0], (0, 3)
    lens = encoder_lens(
        model, run.mel, run.tokens, layers=layers, final_ln=final_ln, transcribe=False
    )
    assert lens.logprobs is not None
    kept: list[Tensor] = []
    with torch_hooks((reference.encoder.blocks[0], lambda m, args, out: kept.append(args[0]))):
        reference.encoder(run.mel.values)
    for place, stream in enumerate((kept[0], run.streams["encoder.2"])):
        heard = reference.encoder.ln_post(stream) if final_ln else stream
        logprobs = reference.decoder(run.tokens, heard).log_softmax(dim=-1)
        theirs = logprobs[:, :-1].gather(-1, run.tokens[:, 1:, None])[..., 0]
        torch.testing.assert_close(lens.logprobs[place], theirs, atol=5e-3, rtol=0)


@torch.no_grad()
def test_direct_attribution_is_each_sublayers_output_on_the_way_to_the_logit(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run]
) -> None:
    run, pos = runs[0], [4, 6]
    written: dict[str, Tensor] = {}
    pairs: list[Any] = []
    for layer, block in enumerate(reference.decoder.blocks):
        for name, module in (("attn", block.attn.out), ("cross_attn", block.cross_attn.out)):
            label = f"{layer}_{name}_out"
            pairs.append((module, lambda m, a, out, label=label: written.update({label: out})))
        label = f"{layer}_mlp_out"
        pairs.append((block.mlp, lambda m, a, out, label=label: written.update({label: out})))
    with torch_hooks(*pairs):
        reference.decoder(run.tokens, run.features)
    targets = run.tokens[:, [5, 7]]
    ln, last = reference.decoder.ln, run.streams["decoder.3"][:, pos]
    unembed = reference.decoder.token_embedding.weight[targets]
    scale = (last.var(dim=-1, unbiased=False, keepdim=True) + ln.eps).sqrt()
    found = direct_attribution(model, run.mel, run.tokens, targets=targets, pos=pos)
    assert found.error < 1e-3
    for label, output in written.items():
        centred = output[:, pos] - output[:, pos].mean(dim=-1, keepdim=True)
        theirs = (centred / scale * ln.weight * unembed).sum(dim=-1)
        torch.testing.assert_close(found[label], theirs, atol=5e-3, rtol=0)


def autoencoder() -> TopKSAE:
    """An untrained one, which changes what it reads a lot."""
    torch.manual_seed(0)
    return TopKSAE(
        TopKConfig(d_in=384, d_sae=768, k=64, hook_name="encoder.blocks.2.hook_resid_post")
    )


@torch.no_grad()
def test_a_spliced_autoencoder_is_a_hook_that_puts_its_output(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run]
) -> None:
    run, sae = runs[1], autoencoder()
    with torch_hooks((reference.encoder.blocks[2], lambda m, args, out: sae(out))):
        theirs = reference.decoder(run.tokens, reference.encoder(run.mel.values))
    ours = model.run_with_saes(run.mel, run.tokens, saes=[sae], use_error_term=False)
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=0)
    assert float((theirs - run.logits).abs().max()) > 1


def test_a_harvest_holds_openai_whispers_streams_where_there_is_sound(
    model: HookedWhisper, runs: tuple[Run, Run], short: list[Path], tmp_path: Path
) -> None:
    names = ["encoder.blocks.1.hook_resid_post", "encoder.blocks.3.hook_resid_post"]
    store = harvest(model, short, names, tmp_path / "store", dtype="fp32", n_workers=0)
    for number, (run, seconds) in enumerate(zip(runs, (4.47, 3.10), strict=True)):
        rows = store.of_recording(number, names)
        for name, layer in zip(names, (1, 3), strict=True):
            n_rows = len(rows[name])
            assert n_rows == pytest.approx(50 * seconds, abs=1)
            theirs = run.streams[f"encoder.{layer}"][0, :n_rows]
            torch.testing.assert_close(rows[name], theirs, atol=2e-3, rtol=1e-4)
