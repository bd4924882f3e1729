# SPDX-License-Identifier: Apache-2.0
"""Views to consider: for the tree, its main vessels and its narrowings the angulations that show them best, with how
far each is to be trusted. For result.json and the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselTree
from licag3d.vessels import foreshortening as views
from licag3d.vessels.stenosis import Stenosis
from licag3d.vessels.tree import arc_length_mm, branch_length_mm

#: Vessels that are treated, as the prior names them; twigs of these, septals and the conus branch are left out.
MAIN_VESSELS = (
    "LM",
    "LAD",
    "D1",
    "D2",
    "D3",
    "RI",
    "LCx",
    "OM1",
    "OM2",
    "OM3",
    "L-PLB",
    "L-PDA",
    "RCA",
    "R-PDA",
    "R-PLB",
)
#: Of a named vessel at least this much must be there, mm.
LEAST_VESSEL_MM = 10.0
#: A lesion is shown with this much vessel on both sides of its narrowest place, mm.
AROUND_LESION_MM = 5.0
#: Up to here the confidence of a point says that no two views agree on its depth: the prior or a bridge gave it.
PRIORS_OWN = 0.3
#: Half of the stretch is expected to be off by more, mm: doubtful, and so far off that no view is offered.
DOUBTFUL_MM, WITHHELD_MM = 3.0, 5.0
#: From this share of the length on, a depth that only the prior knows makes a view doubtful.
DOUBTFUL_SHARE = 0.75
NOT_JUDGED = (
    "Absorption, table, patient and collisions of the C-arm are not judged; vessels that were not found may "
    "cover as well."
)
_DEGREE, _SPACE = "\N{DEGREE SIGN}", "\N{NO-BREAK SPACE}"
_COLORS = ((40, 120, 210), (110, 190, 225), (225, 230, 235), (240, 190, 110), (230, 90, 40))
_WORST_PERCENT, _CELL = 100.0, 14


@dataclass(frozen=True)
class Target:
    """What is to be looked at, and from where.

    ``kind``: ``tree``, ``vessel`` or ``stenosis``; ``branches``: ids; ``positions``: their places in the tree;
    ``stenosis``: number in the list of narrowings. ``error_mm``: median of the expected error, None where unknown;
    ``prior_share``: share of the length whose depth no two views agree on, None where unknown. ``trust``: ``good``,
    ``doubtful``, ``withheld`` (no view is offered) or ``unknown``; ``reason``: why, for people. ``given``:
    foreshortening and overlap in percent in each of the given views.
    """

    kind: str
    name: str
    branches: tuple[int, ...]
    positions: tuple[int, ...]
    stenosis: int | None
    length_mm: float
    error_mm: float | None
    prior_share: float | None
    trust: str
    reason: str
    views: tuple[views.BestView, ...]
    given: tuple[tuple[float, float], ...]
    map: views.ViewMap


def view_guide(
    tree: VesselTree, cameras: Sequence[Camera], lesions: Sequence[Stenosis] = (), *, level: str = ""
) -> tuple[Target, ...]:
    """The targets of a tree: all of it, its main vessels, its narrowings; empty for an empty tree.

    Args:
        cameras: of the given views; the first tells how far the source is and where the patient lies.
        level: confidence in the result as a whole; ``low`` makes every view doubtful.
    """
    whole = views.tree_pieces(tree)
    if not len(whole):
        return ()
    place = {branch.id: k for k, branch in enumerate(tree.branches)}
    # kind, name, positions, number of the lesion, and the arc lengths between which it is looked at
    wanted: list[tuple] = [("tree", "Whole tree", tuple(range(len(tree.branches))), None, (0.0, np.inf))]
    for name in MAIN_VESSELS:
        own = tuple(k for k, branch in enumerate(tree.branches) if branch.name == name)
        if sum(branch_length_mm(tree.branches[k]) for k in own) >= LEAST_VESSEL_MM:
            wanted.append(("vessel", name, own, None, (0.0, np.inf)))
    for number, lesion in enumerate(lesions):
        branch = tree.branches[place[lesion.branch_id]]
        name = f"Stenosis {number + 1}, {branch.name or f'branch {branch.id}'}, {lesion.percent_diameter:.0f} %"
        wanted.append(
            (
                "stenosis",
                name,
                (place[branch.id],),
                number,
                (lesion.at_mm - AROUND_LESION_MM, lesion.at_mm + AROUND_LESION_MM),
            )
        )
    parts, stretches = [whole], []
    for kind, _, own, _, (low, high) in wanted:
        if kind == "stenosis":  # finer: a crossing vessel may hide all that matters
            near = views.branch_pieces(tree.branches[own[0]], own[0], from_mm=low, to_mm=high, step_mm=1.0)
            first = sum(map(len, parts))
            parts.append(near)
            stretches.append(np.arange(first, first + len(near)))
        else:
            stretches.append(np.flatnonzero(np.isin(whole.branch, own)))
    pieces = views.joined(parts)
    maps = views.view_maps(pieces, stretches, cameras[0], whole)
    given = views.view_figures(pieces, stretches, np.stack([c.source_lps_mm for c in cameras]), whole)
    length = np.linalg.norm(pieces.end_lps_mm - pieces.start_lps_mm, axis=1)
    targets = []
    for (kind, name, own, number, span), found, now, stretch in zip(wanted, maps, given, stretches, strict=True):
        error, share = _known(tree, own, span)
        trust, reason = _trust(error, share, level)
        best = () if trust == "withheld" else views.best_views(found, count=3 if kind == "tree" else 2)
        targets.append(
            Target(
                kind,
                name,
                tuple(int(tree.branches[k].id) for k in own),
                own,
                number,
                float(length[stretch].sum()),
                error,
                share,
                trust,
                reason,
                best,
                tuple((float(a), float(b)) for a, b in zip(*now, strict=True)),
                found,
            )
        )
    return tuple(targets)


def _known(tree: VesselTree, positions: Sequence[int], span: tuple[float, float]) -> tuple[float | None, float | None]:
    """Median expected error and share of the prior's own depth, over all points of a stretch; None where unknown."""
    errors, weak = [], []
    for branch in (tree.branches[k] for k in positions):
        arc = arc_length_mm(branch.points_lps_mm)
        inside = (arc >= span[0]) & (arc <= span[1])
        if branch.error_mm is not None:
            errors.append(np.asarray(branch.error_mm)[inside])
        if branch.confidence is not None:
            # Confidences that are read from a file are rounded.
            weak.append(np.asarray(branch.confidence)[inside] <= PRIORS_OWN + 1e-3)
    error, share = (np.concatenate([np.zeros(0), *values]) for values in (errors, weak))
    return float(np.median(error)) if len(error) else None, float(share.mean()) if len(share) else None


def _trust(error_mm: float | None, share: float | None, level: str) -> tuple[str, str]:
    if error_mm is None and share is None:
        return "unknown", "nothing is known of its errors"
    said = []
    if error_mm is not None:
        said.append(f"expected error {error_mm:.1f}{_SPACE}mm" + (" or more" if error_mm >= 10 else ""))
    if share is not None and share >= 0.25:
        said.append(f"depth of {100 * share:.0f}{_SPACE}% not borne out by two views")
    reason = ", ".join(said) or "borne out by two views"
    if error_mm is not None and error_mm >= WITHHELD_MM:
        return "withheld", reason
    if error_mm is None and share is not None and share >= 1:
        return "withheld", reason
    if level == "low":
        return "doubtful", f"{reason}; confidence in the result as a whole is low"
    doubtful = (error_mm or 0) >= DOUBTFUL_MM or (share or 0) >= DOUBTFUL_SHARE
    return ("doubtful" if doubtful else "good"), reason


def guide_dict(targets: Sequence[Target]) -> dict[str, Any]:
    """``best_views`` of result.json (docs/output-files.md)."""
    return {
        "reach_deg": {"primary": views.REACH_PRIMARY_DEG, "secondary": views.REACH_SECONDARY_DEG},
        "note": NOT_JUDGED,
        "targets": [
            {
                "kind": target.kind,
                "name": target.name,
                "branches": list(target.branches),
                "stenosis": target.stenosis,
                "length_mm": target.length_mm,
                "trust": target.trust,
                "reason": target.reason,
                "expected_error_mm": target.error_mm,
                "unmeasured_share": target.prior_share,
                "views": [
                    {
                        "primary_deg": v.primary_deg,
                        "secondary_deg": v.secondary_deg,
                        "foreshortening_percent": v.foreshortening_percent,
                        "overlap_percent": v.overlap_percent,
                    }
                    for v in target.views
                ],
                "given_views": [{"foreshortening_percent": a, "overlap_percent": b} for a, b in target.given],
            }
            for target in targets
        ],
    }


def angulation(primary_deg: float, secondary_deg: float) -> str:
    """As it is said in the laboratory: ``LAO 30, CRA 20`` with degree signs, ``AP`` for no rotation."""
    first = "AP" if primary_deg == 0 else f"{'LAO' if primary_deg > 0 else 'RAO'} {abs(primary_deg):.0f}{_DEGREE}"
    second = f", {'CRA' if secondary_deg > 0 else 'CAU'} {abs(secondary_deg):.0f}{_DEGREE}" if secondary_deg else ""
    return first + second


def guide_scene(targets: Sequence[Target]) -> dict[str, Any] | None:
    """What ``viewer.js`` needs to turn the tree and to show the map of another target; costs are bytes of percent."""
    if not targets:
        return None
    return {
        "colors": [list(color) for color in _COLORS],
        "worst_percent": _WORST_PERCENT,
        "targets": [
            {
                "name": target.name,
                "positions": list(target.positions) if target.kind != "tree" else [],
                "best": [[v.primary_deg, v.secondary_deg] for v in target.views],
                "cost": base64.b64encode(_bytes(target.map).tobytes()).decode(),
            }
            for target in targets
        ],
    }


def _bytes(found: views.ViewMap) -> np.ndarray:
    """Cost in whole percent, ``(S, P)`` uint8: one row of the map after the other, cranial on top."""
    return np.rint(np.clip(found.cost_percent, 0, 255)).astype(np.uint8).T[::-1]


def guide_html(targets: Sequence[Target], cameras: Sequence[Camera]) -> str:
    """The section *Views to consider*: a table, and a map of the first target that the page can exchange."""
    if not targets:
        return ""
    several = len(cameras) > 1
    heads = "".join(
        f'<th scope="col"{kind}>{text}</th>'
        for text, kind in (
            ("To see, and how far to trust it", ""),
            ("Angulation", ' class="left"'),
            ("Foreshortened, %", ""),
            ("Covered, %", ""),
            (f"Both in the given view{'s' * several}, %", ""),
        )
    )
    rows = "".join(_rows(target, k) for k, target in enumerate(targets))
    none = all(not target.views for target in targets)
    alone = (
        '<p class="warn-line">No view is offered: the depth of this tree is not known well enough to say how it '
        "looks from elsewhere.</p>"
        if none
        else ""
    )
    return (
        '<section aria-labelledby="h-guide"><h2 id="h-guide">Views to consider</h2>'
        '<p class="sub">Angulations with little foreshortening and little overlap by other branches of this '
        f"tree, best first, within {views.REACH_PRIMARY_DEG:.0f}{_DEGREE} LAO or RAO and "
        f"{views.REACH_SECONDARY_DEG:.0f}{_DEGREE} "
        f"cranial or caudal. <strong>{NOT_JUDGED}</strong> They are as good as the reconstruction: look at the trust "
        f"below each name.</p>{alone}"
        f'<div class="guide"><div class="scroll"><table><thead><tr>{heads}</tr></thead>{rows}</table></div>'
        f"{_map_html(targets, cameras)}</div></section>"
    )


def _rows(target: Target, number: int) -> str:
    count = max(len(target.views), 1)
    given = "<br>".join(f"{a:.0f} + {b:.0f}" for a, b in target.given)
    ends = f'<td rowspan="{count}">{given}</td>'
    head = (
        f'<th scope="rowgroup" rowspan="{count}" class="left what">{escape(target.name)}'
        f'<small><b class="{target.trust}">{target.trust.capitalize()}</b>: {escape(target.reason)}</small></th>'
    )
    if not target.views:
        return f'<tbody><tr>{head}<td class="left" colspan="3">none offered</td>{ends}</tr></tbody>'
    lines = []
    for k, view in enumerate(target.views):
        lines.append(
            f'<tr>{head if k == 0 else ""}<td class="left"><button type="button" aria-pressed="false" disabled '
            f'data-look="{view.primary_deg:g},{view.secondary_deg:g}" data-target="{number}" '
            f'title="Turn the 3D tree to this view">{angulation(view.primary_deg, view.secondary_deg)}</button></td>'
            f"<td>{view.foreshortening_percent:.0f}</td><td>{view.overlap_percent:.0f}</td>"
            f"{ends if k == 0 else ''}</tr>"
        )
    return f"<tbody>{''.join(lines)}</tbody>"


def _map_html(targets: Sequence[Target], cameras: Sequence[Camera]) -> str:
    """The map of the first target as inline SVG: rows of cells, marks of the offered and of the given views."""
    found = targets[0].map
    cols, rows = len(found.primary_deg), len(found.secondary_deg)
    width, height = cols * _CELL, rows * _CELL
    cost = _bytes(found)
    cells = "".join(
        f'<rect x="{x * _CELL}" y="{y * _CELL}" width="{_CELL}" height="{_CELL}" fill="{_color(cost[y, x])}" '
        f'data-look="{found.primary_deg[x]:g},{found.secondary_deg[rows - 1 - y]:g}"/>'
        for y in range(rows)
        for x in range(cols)
    )
    marks = "".join(_mark(k, camera) for k, camera in enumerate(cameras, 1))
    marks += (
        '<g id="guide-best">'
        + "".join(f'<circle cx="{_x(v.primary_deg):g}" cy="{_y(v.secondary_deg):g}" r="6"/>' for v in targets[0].views)
        + "</g>"
    )
    ticks = "".join(
        f'<text x="{_x(value):g}" y="{height + 15}" text-anchor="middle">{_tick(value, "RAO", "LAO")}</text>'
        for value in (-60, -30, 0, 30, 60)
    )
    ticks += "".join(
        f'<text x="-6" y="{_y(value) + 4:g}" text-anchor="end">{_tick(value, "CAU", "CRA")}</text>'
        for value in (-40, -20, 0, 20, 40)
    )
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in _COLORS)
    choices = "".join(f'<option value="{k}">{escape(target.name)}</option>' for k, target in enumerate(targets))
    return (
        '<figure class="map"><div class="controls"><label>Map of <select id="guide-choice">'
        f"{choices}</select></label></div>"
        f'<svg id="guide-map" viewBox="-52 -4 {width + 72} {height + 24}" role="img" '
        f'aria-label="Foreshortening and overlap over the angulations: {escape(targets[0].name)}">'
        f'<g id="guide-cells">{cells}</g>{marks}{ticks}</svg>'
        f'<div class="ramp"><span>0</span><i style="background:linear-gradient(90deg,{stops})"></i>'
        f"<span>{_WORST_PERCENT:.0f} %</span></div>"
        '<figcaption><span id="guide-said">Foreshortened plus covered share of the length.</span> '
        "<span>\N{WHITE CIRCLE} offered, \N{WHITE SQUARE} given views.</span></figcaption></figure>"
    )


def _tick(value: float, below: str, above: str) -> str:
    return f"0{_DEGREE}" if value == 0 else f"{below if value < 0 else above} {abs(value):.0f}{_DEGREE}"


def _x(primary_deg: float) -> float:
    return _CELL * ((primary_deg + views.REACH_PRIMARY_DEG) / 5 + 0.5)


def _y(secondary_deg: float) -> float:
    return _CELL * ((views.REACH_SECONDARY_DEG - secondary_deg) / 5 + 0.5)


def _mark(number: int, camera: Camera) -> str:
    """A square with its number where a given view lies; nothing beyond the map."""
    if abs(camera.primary_deg) > views.REACH_PRIMARY_DEG or abs(camera.secondary_deg) > views.REACH_SECONDARY_DEG:
        return ""
    x, y = _x(camera.primary_deg), _y(camera.secondary_deg)
    return (
        f'<g class="given"><rect x="{x - 7:.1f}" y="{y - 7:.1f}" width="14" height="14"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{number}</text></g>'
    )


def _color(percent: float) -> str:
    at = min(float(percent) / _WORST_PERCENT, 1.0) * (len(_COLORS) - 1)
    k = min(int(at), len(_COLORS) - 2)
    mixed = [round(a + (b - a) * (at - k)) for a, b in zip(_COLORS[k], _COLORS[k + 1], strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)
