# SPDX-License-Identifier: Apache-2.0
"""The catheter as a ruler: its outer diameter is printed on it (1 French = 1/3 mm), so the width of its shadow says how
far from the source it lies, and so do the coronary arteries at whose ostium it ends (docs/uncertainty.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.structures import VesselEvidence, View

FRENCH_MM = 1.0 / 3.0
#: Sizes that are used in coronary arteries.
FRENCH_RANGE = (4.0, 9.0)
#: Probability from which a pixel is taken for a device.
DEVICE = 0.5
#: The path must come this near to the vessels, and be at least this long, mm at the isocentre.
NEAR_VESSEL_MM, SHORTEST_MM = 5.0, 8.0
#: The stretch that is measured, from the tip, mm at the isocentre: nearer than this vessel and contrast overlap it,
#: farther away its depth is not that of the ostium.
MEASURED_MM = (1.5, 30.0)
#: A shadow whose width is farther than this factor from that expected at the isocentre is something else.
WIDEST_FACTOR = 1.3
#: Width by the second moment over the true width, median of phantom validation cases: enhancement of the display and
#: the contrast in the lumen act against the blur.
MOMENT_FACTOR = 0.96
#: Relative standard deviation of a width, from the same cases: what fills the lumen, how thick the wall is and how the
#: display enhances are not known. It is common to the views of a case, so views do not average it out.
WIDTH_SIGMA = 0.07
#: Scatter of the width along the catheter (standard error, relative) above which it is not trusted.
SCATTER = 0.05
#: How far the measured stretch lies nearer or farther than the ostium, one standard deviation, mm.
DEPTH_SIGMA_MM = 9.0


@dataclass(frozen=True)
class Catheter:
    """``path_px`` ``(n, 2)`` (col, row) from the tip outwards; ``width_mm``: outer diameter of the shadow at the
    detector; ``scatter``: relative standard error of its mean along the path (what all places share,
    :data:`WIDTH_SIGMA`, comes on top)."""

    path_px: np.ndarray
    width_mm: float
    scatter: float

    @property
    def tip_px(self) -> np.ndarray:
        """End at the ostium, (col, row)."""
        return self.path_px[0]


def check_french(french: float) -> float:
    """The size, if there is such a catheter.

    Raises:
        InputError: out of range.
    """
    low, high = FRENCH_RANGE
    if not low <= french <= high:
        raise InputError(
            f"--catheter-french {french:g} is outside {low:g} to {high:g}: give the size printed on the catheter (1 "
            "French is 1/3 mm; coronary catheters have 5 to 7)"
        )
    return float(french)


def find_catheter(view: View, evidence: VesselEvidence, french: float, *, device="cpu") -> Catheter | None:
    """The catheter of a frame: what the segmentor takes for a device, ends at the vessels and has the right width.

    Args:
        view, evidence: of the frame. french: its size. device: torch device.

    Returns:
        None where none is found or its width cannot be measured.

    Raises:
        InputError: the size is out of range, or the segmentor has no weights.
    """
    from licag3d.models.segmentor import load_segmentor, predict

    check_french(french)
    model = load_segmentor("segmentor", str(device))
    found = predict(model, view.image, view.valid, view.camera.mm_per_pixel)
    return catheter_of(view, evidence.mask, found.device, french)


def catheter_of(view: View, vessels: np.ndarray, device: np.ndarray, french: float) -> Catheter | None:
    """As :func:`find_catheter`, from the vessel mask and the probability of a device, ``(rows, cols)`` each."""
    for path in device_paths(device, vessels, view.camera.mm_per_pixel):
        measured = measure_width(view, vessels, path, french)
        if measured is not None:
            return measured
    return None


def device_paths(device: np.ndarray, vessels: np.ndarray, mm_per_pixel: float) -> list[np.ndarray]:
    """Middle lines ``(n, 2)`` (col, row) of the devices that end at the vessels and come from above, from that end
    outwards; the one at the widest vessel first: a catheter ends in the trunk, electrodes and wires cross branches."""
    from scipy import ndimage
    from skimage.morphology import skeletonize

    if not vessels.any():
        return []
    away_mm = ndimage.distance_transform_edt(~vessels) * mm_per_pixel
    half_mm = ndimage.distance_transform_edt(vessels) * mm_per_pixel
    labels, _ = ndimage.label(device > DEVICE, np.ones((3, 3)))
    paths, widest = [], []
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        if k > 200:  # noise, not devices
            break
        line = _longest_path(skeletonize(labels[box] == k)) + [box[0].start, box[1].start]
        if len(line) * mm_per_pixel < SHORTEST_MM:
            continue
        line = line[:, ::-1].astype(float)
        ends = [away_mm[int(p[1]), int(p[0])] for p in (line[0], line[-1])]
        if min(ends) > NEAR_VESSEL_MM:
            continue
        line = line if ends[0] <= ends[1] else line[::-1]
        if line[-1, 1] >= line[0, 1]:
            continue
        col, row, reach = int(line[0, 0]), int(line[0, 1]), int(1.5 * NEAR_VESSEL_MM / mm_per_pixel)
        widest.append(half_mm[max(row - reach, 0) : row + reach + 1, max(col - reach, 0) : col + reach + 1].max())
        paths.append(line)
    return [paths[k] for k in np.argsort(-np.array(widest), kind="stable")]


def _longest_path(thin: np.ndarray) -> np.ndarray:
    """Pixels ``(n, 2)`` (row, col) of the longest way through a skeleton, in order."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    pixels = np.argwhere(thin)
    if len(pixels) < 2:
        return pixels
    number = np.full(np.add(thin.shape, 2), -1)
    number[pixels[:, 0] + 1, pixels[:, 1] + 1] = np.arange(len(pixels))
    rows, cols, cost = [], [], []
    for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
        other = number[pixels[:, 0] + 1 + step[0], pixels[:, 1] + 1 + step[1]]
        here = other >= 0
        rows.append(np.flatnonzero(here))
        cols.append(other[here])
        cost.append(np.full(here.sum(), float(np.hypot(*step))))
    graph = coo_matrix((np.concatenate(cost), (np.concatenate(rows), np.concatenate(cols))), shape=[len(pixels)] * 2)
    graph = graph.tocsr()
    first = dijkstra(graph, directed=False, indices=0)
    start = int(np.argmax(np.where(np.isfinite(first), first, -1)))
    length, before = dijkstra(graph, directed=False, indices=start, return_predecessors=True)
    at = int(np.argmax(np.where(np.isfinite(length), length, -1)))
    way = []
    while at >= 0:
        way.append(at)
        at = int(before[at])
    return pixels[way]


def measure_width(view: View, vessels: np.ndarray, path_px: np.ndarray, french: float) -> Catheter | None:
    """Outer width of a catheter along a rough middle line, sub-pixel: the second moment of the straightened, averaged
    profile (a solid cylinder of diameter D shows a standard deviation of D/4).

    Fits of wall, lumen, blur and enhancement were tried and spread more (docs/uncertainty.md).
    """
    from scipy import ndimage

    camera, mm = view.camera, view.camera.mm_per_pixel
    expected_px = french * FRENCH_MM / mm
    line = _smooth_line(path_px, 2.0 * expected_px)
    arc_mm = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]) * mm
    away = ndimage.distance_transform_edt(~vessels)
    rows, cols = (np.clip(line[:, k].astype(int), 0, away.shape[1 - k] - 1) for k in (1, 0))
    across = np.arange(-2.2 * expected_px, 2.2 * expected_px, 0.25)
    values, inside = _profiles(-view.image.astype(np.float64), line, across, view.valid)
    keep = inside & (away[rows, cols] > 0.9 * expected_px)
    keep &= (arc_mm >= MEASURED_MM[0]) & (arc_mm <= MEASURED_MM[1])
    if keep.sum() * mm < 0.6 * SHORTEST_MM:
        return None
    straight = _straightened(values[keep], across, expected_px)
    width_px = _moment_width(straight, across, expected_px)
    parts = [_moment_width(part, across, expected_px) for part in np.array_split(straight, 4)]
    if not np.isfinite([width_px, *parts]).all():
        return None
    scatter = float(np.std(parts, ddof=1) / np.sqrt(len(parts)) / width_px)
    if scatter > SCATTER or not 1 / WIDEST_FACTOR < width_px / expected_px < WIDEST_FACTOR:
        return None
    spacing = float(np.sqrt(camera.spacing_col_mm * camera.spacing_row_mm))
    return Catheter(line, width_px * spacing, scatter)


def _smooth_line(path: np.ndarray, sigma: float) -> np.ndarray:
    """Points one pixel apart along a smoothed path; both ends stay where they are."""
    from scipy.ndimage import gaussian_filter1d

    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    at = np.linspace(0.0, arc[-1], max(8, round(arc[-1]) + 1))
    even = np.stack([np.interp(at, arc, path[:, k]) for k in (0, 1)], axis=1)
    # Reflected about the ends: a line through them keeps its direction.
    reach = min(len(even) - 1, int(4 * sigma))
    longer = np.concatenate([2 * even[0] - even[reach:0:-1], even, 2 * even[-1] - even[-2 : -reach - 2 : -1]])
    return gaussian_filter1d(longer, sigma, axis=0)[reach : reach + len(even)]


def _profiles(shade, line, across, valid) -> tuple[np.ndarray, np.ndarray]:
    """Profiles ``(n, m)`` across a line, and which of them lie inside the field."""
    from scipy import ndimage

    tangent = np.gradient(line, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    points = line[:, None] + across[None, :, None] * normal[:, None]
    at = [points[..., 1], points[..., 0]]
    inside = ndimage.map_coordinates(valid.astype(float), at, order=1, cval=0.0)
    return ndimage.map_coordinates(shade, at, order=3, mode="nearest"), inside.min(axis=1) > 0.99


def _straightened(profiles: np.ndarray, across: np.ndarray, expected_px: float) -> np.ndarray:
    """Profiles on a flat background, each moved so that what is dark lies in the middle; the way along the catheter
    is the cheapest (Viterbi) of all that change their shift smoothly."""
    from scipy.ndimage import gaussian_filter1d

    outer = np.abs(across) > expected_px
    line = np.stack([np.ones_like(across), across], axis=1)
    smooth = gaussian_filter1d(profiles, 2.0, axis=0)
    ground = (line @ np.linalg.lstsq(line[outer], smooth[:, outer].T, rcond=None)[0]).T
    flat, smooth = profiles - ground, smooth - ground
    step = across[1] - across[0]
    template = gaussian_filter1d((np.abs(across) <= 0.5 * expected_px).astype(float), 1.0 / step)
    lags = np.arange(-14, 15)
    fit = np.stack([(smooth * np.roll(template, lag)).sum(1) for lag in lags], axis=1)
    fit = gaussian_filter1d(fit, 4.0, axis=0)
    cost = -fit / max(float(np.ptp(fit)), 1e-9)
    turn = 0.02 * (lags[:, None] - lags[None]) ** 2
    total, back = cost[0], []
    for row in cost[1:]:
        ways = total[None] + turn
        back.append(ways.argmin(1))
        total = ways.min(1) + row
    way = [int(total.argmin())]
    for before in reversed(back):
        way.append(int(before[way[-1]]))
    shift = gaussian_filter1d(lags[way[::-1]] * step, 3.0)
    return np.stack([np.interp(across, across - s, row) for s, row in zip(shift, flat, strict=True)])


def _moment_width(straight: np.ndarray, across: np.ndarray, expected_px: float) -> float:
    """Four standard deviations of the mean profile (its middle three fifths: what crosses is left out), px."""
    if not len(straight):
        return float("nan")
    order = np.sort(straight, axis=0)
    fifth = len(order) // 5
    mean = order[fifth : len(order) - fifth].mean(0)
    middle = np.abs(across) < 1.2 * expected_px
    mass = np.clip(mean[middle], 0.0, None)
    if mass.sum() <= 0:
        return float("nan")
    return float(4.0 * np.sqrt((mass * across[middle] ** 2).sum() / mass.sum()) / MOMENT_FACTOR)


@dataclass(frozen=True)
class Ruler:
    """What catheters say about the scale: the true size of the tree is ``scale`` times that of the points asked about,
    with the relative standard deviation ``sigma``; ``views`` that it was seen in, counted from 1."""

    scale: float
    sigma: float
    views: tuple[int, ...]


def catheter_scale(
    catheters: Sequence[Catheter | None], cameras: Sequence[Camera], points_lps_mm: np.ndarray, french: float
) -> Ruler | None:
    """Scale about the first source (the gauge of docs/geometry.md) under which the catheter has its true diameter.

    A shadow of width w of a diameter D lies at the depth D SID / w. The tree meets it at the tip: the reconstructed
    points that project next to the tip have a depth that grows with the gauge, in every view alike.

    Returns:
        None where no catheter was seen, or no point of the tree lies near its tip.
    """
    values, weights, seen = [], [], []
    for k, (catheter, camera) in enumerate(zip(catheters, cameras, strict=True), 1):
        if catheter is None or not len(points_lps_mm):
            continue
        pixels, depth_mm = camera.project(points_lps_mm)
        away_mm = np.linalg.norm(pixels - catheter.tip_px, axis=1) * camera.mm_per_pixel
        near = away_mm < away_mm.min() + 3.0
        if away_mm.min() > 2.5 * NEAR_VESSEL_MM:
            continue
        here_mm = float(np.median(depth_mm[near]))
        true_mm = french * FRENCH_MM * camera.sid_mm / catheter.width_mm
        values.append(np.log(true_mm / here_mm))
        weights.append(1.0 / (catheter.scatter**2 + (DEPTH_SIGMA_MM / here_mm) ** 2))
        seen.append(k)
    if not values:
        return None
    weights = np.array(weights)
    scale = float(np.exp((np.array(values) * weights).sum() / weights.sum()))
    return Ruler(scale, float(np.hypot(WIDTH_SIGMA, 1.0 / np.sqrt(weights.sum()))), tuple(seen))
