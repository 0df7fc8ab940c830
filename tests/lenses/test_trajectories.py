"""Token trajectories: the same tokens followed over sites, positions and steps."""

from typing import Any

import pytest
import torch

from hooked_whisper.errors import InputError, TokenError
from hooked_whisper.lenses import token_trajectories
from hooked_whisper.lenses.logit_lens import logit_lens


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(("n_rows", "n_pos"), [(1, 1), (3, 20)], ids=str)
def test_are_the_numbers_of_all_logits(
    any_model: Any, make_inputs: Any, n_rows: int, n_pos: int
) -> None:
    inputs = make_inputs(n_rows, n_pos)
    found = token_trajectories(any_model, *inputs, of=[4, 100, 0])
    lens = logit_lens(any_model, *inputs)
    assert found.tokens == (4, 100, 0) and found.sites == lens.sites
    for place in range(len(lens.sites)):
        logprobs = lens.logits(place).log_softmax(dim=-1)
        wanted = logprobs[..., [4, 100, 0]]
        torch.testing.assert_close(found.logprobs[place], wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.probs[place], wanted.exp(), atol=1e-5, rtol=1e-4)
        ranks = logprobs.argsort(dim=-1, descending=True).argsort(dim=-1)
        assert torch.equal(found.ranks[place], ranks[..., [4, 100, 0]])


def test_over_the_steps_of_a_decoding(speaking_model: Any, tiny_mel: Any) -> None:
    decoding = speaking_model.generate(
        tiny_mel, 4, return_cache=True, names_filter=["*.hook_resid_*", "decoder.hook_logits"]
    )
    found = token_trajectories(speaking_model, decoding, of=[" three", 7], sites=["resid_post"])
    assert found.texts[0] == " three"
    assert len(found.positions) == decoding.tokens.shape[1] - decoding.n_prompt
    logits = decoding.cache["decoder", "logits"][:, decoding.n_prompt - 1 :]
    wanted = logits.log_softmax(dim=-1)[..., [1045, 7]]
    torch.testing.assert_close(found.logprobs[-1], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"of": []}, TokenError, "of is empty"),
        ({"of": [3, 101]}, TokenError, "token 101 is out of the vocabulary"),
        ({"of": [3], "sites": ["x"]}, InputError, "sites are"),
        ({"of": [3], "pos": 7}, InputError, "decoder positions 0 to 3"),
    ],
    ids=["none", "token", "site", "pos"],
)
def test_refuses_before_running(
    options: Any, error: Any, message: str, tiny_model: Any, make_inputs: Any, never_runs: Any
) -> None:
    with never_runs(tiny_model), pytest.raises(error, match=message):
        token_trajectories(tiny_model, *make_inputs(1, 4), **options)


def test_the_table_has_the_numbers(tiny_model: Any, make_inputs: Any) -> None:
    found = token_trajectories(tiny_model, *make_inputs(2, 4), of=[9, 2], pos=[2, 3])
    frame = found.to_dataframe()
    assert len(frame) == 10 * 2 * 2 * 2
    line = frame[(frame.site == "2_mid") & (frame.batch == 1) & (frame.pos == 3)].iloc[1]
    place = [site.label for site in found.sites].index("2_mid")
    assert (line.token, line.token_id) == ("2", 2)
    assert line.prob == pytest.approx(float(found.probs[place, 1, 1, 1]))
    assert line.logprob == pytest.approx(float(found.logprobs[place, 1, 1, 1]))
    assert line["rank"] == int(found.ranks[place, 1, 1, 1])


def test_lines_over_sites_or_positions(tiny_model: Any, make_inputs: Any) -> None:
    found = token_trajectories(tiny_model, *make_inputs(2, 4), of=[9, 2])
    over_sites = found.plot(2, row=1).axes[0]
    drawn = [line.get_ydata().tolist() for line in over_sites.lines]
    assert drawn == [pytest.approx(found.probs[:, 1, 2, each].tolist()) for each in (0, 1)]
    over_positions = found.plot(-1, over="positions").axes[0]
    assert over_positions.lines[0].get_ydata().tolist() == pytest.approx(
        found.probs[-1, 0, :, 0].tolist()
    )
    with pytest.raises(InputError, match='it can be "sites" or "positions"'):
        found.plot(over="layers")
