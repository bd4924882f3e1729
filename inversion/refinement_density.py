# SPDX-License-Identifier: Apache-2.0
"""Radius of thin lumens from the frame itself: how much contrast lies in the whole profile (videodensitometry).

The integral of the contrast across a vessel is the area of its lumen times the attenuation, whatever the blur, so it
still tells the calibre where no width can be seen (Reiber et al., Circulation 71 (1985) 280). Here it is the amplitude
of the vessel's own smeared chord over a straight background, least squares on both sides at once, in the attenuation
image; neighbours along the vessel share their normal equations.

Grey values have an unknown curve, scatter and sharpening. So the amplitude per path is compared only with that of the
same vessel nearby where it is not narrow, and how it changes with the calibre (wide vessels saturate, sharpening lifts
thin ones) is a power law fitted to all vessels of the view. The standard deviation comes from the same measurement
taken beside the vessel, where nothing is: texture that looks like a vessel counts as noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from licag3d.inversion.refinement_profiles import LEAST_SINE, Shadows, ViewPoints, own_path, smeared_chord
from licag3d.structures import VesselEvidence, View

#: Sampling step across, px; how far beyond the rim the background is fitted, px.
STEP_PX, BESIDE_PX = 1.0, 6.0
#: Middles are looked for this far from the line, px.
SEARCH_PX = 4.0
#: Standard deviation of the slope of the middle against the line, and of its distance from it, px.
SLOPE, STRAY_PX = 0.15, 2.0
#: Profiles are averaged along the vessel with this standard deviation, mm.
ALONG_MM = 0.4
#: The attenuation of a vessel is that of its wide stretches within about this length, mm.
REFERENCE_MM = 12.0
#: Path through other vessels from which a sample is left out, mm.
OTHER_MM = 0.05
#: Rounds of reading, each with the chord of the radius that the one before read.
PASSES = 3
#: The half width in pixels from which attenuations are compared.
WIDE_PX = 2.2
#: Amplitude per path ~ radius^POWER: mean over frames and its scatter, of which each frame finds its own.
POWER, POWER_SIGMA = -0.18, 0.08
#: Scatter of the logarithm of the attenuation that reference and lumen do not share.
LEVEL_SIGMA = 0.12

#: The contrast in the frame counts in full below the first of these half widths, px, or shares of the vessel's usual
#: calibre, and not at all above the second.
THIN_PX, NARROW = (1.7, 2.4), (0.6, 0.8)
#: A narrowing whose lumen is wider than the second of these half widths (px) is left to the widths.
WIDTHS_PX = (3.0, 5.0)
#: Some other reading has to see a narrowing too, if less of it: the least of them over the usual calibre.
SUPPORT = (0.75, 0.9)


@dataclass(frozen=True)
class FrameImage:
    """``rise`` ``(rows, cols)`` grows with the line integral; ``inside`` the X-ray field; ``vessels`` bool found in the
    frame; ``blur_px`` standard deviation of the smear of ``rise``."""

    rise: np.ndarray
    inside: np.ndarray
    vessels: np.ndarray
    blur_px: float = 1.1


@dataclass(frozen=True)
class Density:
    """Per point ``(N,)``: log radius (mm), its standard deviation (infinite where nothing is read), the shift of the
    middle in px, and how many standard deviations the vessel stands out of the background."""

    log_radius: np.ndarray
    sigma: np.ndarray
    shift_px: np.ndarray
    strength: np.ndarray


def frame_image(view: View, evidence: VesselEvidence) -> FrameImage:
    """What the densities of a view are read from."""
    from licag3d.models.vessel_evidence import attenuation_of, inner_field

    inside = inner_field(view.valid)
    if not inside.any():
        return FrameImage(np.zeros(view.image.shape), inside, np.asarray(evidence.mask, bool))
    return FrameImage(np.asarray(attenuation_of(view, inside), np.float64), inside, np.asarray(evidence.mask, bool))


def read_density(
    image: FrameImage,
    seen: ViewPoints,
    arc_mm: Sequence[np.ndarray],
    radius_mm: np.ndarray,
    shadow: Shadows,
    spans: Sequence[slice],
) -> Density:
    """Radii of the tree's points from the contrast in the frame.

    Args:
        seen: the points in this view. arc_mm: arc lengths along every branch.
        radius_mm: ``(N,)`` as known so far: right where vessels are wide, an upper bound elsewhere.
        shadow: of the tree. spans: rows of each branch.
    """
    count = len(radius_mm)
    blind = Density(np.log(radius_mm), np.full(count, np.inf), np.zeros(count), np.zeros(count))
    if count == 0 or not image.inside.any():
        return blind
    usual = around(radius_mm, arc_mm, spans)
    profiles = _profiles(image, seen, usual, shadow, spans)
    average = _averager(arc_mm)
    found = _amplitudes(profiles, seen, radius_mm, image.blur_px, average, spans)
    level, power = _levels(found, seen, radius_mm, arc_mm, spans)
    if level is None:
        return blind
    # From above: a chord too wide still takes in the whole lumen, one too narrow would confirm itself.
    used = np.maximum(radius_mm, usual)
    for _ in range(PASSES):
        found = _amplitudes(profiles, seen, used, image.blur_px, average, spans)
        area = found.amplitude * used**2
        noise = np.where(np.isfinite(found.sigma), found.sigma, 0.0) * used**2
        # Positive, and never below half the noise: nothing seen is an upper bound, not a closed vessel.
        safe = 0.5 * (area + np.sqrt(area**2 + noise**2))
        log_radius = (np.log(np.maximum(safe, 1e-12)) - level) / (2.0 + power)
        used = np.clip(np.exp(log_radius), 0.12, 1.15 * used)
    sigma = np.where(np.isfinite(found.sigma), np.hypot(noise / np.maximum(safe, 1e-12), LEVEL_SIGMA), np.inf)
    sigma /= 2.0 + power
    usable = np.isfinite(sigma) & (seen.sine > LEAST_SINE) & (found.known > 0.35)
    strength = found.amplitude / np.maximum(found.sigma, 1e-12)
    return Density(log_radius, np.where(usable, sigma, np.inf), found.shift_px, np.where(usable, strength, 0.0))


def thin_readings(dense: Sequence[Density], seen: Sequence[ViewPoints], usual_mm: np.ndarray, least: np.ndarray):
    """Readings and deviations ``(N, views)`` of the densities where the lumen is thin, and how thin ``(N,)`` 0..1."""
    readings = np.stack([item.log_radius for item in dense], 1)
    sigmas = np.stack([item.sigma for item in dense], 1)
    weight = np.where(np.isfinite(sigmas), sigmas, np.inf) ** -2.0
    best = (weight * np.where(weight > 0, readings, 0.0)).sum(1) / np.maximum(weight.sum(1), 1e-12)
    best = np.where(weight.sum(1) > 0, best, np.log(usual_mm))
    # Only as far as the contrast is sure of it are the widths doubted.
    sure = np.clip((np.log(usual_mm) - best) * np.sqrt(weight.sum(1)) - 1.0, 0.0, 1.0)
    px_per_mm = np.stack([view.px_per_mm for view in seen], 1).mean(1)
    small = np.clip((THIN_PX[1] - np.exp(best) * px_per_mm) / (THIN_PX[1] - THIN_PX[0]), 0.0, 1.0)
    narrow = np.clip((NARROW[1] - np.exp(best) / usual_mm) / (NARROW[1] - NARROW[0]), 0.0, 1.0)
    narrow *= np.clip((WIDTHS_PX[1] - np.exp(best) * px_per_mm) / (WIDTHS_PX[1] - WIDTHS_PX[0]), 0.0, 1.0)
    support = np.clip((SUPPORT[1] - np.exp(least) / usual_mm) / (SUPPORT[1] - SUPPORT[0]), 0.0, 1.0)
    support = np.where(np.isfinite(least), support, 1.0)
    # A wide vessel is doubted only as far as the contrast is sure that it is narrow here, and not alone in it.
    wide = usual_mm * px_per_mm > THIN_PX[1]
    use = np.where(wide, np.maximum(small, narrow) * sure * support, small)
    return readings, sigmas / np.maximum(use[:, None], 1e-6), use


@dataclass(frozen=True)
class _Profiles:
    values: np.ndarray  # (N, T) attenuation image, local mean taken off
    trust: np.ndarray  # (N, T) 0..1
    middle: int


@dataclass(frozen=True)
class _Amplitudes:
    amplitude: np.ndarray  # (N,) rise per mm of path
    sigma: np.ndarray
    shift_px: np.ndarray
    known: np.ndarray  # share of the information that samples left out did not take


def _profiles(image: FrameImage, seen: ViewPoints, around_mm, shadow: Shadows, spans) -> _Profiles:
    """Samples across every point, and which of them show this vessel and its background alone."""
    from scipy import ndimage

    radius = around_mm * seen.px_per_mm
    half = int(np.ceil((radius.max() + 2 * BESIDE_PX + SEARCH_PX + 8.0) / STEP_PX))
    t = np.arange(-half, half + 1) * STEP_PX
    at = seen.pixels[:, None] + t[None, :, None] * seen.normal[:, None]
    place = [at[..., 1], at[..., 0]]
    values = ndimage.map_coordinates(image.rise, place, order=1, mode="nearest")
    inside = ndimage.map_coordinates(image.inside.astype(np.float32), place, order=1, mode="constant") > 0.99
    whole = ndimage.map_coordinates(shadow.whole, place, order=1, mode="constant")
    other = ndimage.maximum_filter1d(np.maximum(whole - own_path(shadow, spans, at), 0.0), 3, axis=1)
    # Vessels found in the frame that the tree does not have, away from this one.
    strange = image.vessels & (ndimage.maximum_filter(shadow.whole, 5) <= 0)
    strange = ndimage.map_coordinates(strange.astype(np.float32), place, order=1, mode="constant") > 0.3
    strange &= np.abs(t)[None] > radius[:, None] + 2.0
    trust = (inside & (other < OTHER_MM) & ~strange).astype(np.float64)
    values = values - (values * trust).sum(1, keepdims=True) / np.maximum(trust.sum(1, keepdims=True), 1.0)
    return _Profiles(values, trust, half)


def _averager(arc_mm: Sequence[np.ndarray]):
    """Sums along each branch, Gaussian in arc length: a function ``(N, K) -> (N, K)``."""
    from scipy.sparse import block_diag

    blocks = []
    for arc in arc_mm:
        weight = np.exp(-0.5 * ((arc[:, None] - arc[None]) / ALONG_MM) ** 2)
        weight[weight < 0.01] = 0.0
        blocks.append(weight / weight.sum(1, keepdims=True))
    matrix = block_diag(blocks, format="csr")
    return lambda values: matrix @ values


def _amplitudes(profiles: _Profiles, seen: ViewPoints, radius_mm, blur_px: float, average, spans) -> _Amplitudes:
    """Least squares of offset, slope and the smeared chord, at every middle within reach and beside the vessel."""
    radius = radius_mm * seen.px_per_mm
    size = int(np.ceil((radius.max() + BESIDE_PX) / STEP_PX))
    tau = np.arange(-size, size + 1) * STEP_PX
    path = 2 * radius_mm / np.maximum(seen.sine, LEAST_SINE)
    shape = smeared_chord(np.broadcast_to(tau, (len(radius), len(tau))), radius[:, None], np.sqrt(12) * blur_px)[0]
    shape = shape * path[:, None]
    window = np.clip(radius[:, None] + BESIDE_PX - np.abs(tau) + 0.5, 0.0, 1.0)
    search = int(SEARCH_PX / STEP_PX)
    near = np.arange(-search, search + 1)
    # The same beside the vessel: clear of its rim, both sides.
    widest = np.array([radius[span].max() if span.stop > span.start else 0.0 for span in spans])
    clear = np.concatenate([np.full(span.stop - span.start, w) for span, w in zip(spans, widest, strict=True)])
    steps = np.arange(0.0, 10.0, 2.0) / STEP_PX
    beside = np.ceil((clear + blur_px * 2 + 1.0) / STEP_PX).astype(int)[:, None] + steps.astype(int)
    beside = np.concatenate([-beside, beside], 1)
    offsets = np.concatenate([np.broadcast_to(near, (len(radius), len(near))), beside], 1)
    reachable = np.abs(offsets) + size <= profiles.middle
    sums = _sums(profiles, window, shape, tau, offsets, size)
    both = [average(values) for values in sums]
    amplitude, information, whole = _solved(both, window, tau, shape)
    amplitude = np.where(reachable, amplitude, 0.0)
    information = np.where(reachable, information, 0.0)
    known = information / np.maximum(whole[:, None], 1e-12)
    sham_ok = known[:, len(near) :] > 0.35
    sigma = _scatter(amplitude[:, len(near) :], sham_ok, spans)
    chosen = _middles(amplitude[:, : len(near)], sigma, known[:, : len(near)], near * STEP_PX, seen, spans)
    row = np.arange(len(radius))
    share = known[row, chosen]
    # With part of the profile left out the noise grows as the information falls.
    sigma = sigma / np.sqrt(np.clip(share, 0.05, 1.0))
    return _Amplitudes(amplitude[row, chosen], sigma, near[chosen] * STEP_PX, share)


def _sums(profiles: _Profiles, window, shape, tau, offsets: np.ndarray, size: int) -> list[np.ndarray]:
    """The nine sums of the normal equations, each ``(N, C)``."""
    kernels = np.stack(
        [window, window * tau, window * tau**2, window * shape, window * tau * shape, window * shape**2], 2
    )
    column = profiles.middle + offsets[:, :, None] + np.arange(-size, size + 1)
    column = np.clip(column, 0, profiles.values.shape[1] - 1)
    rows = np.arange(len(shape))[:, None, None]
    weight = profiles.trust[rows, column]
    first = weight @ kernels
    second = (weight * profiles.values[rows, column]) @ kernels[:, :, (0, 1, 3)]
    return list(np.moveaxis(first, 2, 0)) + list(np.moveaxis(second, 2, 0))


def _solved(sums, window, tau, shape):
    """Amplitude and its information ``(N, C)``, and the information ``(N,)`` of a whole profile."""
    one, t, tt, s, ts, ss, y, ty, sy = sums

    def schur(one, t, tt, s, ts, ss):
        det = one * tt - t**2
        det = np.where(det > 1e-9, det, np.inf)
        a, b = (tt * s - t * ts) / det, (one * ts - t * s) / det
        return ss - a * s - b * ts, a, b

    information, a, b = schur(one, t, tt, s, ts, ss)
    right = sy - a * y - b * ty
    amplitude = right / np.maximum(information, 1e-9)
    full = [(window * f).sum(1) for f in (1.0, tau, tau**2, shape, tau * shape, shape**2)]
    whole, _, _ = schur(*full)
    return amplitude, np.maximum(information, 0.0), whole


def _scatter(sham: np.ndarray, known: np.ndarray, spans) -> np.ndarray:
    """Standard deviation ``(N,)`` of amplitudes beside the vessel, over about 4 mm to both sides along it."""
    from scipy.ndimage import uniform_filter1d

    out = np.full(len(sham), np.inf)
    for span in spans:
        if span.stop - span.start < 1:
            continue
        values, good = sham[span], known[span]
        if not good.any():
            continue
        # Vessels that run beside this one are no noise: what stands far out counts as much as three deviations.
        limit = 3 * 1.4826 * np.median(np.abs(values[good])) + 1e-12
        square = np.where(good, np.minimum(np.abs(values), limit) ** 2, 0.0).sum(1)
        weight = good.sum(1).astype(float)
        length = min(17, span.stop - span.start)
        top, bottom = (uniform_filter1d(x, length, mode="nearest") for x in (square, weight))
        everywhere = float(square.sum() / weight.sum())
        out[span] = np.sqrt(np.where(bottom > 2, np.maximum(top, 0.0) / np.maximum(bottom, 1e-9), everywhere))
    return out


def _middles(amplitude, sigma, known, shift_px, seen: ViewPoints, spans) -> np.ndarray:
    """Indices ``(N,)`` of the middle of every point: the smooth line along which the vessel stands out most (dynamic
    programming)."""
    gain = 0.5 * np.where(known > 0.35, np.maximum(amplitude / np.maximum(sigma, 1e-9)[:, None], 0.0), 0.0) ** 2
    gain = np.minimum(np.nan_to_num(gain), 50.0) - 0.5 * (shift_px / STRAY_PX) ** 2
    out = np.full(len(amplitude), len(shift_px) // 2)
    gap = np.linalg.norm(np.diff(seen.pixels, axis=0, prepend=seen.pixels[:1]), axis=1)
    stiff = 2 * (SLOPE * np.maximum(gap, 0.5)) ** 2
    jump = (shift_px[:, None] - shift_px[None]) ** 2
    for span in spans:
        rows = range(span.start, span.stop)
        if len(rows) == 0:
            continue
        score, back = gain[span.start], []
        for k in rows[1:]:
            way = score[None] - jump / stiff[k]
            best = way.argmax(1)
            back.append(best)
            score = way[np.arange(len(best)), best] + gain[k]
        state = int(score.argmax())
        out[span.stop - 1] = state
        for k, best in zip(reversed(rows[:-1]), reversed(back), strict=True):
            state = int(best[state])
            out[k] = state
    return out


def _levels(found: _Amplitudes, seen: ViewPoints, radius_mm, arc_mm, spans):
    """Log of amplitude over radius^power along the vessels ``(N,)``, and the power; None where nothing is wide."""
    half_px = radius_mm * seen.px_per_mm
    narrow = radius_mm < 0.8 * around(radius_mm, arc_mm, spans)
    clean = (found.known > 0.35) & (found.amplitude > 3 * found.sigma) & (seen.sine > LEAST_SINE) & ~narrow
    wide = clean & (half_px > WIDE_PX)
    if wide.sum() < 8:
        return None, POWER
    log = np.log(np.maximum(found.amplitude, 1e-12))
    size = np.log(radius_mm)
    power = _power(size[wide], log[wide])
    rest = log - power * size
    general = float(np.median(rest[wide]))
    scatter = max(1.4826 * float(np.median(np.abs(rest[wide] - general))), 0.05)
    out = np.full(len(log), general)
    for span, arc in zip(spans, arc_mm, strict=True):
        use = wide[span]
        if not use.any():
            continue
        weight = np.exp(-0.5 * ((arc[:, None] - arc[use][None]) / REFERENCE_MM) ** 2)
        local = _weighted_median(rest[span][use], weight)
        # The vessel's own, as far as enough of it is wide nearby; else that of all.
        share = weight.sum(1) / (weight.sum(1) + 6.0)
        out[span] = share * local + (1 - share) * np.clip(general, local - 3 * scatter, local + 3 * scatter)
    return out, power


def _power(size: np.ndarray, log: np.ndarray) -> float:
    """Slope of log amplitude by log radius, Bayesian: Cauchy's weights, ten neighbours count as one."""
    slope, start = POWER, float(np.median(log - POWER * size))
    for _ in range(8):
        rest = log - start - slope * size
        spread = max(1.4826 * float(np.median(np.abs(rest))), 0.05)
        weight = 0.1 / (1 + (rest / (2 * spread)) ** 2) / spread**2
        mean = (weight * size).sum() / weight.sum()
        top = (weight * (size - mean) * log).sum() + POWER / POWER_SIGMA**2
        slope = float(top / ((weight * (size - mean) ** 2).sum() + 1 / POWER_SIGMA**2))
        start = float((weight * (log - slope * size)).sum() / weight.sum())
    return slope


def around(radius_mm: np.ndarray, arc_mm, spans) -> np.ndarray:
    """Radius ``(N,)`` of the vessel as its wider stretches within 10 mm show it."""
    out = radius_mm.copy()
    for span, arc in zip(spans, arc_mm, strict=True):
        near = np.abs(arc[:, None] - arc[None]) <= 10.0
        values = np.where(near, radius_mm[span][None], np.nan)
        if values.size:
            out[span] = np.nanquantile(values, 0.75, axis=1)
    return out


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Per row of ``weight`` ``(n, m)`` the weighted median of ``values`` ``(m,)``."""
    order = np.argsort(values)
    total = np.cumsum(weight[:, order], 1)
    index = (total < 0.5 * total[:, -1:]).sum(1)
    return values[order][np.minimum(index, len(values) - 1)]
