import torch

from hooked_whisper.sae.training.dead import DeadLatents


def test_latents_die_when_inactive_for_long_and_live_again() -> None:
    dead = DeadLatents(3, after_vectors=100)
    dead.update(torch.tensor([True, False, False]), 60)
    assert not dead.is_dead.any()
    dead.update(torch.tensor([False, False, True]), 60)
    assert dead.is_dead.tolist() == [False, True, False]
    assert round(dead.share, 6) == round(1 / 3, 6)
    dead.update(torch.tensor([False, True, False]), 60)
    assert dead.is_dead.tolist() == [True, False, False]
