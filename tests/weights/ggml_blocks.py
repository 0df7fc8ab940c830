"""ggml's blocks: random ones, and what they stand for, one number of all blocks at a time.

Written down from `dequantize_row_*` in ggml-quants.c, in its order of operations.
"""

import numpy as np

SIZES = {"q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34)}
SIZES |= {"q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176)}
SIZES |= {"q6_k": (256, 210)}
"""Numbers in a block, and its bytes."""
HALVES = {"q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0], "q6_k": [208]}
HALVES |= {"q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2]}
"""Where the float16 scales of a block are."""


def random_blocks(kind: str, n_numbers: int, seed: int = 0) -> np.ndarray:
    """Blocks of any bits, but for scales of some hundredths."""
    rng = np.random.default_rng(seed)
    per_block, n_bytes = SIZES[kind]
    blocks = rng.integers(0, 256, (n_numbers // per_block, n_bytes), np.uint8)
    for place in HALVES[kind]:
        scales = rng.uniform(-0.02, 0.02, (len(blocks), 1)).astype("<f2")
        blocks[:, place : place + 2] = scales.view(np.uint8)
    return blocks


def dequantised(kind: str, blocks: np.ndarray) -> np.ndarray:
    """The numbers of each block, in float32."""
    out = np.zeros((len(blocks), SIZES[kind][0]), np.float32)
    scales = [_half(blocks, place) for place in HALVES[kind]]
    _BY_KIND[kind](blocks.astype(np.int32), scales, out)
    return out


def _half(blocks, place):
    return blocks[:, place : place + 2].copy().view("<f2")[:, 0].astype(np.float32)


def _signed(values):
    return np.where(values > 127, values - 256, values)


def _q8_0(b, scales, y):
    for j in range(32):
        y[:, j] = _signed(b[:, 2 + j]) * scales[0]


def _q4(b, scales, y):
    start = 2 * len(scales)
    for j in range(16):
        for place, x in ((j, b[:, start + j] & 15), (j + 16, b[:, start + j] >> 4)):
            y[:, place] = (x - 8) * scales[0] if len(scales) == 1 else x * scales[0] + scales[1]


def _q5(b, scales, y):
    start = 2 * len(scales)
    for j in range(16):
        low = b[:, start + 4 + j]
        for place, x in ((j, low & 15), (j + 16, low >> 4)):
            x = x | (b[:, start + place // 8] >> place % 8 & 1) << 4
            y[:, place] = (x - 16) * scales[0] if len(scales) == 1 else x * scales[0] + scales[1]


def _q2_k(b, scales, y):
    d, least = scales
    for i in range(256):
        half, rest = divmod(i, 128)
        shift, place = divmod(rest, 32)
        scale = b[:, 8 * half + 2 * shift + place // 16]
        q = b[:, 16 + 32 * half + place] >> 2 * shift & 3
        y[:, i] = d * (scale & 15) * q - least * (scale >> 4)


def _q3_k(b, scales, y):
    for i in range(256):
        half, rest = divmod(i, 128)
        shift, place = divmod(rest, 32)
        n = 8 * half + 2 * shift + place // 16
        low = b[:, 96 + n] & 15 if n < 8 else b[:, 96 + n - 8] >> 4
        scale = (low | (b[:, 104 + n % 4] >> 2 * (n // 4) & 3) << 4) - 32
        high = b[:, place] >> (4 * half + shift) & 1
        q = (b[:, 32 + 32 * half + place] >> 2 * shift & 3) - 4 * (1 - high)
        y[:, i] = scales[0] * scale * q


def _scale_and_least(b, n):
    if n < 4:
        return b[:, 4 + n] & 63, b[:, 8 + n] & 63
    scale = b[:, 8 + n] & 15 | b[:, n] >> 6 << 4
    return scale, b[:, 8 + n] >> 4 | b[:, 4 + n] >> 6 << 4


def _q45_k(b, scales, y):
    has_fifth = b.shape[1] == 176
    for i in range(256):
        n, place = divmod(i, 32)
        scale, least = _scale_and_least(b, n)
        q = b[:, (48 if has_fifth else 16) + 32 * (n // 2) + place] >> 4 * (n % 2) & 15
        if has_fifth:
            q = q + 16 * (b[:, 16 + place] >> n & 1)
        y[:, i] = scales[0] * scale * q - scales[1] * least


def _q6_k(b, scales, y):
    for i in range(256):
        half, rest = divmod(i, 128)
        quarter, place = divmod(rest, 32)
        low = b[:, 64 * half + 32 * (quarter % 2) + place] >> 4 * (quarter // 2) & 15
        q = (low | (b[:, 128 + 32 * half + place] >> 2 * quarter & 3) << 4) - 32
        scale = _signed(b[:, 192 + 8 * half + 2 * quarter + place // 16])
        y[:, i] = scales[0] * scale * q


_BY_KIND = {"q4_0": _q4, "q4_1": _q4, "q5_0": _q5, "q5_1": _q5, "q8_0": _q8_0, "q2_k": _q2_k}
_BY_KIND |= {"q3_k": _q3_k, "q4_k": _q45_k, "q5_k": _q45_k, "q6_k": _q6_k}
