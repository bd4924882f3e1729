# SPDX-License-Identifier: Apache-2.0
"""The rivals, one plain file each, all with one signature: ``reconstruct(inputs: Inputs) -> Result``.

A rival's file also states three facts as module constants, which the leaderboard prints:

- ``SOURCE``: the publication it follows.
- ``CORRECTS_OFFSET``: whether that source looks for the unknown offset between the views. Where it does not, the
  benchmark runs it a second time with cameras from :mod:`benchmarks.offset`; the rival itself does nothing for it.
- ``DIFFERS``: one sentence on what is not as in the source, sizes included.

Volume methods turn their volume into a tree with :func:`benchmarks.volumes.volume_tree`, so that all are skeletonised
alike. Every constant that was tuned was tuned on VALIDATION seeds (licag3d/phantom/splits.py), never on others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselEvidence, VesselTree, View

#: Edge of the cube about the isocentre of the first view in which every tree lies, mm.
BOX_MM = 140.0


@dataclass(frozen=True)
class Inputs:
    """What a method is given of one case: V views, the first being the reference. Nothing of it is truth, but the masks
    of the track ``masks``.

    Args:
        images: per view ``(rows, cols)`` float32 in 0..1, vessels dark; views may differ in size (borders are cropped).
        valid: per view bool, False on the collimator border.
        masks: per view bool: the true vessel mask (track ``masks``) or that of the project's evidence (``images``).
        line_integrals: per view float32 p, no unit, zero off the vessels: the project's estimate from the image, within
            the mask; its scale is a guess for display images (licag3d/models/vessel_evidence.py).
        probabilities: per view float32 in 0..1, of being vessel; 0 or 1 in the track ``masks``.
        radius_px: per view float32, estimated vessel half width on the detector, zero off the vessels.
        confidences: per view float32 in 0..1, how far the line integral may be trusted.
        cameras: as a user has them, angles as read, offset zero (or an initial one, in the rows that say so).
        artery: ``rca`` or ``lca``.
        track: ``masks`` or ``images``.
        seed: for methods that draw at random.
        spacing_mm: voxel size wished for volumes, mm; a method may choose another and says so in ``DIFFERS``.
    """

    images: tuple[np.ndarray, ...]
    valid: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    line_integrals: tuple[np.ndarray, ...]
    probabilities: tuple[np.ndarray, ...]
    radius_px: tuple[np.ndarray, ...]
    confidences: tuple[np.ndarray, ...]
    cameras: tuple[Camera, ...]
    artery: str = "rca"
    track: str = "masks"
    seed: int = 0
    spacing_mm: float = 0.8

    @property
    def evidence(self) -> tuple[VesselEvidence, ...]:
        """The same per view as :class:`licag3d.structures.VesselEvidence`."""
        return tuple(
            VesselEvidence(probability, integral, confidence, radius, mask)
            for probability, integral, confidence, radius, mask in zip(
                self.probabilities, self.line_integrals, self.confidences, self.radius_px, self.masks, strict=True
            )
        )

    def with_cameras(self, cameras: tuple[Camera, ...]) -> Inputs:
        """The same images, other cameras."""
        return replace(self, cameras=tuple(cameras))


def inputs_of(
    views: tuple[View, ...], evidence: tuple[VesselEvidence, ...], *, artery: str, track: str, seed: int = 0
) -> Inputs:
    """Inputs from views as read and their evidence."""
    return Inputs(
        images=tuple(view.image for view in views),
        valid=tuple(view.valid for view in views),
        masks=tuple(e.mask for e in evidence),
        line_integrals=tuple(e.line_integral for e in evidence),
        probabilities=tuple(e.probability for e in evidence),
        radius_px=tuple(e.radius_px for e in evidence),
        confidences=tuple(e.confidence for e in evidence),
        cameras=tuple(view.camera for view in views),
        artery=artery,
        track=track,
        seed=seed,
    )


@dataclass(frozen=True)
class Result:
    """What a method gives back.

    Args:
        tree: in LPS mm, in the frame of the cameras given.
        cameras: the cameras it believes in; None where it moved none (then those given are scored).
        facts: figures worth keeping (iterations, final loss, number of candidates), by name.
    """

    tree: VesselTree
    cameras: tuple[Camera, ...] | None = None
    facts: dict[str, float] = field(default_factory=dict)


Method = Callable[[Inputs], Result]
