# SPDX-License-Identifier: Apache-2.0
"""A sketch of the tree that is expected in a frame, as the guided segmentor sees it beside the frame."""

from __future__ import annotations

import numpy as np

#: A sketch falls to 1/e this far from the expected centrelines, px at the working scale of the segmentor.
FADE_PX = 8.0


def sketch(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Nearness of expected centrelines.

    Args:
        points: ``(n, 2)`` (col, row), px, along the centrelines, at most about 2 px apart; those outside are left out.
        shape: rows and columns.

    Returns:
        ``shape`` float32: exp(-distance / ``FADE_PX``); zero everywhere without points.

    Example:
        >>> near = sketch(np.array([[4.0, 2.0]]), (5, 13))
        >>> float(near[2, 4]), round(float(near[2, 12]), 2)
        (1.0, 0.37)
    """
    from scipy.ndimage import distance_transform_edt

    on = np.zeros(shape, bool)
    col, row = np.rint(points[np.isfinite(points).all(1)]).astype(np.int64).T
    inside = (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
    on[row[inside], col[inside]] = True
    if not on.any():
        return np.zeros(shape, np.float32)
    return np.exp(-distance_transform_edt(~on) / FADE_PX).astype(np.float32)
