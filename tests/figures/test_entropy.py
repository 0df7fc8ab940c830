import math

import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.figures import plot_entropy


def test_all_24_heads_in_their_order_with_the_mean_of_each_layer() -> None:
    table = torch.arange(24.0).view(4, 6)
    table[1, 2] = math.nan
    figure = plot_entropy({"encoder": table, "decoder": torch.ones(2, 3)}, label="entropy (nats)")
    encoder, decoder = figure.axes
    values = encoder.lines[0].get_ydata()
    assert len(values) == 24 and values[15] == 15 and math.isnan(values[8])
    bars = [collection.get_segments()[0] for collection in encoder.collections]
    assert [bar[0][1] for bar in bars] == pytest.approx([2.5, 8.6, 14.5, 20.5])
    assert [bar[:, 0].tolist() for bar in bars][1] == [5.5, 11.5]
    assert [text.get_text() for text in encoder.texts] == [f"layer {i}" for i in range(4)]
    assert (encoder.get_ylabel(), decoder.get_ylabel()) == ("encoder", "decoder")
    assert encoder.lines[0].get_linestyle() != decoder.lines[0].get_linestyle()


def test_one_table_needs_no_name() -> None:
    assert plot_entropy(torch.rand(32, 20)).axes[0].get_xlim() == (-0.5, 639.5)


def test_what_is_no_table_is_refused(without_shape_checks: None) -> None:
    with pytest.raises(InputError, match="at least one table of entropies"):
        plot_entropy({})
    with pytest.raises(InputError, match=r"the entropies 'a' are \(3,\); pass \[layer, head\]"):
        plot_entropy({"a": torch.rand(3)})
