# SPDX-License-Identifier: Apache-2.0
"""Pictures made with numpy and Pillow: silhouettes of a tree, overlays, three sides of a surface, thumbnails."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from licag3d.geometry import Camera
from licag3d.structures import VesselTree
from licag3d.vessels.distance import Cones, signed_distance, tree_cones
from licag3d.vessels.surface import Surface

CONTOUR_RGB = (64, 224, 255)
CENTERLINE_RGB = (255, 176, 32)
_MIN_DEPTH_MM = 20.0  # nearer to the source than any patient
_LEGEND_PX = 34


@dataclass(frozen=True)
class Outline:
    """A tree as one view sees it, in pixels (col, row): closed or open polylines ``(n, 2)`` each."""

    contours: tuple[np.ndarray, ...]
    centerlines: tuple[np.ndarray, ...]


def tree_outline(tree: VesselTree, camera: Camera) -> Outline:
    """Contour of the projected lumen (the union of all branches) and the projected centrelines.

    A ball of radius r at depth z is drawn as a disc of radius ``r SID / z``; its true shadow is wider by less than
    ``(r / z)^2 / 2``, which is below 1e-4 here.
    """
    lines = []
    for branch in tree.branches:
        pixels, depth_mm = camera.project(branch.points_lps_mm)
        if len(pixels) > 1 and depth_mm.min() > _MIN_DEPTH_MM:
            lines.append(pixels)
    return Outline(_contours(tree, camera), tuple(lines))


def _contours(tree: VesselTree, camera: Camera) -> tuple[np.ndarray, ...]:
    from skimage.measure import find_contours

    cones = tree_cones(tree)
    if len(cones) == 0:
        return ()
    spacing = np.array([camera.spacing_col_mm, camera.spacing_row_mm])
    step = float(spacing.min())  # a square grid on the detector, in mm, even where pixels are oblong
    size_mm = spacing * [camera.cols, camera.rows]
    start, end, radius_0, radius_1 = [], [], [], []
    (a, depth_a), (b, depth_b) = camera.project(cones.start), camera.project(cones.end)
    a, b = a * spacing, b * spacing
    # What lies a whole image beside the detector cannot touch it, and would only cost time.
    near = ((depth_a > _MIN_DEPTH_MM) & (depth_b > _MIN_DEPTH_MM)
            & np.all((np.minimum(a, b) < 2 * size_mm) & (np.maximum(a, b) > -size_mm), axis=1)
            & np.all(np.abs(a - b) < size_mm.max(), axis=1))
    start, end = a[near], b[near]
    radius_0 = cones.start_radius[near] * camera.sid_mm / depth_a[near]
    radius_1 = cones.end_radius[near] * camera.sid_mm / depth_b[near]
    if len(start) == 0:
        return ()
    flat = Cones(start, end, radius_0, radius_1, cones.group[near])
    # One step of margin all around: contours close outside the image instead of along its edge.
    shape = tuple(int(np.ceil(s / step)) + 2 for s in size_mm[::-1])
    field = signed_distance(flat, (-step, -step), step, shape, band=2 * step)
    return tuple((line[:, ::-1] * step - step) / spacing for line in find_contours(field, 0.0) if len(line) > 3)


def grey_rgb(image: np.ndarray) -> np.ndarray:
    """``(rows, cols)`` in 0..1 to ``(rows, cols, 3)`` uint8."""
    grey = (np.clip(np.nan_to_num(np.asarray(image, np.float32)), 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def overlay_picture(image: np.ndarray, outline: Outline, caption: str):
    """The input with contour and centreline over it, twice as large (up to 2048 px), and a legend below.

    Returns:
        A Pillow image.
    """
    from PIL import Image, ImageDraw

    rows, cols = image.shape
    scale = 2 if max(rows, cols) <= 1024 else 1
    base = Image.fromarray(grey_rgb(image)).resize((cols * scale, rows * scale), Image.Resampling.BICUBIC)
    base = _with_lines(base, outline.contours, scale, CONTOUR_RGB, 1.6)
    base = _with_lines(base, outline.centerlines, scale, CENTERLINE_RGB, 1.2)
    canvas = Image.new("RGB", (base.width, base.height + _LEGEND_PX), (16, 20, 26))
    canvas.paste(base)
    draw = ImageDraw.Draw(canvas)
    y = base.height + _LEGEND_PX // 2
    x = 12
    for color, text in ((CONTOUR_RGB, "reprojected contour"), (CENTERLINE_RGB, "reprojected centreline")):
        draw.line([(x, y), (x + 22, y)], fill=color, width=3)
        x = _label(draw, x + 30, y, text, (235, 238, 242)) + 22
    _label(draw, x, y, caption, (160, 168, 178))
    return canvas


def _with_lines(base, lines, scale: int, color, width: float):
    """Anti-aliased polylines: drawn on a mask three times as large, which is then shrunk."""
    from PIL import Image, ImageDraw

    factor = 3 if max(base.size) <= 2048 else 1
    mask = Image.new("L", (base.width * factor, base.height * factor))
    draw = ImageDraw.Draw(mask)
    for line in lines:
        # Pixel centres are at whole numbers in the image and at halves on the canvas.
        points = (np.clip(line, -1e4, 2e4) + 0.5) * scale * factor
        draw.line([tuple(p) for p in points.tolist()], fill=255, width=max(1, round(width * factor)), joint="curve")
    mask = mask.resize(base.size, Image.Resampling.BOX)
    return Image.composite(Image.new("RGB", base.size, color), base, mask)


def _label(draw, x: float, y: float, text: str, color) -> float:
    from PIL import ImageFont

    font = ImageFont.load_default(15)
    # The built-in font knows Latin letters only; anything else would be drawn as boxes.
    text = "".join(c if " " <= c <= "~" or "\xa1" <= c <= "\xff" else "?" for c in text)
    draw.text((x, y), text, fill=color, font=font, anchor="lm")
    return x + draw.textlength(text, font=font)


def evidence_rgba(probability: np.ndarray) -> np.ndarray:
    """Vessel probability ``(rows, cols)`` as a see-through colour layer ``(rows, cols, 4)`` uint8."""
    p = np.clip(np.nan_to_num(np.asarray(probability, np.float32)), 0, 1)
    p = np.round(p * 15) / 15  # few levels compress well and look the same
    color = np.stack([np.full_like(p, 255), 210 * p**1.5, 40 * (1 - p), 235 * p**0.7], -1)
    return color.astype(np.uint8)


def three_sides(surface: Surface, *, size_px: int = 340) -> list[tuple[str, np.ndarray]]:
    """Shaded pictures from the front, the left side and the feet (like axial slices), for where 3D cannot be shown.

    Returns:
        ``(name, (size, size, 3) uint8)`` per side.
    """
    sides = (("from the front", (1, 0, 0), (0, 0, 1)), ("from the left side", (0, 1, 0), (0, 0, 1)),
             ("from the feet", (1, 0, 0), (0, -1, 0)))
    corners = surface.vertices_lps_mm[surface.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    middle = (surface.vertices_lps_mm.min(0) + surface.vertices_lps_mm.max(0)) / 2
    extent = float(np.ptp(surface.vertices_lps_mm, axis=0).max()) * 1.08
    return [(name, _splat(corners - middle, normal, np.array(right, float), np.array(up, float), extent, size_px))
            for name, right, up in sides]


def _splat(corners, normal, right, up, extent: float, size: int) -> np.ndarray:
    """Z-buffer by painting: points on every triangle, far ones first, so that the nearest stays."""
    toward = np.cross(right, up)
    # A closed surface hides what looks away.
    facing = normal @ toward > 0
    corners, normal = corners[facing], normal[facing]
    fine = size * 2
    weights = np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4], [3, 3, 0], [0, 3, 3], [3, 0, 3]], float)
    weights /= weights.sum(1, keepdims=True)
    points = np.einsum("kc,fcd->fkd", weights, corners).reshape(-1, 3)
    shade = np.repeat(0.25 + 0.75 * np.clip(normal @ toward, 0, 1), len(weights))
    order = np.argsort(points @ toward, kind="stable")
    col = np.rint(fine / 2 + points[order] @ right * fine / extent).astype(int)
    row = np.rint(fine / 2 - points[order] @ up * fine / extent).astype(int)
    light = np.zeros((fine, fine), np.float32)
    for dr, dc in ((0, 0), (0, 1), (1, 0), (1, 1)):
        light[np.clip(row + dr, 0, fine - 1), np.clip(col + dc, 0, fine - 1)] = shade[order]
    light = light.reshape(size, 2, size, 2).mean((1, 3))
    background, front = np.array([16.0, 20, 26]), np.array([235.0, 110, 90])
    covered = np.clip(light * 4, 0, 1)[..., None]
    return (background * (1 - covered) + front * light[..., None] * covered).clip(0, 255).astype(np.uint8)


def thumbnail(picture: np.ndarray, *, largest_px: int = 400) -> np.ndarray:
    """A small uint8 RGB picture of any 2D or RGB array; a float array is stretched to its 0.5..99.5 percentiles."""
    from PIL import Image

    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        array = array.max(0)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        array = np.nan_to_num(array.astype(np.float32), posinf=0, neginf=0)
        low, high = (0.0, 1.0) if array.ndim == 3 else np.percentile(array, [0.5, 99.5]) if array.size else (0, 1)
        array = (np.clip((array - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(array).convert("RGB")
    image.thumbnail((largest_px, largest_px), Image.Resampling.LANCZOS)
    return np.asarray(image)


def data_url(picture: np.ndarray, *, jpeg: bool = False) -> str:
    """A picture ``(rows, cols[, 3 or 4])`` uint8 as a data URL, PNG, or JPEG where loss does not matter."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if jpeg:
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    return f"data:image/{'jpeg' if jpeg else 'png'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def png_bytes(image) -> bytes:
    """A Pillow image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
