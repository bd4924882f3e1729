# SPDX-License-Identifier: Apache-2.0
"""What a distance should react to, done to frames on purpose: the rows of the sensitivity card.

A row takes frames and, where it changes vessels, the exact vessel line integral of the phantom, so that vessels can be
erased or moved without a trace elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scene:
    """One phantom frame: ``image`` float 0..1 ``(rows, cols)`` and what of it is vessel.

    ``without`` is the same moment without contrast on the same grey scale, ``mask`` the vessel, bool.
    """

    image: np.ndarray
    without: np.ndarray
    mask: np.ndarray


def degradations() -> dict[str, Callable[[Scene, np.random.Generator], np.ndarray]]:
    """The rows by name; each maps a scene to a frame ``(rows, cols)`` float32, 0..1."""
    return {
        "blur 0.6 px": lambda s, _: _blur(s.image, 0.6),
        "blur 1.2 px": lambda s, _: _blur(s.image, 1.2),
        "noise 2 % of the range": lambda s, rng: s.image + 0.02 * rng.standard_normal(s.image.shape),
        "contrast x 0.8": lambda s, _: s.image.mean() + 0.8 * (s.image - s.image.mean()),
        "vessels erased, 25 %": lambda s, rng: _erased(s, rng, 0.25),
        "vessels erased, 50 %": lambda s, rng: _erased(s, rng, 0.5),
        "vessels erased, all": lambda s, _: s.without,
        "vessels at half opacity": lambda s, _: 0.5 * (s.image + s.without),
        "gaps in 30 % of the length": lambda s, rng: _gaps(s, rng, 0.3),
        "vessels moved 3 px": lambda s, _: _moved(s, 3),
        "vessels moved 8 px": lambda s, _: _moved(s, 8),
    }


def degrade(name: str, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """One row of the card applied to one scene."""
    return np.clip(degradations()[name](scene, rng), 0, 1).astype(np.float32)


def other_tree(scene: Scene, donor: Scene) -> np.ndarray:
    """The vessels of ``donor`` on the background of ``scene``: the right style, the wrong patient."""
    return np.clip(scene.without * _ratio(donor), 0, 1).astype(np.float32)


def _ratio(scene: Scene) -> np.ndarray:
    return np.clip(scene.image / np.maximum(scene.without, 0.02), 0, 1)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, sigma)


def _erased(scene: Scene, rng: np.random.Generator, share: float) -> np.ndarray:
    """The frame without ``share`` of its vessel pixels, taken as whole tiles of a sixth of the side."""
    return np.where(_tiles(scene, rng, share, 6), scene.without, scene.image)


def _gaps(scene: Scene, rng: np.random.Generator, share: float) -> np.ndarray:
    return np.where(_tiles(scene, rng, share, 32), scene.without, scene.image)


def _tiles(scene: Scene, rng: np.random.Generator, share: float, count: int) -> np.ndarray:
    """Tiles, in random order, until they hold ``share`` of the vessel pixels."""
    rows, cols = scene.image.shape
    tile = (np.arange(rows)[:, None] * count // rows) * count + np.arange(cols)[None] * count // cols
    inside = np.bincount(tile[scene.mask], minlength=count * count)
    order = rng.permutation(count * count)
    chosen = order[: np.searchsorted(np.cumsum(inside[order]), share * inside.sum(), side="right") + 1]
    return np.isin(tile, chosen)


def _moved(scene: Scene, pixels: int) -> np.ndarray:
    return scene.without * np.roll(_ratio(scene), (pixels, -pixels), axis=(0, 1))
