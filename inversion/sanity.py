# SPDX-License-Identifier: Apache-2.0
"""Do the views belong together, and how far may the result be trusted? What is said, never silently merged.

Views of two patients, of two arteries, or with a wrong angle can be matched too, only worse: after the camera search
more centreline stays unmatched, the contrast lies in other epipolar planes, and the angles had to be bent. A logistic
score of these three was fitted to pairs of one patient and to mixed pairs of the phantom (docs/uncertainty.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera, view_angle_deg
from licag3d.inversion.chains import Chains, thinned
from licag3d.inversion.consistency import Contrast, disagreement
from licag3d.inversion.settings import InversionSettings
from licag3d.report.result import Confidence
from licag3d.structures import VesselEvidence, VesselTree, View

#: Weights of matching cost per mm, logarithm of the disagreement of contrast, and turn of the angles over their reading
#: error; and the bias. Positive is mixed. 24 pairs of one patient and 32 mixed ones, validation seeds.
WEIGHTS, BIAS = (2.97, 1.32, 0.61), 0.15
#: The same with the tree encoder's log odds against one patient as a fourth sign.
WEIGHTS_WITH_CODES, BIAS_WITH_CODES = (2.01, 1.17, 0.64, 0.26), 0.32
#: Below this the views are said not to belong together; above the second they do.
DOUBTFUL, SURE = 0.5, 0.75
#: Angles between two views within which depth is known.
LEAST_ANGLE_DEG = 20.0
#: A vessel thicker than this that ends this near to the edge of the field goes on beyond it, mm.
CUT_RADIUS_MM, CUT_MM = 0.7, 3.0
#: Expected errors (half of the tree below) for the words high and low, mm.
GOOD_ERROR_MM, BAD_ERROR_MM = 1.5, 5.0


@dataclass(frozen=True)
class Consistency:
    """``score`` 0 to 1: about the chance that view ``pair`` (counted from 1) shows one artery of one patient under the
    angles given, where as many mixed pairs as right ones are met; the worst pair of all views. NaN with one view."""

    score: float
    pair: tuple[int, int]
    cost_per_mm: float
    contrast_disagreement: float
    turn: float


def consistency(
    given: Sequence[Camera],
    cameras: Sequence[Camera],
    chains: Sequence[Chains],
    contrast: Sequence[Contrast | None],
    settings: InversionSettings,
    same: Sequence[float] | None = None,
) -> Consistency:
    """How well every further view goes with the first.

    Args:
        same: per further view the probability of the tree encoder that it shows the patient of the first one
            (:func:`licag3d.models.encode_views.tuple_consistency`); None leaves it out.
        given: cameras as given. cameras: after the search. chains: centrelines. contrast: of every view, or None.
    """
    worst = Consistency(float("nan"), (1, 1), float("nan"), float("nan"), float("nan"))
    for k in range(1, len(cameras)):
        pair = _pair(given, cameras, chains, contrast, settings, k, None if same is None else same[k - 1])
        if not np.isfinite(worst.score) or pair.score < worst.score:
            worst = pair
    return worst


def _pair(given, cameras, chains, contrast, settings: InversionSettings, k: int, same: float | None) -> Consistency:
    from licag3d.inversion.camera_search import camera_costs

    both = (cameras[0], cameras[k])
    length = max(chains[0].length_mm + chains[k].length_mm, 1e-9)
    thin = (thinned(chains[0])[0], thinned(chains[k])[0])
    cost = float(camera_costs([both], thin, settings.search.prices)[0][0]) / length
    known = contrast[0] is not None and contrast[k] is not None
    # Without line integrals: what pairs of one patient have.
    apart = disagreement(both, (contrast[0], contrast[k])) if known else 0.08
    turned = [cameras[0].secondary_deg - given[0].secondary_deg, both[1].secondary_deg - given[k].secondary_deg]
    turned.append(both[1].primary_deg - given[k].primary_deg)
    turn = float(np.linalg.norm(turned)) / max(settings.search.angle_sigma_deg, 0.1)
    signs = (cost, np.log(max(apart, 0.02)), turn)
    if same is None:
        mixed = BIAS + float(np.dot(WEIGHTS, signs))
    else:
        likely = float(np.clip(same, 1e-4, 1 - 1e-4))
        mixed = BIAS_WITH_CODES + float(np.dot(WEIGHTS_WITH_CODES, (*signs, -np.log(likely / (1 - likely)))))
    return Consistency(float(1.0 / (1.0 + np.exp(mixed))), (1, k + 1), cost, float(apart), turn)


def same_patient(
    evidence: Sequence[VesselEvidence], cameras: Sequence[Camera], device: str = "cpu"
) -> list[float] | None:
    """What the codes of the tree encoder say: per further view the probability that it shows the patient and artery of
    the first; None with one view or without the encoder's weights."""
    from licag3d import weights

    if len(evidence) < 2 or not weights.available("tree_encoder"):
        return None
    from licag3d.models.encode_views import encode_each, tuple_consistency
    from licag3d.models.encoder import load_tree_encoder

    encoder = load_tree_encoder(device=device)
    codes = encode_each(list(evidence), list(cameras), encoder=encoder)
    return [tuple_consistency(codes[0], code, encoder=encoder) for code in codes[1:]]


def view_warnings(views: Sequence[View], chains: Sequence[Chains]) -> list[str]:
    """What is wrong with the views whatever comes out of them: vessels cut by the edge, too little angle between."""
    warnings = []
    for k, (view, chain) in enumerate(zip(views, chains, strict=True), 1):
        cut = vessels_cut(view, chain)
        if cut:
            one = cut == 1
            warnings.append(
                f"View {k} ({view.file}): {cut} vessel{'' if one else 's'} {'is' if one else 'are'} cut by the edge of "
                "the image; what lies beyond is missing, and matching near it is unsure."
            )
    for i, one in enumerate(views):
        for j, other in enumerate(views[:i]):
            angle = view_angle_deg(one.camera, other.camera)
            if min(angle, 180.0 - angle) < LEAST_ANGLE_DEG:
                warnings.append(
                    f"Views {j + 1} and {i + 1} look along nearly the same line ({angle:.0f}\N{DEGREE SIGN} between "
                    f"them): depth is hardly known. At least {LEAST_ANGLE_DEG:.0f}\N{DEGREE SIGN} are needed, 40 to 90 "
                    "are good."
                )
    return warnings


def vessels_cut(view: View, chains: Chains) -> int:
    """Number of thick vessels that end at the edge of the X-ray field."""
    from scipy.ndimage import distance_transform_edt

    inside = np.pad(view.valid, 1)  # the frame's own edge is an edge as well
    away_mm = distance_transform_edt(inside)[1:-1, 1:-1] * chains.mm_per_pixel
    count = 0
    for p in range(chains.pieces):
        rows = np.arange(chains.start[p], chains.start[p + 1])
        for node, end in zip(chains.node[p], (rows[:8], rows[-8:]), strict=True):
            if chains.degree[node] != 1:
                continue
            col, row = np.rint(chains.node_pixels[node]).astype(int)
            row, col = np.clip(row, 0, away_mm.shape[0] - 1), np.clip(col, 0, away_mm.shape[1] - 1)
            radius_mm = float(np.median(chains.radius_mm[end]))
            # The traced end stops about a radius before the edge.
            count += bool(radius_mm > CUT_RADIUS_MM and away_mm[row, col] < CUT_MM + radius_mm)
    return count


def confidence(
    found: Consistency, tree: VesselTree, *, views: int, matched_share: float, agreed_share: float
) -> tuple[Confidence, list[str]]:
    """The confidence in the result as a whole, and warnings.

    Args:
        found: of the views. tree: with its expected errors. matched_share, agreed_share: of the centreline.
    """
    errors = [branch.error_mm for branch in tree.branches if branch.error_mm is not None]
    half = float(np.median(np.concatenate(errors))) if errors else float("nan")
    facts = {
        "consistency": found.score,
        "cost_per_mm": found.cost_per_mm,
        "contrast_disagreement": found.contrast_disagreement,
        "angle_turn_over_reading_error": found.turn,
        "matched_share": matched_share,
        "agreed_share": agreed_share,
        "median_error_mm": half,
    }
    if views < 2:
        return Confidence(
            "low",
            "One view shows no depth: what the result says along the beam is not measured; only its outline in this "
            "view can be trusted.",
            float("nan"),
            facts,
        ), []
    known = f"half of the tree is expected within {half:.1f} mm of the truth" if errors else "errors were not estimated"
    seen = f"consistency of the views {found.score:.2f} (1 is best, below {DOUBTFUL} they hardly belong together)"
    if found.score < DOUBTFUL:
        warning = (
            f"Views {found.pair[0]} and {found.pair[1]} hardly belong together (consistency {found.score:.2f}): are "
            "they of one patient and one artery, in the same phase of the heart, and are the angles right? Do not rely "
            "on this tree."
        )
        statement = f"The views hardly belong together: {seen}; the tree must not be relied on."
        return Confidence("low", statement, found.score, facts), [warning]
    if half > BAD_ERROR_MM:
        return Confidence("low", f"The tree is doubtful: {known}; {seen}.", found.score, facts), [
            f"The tree is doubtful: {known}."
        ]
    if found.score >= SURE and half <= GOOD_ERROR_MM:
        statement = f"The views belong together, and {known}, up to scale and place as a whole; {seen}."
        return Confidence("high", statement, found.score, facts), []
    return Confidence(
        "moderate", f"Usable with care: {known}, up to scale and place as a whole; {seen}.", found.score, facts
    ), []
