"""Which seconds wrote a logit: every window written out, and their sum over the whole recording."""

from typing import Any

import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.lenses.direct_attribution import direct_attribution
from hooked_whisper.lenses.source_attribution import source_attribution
from hooked_whisper.speech.mel import Mel

LENGTHS = pytest.mark.parametrize(("n_rows", "n_pos"), [(1, 1), (2, 7), (3, 20)], ids=str)


@LENGTHS
def test_windows_add_up_to_the_heads(
    any_model: Any, make_inputs: Any, n_rows: int, n_pos: int
) -> None:
    inputs = make_inputs(n_rows, n_pos)
    found = source_attribution(any_model, *inputs, windows_s=0.14, targets=3, versus=8)
    heads = direct_attribution(any_model, *inputs, by="head", targets=3, versus=8)
    wanted = torch.stack([heads[label] for label in found.labels])
    assert len(found.labels) == 9
    torch.testing.assert_close(found.head_values, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.values.sum(dim=1), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.rest, torch.zeros_like(wanted), atol=1e-4, rtol=0)


@torch.no_grad()
def test_one_window_by_hand(any_model: Any, make_inputs: Any) -> None:
    """Keys 5 to 11 of a head: pattern times values, through W_O and the unembedding."""
    model, (mel, tokens) = any_model, make_inputs(2, 4)
    _, cache = model.run_with_cache(mel, tokens)
    found = source_attribution(
        model, cache, windows_s=[(0.3, 0.5), (0.1, 0.24)], targets=9, pos=[3, 0]
    )
    scale = cache["decoder", "scale", "ln_final"][:, [3, 0]]
    direction = model.decoder.ln_final.weight * model.W_U[:, 9]
    for place, head in enumerate(found.heads):
        pattern = cache["decoder", head.layer, "pattern", "cross_attn"][:, head.index, [3, 0]]
        v = cache["decoder", head.layer, "v", "cross_attn"][:, :, head.index]
        W_O = model.decoder.blocks[head.layer].cross_attn.W_O[head.index]
        for window, keys in enumerate((slice(15, 25), slice(5, 12))):
            written = pattern[..., keys] @ v[:, keys] @ W_O
            centred = written - written.mean(dim=-1, keepdim=True)
            torch.testing.assert_close(
                found.values[place, window], (centred / scale) @ direction, atol=1e-4, rtol=1e-4
            )


def test_the_padding_is_the_rest(tiny_model: Any, make_inputs: Any) -> None:
    values, tokens = make_inputs(2, 4)
    mel = Mel(values, torch.tensor([17, 40]))  # 0.17 s and 0.4 s of 0.6 s
    found = source_attribution(tiny_model, mel, tokens, windows_s=0.15)
    assert [end for _, end in found.windows_s] == pytest.approx([0.16, 0.32, 0.4])
    everything = source_attribution(tiny_model, values, tokens, windows_s=[(0.4, 0.6)])
    torch.testing.assert_close(found.rest, everything.values[:, 0], atol=1e-4, rtol=1e-4)
    _, cache = tiny_model.run_with_cache(mel, tokens)
    assert source_attribution(tiny_model, cache, windows_s=0.15).windows_s == found.windows_s


def test_one_recording_for_several_rows_of_tokens(tiny_model: Any, make_inputs: Any) -> None:
    mel, tokens = make_inputs(1, 4)
    both = torch.cat([tokens, tokens.flip(1)])
    _, cache = tiny_model.run_with_cache(None, both, encoder_output=tiny_model(mel))
    found = source_attribution(tiny_model, cache, windows_s=0.2, targets=1)
    alone = source_attribution(tiny_model, mel, tokens.flip(1), windows_s=0.2, targets=1)
    torch.testing.assert_close(found.values[:, :, 1:], alone.values, atol=1e-4, rtol=1e-4)


def test_a_decoding(speaking_model: Any, tiny_mel: Any) -> None:
    """Values are computed in the first step only, patterns in each."""
    decoding = speaking_model.generate(tiny_mel, 4, return_cache=True)
    found = source_attribution(speaking_model, decoding, windows_s=0.2)
    heads = direct_attribution(speaking_model, decoding, by="head")
    wanted = torch.stack([heads[label] for label in found.labels])
    torch.testing.assert_close(found.head_values, wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("windows_s", "message"),
    [
        (0.01, r"a width can be 0\.02 to 0\.6 s"),
        (0, "windows_s is 0 s"),
        (0.7, r"windows_s is 0\.7 s"),
        ([], "windows_s is empty"),
        ([(0.1, 0.7)], r"0\.1 to 0\.7 s; it must lie in 0 to 0\.6 s"),
        ([(0.2, 0.2)], "end after it starts"),
        ([(0.3, 0.5), (0.1, 0.34)], r"\(0\.1, 0\.34\) and \(0\.3, 0\.5\) s overlap"),
    ],
    ids=str,
)
def test_refuses_windows(
    windows_s: Any, message: str, tiny_model: Any, make_inputs: Any, never_runs: Any
) -> None:
    with never_runs(tiny_model), pytest.raises(InputError, match=message):
        source_attribution(tiny_model, *make_inputs(1, 3), windows_s=windows_s)


def test_the_table_has_the_numbers(tiny_model: Any, make_inputs: Any) -> None:
    found = source_attribution(tiny_model, *make_inputs(2, 3), windows_s=[(0.1, 0.3), (0.3, 0.4)])
    frame = found.to_dataframe()
    assert len(frame) == 9 * 3 * 2 * 3
    line = frame[(frame["head"] == "L1X2") & (frame.batch == 1) & (frame.pos == 2)]
    assert line.start_s.iloc[:2].tolist() == [0.1, 0.3] and line.start_s.isna().iloc[2]
    place = found.labels.index("L1X2")
    wanted = [*found.values[place, :, 1, 2].tolist(), float(found.rest[place, 1, 2])]
    assert line.value.tolist() == pytest.approx(wanted)
