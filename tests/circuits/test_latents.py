"""Circuits with latents: the plain loop's numbers on openai-whisper, and sums that must hold."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.circuits import (
    Circuit,
    Edge,
    EdgeScores,
    Latent,
    LatentGraph,
    draw_circuit,
    evaluate_circuits,
    find_circuit,
    find_latent_circuit,
)
from hooked_whisper.errors import InterventionError
from hooked_whisper.interventions.examples import Example
from hooked_whisper.sae import make_sae
from hooked_whisper.sae.architectures.relu import ReLUConfig
from hooked_whisper.sae.architectures.topk import TopKConfig
from hooked_whisper.speech.mel import Mel

from .conftest import difference
from .plain import contributions, patched_logits

HOOKS = [
    f"{x}.hook_resid_post" for x in ("encoder.blocks.0", "encoder.blocks.1", "decoder.blocks.0")
]
QUIET: dict[str, Any] = {"progress": False, "n_latents": 2}


@pytest.fixture(scope="module")
def saes() -> Any:
    return {
        hook: make_sae(
            TopKConfig(d_in=12, d_sae=20, k=6, hook_name=hook), torch.Generator().manual_seed(i)
        )
        for i, hook in enumerate(HOOKS)
    }


@pytest.fixture(scope="module")
def exact(small_model: Any, saes: Any, pair: Any) -> EdgeScores:
    return find_latent_circuit(small_model, saes, pair, difference, "exact", **QUIET)


def blocks_out(whisper: Any, example: Example) -> dict[tuple[str, int], Tensor]:
    """The streams behind the blocks of openai-whisper."""
    found: dict[tuple[str, int], Tensor] = {}
    hooks = []
    for stack in ("encoder", "decoder"):
        for layer, block in enumerate(getattr(whisper, stack).blocks):

            def keep(_: Any, args: Any, out: Tensor, place: Any = (stack, layer)) -> None:
                found[place] = out

            hooks.append(block.register_forward_hook(keep))
    with torch.no_grad():
        whisper(example.mel.values, example.tokens)
    for hook in hooks:
        hook.remove()
    return found


def part(sae: Any, x: Tensor, which: str, numbers: list[int]) -> Tensor:
    """What a node of an autoencoder is in a stream, by its weights alone."""
    latents = sae.encode(x)
    if which == "error":
        return x - (latents @ sae.W_dec + sae.b_dec)
    if which != "others":
        return latents[..., [int(which)]] * sae.W_dec[int(which)]
    rest = latents.clone()
    rest[..., numbers] = 0
    return rest @ sae.W_dec + sae.b_dec


def test_exact_is_the_plain_loop(
    small_model: Any, make_reference: Any, saes: Any, pair: Any, exact: EdgeScores
) -> None:
    whisper = make_reference(small_model)
    graph = exact.graph
    assert isinstance(graph, LatentGraph)
    numbers = {(stack, layer): list(which) for stack, layer, which in graph.latents}
    of = {
        (stack, layer): saes[f"{stack}.blocks.{layer}.hook_resid_post"]
        for stack, layer, _ in graph.latents
    }
    clean, corrupted = pair
    ours, theirs = contributions(whisper, clean), contributions(whisper, corrupted)
    behind = [blocks_out(whisper, each) for each in pair]

    def change_of(sender: Any) -> Tensor:
        if not isinstance(sender, Latent):
            return theirs[sender] - ours[sender]
        place = sender.stack, sender.layer
        found = [part(of[place], each[place], sender.which, numbers[place]) for each in behind]
        return found[1] - found[0]

    def patched(edge: Edge) -> Tensor:
        if not isinstance(edge.receiver, Latent):
            return patched_logits(whisper, clean, edge, change_of(edge.sender))
        node, change = edge.receiver, change_of(edge.sender)
        place = node.stack, node.layer

        def put_in(_: Any, args: Any, out: Tensor) -> Tensor:
            read = [part(of[place], x, node.which, numbers[place]) for x in (out, out + change)]
            return out + read[1] - read[0]

        hook = getattr(whisper, node.stack).blocks[node.layer].register_forward_hook(put_in)
        logits = whisper(clean.mel.values, clean.tokens)
        hook.remove()
        return logits

    with torch.no_grad():
        plain = torch.stack([difference(patched(edge))[0] for edge in graph.edges])
    torch.testing.assert_close(exact.values[0], plain, atol=2e-5, rtol=0)
    assert ((plain - exact.clean[0]).abs() > 1e-4).float().mean() > 0.5
    kinds = {
        type(edge.receiver).__name__ for edge in graph.edges if isinstance(edge.sender, Latent)
    }
    assert kinds == {"HeadInput", "MLPLayer", "Latent", "str"}


def test_what_is_behind_an_autoencoder_reads_it_and_nothing_before(exact: EdgeScores) -> None:
    graph = exact.graph
    by_receiver: dict[str, set[str]] = {}
    for edge in graph.edges:
        by_receiver.setdefault(str(edge.receiver), set()).add(str(edge.sender))
    nodes = {str(node) for node in graph.nodes_behind("encoder", 1)}  # type: ignore[attr-defined]
    assert by_receiver["decoder.1.cross_attn.0.k"] == nodes and len(nodes) == 4
    assert "encoder.embed" not in by_receiver["encoder.1.latent.error"]
    assert "encoder.0.latent.others" in by_receiver["encoder.1.latent.error"]
    assert "decoder.embed" in by_receiver["decoder.0.latent.error"]
    assert "decoder.embed" not in by_receiver["logits"]


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs"])
def test_parts_sum_to_what_they_are_parts_of(
    small_model: Any, saes: Any, pair: Any, method: Any
) -> None:
    options: dict[str, Any] = {"n_steps": 3, "progress": False}
    found = find_latent_circuit(small_model, saes, pair, difference, method, n_latents=2, **options)
    whole = find_circuit(small_model, pair, difference, method, **options)
    for receiver in ("decoder.1.cross_attn.0.v", "encoder.1.attn.2.k", "decoder.1.mlp", "logits"):
        sums = [
            sum(
                float(score)
                for edge, score in zip(each.edges, each.scores(), strict=True)
                if str(edge.receiver) == receiver
            )
            for each in (found, whole)
        ]
        assert sums[0] == pytest.approx(sums[1], abs=1e-5)


def test_estimates_are_exact_for_small_changes(small_model: Any, pair: Any) -> None:
    saes = {  # without TopK's jumps
        hook: make_sae(ReLUConfig(d_in=12, d_sae=20), torch.Generator().manual_seed(i))
        for i, hook in enumerate(HOOKS)
    }
    clean = pair[0]
    noise = torch.randn(clean.mel.values.shape, generator=torch.Generator().manual_seed(6))
    near = Example(Mel(clean.mel.values + 3e-3 * noise, clean.mel.n_frames), clean.tokens)
    changes = []
    for method in ("exact", "eap-ig-inputs"):
        found = find_latent_circuit(small_model, saes, (clean, near), difference, method, **QUIET)
        changes.append(found.values[0] - found.clean[0])
    assert torch.corrcoef(torch.stack(changes))[0, 1] > 0.98


def test_the_greatest_can_be_measured(
    small_model: Any, saes: Any, pair: Any, exact: EdgeScores
) -> None:
    found = find_latent_circuit(small_model, saes, pair, difference, "eap", n_exact=15, **QUIET)
    same = (found.values - exact.values).abs()[0] < 1e-6
    assert found.edges == exact.edges and 15 <= int(same.sum()) < 100


def test_goes_on_where_it_stopped(
    small_model: Any, saes: Any, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.safetensors"
    options: dict[str, Any] = {"n_exact": 9, **QUIET}
    whole = find_latent_circuit(small_model, saes, pair, difference, "eap", **options)
    measured = whole.held["measured"].nonzero().flatten()
    assert len(measured) == 9
    part = replace(whole, values=whole.values.clone())
    part.values[0, measured[4:]] = torch.nan
    part.save(path)
    monkeypatch.setattr("hooked_whisper.circuits.latent_find._Pair.estimated", None)
    found = find_latent_circuit(small_model, saes, pair, difference, "eap", save_to=path, **options)
    torch.testing.assert_close(found.values, whole.values, atol=1e-6, rtol=0)
    assert EdgeScores.load(path).complete


def test_a_circuit_with_latents_is_not_evaluated(
    small_model: Any, pair: Any, exact: EdgeScores
) -> None:
    with pytest.raises(InterventionError, match="with latents cannot be run by itself"):
        evaluate_circuits(small_model, exact.top(60), pair, difference)


def test_kept_and_drawn(exact: EdgeScores, tmp_path: Path) -> None:
    exact.save(tmp_path / "scores.safetensors")
    assert EdgeScores.load(tmp_path / "scores.safetensors").graph == exact.graph
    circuit = exact.greedy(60)
    circuit.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == circuit
    edge = Edge.from_text("encoder.1.latent.7->decoder.0.cross_attn.1.v")
    assert edge.sender == Latent("encoder", 1, "7") and edge.kind == "cross"
    texts = {text.get_text() for text in draw_circuit(circuit).axes[0].texts}
    assert {"others", "error", "latents 1"} <= texts


@pytest.mark.parametrize(
    ("saes_of", "options", "message"),
    [
        (lambda saes: {}, {}, "no autoencoders; pass them by their hooks"),
        (lambda saes: {"encoder.hook_embed": saes[HOOKS[0]]}, {}, "not where a circuit can have"),
        (
            lambda saes: {"encoder.blocks.7.hook_resid_post": saes[HOOKS[0]]},
            {},
            "has blocks 0 to 1",
        ),
        (lambda saes: saes, {"method": "eap-ig-activations"}, "with latents it can be 'exact', "),
        (lambda saes: saes, {"n_latents": 0}, "n_latents is 0"),
    ],
)
def test_errors(
    small_model: Any, saes: Any, pair: Any, saes_of: Any, options: Any, message: str
) -> None:
    with pytest.raises(InterventionError, match=re.escape(message)):
        find_latent_circuit(small_model, saes_of(saes), pair, difference, **options)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("method", "n_exact"), [("exact", 0), ("eap-ig-inputs", 0), ("eap-ig-inputs", 9)]
)
def test_what_was_done_is_kept_and_gone_on_with(
    small_model: Any, saes: Any, pair: Any, method: Any, n_exact: int, tmp_path: Path
) -> None:
    left = [0]

    def metric(logits: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return difference(logits)

    def find(n_calls: int, **more: Any) -> EdgeScores:
        left[0] = n_calls
        options = {**QUIET, "n_exact": n_exact, "max_bytes": 2**14, **more}
        return find_latent_circuit(small_model, saes, [pair, pair[::-1]], metric, method, **options)

    whole = find(-1)
    path = tmp_path / "scores.safetensors"
    stopped = find((-left[0] - 1) * 9 // 10, save_to=path)
    assert 0 < stopped.n_done < whole.n_cells
    again = find(-1, save_to=path)
    assert torch.equal(again.values, whole.values) and again.complete
    with pytest.raises(InterventionError, match="n_exact"):
        find(-1, save_to=path, n_exact=n_exact + 1)
