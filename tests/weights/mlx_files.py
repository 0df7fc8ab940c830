"""Folders in MLX's format, as `convert.py` of mlx_whisper writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def write_mlx(
    folder: Path,
    dims: Mapping[str, int],
    state: Mapping[str, Any],
    kind: str = "weights.safetensors",
    *,
    dtype: Any = np.float16,
    heads: Any = None,
    bits: int | None = None,
    group: int = 32,
) -> dict[str, np.ndarray]:
    """Write a model; returns what each quantised matrix stands for.

    Args:
        dims: OpenAI's dimensions.
        state: OpenAI's state dict.
        kind: The name of the file of weights.
        dtype: Of all of them, and of scales and biases.
        heads: Pairs of layer and head.
        bits: Of the integers; None leaves the matrices as they are.
        group: Neighbours that share a scale and a bias.
    """
    arrays, stands_for = {}, {}
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if name == "encoder.positional_embedding":
            continue
        name = name.replace("mlp.0", "mlp1").replace("mlp.2", "mlp2")
        if values.ndim == 3:
            values = np.ascontiguousarray(values.swapaxes(1, 2))
        is_quantised = values.ndim == 2 and "positional" not in name
        if bits is None or not is_quantised:
            arrays[name] = values.astype(dtype)
            continue
        parts, stands_for[name] = _quantise(values, bits, group, dtype)
        arrays |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
    if heads is not None:
        arrays["alignment_heads"] = np.array(heads, np.int64, order="F")
    folder.mkdir(exist_ok=True)
    if kind.endswith(".npz"):
        np.savez(folder / kind, **arrays)
    else:
        save_file(arrays, folder / kind)
    config: dict[str, Any] = {**dims, "model_type": "whisper"}
    if bits is not None:
        config["quantization"] = {"group_size": group, "bits": bits}
    (folder / "config.json").write_text(json.dumps(config))
    return stands_for


def _quantise(
    values: np.ndarray, bits: int, group: int, dtype: Any
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Words, scales and biases, and what they stand for: one number after the other."""
    n_rows, n_columns = values.shape
    groups = values.reshape(n_rows, -1, group)
    biases = groups.min(-1).astype(dtype)
    scales = ((groups.max(-1) - groups.min(-1)) / (2**bits - 1)).astype(dtype)
    scales[scales == 0] = 1
    steps = (groups - biases[..., None].astype(np.float32)) / scales[..., None].astype(np.float32)
    integers = np.clip(np.rint(steps), 0, 2**bits - 1).reshape(n_rows, n_columns).astype(np.uint32)
    words = np.zeros((n_rows, n_columns * bits // 32), np.uint32)
    back = np.zeros_like(values, np.float32)
    for column in range(n_columns):
        word, place = divmod(column * bits, 32)
        words[:, word] |= integers[:, column] << np.uint32(place)
        scale, bias = (each[:, column // group].astype(np.float32) for each in (scales, biases))
        back[:, column] = integers[:, column].astype(np.float32) * scale + bias
    return {"weight": words, "scales": scales, "biases": biases}, back
