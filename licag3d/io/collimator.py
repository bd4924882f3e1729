# SPDX-License-Identifier: Apache-2.0
"""Where an angiogram shows the patient: without collimator border, shutters, bars and burnt-in marks."""

from __future__ import annotations

import numpy as np

# Sizes are fractions of the shorter image side, so that 512 and 1024 pixel frames are treated alike.
_SEARCH = 0.30
_PENUMBRA = 0.035
_BLADE = 0.07


def valid_area(image: np.ndarray, shutter: np.ndarray | None = None) -> np.ndarray:
    """Area of the X-ray field in an angiogram.

    A collimated field is convex (rectangle, octagon, circle), so the border is what lies outside the convex hull of the
    pixels that are not border-like. A dark vessel or a dark diaphragm that touches the border makes a notch, and the
    hull closes it.

    Args:
        image: ``(rows, cols)`` float32 in 0..1, vessels dark.
        shutter: ``(rows, cols)`` bool, True where the file says that the field is open, or None.

    Returns:
        ``(rows, cols)`` bool, True inside the field. All True when no border is seen.
    """
    from scipy import ndimage

    image = np.asarray(image, np.float32)
    rows, cols = image.shape
    side = min(rows, cols)
    if side >= 1024:  # the border has no detail that needs more than 512 pixels
        factor = side // 512
        padded = np.pad(image, ((0, -rows % factor), (0, -cols % factor)), mode="edge")
        small = padded.reshape(padded.shape[0] // factor, factor, -1, factor).mean((1, 3), dtype=np.float32)
        valid = valid_area(small).repeat(factor, 0).repeat(factor, 1)[:rows, :cols]
        return valid & shutter if shutter is not None and (valid & shutter).mean() > 0.1 else valid
    smooth = ndimage.gaussian_filter(image, max(1.0, side / 340))
    inside = ~_flat_bars(image)
    if inside.mean() < 0.1:
        inside[:] = True
    level = float(np.median(smooth[inside]))
    dark = smooth < 0.38 * level
    candidate = inside & ~dark
    # Specks of noise in the border would stretch the hull.
    width = max(2, side // 128)
    padded = np.pad(candidate, 2 * width, mode="edge")  # the edge of the image itself is no border
    candidate = ndimage.binary_opening(padded, iterations=width)[2 * width:-2 * width, 2 * width:-2 * width]
    labels, count = ndimage.label(candidate)
    if count == 0:
        return np.ones((rows, cols), bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = labels == int(sizes.argmax())
    # Parts cut off by a wide dark structure belong to the field too, unless they are small.
    for index in np.flatnonzero(sizes > 0.02 * sizes.max()):
        keep |= labels == index
    hull = _hull(keep)
    if hull.mean() < 0.2:
        hull = np.ones((rows, cols), bool)
    if shutter is not None and (hull & shutter).mean() > 0.1:
        hull &= shutter
    hull &= _half_planes(smooth, hull)
    return _without_penumbra(smooth, hull)


def _hull(mask: np.ndarray) -> np.ndarray:
    """Convex hull of the True pixels, filled."""
    from scipy.spatial import ConvexHull, QhullError
    from skimage.draw import polygon

    lines = np.flatnonzero(mask.any(1))
    first, last = mask[lines].argmax(1), mask.shape[1] - 1 - mask[lines, ::-1].argmax(1)
    points = np.stack((np.tile(lines, 2), np.concatenate((first, last))), 1)
    try:
        corners = points[ConvexHull(points).vertices]
    except QhullError:  # a single line of pixels has no area
        return mask
    hull = mask.copy()
    hull[polygon(*corners.T, mask.shape)] = True
    return hull


def _flat_bars(image: np.ndarray) -> np.ndarray:
    """Padding of one constant grey value (bars, frames, the outside of a circle), dark or bright, touching the image
    edge."""
    from scipy import ndimage

    rows, cols = image.shape
    bars = np.zeros(image.shape, bool)
    edges = {"top": image[0], "bottom": image[-1], "left": image[:, 0], "right": image[:, -1]}
    corners = np.array([image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]])
    tolerance = 2.5 / 255
    spread = ndimage.maximum_filter(image, 3) - ndimage.minimum_filter(image, 3)
    flat = spread <= 2 * tolerance
    for edge in edges.values():
        value = float(np.median(edge))
        # A whole edge of one value is padding; a patient never fills an edge so evenly.
        if np.mean(np.abs(edge - value) <= tolerance) >= 0.95:
            bars |= _connected_to_edge(flat & (np.abs(image - value) <= tolerance))
    if np.ptp(corners) <= tolerance and all(flat[r, c] for r in (0, -1) for c in (0, -1)):
        value = float(np.median(corners))
        region = _connected_to_edge(flat & (np.abs(image - value) <= tolerance))
        if region.mean() > 0.01:
            bars |= region
    return ndimage.binary_dilation(bars, iterations=1) if bars.any() else bars


def _connected_to_edge(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    touching = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return np.isin(labels, touching[touching > 0])


def _half_planes(smooth: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """Blade shadows along the four sides: a dark strip over the whole side that ends in a straight step."""
    keep = np.ones(smooth.shape, bool)
    for turns in range(4):
        image, inside = np.rot90(smooth, turns), np.rot90(hull, turns)
        depth = int(_SEARCH * image.shape[0])
        lines = np.flatnonzero(inside.any(1))
        if not lines.size or lines[0] >= depth:
            continue
        first = lines[0]
        # A circle or a corner meets the side in a point: there is no blade along it.
        if inside[min(first + 3, len(inside) - 1)].sum() < 0.5 * inside.sum(1).max():
            continue
        # The middle of the side alone: corners of an octagon are dark for another reason.
        cols = np.flatnonzero(inside[first:first + depth].sum(0) > 0.7 * depth)
        if cols.size < 0.3 * image.shape[1]:
            continue
        profile = np.median(image[first:first + depth, cols], 1)
        bright = np.percentile(image[first:first + depth, cols], 85, axis=1)
        plateau = float(np.median(profile[depth // 3:]))
        ceiling = float(np.median(bright[depth // 3:]))
        cut = 0
        # Dark along the whole side: the median and the brightest parts both start low and both rise to the level
        # inside.
        if profile[0] < 0.6 * plateau and bright[0] < 0.6 * ceiling:
            reached = np.flatnonzero((profile > 0.85 * plateau) & (bright > 0.8 * ceiling))
            # A blade ends within a few millimetres; a dark spine or diaphragm along a side fades over centimetres.
            if reached.size and reached[0] < _BLADE * min(image.shape):
                cut = int(reached[0])
        if cut:
            strip = np.ones(image.shape, bool)
            strip[:first + cut] = False
            keep &= np.rot90(strip, -turns)
    return keep


def _without_penumbra(smooth: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """Shrink the field by the width of its blurred edge (0 when the field fills the image)."""
    from scipy import ndimage

    if hull.all():
        return hull
    side = min(smooth.shape)
    most = max(3, int(_PENUMBRA * side))
    # Distance to the border only: the edge of the image itself has no penumbra.
    distance = ndimage.distance_transform_edt(hull)
    reference = (distance > 1.5 * most) & (distance <= 3 * most)
    if not reference.any():
        return hull
    level = float(np.median(smooth[reference]))
    rings = np.ceil(np.clip(distance, 0, most + 3)).astype(np.int32)
    profile = np.array([np.median(smooth[rings == width]) if (rings == width).any() else level
                        for width in range(1, most + 3)])
    # Behind a dark border the grey value climbs, behind a bright one it falls; detectors overshoot, so past the step
    # the level inside may be exceeded, and what counts is that it is reached and that the slope is gone.
    climb = 1.0 if float(np.median(smooth[~hull])) < level else -1.0
    slope = climb * np.diff(profile, append=profile[-1:])
    settled = (climb * (profile - level) > -0.12 * level) & (slope < 0.03 * level)
    # The first width from which three rings in a row have settled. None: a slow shading, not an edge.
    widths = np.flatnonzero(settled[:-2] & settled[1:-1] & settled[2:])
    margin = 2 + (int(widths[0]) if widths.size else 0)
    return distance > margin


def burnt_in_marks(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Text, arrows and frames drawn into the picture: thin, sharp, of the brightest value only.

    Returns:
        ``(rows, cols)`` bool, True on the marks and two pixels around them. X-ray detail is blurred by focal spot and
        detector over more than one pixel; drawn marks rise to full white from one pixel to the next.
    """
    from scipy import ndimage

    image = np.asarray(image, np.float32)
    white = image >= float(image.max()) - 4 / 255
    if not 4 <= white.sum() <= 0.02 * white.size:
        return np.zeros(image.shape, bool)
    # Strokes are thin: an opening removes them. Lung saturates in broad areas, which it leaves as white as they are.
    stroke = image - ndimage.grey_opening(image, (7, 7)) > 0.25
    labels, count = ndimage.label(stroke, np.ones((3, 3)))
    index = np.arange(1, count + 1)
    # Smoothed letters are grey at their edges, but white for a good part; noise is white in single pixels.
    bright, area = (ndimage.sum_labels(part, labels, index) for part in (stroke & white, stroke))
    drawn = index[(bright >= 4) & (bright >= 0.25 * area)]
    marks = np.isin(labels, drawn)
    return ndimage.binary_dilation(marks, iterations=2) if marks.any() else marks
