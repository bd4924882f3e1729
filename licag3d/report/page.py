# SPDX-License-Identifier: Apache-2.0
"""report.html: one file that opens offline from a local folder, without a single request to anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from licag3d.geometry import Camera, view_angle_deg
from licag3d.report import pictures
from licag3d.report.lesions import lesions_html, marks_svg
from licag3d.report.result import FILES, VIEW_FILE, Confidence, Reconstruction, StageRecord, view_caption
from licag3d.report.scene import light_mesh, scene_dict
from licag3d.report.view_guide import Target, guide_html, guide_scene
from licag3d.vessels.surface import Surface, SurfacePart
from licag3d.vessels.tree import branch_length_mm

_HERE = Path(__file__).parent
_DASH, _TIMES, _ARROW, _DEGREE = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}", "\N{RIGHTWARDS ARROW}", "\N{DEGREE SIGN}"


def report_html(result: Reconstruction, surface: Surface, parts: tuple[SurfacePart, ...],
                outlines: Sequence[pictures.Outline], summary: Mapping[str, Any], files: Mapping[str, int],
                guide: Sequence[Target] = ()) -> str:
    """The page as text.

    Args:
        outlines: per view the reprojected tree in pixels.
        summary: the content of ``result.json``.
        files: size in bytes of the other files, by name.
        guide: views to consider.
    """
    three = (_HERE / "vendor" / "three.min.js").read_text("utf-8")
    viewer = (_HERE / "viewer.js").read_text("utf-8")
    light = light_mesh(surface)
    known = any(b.confidence is not None for b in result.tree.branches)
    measured = any(b.error_mm is not None for b in result.tree.branches)
    count = len(result.views)
    heading = f"Vessel tree from {count} {'angiogram' if count == 1 else 'angiograms'}"
    place = {
        "script_hashes": " ".join(_hash(text) for text in (three, viewer)),
        "title": escape(f"{heading} {_DASH} licag3d"), "heading": escape(heading),
        "subtitle": escape(" \N{MIDDLE DOT} ".join(view.file or f"view {k}" for k, view in enumerate(result.views, 1))),
        "facts": _facts(result, summary),
        "warnings": _warnings(summary["warnings"]),
        "view_buttons": "".join(f'<button type="button" data-view="{k}" aria-pressed="false">As in view {k + 1}'
                                "</button>" for k in range(count)),
        "confidence_button": '<button type="button" data-color="confidence" aria-pressed="false">Confidence</button>'
        if known else "",
        "error_button": '<button type="button" data-color="error" aria-pressed="false">Expected error</button>'
        if measured else "",
        "error_line": f'<p class="hint">{escape(result.error_note)}</p>' if measured and result.error_note else "",
        "error_head": '<th scope="col">Expected error (half, nine tenths of it below), mm</th>' if measured else "",
        "confidence": _confidence(result.confidence),
        "still": _still(light),
        "evidence_button": '<button type="button" data-layer="evidence" aria-pressed="false">Vessel evidence</button>'
        if any(e is not None for e in result.evidence) else "",
        "views": "".join(_view(result, k, outlines[k]) for k in range(count)),
        "confidence_head": '<th scope="col">Confidence</th>' if known else "",
        "branches": _branches(result, known, measured),
        "stenoses": lesions_html(result.tree, result.views, result.narrowings, result.judged_share),
        "guide": guide_html(guide, result.cameras),
        "cameras": "".join(_camera_row(result, k) for k in range(count)),
        "stages": _stages(result.stages),
        "assumptions": _assumptions(result),
        "files": _files(files, count),
        "footer": escape(_footer(summary)),
        "scene": _script_json({**scene_dict(result.tree, light, result.cameras), "guide": guide_scene(guide)}),
        "three": three, "viewer": viewer,
    }
    template = (_HERE / "template.html").read_text("utf-8")
    # One pass: what is put in is never looked at again, so a file name cannot name a place.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: place[match[1]], template)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _script_json(content: Any) -> str:
    """JSON inside a script element: no ``<`` may appear, whatever a name holds."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(value: float | None, digits: int = 1) -> str:
    return _DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _facts(result: Reconstruction, summary: Mapping[str, Any]) -> str:
    tree = summary["tree"]
    facts = [("Branches", str(tree["branches"])),
             ("Centreline length", f"{_number(tree['length_mm'], 0)} <small>mm</small>")]
    if tree["radius_mm"]:
        low, high = _number(tree["radius_mm"]["min"], 2), _number(tree["radius_mm"]["max"], 2)
        facts.append(("Radius", f"{low}{_DASH}{high} <small>mm</small>"))
    facts.append(("Pieces", str(tree["components"])))
    if len(result.cameras) > 1:
        angles = [view_angle_deg(a, b) for i, a in enumerate(result.cameras) for b in result.cameras[i + 1:]]
        facts.append(("Angle between views", f"{_number(max(angles), 1)}{_DEGREE}"))
    facts.append(("Time", f"{_number(summary['seconds'], 1)} <small>s on {escape(result.device)}</small>"))
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<p class="calm">No warnings.</p>'
    items = "".join(f"<li>{escape(w)}</li>" for w in warnings)
    word = "Warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    return ('<section class="warnings" role="alert" aria-labelledby="h-warn">'
            f'<h2 id="h-warn">{word}</h2><ul>{items}</ul></section>')


def _confidence(confidence: Confidence | None) -> str:
    if confidence is None:
        return ""
    loud = ' class="warnings" role="alert"' if confidence.level == "low" else ""
    return (f'<section{loud} aria-labelledby="h-sure"><h2 id="h-sure">Confidence: {escape(confidence.level)}</h2>'
            f"<p>{escape(confidence.statement)}</p></section>")


def _still(surface: Surface) -> str:
    if len(surface.faces) == 0:
        return "<p>Nothing was reconstructed.</p>"
    return "".join(f'<figure><img src="{pictures.data_url(picture)}" alt="Vessel tree {name}">'
                   f"<figcaption>{name.capitalize()}</figcaption></figure>"
                   for name, picture in pictures.three_sides(surface))


def _view(result: Reconstruction, k: int, outline: pictures.Outline) -> str:
    view, camera = result.views[k], result.cameras[k]
    rows, cols = view.image.shape
    caption = view_caption(k + 1, view, camera)
    evidence = result.evidence[k] if result.evidence else None
    layers = [f'<img id="input-{k + 1}" src="{pictures.data_url(pictures.grey_rgb(view.image)[..., 0], jpeg=True)}" '
              f'width="{cols}" height="{rows}" alt="{escape(caption)}">']
    if evidence is not None:
        layer = pictures.evidence_rgba(evidence.probability)
        layers.append(f'<img class="over evidence" src="{pictures.data_url(layer)}" alt="Vessel probability">')
    for name, lines, close in (("contour", outline.contours, True), ("center", outline.centerlines, False)):
        # Pixel centres lie at whole numbers in the data and at halves in the drawing.
        layers.append(f'<svg class="over {name}" viewBox="0 0 {cols} {rows}" preserveAspectRatio="none" '
                      'aria-hidden="true">'
                      f'<path d="{"".join(_path(line + 0.5, close) for line in lines)}"/></svg>')
    layers.append(marks_svg(result.narrowings, k, {"rows": rows, "cols": cols}))
    notes = "".join(f"<br>{escape(note)}" for note in view.notes)
    metrics = ""
    if result.metrics and result.metrics[k]:
        metrics = "<br>" + " \N{MIDDLE DOT} ".join(f"{escape(str(name))} {_metric(value)}"
                                                   for name, value in result.metrics[k].items())
    return (f'<figure><div class="layers">{"".join(layers)}</div>'
            f"<figcaption><strong>{escape(caption)}</strong>{metrics}{notes}</figcaption></figure>")


def _metric(value: float) -> str:
    return _DASH if not math.isfinite(value) else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _path(line: np.ndarray, close: bool) -> str:
    points = np.round(np.clip(line, -1e5, 1e5), 1).tolist()
    closed = close and len(line) > 2 and np.abs(line[0] - line[-1]).max() < 1e-6
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) + ("Z" if closed else "")


def _branches(result: Reconstruction, known: bool, measured: bool) -> str:
    rows = []
    for position, branch in enumerate(result.tree.branches):
        parent = _DASH if branch.parent is None else str(int(branch.parent))
        confidence = ""
        if known:
            mean = None if branch.confidence is None else float(np.mean(branch.confidence))
            confidence = f"<td>{_number(mean, 2)}</td>"
        rows.append(
            f'<tr><td><button type="button" data-branch="{position}" aria-pressed="false" disabled '
            f'title="Highlight in the 3D tree">{int(branch.id)}</button></td>'
            f'<td class="left wrap">{escape(branch.name) or _DASH}</td><td>{parent}</td>'
            f"<td>{_number(branch_length_mm(branch), 1)}</td><td>{_number(float(np.mean(branch.radius_mm)), 2)}</td>"
            f"<td>{_number(float(np.min(branch.radius_mm)), 2)}</td>{confidence}"
            f"{_error_cell(branch.error_mm) if measured else ''}</tr>")
    return "".join(rows) or '<tr><td colspan="8">No branch was found.</td></tr>'


def _error_cell(error_mm: np.ndarray | None) -> str:
    """Median and 90th percentile of the expected error along a branch."""
    if error_mm is None:
        return f"<td>{_DASH}</td>"
    half, most = np.quantile(error_mm, [0.5, 0.9])
    return f"<td>{_number(float(half), 1)}, {_number(float(most), 1)}</td>"


def _camera_row(result: Reconstruction, k: int) -> str:
    now, was, view = result.cameras[k], result.cameras_before[k], result.views[k]

    def cell(text) -> str:
        before = f'<span class="was">given {text(was)}</span>' if text(was) != text(now) else ""
        return f"<td>{text(now)}{before}</td>"

    def spacing(c: Camera) -> str:
        low, high = _number(c.spacing_row_mm, 4), _number(c.spacing_col_mm, 4)
        return low if low == high else f"{low} {_TIMES} {high}"

    frame = "" if view.frame is None else f" (frame {view.frame})"
    return (f'<tr><td>{k + 1}</td><td class="left wrap">{escape(view.file)}{frame}</td>'
            + cell(lambda c: _number(c.primary_deg, 2)) + cell(lambda c: _number(c.secondary_deg, 2))
            + cell(lambda c: _number(c.sid_mm, 1)) + cell(lambda c: _number(c.sod_mm, 1)) + cell(spacing)
            + cell(lambda c: f"{c.cols} {_TIMES} {c.rows}")
            + cell(lambda c: ", ".join(_number(x + 0.0, 2) for x in c.offset_lps_mm)) + "</tr>")


def _stages(stages: Sequence[StageRecord]) -> str:
    if not stages:
        return ""
    rows = []
    for stage in stages:
        losses = "".join(f'<div class="loss"><span>{escape(str(name))}</span><span>{_span(values)}</span>'
                         f"{_spark(values)}</div>" for name, values in stage.losses.items() if len(values))
        shots = "".join(f'<figure><img src="{pictures.data_url(pictures.thumbnail(picture), jpeg=True)}" alt="">'
                        f"<figcaption>{escape(str(name))}</figcaption></figure>"
                        for name, picture in stage.pictures.items())
        note = f'<span class="was">{escape(stage.note)}</span>' if stage.note else ""
        rows.append(f'<tr><td class="wrap">{escape(stage.name)}{note}</td><td>{_number(stage.seconds, 1)}</td>'
                    f'<td>{losses or _DASH}</td><td class="left"><div class="shots">{shots}</div></td></tr>')
    return ('<section aria-labelledby="h-stages"><h2 id="h-stages">Stages</h2>'
            '<div class="scroll"><table class="stages"><thead><tr>'
            '<th scope="col">Stage</th><th scope="col">Seconds</th>'
            '<th scope="col" class="left">Loss, first and last</th>'
            '<th scope="col" class="left">Pictures</th></tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div></section>')


def _span(values: Sequence[float]) -> str:
    first, last = _metric(values[0]), _metric(values[-1])
    return last if len(values) == 1 else f"{first} {_ARROW} {last}"


def _spark(values: Sequence[float]) -> str:
    """A loss curve the size of a word; logarithmic where all values are positive."""
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    if len(array) < 3:
        return ""
    array = array[np.linspace(0, len(array) - 1, min(len(array), 80)).round().astype(int)]
    array = np.log(array) if array.min() > 0 else array
    y = 20 - 18 * (array - array.min()) / max(float(np.ptp(array)), 1e-12)
    x = np.linspace(1, 89, len(array))
    return ('<svg class="spark" viewBox="0 0 90 22" preserveAspectRatio="none" aria-hidden="true">'
            f'<path d="{_path(np.stack([x, y], -1), False)}"/></svg>')


def _assumptions(result: Reconstruction) -> str:
    items = [f"<strong>Absolute scale:</strong> {escape(result.scale_from)}"] if result.scale_from else []
    items += [escape(text) for text in result.assumptions]
    if not items:
        return "<p>Nothing beyond what the files state.</p>"
    return '<ul class="plain">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _files(sizes: Mapping[str, int], views: int) -> str:
    wanted = dict(FILES)
    for k in range(1, views + 1):
        wanted[f"view_{k}.png"] = VIEW_FILE
    return "".join(f"<tr><td><code>{name}</code></td><td>{_size(sizes[name]) if name in sizes else ''}</td>"
                   f'<td class="left wrap">{text}</td></tr>' for name, text in wanted.items())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count / 1e3, 0.1):.1f} kB"


def _footer(summary: Mapping[str, Any]) -> str:
    memory = ", ".join(f"{name.removesuffix('_mb')} {value:.0f} MB" for name, value in summary["peak_memory"].items())
    return (f"licag3d {summary['version']}, seed {summary['seed']}, device {summary['device']}, peak memory {memory}. "
            "Coordinates: DICOM patient LPS, millimetres. 3D drawing: three.js (MIT licence).")
