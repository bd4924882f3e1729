# SPDX-License-Identifier: Apache-2.0
"""Every score by name: unit, direction, definition. The one place that the table of ``licag3d.evaluate`` and
docs/metrics.md are made from (``python -m licag3d.metrics.names`` prints the tables of the docs).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

HIGHER, LOWER, NEITHER = "higher", "lower", "-"
_AFTER_CODES = {"-": (), "s": ("similarity",), "ts": ("translation", "similarity")}

# name (* when the printed table shows it) | unit | what is better | repeated after (t)ranslation, (s)imilarity |
# definition, continued on indented lines. P and A are the prediction's centreline and lumen, T and B the truth's, d the
# distance to the nearest point of the other.
_SCORES = """
## Centrelines
centerline_f1_1mm* | share | higher | ts | harmonic mean of precision and recall at 1 mm, 0 when both are 0
centerline_f1_2mm* | share | higher | ts | harmonic mean of precision and recall at 2 mm, 0 when both are 0
centerline_precision_1mm | share | higher | ts | share of P with d ≤ 1 mm
centerline_precision_2mm | share | higher | ts | share of P with d ≤ 2 mm
centerline_recall_1mm | share | higher | ts | share of T with d ≤ 1 mm
centerline_recall_2mm | share | higher | ts | share of T with d ≤ 2 mm
chamfer_mm* | mm | lower | ts | mean of the two one-way mean distances, not squared
centerline_hd95_mm | mm | lower | ts | 95th percentile of the distances of both directions pooled
## Lumens
dice* | share | higher | ts | 2 ¦A ∩ B¦ / (¦A¦ + ¦B¦)
ot_1mm* | share | higher | ts | Ot(1 mm): share of the voxels of A and B together whose centre lies within 1 mm of a
    voxel centre of the other; at 0 mm it would be Dice
ot_2mm | share | higher | ts | Ot(2 mm): share of the voxels of A and B together whose centre lies within 2 mm of a
    voxel centre of the other; at 0 mm it would be Dice
cldice* | share | higher | ts | harmonic mean of the share of the predicted centreline inside the true lumen and of
    the true one inside the predicted (Shit et al., CVPR 2021)
hd95_mm* | mm | lower | ts | 95th percentile of the distances between boundary voxels, both directions pooled
surface_chamfer_mm | mm | lower | ts | mean of the two one-way means between boundary voxels
components* | count | lower | - | pieces of the predicted lumen (voxels that share a face, edge or corner belong
    together); a missing prediction has 0
## Branches
schaap_ov* | share | higher | ts | OV, mean over the branches of the truth
schaap_of | share | higher | ts | OF: the share of a branch before its first miss (misses in its first 5 mm are
    forgiven), mean over the branches
schaap_ot | share | higher | ts | OT: OV up to the last point with a true diameter of 1.5 mm, mean over the branches
    that have one
schaap_ai_mm | mm | lower | ts | AI: mean length of the connections that count, mean over the branches with any
branch_recall_1mm* | share | higher | ts | share of the true branches of which at least 80 % lies within 1 mm of P,
    without the part within 1 mm of the parent
branch_recall_2mm | share | higher | ts | share of the true branches of which at least 80 % lies within 2 mm of P,
    without the part within 2 mm of the parent
bifurcation_f1_2mm* | share | higher | ts | harmonic mean of the two below
bifurcation_precision_2mm | share | higher | ts | share of the predicted bifurcations with a partner within 2 mm
bifurcation_recall_2mm | share | higher | ts | share of the true bifurcations with a partner within 2 mm
bifurcation_error_mm | mm | lower | ts | mean distance of partners at most 5 mm apart
## Calibre
radius_mae_mm* | mm | lower | ts | mean absolute difference of radius between a point of P and its nearest point of T,
    where d ≤ 2 mm
radius_bias_mm | mm | - | ts | the same with its sign: positive when P is too wide
diameter_bias_mm* | mm | - | ts | mean of predicted less true diameter where d ≤ 1 mm and the true diameter is above
    1.5 mm, without the stretch of a branch inside its parent's lumen; positive when P is too wide
diameter_sd_mm* | mm | lower | ts | standard deviation of the same difference
diameter_mae_mm | mm | lower | ts | mean absolute value of the same difference
lesion_recall_2mm | share | higher | - | share of the true lesions where the prediction has a centreline within 2 mm,
    inside the lesion and on at least one side of it
mld_error_mm* | mm | lower | s | mean absolute error of the minimal lumen diameter over the lesions found
mld_bias_mm | mm | - | s | the same with its sign: positive when P is too wide
stenosis_error_percent* | percent | lower | s | mean absolute error of percent diameter stenosis, in points of
    percent, over the lesions found
stenosis_bias_percent | percent | - | s | the same with its sign: positive when P is too narrow
## Held-out views
heldout_reprojection_mm* | mm | lower | s | P and T projected by the true camera of a view that the method never saw;
    mean of the two one-way mean 2D distances, divided by the magnification (mm at the isocentre)
heldout_dice* | share | higher | s | Dice of the silhouettes in held-out views
heldout_cldice | share | higher | s | clDice of the silhouettes in held-out views: share of either projected
    centreline inside the other silhouette, harmonic mean
heldout_ssim | - | higher | s | SSIM of the path lengths in held-out views, whole image
heldout_ssim_empty | - | - | - | the same of a reconstruction without any vessel
heldout_ssim_vessel* | - | higher | s | SSIM in the vessel region
heldout_ssim_vessel_empty* | - | - | - | the same of a reconstruction without any vessel
heldout_psnr_db | dB | higher | s | PSNR of the path lengths, whole image, at most 100
heldout_psnr_vessel_db | dB | higher | s | PSNR in the vessel region, at most 100
## Input views
input_reprojection_mm* | mm | lower | - | P by the refined, T by the true cameras of the input views
input_dice | share | higher | - | Dice of the silhouettes in the input views, P by the refined and T by the true
    camera
input_cldice | share | higher | - | clDice of the silhouettes in the input views, P by the refined and T by the true
    camera: share of either projected centreline inside the other silhouette, harmonic mean
input_ssim | - | higher | - | SSIM of the path lengths in the input views, P by the refined and T by the true camera,
    whole image
input_ssim_empty | - | - | - | the same of a reconstruction without any vessel
input_ssim_vessel | - | higher | - | SSIM in the vessel region
input_ssim_vessel_empty | - | - | - | the same of a reconstruction without any vessel
input_psnr_db | dB | higher | - | PSNR of the path lengths, whole image, at most 100
input_psnr_vessel_db | dB | higher | - | PSNR in the vessel region, at most 100
## Cameras
offset_error_mm* | mm | lower | - | norm of the error of the offset of view k against view 1, mean over k > 1
offset_error_in_plane_mm | mm | lower | - | its part across the true beam of view k
offset_error_depth_mm | mm | lower | - | its part along the true beam of view k
offset_error_beyond_gauge_mm* | mm | lower | - | distance to the nearest member of `t' = s t + (1 - s)(S2 - S1)`,
    which two views cannot tell apart
relative_rotation_error_deg* | deg | lower | - | angle between true and refined rotation from view 1 to view k
rotation_error_deg | deg | lower | - | angle between true and refined orientation of a view, mean over all views
truth_projection_error_mm | mm | lower | - | mean distance between the images of the same point of T under the true
    and the refined camera, mm at the isocentre, mean over the views
## Alignment and size
similarity_scale* | - | - | - | scale of the best similarity
similarity_rotation_deg | deg | - | - | rotation of the best similarity
translation_mm | mm | - | - | length of the best translation
pred_length_mm | mm | - | - | length of the predicted centreline
truth_length_mm | mm | - | - | length of the true centreline
"""

# The name has the number of the view in place of K.
_CTA_SCORES = """
## CTA views
ssim_view_K* | - | higher | - | SSIM between the reconstruction's and the CTA vessels' path lengths under the refined
    camera, whole image
ssim_empty_view_K* | - | - | - | the same of a reconstruction without any vessel
ssim_vessel_view_K* | - | higher | - | SSIM in the vessel region (5 mm around the CTA vessels)
ssim_vessel_empty_view_K* | - | - | - | the same of a reconstruction without any vessel
psnr_db_view_K | dB | higher | - | PSNR, whole image, at most 100
psnr_vessel_db_view_K | dB | higher | - | PSNR in the vessel region, at most 100
dice_view_K* | share | higher | - | Dice of both silhouettes
cldice_view_K* | share | higher | - | clDice of both silhouettes
reprojection_mm_view_K* | mm | lower | - | mean of the two one-way mean distances of the projected centrelines, mm at
    the isocentre
## CTA and input frames
frame_dice_view_K | share | higher | - | Dice of the CTA vessels' silhouette and the vessels found in the input frame
frame_cldice_view_K | share | higher | - | share of either 2D centreline in the other's mask, harmonic mean
frame_ssim_view_K | - | higher | - | SSIM between the CTA vessels' projection and the vessel line integral estimated
    from the frame, after the best scale, whole image
frame_ssim_vessel_view_K* | - | higher | - | the same in the vessel region of the CTA
frame_ssim_vessel_empty_view_K* | - | - | - | the same of a frame without any vessel
frame_whole_ssim_view_K | - | higher | - | SSIM between the projection of the whole CTA and the frame as attenuation,
    both brought to mean 0 and variance 1
"""


@dataclass(frozen=True)
class Metric:
    """One score.

    ``better``: higher, lower, or ``-`` for what describes rather than judges (signed biases, lengths, alignments).
    ``after``: the alignments after which it is repeated, as ``<name>_after_<alignment>``. ``shown``: whether it is in
    the table that ``licag3d.evaluate`` prints without ``--all``.
    """

    name: str
    group: str
    unit: str
    better: str
    definition: str
    after: tuple[str, ...] = ()
    shown: bool = False

    @property
    def is_share(self) -> bool:
        """Whether a missing prediction scores 0 (no distance exists, but nothing was found)."""
        return self.unit == "share" and self.better == HIGHER


def _parsed(text: str) -> tuple[Metric, ...]:
    group, items = "", []
    for line in re.sub(r"\n {4}", " ", text).strip().splitlines():
        if line.startswith("## "):
            group = line[3:]
            continue
        name, unit, better, after, definition = line.split(" | ")
        unit = "" if unit == "-" else unit
        items.append(Metric(name.rstrip("*"), group, unit, better, definition, _AFTER_CODES[after], name.endswith("*")))
    return tuple(items)


#: All scores against a truth, and against a CTA, in the order of the tables.
METRICS, CTA_METRICS = _parsed(_SCORES), _parsed(_CTA_SCORES)

_AFTER = re.compile(r"_after_(translation|similarity)$")
_VIEW = re.compile(r"_view_\d+$")


def metric(name: str) -> Metric | None:
    """The definition behind a name as it stands in metrics.json, or None.

    Example:
        >>> metric("dice_after_similarity").unit, metric("ssim_view_2").better
        ('share', 'higher')
    """
    return _INDEX.get(_VIEW.sub("_view_K", _AFTER.sub("", name)))


_INDEX = {item.name: item for item in (*METRICS, *CTA_METRICS)}


def is_share(name: str) -> bool:
    """Whether a score is a share, larger is better: 0 for a failure, and never left out of a mean."""
    found = metric(name)
    return found is not None and found.is_share


def full_names() -> tuple[str, ...]:
    """Every key of the scores against a truth, aligned ones included, in the order of the tables."""
    return tuple(name for item in METRICS for name in (item.name, *(f"{item.name}_after_{how}" for how in item.after)))


def text(value: float | None) -> str:
    """A score for a table; ``-`` where it does not exist."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def markdown(items: tuple[Metric, ...] = METRICS) -> dict[str, str]:
    """The tables of docs/metrics.md by group."""
    tables: dict[str, list[str]] = {}
    for item in items:
        rows = tables.setdefault(item.group, ["| name | unit | better | after | definition |", "|---|---|---|---|---|"])
        after = ", ".join(how[0] for how in item.after)
        definition = item.definition.replace("¦", "\\|")
        rows.append(f"| `{item.name}` | {item.unit} | {item.better} | {after} | {definition} |")
    return {group: "\n".join(rows) for group, rows in tables.items()}


if __name__ == "__main__":
    for title, table in {**markdown(), **markdown(CTA_METRICS)}.items():
        print(f"## {title}\n{table}\n")
