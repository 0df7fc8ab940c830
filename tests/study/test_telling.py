"""What a study says of single latents: where phones are known, where nothing is."""

from typing import Any

import torch

from hooked_whisper.analysis.selectivity import ActiveLatents, Labels
from hooked_whisper.sae import readout
from hooked_whisper.study.autoencoder import _telling

PHONES = ["P", "K", "S", "M", "AA", "IY"]


def read(name: str, values: list[str], seed: int) -> Any:
    """A readout of latents that are about these values."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(values), (400,), generator=generator)
    hot = torch.nn.functional.one_hot(ids, len(values))
    active = ActiveLatents.of((hot + 0.4 * torch.randn(hot.shape, generator=generator)).relu())
    labels = Labels(name, tuple(values), ids)
    return readout(active, labels, active, labels)


def test_phones_get_a_confusion_table_by_manner_and_place() -> None:
    phones, speakers = read("phone", PHONES, 0), read("speaker", ["ann", "bob"], 1)
    found = {each.name: each for each in _telling([phones, speakers])}
    assert list(found) == [
        *("sae_latents", "sae_phone", "sae_confusion", "sae_confusion_manner"),
        *("sae_confusion_place", "sae_speaker"),
    ]
    assert f"mean F1 of {phones.mean_f1:.3f}" in found["sae_latents"].finding
    assert "6 values of 'phone'" in found["sae_latents"].finding
    assert "Of 6 values" in found["sae_phone"].finding
    shares = phones.confusion_table({"P": "plosive", "K": "plosive"})
    assert 0.5 < shares.loc["plosive", "plosive"] < 1
    for by in ("manner", "place"):
        assert f"of the same {by}" in found[f"sae_confusion_{by}"].finding
        assert found[f"sae_confusion_{by}"].figure is not None


def test_where_nothing_is_known_it_says_how_to_know_something() -> None:
    (only,) = _telling([])
    assert "align_phones" in only.finding and only.table is None
