# SPDX-License-Identifier: Apache-2.0
"""Phantom scenes with and without contrast, for the sensitivity card."""

from __future__ import annotations

import numpy as np

from licag3d.metrics.feature_space.degradations import Scene


def phantom_scenes(count: int, side_px: int, *, seed: int = 0) -> list[Scene]:
    """Scenes of patients of the validation range, right and left in turn, full background, one view each.

    Args:
        count: scenes, at most the number of validation seeds.
        side_px: rows and columns; rendered at 512 and averaged down.
        seed: of the choice of patients.
    """
    from skimage.transform import resize
    from tqdm import tqdm

    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.phantom.splits import VALIDATION

    patients = np.random.default_rng([seed, 77]).permutation(len(VALIDATION))[:count]
    scenes = []
    for number, patient in enumerate(tqdm(patients, desc="scenes", disable=None, leave=False)):
        case = simulate_case(
            VALIDATION[int(patient)], ("rca", "lca")[number % 2], views=1, background="full", kappa=0.0, held_out=0
        )
        view = case.views[0]
        image, without, mask = (
            resize(np.asarray(x, np.float32), (side_px, side_px), order=1, anti_aliasing=True)
            for x in (view.image / 255.0, view.contrast_free_image / 255.0, view.mask)
        )
        scenes.append(Scene(image.astype(np.float32), without.astype(np.float32), mask > 0.5))
    return scenes
