import numpy as np
import pytest
import torch

from hooked_whisper.errors import InputError
from hooked_whisper.figures.lenses import (
    plot_attribution,
    plot_encoder_lens,
    plot_logit_lens,
    plot_sources,
    plot_trajectories,
)


class TestLogitLens:
    def test_the_token_stands_on_its_probability(self) -> None:
        probability = torch.tensor([[0.1, 0.2], [0.9, 0.8], [1.0, 0.3]])
        texts = [["a", " b"], ["c", "<|endoftext|>"], ["e", "f"]]
        figure = plot_logit_lens(probability, texts, ["0", "1", "2"], ["3\n x", "4\ny"])
        axes = figure.axes[0]
        written = {text.get_position(): text.get_text() for text in axes.texts}
        assert written[1, 0] == "b" and written[1, 1] == "<|endoftext|>" and len(written) == 6
        image = axes.images[0]
        np.testing.assert_allclose(np.asarray(image.get_array()), probability.numpy())
        assert image.get_clim() == (0, 1) and image.origin == "lower"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["3\nx", "4\ny"]

    def test_a_table_of_another_size_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"2 sites and 1 columns .* table is \(1, 1\)"):
            plot_logit_lens(torch.rand(1, 1), [["a"]], ["0", "1"], ["x"])
        with pytest.raises(InputError, match=r"1 rows of \[2\] texts"):
            plot_logit_lens(torch.rand(1, 1), [["a", "b"]], ["0"], ["x"])


class TestAttribution:
    def test_the_largest_stay_in_order_and_the_others_are_summed(self) -> None:
        values = torch.tensor([0.5, -3.0, 0.25, 2.0])
        figure = plot_attribution(values, ["a", "b", "c", "d"], n=2, label="logit of 'x'")
        axes = figure.axes[0]
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["b", "d", "2 others", "sum"]
        widths = [round(bar.get_width(), 4) for bar in axes.patches]
        assert widths == [-3, 2, 0.75, -0.25]
        assert [text.get_text() for text in axes.texts] == ["-3.00", "+2.00", "+0.75", "-0.25"]
        assert axes.get_xlabel() == "added to the logit of 'x'"

    def test_no_others_where_all_are_drawn(self) -> None:
        figure = plot_attribution(torch.tensor([1.0, 2.0]), ["a", "b"], n=5)
        assert [each.get_text() for each in figure.axes[0].get_yticklabels()] == ["a", "b", "sum"]

    def test_nothing_at_all_can_be_drawn(self) -> None:
        plot_attribution(torch.zeros(2), ["a", "b"]).canvas.draw()

    def test_labels_that_do_not_match_are_refused(self) -> None:
        with pytest.raises(InputError, match="1 labels for 2 components"):
            plot_attribution(torch.rand(2), ["a"])
        with pytest.raises(InputError, match="n = 0"):
            plot_attribution(torch.rand(1), ["a"], n=0)


class TestEncoderLens:
    def test_each_bar_has_its_transcript(self) -> None:
        texts = ["", "one two", "x" * 99]
        figure = plot_encoder_lens(torch.tensor([0.1, 0.5, 0.9]), [0, 2, 4], texts, label="p")
        axes = figure.axes[0]
        assert [round(bar.get_width(), 4) for bar in axes.patches] == [0.1, 0.5, 0.9]
        assert [each.get_text() for each in axes.texts[:2]] == ["(nothing)", "one two"]
        assert axes.texts[2].get_text() == "x" * 59 + "…"
        assert [each.get_text() for each in axes.get_yticklabels()] == ["0", "2", "4"]

    def test_bars_alone(self) -> None:
        assert not plot_encoder_lens(torch.rand(2), [0, 1], label="p").axes[0].texts

    def test_texts_that_do_not_match_are_refused(self) -> None:
        with pytest.raises(InputError, match="2 layers and 1 texts for 2 numbers"):
            plot_encoder_lens(torch.rand(2), [0, 1], ["a"], label="p")


class TestTrajectories:
    def test_a_line_for_each_token(self) -> None:
        probability = torch.tensor([[0.1, 0.9], [0.4, 0.6], [0.7, 0.2]])
        figure = plot_trajectories(probability, ["a", "b", "c"], [" x", " y"], x_label="site")
        axes = figure.axes[0]
        for line, wanted in zip(axes.lines, probability.T.tolist(), strict=True):
            assert line.get_ydata().tolist() == pytest.approx(wanted)
        assert [each.get_text() for each in axes.get_legend().get_texts()] == ["x", "y"]

    def test_lines_of_many_tokens_differ(self) -> None:
        figure = plot_trajectories(
            torch.rand(2, 16), ["a", "b"], list("abcdefghijklmnop"), x_label=""
        )
        looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
        assert len(looks) == 16

    def test_names_that_do_not_match_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"2 places and 1 tokens .* \(1, 1\)"):
            plot_trajectories(torch.rand(1, 1), ["a", "b"], ["x"], x_label="")


class TestSources:
    def test_each_window_is_drawn_at_its_time(self) -> None:
        values = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
        figure = plot_sources(
            values,
            [(0.0, 0.5), (1.0, 2.5)],
            [" one", " two"],
            label="logit",
            spans_s=[(1.2, 2.0, "seven")],
        )
        axes = figure.axes[0]
        meshes = [each for each in axes.collections if each.get_array() is not None]
        assert [each.get_array().flatten().tolist() for each in meshes] == [[1, 0.5], [-2, 0]]
        assert {each.get_clim() for each in meshes} == {(-2, 2)}
        assert axes.get_xlim() == (0, 2.5) and axes.get_ylim() == (1.5, -0.5)
        assert axes.texts[0].get_text() == "seven"
        assert axes.texts[0].xy[0] == pytest.approx(1.6)

    def test_names_that_do_not_match_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"2 labels and 1 windows .* \(1, 1\)"):
            plot_sources(torch.rand(1, 1), [(0.0, 1.0)], ["a", "b"], label="x")
