# SPDX-License-Identifier: Apache-2.0
"""Published figures of peers, for orientation beside the leaderboard. Other data, other metrics, no motion."""

from __future__ import annotations

PUBLISHED_NOTE = (
    "PPCAR-Net (arXiv 2610.09383, tables 2, 3 and 10): 75 right and 75 left trees of ImageCAS, two views, known "
    "geometry, static, vessel masks given, 0.5 mm grid, all methods retrained there, times on an RTX 4090. Voxel "
    "overlap in percent, no alignment; the cases above have unknown offsets, angle errors and, on full backgrounds, no "
    "masks. Neither set of figures says anything about the other."
)
PUBLISHED_ROWS = (
    ("AutoCAR", 2, 68.8, 79.1, 46.9, 63.0, 3.8),
    ("PPCAR-Net, refined", 2, 66.9, 80.6, 49.5, 61.3, 0.1),
    ("DeepCA", 2, 63.5, 78.0, 56.6, 71.2, 2.7),
    ("PPCAR-Net, per-case optimisation without refiner", 2, 41.0, 50.0, 28.8, 33.2, 11),
    ("3DGR-CAR", 2, 37.3, 39.5, 35.1, 37.2, 64),
)
