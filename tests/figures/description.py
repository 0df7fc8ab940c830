"""What a figure shows, in words and numbers: the same from any version of matplotlib.

Pixels are not: where a letter ends, and by it everything beside, moves with its releases.
"""

from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator

MOST = 12
"""Points kept of a line, and cells of either side of an image: evenly chosen, or their means."""


ALLOWED = {"place": 0.04, "rgba": 1.0}
"""Absolute differences by the name of a number: axes give way to words, whose sizes vary."""


def describe(figure: Any) -> dict[str, Any]:
    """Size, words and axes of a figure that has been drawn."""
    return {
        "size_in": numbers(figure.get_size_inches()),
        "words": [words(text) for text in figure.texts if text.get_text()],
        "axes": [describe_axes(axes) for axes in figure.axes],
    }


def describe_axes(axes: Any) -> dict[str, Any]:
    found = {
        "place": numbers(axes.get_position().bounds),
        "limits": numbers([*axes.get_xlim(), *axes.get_ylim()]),
        "scales": [axes.get_xscale(), axes.get_yscale()],
        "visible": axes.axison,
        "words": [words(text) for text in (axes.title, axes.xaxis.label, axes.yaxis.label)],
        "ticks": [ticks(axis) for axis in (axes.xaxis, axes.yaxis)],
        "lines": [line(each) for each in axes.lines],
        "images": [image(each) for each in axes.images],
        "areas": [area(each) for each in axes.collections],
        "shapes": [shape(each) for each in axes.patches],
        "texts": [words(text) | place(text) for text in axes.texts],
    }
    legend = axes.get_legend()
    if legend is not None:
        found["legend"] = [words(text) for text in legend.get_texts()]
        found["legend lines"] = [look(each) for each in legend.get_lines()]
    return found


def words(text: Any) -> dict[str, Any]:
    return {
        "text": text.get_text(),
        "size": numbers(text.get_size()),
        "color": to_hex(text.get_color()),
    }


def place(text: Any) -> dict[str, Any]:
    at = {"at": numbers(text.get_position()), "turned": numbers(text.get_rotation())}
    return at | {"align": [text.get_ha(), text.get_va()]}


def ticks(axis: Any) -> dict[str, Any] | None:
    """Where ticks are and what they say, in the part that is seen; None if matplotlib chose."""
    if not isinstance(axis.get_major_locator(), FixedLocator):
        return None
    low, high = sorted(axis.get_view_interval())
    seen = [each for each in axis.get_major_ticks() if low <= each.get_loc() <= high]
    return {
        "at": numbers([each.get_loc() for each in seen]),
        "say": [each.label1.get_text() for each in seen if each.label1.get_visible()],
    }


def look(each: Any) -> dict[str, Any]:
    return {
        "color": to_hex(each.get_color(), keep_alpha=True),
        "style": each.get_linestyle(),
        "width": numbers(each.get_linewidth()),
        "marker": str(each.get_marker()),
    }


def line(each: Any) -> dict[str, Any]:
    return look(each) | {"points": some(np.asarray(each.get_xydata()))}


def image(each: Any) -> dict[str, Any]:
    """The colours, by means over blocks, and where they lie."""
    array = each.get_array()
    rgba = each.to_rgba(array) if array.ndim == 2 else np.asarray(array)
    rgba = rgba / 255 if rgba.dtype == np.uint8 else rgba
    for axis in (0, 1):
        blocks = np.array_split(rgba, min(MOST, rgba.shape[axis]), axis=axis)
        rgba = np.concatenate([block.mean(axis=axis, keepdims=True) for block in blocks], axis)
    return {
        "shape": list(array.shape),
        "extent": numbers(each.get_extent()),
        "rgba": numbers((255 * rgba).reshape(-1, rgba.shape[-1])),
    }


def area(each: Any) -> dict[str, Any]:
    vertices = [path.vertices for path in each.get_paths()]
    return {
        "outline": some(np.concatenate(vertices)) if vertices else [],
        "offsets": some(np.ma.filled(each.get_offsets(), np.nan)),
        "face": [to_hex(color, keep_alpha=True) for color in each.get_facecolor()],
        "edge": [to_hex(color, keep_alpha=True) for color in each.get_edgecolor()],
    }


def shape(each: Any) -> dict[str, Any]:
    outline = each.get_patch_transform().transform_path(each.get_path()).vertices
    return {
        "outline": some(outline),
        "face": to_hex(each.get_facecolor(), keep_alpha=True),
        "edge": to_hex(each.get_edgecolor(), keep_alpha=True),
    }


def some(points: np.ndarray) -> Any:
    chosen = np.unique(np.linspace(0, len(points) - 1, MOST).round().astype(int))
    return numbers(points[chosen] if len(points) else points)


def numbers(values: Any) -> Any:
    """To four digits, NaN as None: plain JSON."""
    if np.ndim(values):
        return [numbers(each) for each in values]
    return None if np.isnan(values) else float(f"{float(values):.4g}")


def differences(mine: Any, golden: Any, at: str = "figure", allowed: float = 0) -> list[str]:
    """Where two descriptions differ, by more than rounding may."""
    if isinstance(mine, dict) and isinstance(golden, dict) and mine.keys() == golden.keys():
        return [
            found
            for key, value in mine.items()
            for found in differences(value, golden[key], f"{at}, {key}", ALLOWED.get(key, allowed))
        ]
    if isinstance(mine, list) and isinstance(golden, list) and len(mine) == len(golden):
        return [
            found
            for index, (value, other) in enumerate(zip(mine, golden, strict=True))
            for found in differences(value, other, f"{at} {index}", allowed)
        ]
    if isinstance(mine, float) and isinstance(golden, float):
        is_same = abs(mine - golden) <= max(allowed, 2e-3 * abs(golden), 1e-9)
    else:
        is_same = mine == golden
    return [] if is_same else [f"{at}: {mine}, not {golden}"]
