# SPDX-License-Identifier: Apache-2.0
"""Stenoses for people and for programs: which are told of, their entry in result.json, their table and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from licag3d.report import pictures
from licag3d.structures import Branch, VesselTree, View
from licag3d.vessels.stenosis import SHOWN, Sight, Stenosis, find_stenoses
from licag3d.vessels.tree import arc_length_mm

#: Narrowings of at least this much of the diameter (percent) are reported, where the healthy vessel is at least this
#: wide (mm): below, readings scatter by half.
REPORTED_PERCENT, REPORTED_REFERENCE_MM = 50.0, 1.25
#: ... and, told by a tree alone, only this far from the ends of a branch, with this confidence and at most this
#: expected error around it.
REPORTED_FROM_END_MM, REPORTED_CONFIDENCE, REPORTED_ERROR_MM = 3.0, 0.5, 3.0
#: Half of the side of a picture, px of the frame, and how many times larger it is drawn.
CROP_PX, ZOOM = 42, 5
#: The marks stand this far beside the vessel, in half widths and px.
BESIDE = (1.5, 3.0)
MARK_RGB = (255, 96, 80)
_DASH = "\N{EN DASH}"


def reported_stenoses(tree: VesselTree) -> tuple[Stenosis, ...]:
    """The narrowings that a tree alone tells of, worst first; :func:`licag3d.inversion.narrowings.find_narrowings`
    reads them from the views.

    Left out are those that say nothing on the lumen: at an end of a branch, where vessels taper and joints lie, and
    where the course of the vessel itself is in doubt.
    """
    found = find_stenoses(tree, min_percent=REPORTED_PERCENT, min_reference_mm=REPORTED_REFERENCE_MM)
    branches = {branch.id: branch for branch in tree.branches}
    return tuple(lesion for lesion in found if _well_placed(branches[lesion.branch_id], lesion.at_mm))


def _well_placed(branch: Branch, at_mm: float) -> bool:
    """Whether vessel is seen on both sides of the place, with a depth that views agree on and a small expected error.

    What a tree does not say of itself (no confidence, no expected error) speaks against nothing.
    """
    arc = arc_length_mm(branch.points_lps_mm)
    if at_mm < REPORTED_FROM_END_MM or arc[-1] - at_mm < REPORTED_FROM_END_MM:
        return False
    near = np.abs(arc - at_mm) <= REPORTED_FROM_END_MM
    sure = branch.confidence is None or float(np.min(branch.confidence[near])) >= REPORTED_CONFIDENCE
    return sure and (branch.error_mm is None or float(np.max(branch.error_mm[near])) <= REPORTED_ERROR_MM)


def lesion_dict(lesion: Stenosis) -> dict[str, Any]:
    """One narrowing as ``result.json`` has it; null where the radii have no deviations, ``views`` empty where it was
    not read from views."""
    return {
        "branch": lesion.branch_id,
        "at_mm": lesion.at_mm,
        "position_lps_mm": list(lesion.position_lps_mm),
        "percent_diameter": lesion.percent_diameter,
        "percent_sigma": lesion.percent_sigma,
        "percent_90": None if lesion.percent_90 is None else list(lesion.percent_90),
        "percent_area": lesion.percent_area,
        "minimal_diameter_mm": lesion.minimal_diameter_mm,
        "minimal_sigma_mm": lesion.minimal_sigma_mm,
        "minimal_90_mm": None if lesion.minimal_90_mm is None else list(lesion.minimal_90_mm),
        "reference_diameter_mm": lesion.reference_diameter_mm,
        "length_mm": lesion.length_mm,
        "confidence": lesion.confidence or None,
        "views": [
            {"view": sight.view + 1, "pixel": list(sight.pixel), "says": sight.state, "percent_diameter": sight.percent}
            for sight in lesion.sights
        ],
    }


def lesions_html(
    tree: VesselTree, views: Sequence[View], lesions: Sequence[Stenosis], judged_share: float | None
) -> str:
    """The table of narrowings with pictures of them, or a sentence that there are none.

    Args:
        judged_share: of the length of the vessels that some view shows clear of others, where that is known.
    """
    looked = ""
    if judged_share is not None and np.isfinite(judged_share):
        looked = f"{100 * judged_share:.0f} % of the length of the vessels is seen clear of others in some view. "
    if not lesions:
        return (
            '<p class="hint">None of half the diameter or more was found. '
            + looked
            + "Places where the vessel itself is in doubt are not judged.</p>"
        )
    names = {branch.id: branch.name for branch in tree.branches}
    seen = any(lesion.sights for lesion in lesions)
    heads = [
        "",
        "Branch",
        "Name",
        "Diameter stenosis, %",
        "Area stenosis, %",
        "Minimal diameter, mm",
        "90 % interval, mm",
        "Reference diameter, mm",
        "Length, mm",
        "From the start of the branch, mm",
    ]
    heads += ["Confidence", "Seen in"] * seen
    rows = "".join(
        _row(number, lesion, names.get(lesion.branch_id, ""), seen) for number, lesion in enumerate(lesions, 1)
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    shots = "".join(
        _figure(views[sight.view], number, sight)
        for number, lesion in enumerate(lesions, 1)
        for sight in lesion.sights
        if sight.state == SHOWN
    )
    shots = f'<div class="shots lesions">{shots}</div>' if shots else ""
    said = (
        "Narrowings of half the diameter or more between two healthy stretches of vessel in a view that shows "
        "them clear of other vessels, and that no other clear view denies. "
        if seen
        else "Narrowings of half the diameter or more, with one standard deviation. Within 3 mm of the end of a "
        "branch, or where the course of the vessel is in doubt, none is listed. "
    )
    note = (
        f'<p class="hint">{said}{looked}Narrowings that every view hides are not listed. Look at the frames. '
        "Not for diagnosis.</p>"
    )
    return table + shots + note


def _row(number: int, lesion: Stenosis, name: str, seen: bool) -> str:
    def cell(value: float, sigma: float | None, digits: int) -> str:
        spread = "" if sigma is None else f" \N{PLUS-MINUS SIGN} {sigma:.{digits}f}"
        return f"<td>{value:.{digits}f}{spread}</td>"

    ends = lesion.minimal_90_mm
    between = _DASH if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"
    shown = ", ".join(str(sight.view + 1) for sight in lesion.sights if sight.state == SHOWN)
    more = f"<td>{escape(lesion.confidence) or _DASH}</td><td>view {shown}</td>" if seen else ""
    return (
        f'<tr><td>{number}</td><td>{lesion.branch_id}</td><td class="left wrap">{escape(name) or _DASH}</td>'
        + cell(lesion.percent_diameter, lesion.percent_sigma, 0)
        + f"<td>{lesion.percent_area:.0f}</td>"
        + cell(lesion.minimal_diameter_mm, lesion.minimal_sigma_mm, 2)
        + f"<td>{between}</td>"
        + f"<td>{lesion.reference_diameter_mm:.2f}</td><td>{lesion.length_mm:.1f}</td>"
        + f"<td>{lesion.at_mm:.1f}</td>{more}</tr>"
    )


def _figure(view: View, number: int, sight: Sight) -> str:
    percent = "" if sight.percent is None else f", {sight.percent:.0f} % here"
    picture = lesion_picture(view.image, sight)
    return (
        f'<figure><img src="{pictures.data_url(picture, jpeg=True)}" alt="Stenosis {number} in view '
        f'{sight.view + 1}"><figcaption>Stenosis {number}, view {sight.view + 1}{percent}</figcaption></figure>'
    )


def lesion_picture(image: np.ndarray, sight: Sight) -> np.ndarray:
    """The frame around a narrowing, enlarged, once as it is and once with the narrow stretch marked on both sides of
    the vessel ``(rows, 2 * rows, 3)`` uint8."""
    from PIL import Image, ImageDraw

    col, row = (int(round(x)) for x in sight.pixel)
    padded = np.pad(np.nan_to_num(np.asarray(image, np.float32)), CROP_PX, mode="edge")
    col, row = (int(np.clip(x, 0, n - 1)) for x, n in zip((col, row), image.shape[::-1], strict=True))
    crop = padded[row : row + 2 * CROP_PX + 1, col : col + 2 * CROP_PX + 1]
    low, high = np.percentile(crop, (1, 99))
    grey = pictures.grey_rgb((crop - low) / max(float(high - low), 1e-6))
    side = len(grey) * ZOOM
    plain = Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC)
    marked = plain.copy()
    draw = ImageDraw.Draw(marked)
    line = np.asarray(sight.line_px, np.float64).reshape(-1, 2)
    if len(line) > 1:
        tangent = np.gradient(line, axis=0)
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
        normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
        away = BESIDE[0] * sight.half_width_px + BESIDE[1]
        first, last = sight.mark
        for beside in (-away, away):
            there = (line + beside * normal)[first : max(last, first + 1) + 1]
            points = (there - (col - CROP_PX, row - CROP_PX) + 0.5) * ZOOM
            draw.line([tuple(p) for p in points.tolist()], fill=MARK_RGB, width=3, joint="curve")
    return np.concatenate([np.asarray(plain), np.full((side, 4, 3), 255, np.uint8), np.asarray(marked)], 1)


def marks_svg(lesions: Sequence[Stenosis], view: int, size: Mapping[str, int]) -> str:
    """Numbered circles around the narrowings that a view shows, to lie over its picture."""
    found = [
        (number, sight)
        for number, lesion in enumerate(lesions, 1)
        for sight in lesion.sights
        if sight.view == view and sight.state == SHOWN
    ]
    if not found:
        return ""
    shapes = "".join(
        f'<circle cx="{x + 0.5:.1f}" cy="{y + 0.5:.1f}" r="11"/><text x="{x + 13:.1f}" y="{y - 8:.1f}">{number}</text>'
        for number, (x, y) in ((n, s.pixel) for n, s in found)
    )
    return (
        f'<svg class="over lesion" viewBox="0 0 {size["cols"]} {size["rows"]}" preserveAspectRatio="none" '
        f'role="img" aria-label="Stenoses of the list">{shapes}</svg>'
    )
