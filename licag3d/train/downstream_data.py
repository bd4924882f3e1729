# SPDX-License-Identifier: Apache-2.0
"""Labelled phantom frames for judging encoders: vessel masks, segment names, stenoses.

Labels come from training seeds, frames to judge on from validation seeds (:mod:`licag3d.phantom.splits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: Segment names of SCCT (Leipsic et al. 2014) without numbers and sub-branches; what is in none of them is ignored.
SEGMENTS = (
    "RCA",
    "CB",
    "SN",
    "AM",
    "AVN",
    "R-PDA",
    "R-PLB",
    "LM",
    "LAD",
    "LCx",
    "D",
    "S",
    "OM",
    "RI",
    "L-PDA",
    "L-PLB",
)
#: Stenoses of at least this share of the diameter are to be found, percent.
LEAST_STENOSIS = 50.0
#: First stenosis patient among the training seeds, and among the validation seeds.
STENOSIS_TRAINING_FIRST, STENOSIS_TEST_FIRST = 40_000_000, 5_000
#: Raised when stored stenosis frames no longer are what they would be now.
CACHE_VERSION = 2


@dataclass(frozen=True)
class LabelledFrames:
    """Frames of one size.

    Args:
        images: ``(n, side, side)`` float32, 0..1.
        masks: ``(n, side, side)`` bool.
        segments: ``(n, side, side)`` uint8, 1 + index into :data:`SEGMENTS` on vessels, 0 elsewhere.
        patients: ``(n,)`` seed of the patient.
        lesions: per frame ``(k, 2)`` col and row of the narrowest places, pixels.
        tokens: ``(n, channels, rows, cols)`` of an encoder that stays as it is, or None (:func:`with_tokens` of
            :mod:`licag3d.train.downstream_heads`).
    """

    images: np.ndarray
    masks: np.ndarray
    segments: np.ndarray
    patients: np.ndarray
    lesions: tuple[np.ndarray, ...]
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, numbers: Sequence[int]) -> LabelledFrames:
        """Some of the frames."""
        n = np.asarray(numbers, int)
        return LabelledFrames(self.images[n], self.masks[n], self.segments[n], self.patients[n],
                              tuple(self.lesions[k] for k in n),
                              None if self.tokens is None else self.tokens[n.tolist()])  # fmt: skip


def segment_index(name: str) -> int:
    """1 + index into :data:`SEGMENTS` of a branch name, 0 when it is none of them.

    Example:
        >>> SEGMENTS[segment_index("OM2.a") - 1], segment_index("conus twig 3")
        ('OM', 0)
    """
    base = name.split(".")[0].rstrip("0123456789")
    return SEGMENTS.index(base) + 1 if base in SEGMENTS else 0


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Area average of a square image to ``side`` pixels, float32."""
    import torch

    full = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    return torch.nn.functional.interpolate(full, size=(side, side), mode="bilinear", antialias=True)[0, 0].numpy()


def from_pool(pool, numbers: Sequence[int], side: int) -> LabelledFrames:
    """Frames ``numbers`` of a :class:`licag3d.data.phantom_frames.PhantomPool`, with masks and segment names."""
    images, masks, segments, patients = [], [], [], []
    for number in numbers:
        frame = pool.frame(number)
        mask = shrink(frame.mask, side) >= 0.5
        codes = np.array([0] + [segment_index(name) for name in frame.branch_names], np.uint8)
        full = codes[np.minimum(frame.labels, len(codes) - 1)]
        # The name in the middle of each cell; off the vessels there it is taken from the nearest vessel pixel.
        images.append(shrink(frame.image, side) / 255.0)
        masks.append(mask)
        segments.append(_nearest_label(full, side) * mask)
        patients.append(frame.seed)
    return LabelledFrames(np.stack(images), np.stack(masks), np.stack(segments), np.asarray(patients),
                          tuple(np.zeros((0, 2)) for _ in images))  # fmt: skip


def _nearest_label(labels: np.ndarray, side: int) -> np.ndarray:
    from scipy import ndimage

    at = ((np.arange(side) + 0.5) * labels.shape[0] / side).astype(int)
    if not labels.any():
        return np.zeros((side, side), np.uint8)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return labels[tuple(nearest)][np.ix_(at, at)]


def stenosis_frames(first: int, cases: int, side: int, cache: Path | None = None) -> LabelledFrames:
    """One frame of each of ``cases`` phantom patients, alternately with obstructive disease and healthy, rendered at
    ``side`` pixels; with ``cache`` they are kept in that ``.npz`` file.

    Right and left arteries change after each pair, so that the artery says nothing of the disease. Only patients whose
    disease shows a stenosis of :data:`LEAST_STENOSIS` percent inside the frame count as diseased; diffuse disease and
    occlusions are redrawn with another seed.
    """
    if cache is not None and cache.is_file():
        with np.load(cache, allow_pickle=False) as found:
            wanted = {"version": CACHE_VERSION, "cases": cases, "side": side, "first": first}
            if all(name in found and int(found[name]) == value for name, value in wanted.items()):
                ends = np.cumsum(found["counts"])[:-1]
                return LabelledFrames(found["images"], found["masks"], found["segments"], found["patients"],
                                      tuple(np.split(found["lesions"], ends)))  # fmt: skip
    from tqdm import tqdm

    images, masks, patients, lesions = [], [], [], []
    seed = first
    bar = tqdm(total=cases, disable=None, unit="frame", desc="stenosis frames")
    while len(images) < cases:
        artery, diseased = ("rca", "lca")[len(images) // 2 % 2], len(images) % 2 == 0
        made = _stenosis_frame(seed, artery, diseased, side)
        if made is not None:
            images.append(made[0])
            masks.append(made[1])
            lesions.append(made[2])
            patients.append(seed)
            bar.update(1)
        seed += 1
    bar.close()
    frames = LabelledFrames(np.stack(images), np.stack(masks), np.zeros((cases, side, side), np.uint8),
                            np.asarray(patients), tuple(lesions))  # fmt: skip
    if cache is not None:
        import io

        from licag3d.io.atomic import write_bytes

        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=frames.images, masks=frames.masks, segments=frames.segments,
                            patients=frames.patients, lesions=np.concatenate(lesions), cases=cases, side=side,
                            first=first, version=CACHE_VERSION, counts=[len(x) for x in lesions])  # fmt: skip
        write_bytes(cache, buffer.getvalue())
    return frames


def _stenosis_frame(seed: int, artery: str, diseased: bool, side: int):
    """Image, mask and lesion places of one patient, or None when nothing fits."""
    from licag3d.phantom import views as view_choice
    from licag3d.phantom.anatomy import sample_patient, sample_tree
    from licag3d.phantom.disease import sample_disease
    from licag3d.phantom.thorax import sample_thorax
    from licag3d.phantom.xray import Exposure, render_frame, sample_surroundings

    rng = np.random.default_rng([seed, 63])
    tree, found = sample_disease(seed, artery, sample_tree(seed, artery), extent="obstructive" if diseased else "none")
    found = [lesion for lesion in found if lesion.percent_diameter >= LEAST_STENOSIS]
    if diseased != bool(found) or any(lesion.kind != "stenosis" for lesion in found):
        return None
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    move = -0.5 * (points.min(0) + points.max(0))
    tree = replace(tree, branches=tuple(replace(b, points_lps_mm=b.points_lps_mm + move) for b in tree.branches))
    geometry = view_choice.choose_geometry(rng)
    angles = view_choice.choose_angles(rng, artery, 1, 60.0)[0]
    camera = view_choice.make_camera(angles, geometry, side, side)
    spacing = view_choice.fit_spacing([camera], points + move) * float(rng.uniform(0.75, 1.0))
    camera = view_choice.with_spacing(camera, spacing)
    places = []
    for lesion in found:
        branch = next(b for b in tree.branches if b.id == lesion.branch_id)
        arc = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(branch.points_lps_mm, axis=0), axis=1))]
        at = branch.points_lps_mm[int(np.abs(arc - lesion.at_mm).argmin())]
        (col, row), _ = camera.project(at)
        if 0.04 * side < min(col, row) and max(col, row) < 0.96 * side:
            places.append((float(col), float(row)))
    if diseased and not places:
        return None
    surroundings = sample_surroundings(rng, tree, sample_thorax(rng, sample_patient(seed).heart, move))
    exposure = Exposure.sample(np.random.default_rng([seed, 64]))
    frame = render_frame(tree, camera, exposure, surroundings, [seed, 65])
    return frame.image.astype(np.float32) / 255.0, frame.mask, np.asarray(places, float).reshape(-1, 2)
