# SPDX-License-Identifier: Apache-2.0
"""The frame of a cine in which the coronary tree is filled best, and the frames before the contrast came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from licag3d.io.collimator import valid_area

_WORK_SIDE = 256
_MAX_SCORED = 200
#: Frames within this fraction of the best filling count as filled alike; the one with the least motion is taken.
_PLATEAU = 0.92


@dataclass(frozen=True)
class KeyFrame:
    """Result of :func:`find_key_frame`.

    Args:
        frame: the chosen frame, 0-based.
        scores: ``(frames,)`` contrast filling: vessel-like dark ridge energy per thousand pixels, no unit.
        motion: ``(frames,)`` mean grey value change to the neighbouring frames, 0..1.
        before: frames before the contrast arrived, possibly empty.
    """

    frame: int
    scores: np.ndarray
    motion: np.ndarray
    before: tuple[int, ...]


def find_key_frame(decode: Callable[[Sequence[int]], Iterator[np.ndarray]], frames: int) -> KeyFrame:
    """Score the contrast filling of every frame, one decoded frame in memory at a time.

    The score is the energy of dark ridges (second derivatives, two scales) above five times the noise of the same
    frame, in connected pieces, inside the X-ray field: noise does not count as vessels, and what is static (catheter,
    ribs) adds the same to every frame. Among the frames that are filled nearly as well as the best one the one with the
    least motion to its neighbours wins (diastole: least blur).

    Args:
        decode: yields the frames of a list of numbers, ``(rows, cols)`` float32, 0..1, vessels dark.
        frames: number of frames, at least 2.

    Returns:
        The choice with everything it was made from. Above 200 frames only evenly spaced ones are scored, and the scores
        between them are interpolated.
    """
    scored = np.unique(np.linspace(0, frames - 1, min(frames, _MAX_SCORED)).round().astype(int))
    probe = [_small(image) for image in decode([int(frames * f) for f in (0.3, 0.5, 0.7)])]
    valid = _inner(valid_area(np.mean(probe, axis=0)))
    scores, change, previous = [], [], None
    for image in decode([int(k) for k in scored]):
        small = _small(image)
        scores.append(filling_score(small, valid))
        blurred = _blur(small, 1.5)
        change.append(0.0 if previous is None else float(np.abs(blurred - previous)[valid].mean()))
        previous = blurred
    score = np.asarray(scores)
    step = np.asarray(change[1:])
    motion = np.maximum(np.append(step, step[-1:]), np.insert(step, 0, step[:1])) if step.size else np.zeros(len(score))
    best = int(score.argmax())
    # A plateau is one stretch of time around the best frame, not any frame that happens to score alike.
    first = last = best
    while first > 0 and score[first - 1] >= _PLATEAU * score[best]:
        first -= 1
    while last < len(score) - 1 and score[last + 1] >= _PLATEAU * score[best]:
        last += 1
    choice = first + int(motion[first:last + 1].argmin())
    every = np.arange(frames)
    return KeyFrame(int(scored[choice]), np.interp(every, scored, score), np.interp(every, scored, motion),
                    tuple(int(k) for k in scored[:_onset(score, choice)]))


def _onset(score: np.ndarray, choice: int) -> int:
    """How many frames at the start hold no contrast (0 when the cine starts filled)."""
    before = score[:choice + 1]
    low, high = float(before.min()), float(score[choice])
    if high <= 0 or low > 0.6 * high:
        return 0
    low = float(np.sort(before)[:max(2, len(before) // 5)].mean())
    filled = np.flatnonzero(before > low + 0.2 * (high - low))
    count = int(filled[0]) if filled.size else 0
    return count if count >= 2 else 0


def filling_score(image: np.ndarray, valid: np.ndarray) -> float:
    """Dark ridge energy per thousand valid pixels of a small frame ``(rows, cols)``, no unit."""
    from scipy import ndimage

    if not valid.any():
        return 0.0
    # Relative darkening: the same vessel counts alike over lung and over spine.
    level = _blur(np.where(valid, image, image[valid].mean()), 20.0)
    relative = image / (level + 0.05)
    total = np.zeros(image.shape, np.float32)
    for sigma in (1.5, 3.0):
        second = [ndimage.gaussian_filter(relative, sigma, order=order) for order in ((2, 0), (0, 2), (1, 1))]
        mean, half = (second[0] + second[1]) / 2, np.hypot((second[0] - second[1]) / 2, second[2])
        # Across a dark vessel the curvature is positive, along it there is none: blobs and plugs count less.
        ridge = sigma**2 * (mean + half - np.abs(mean - half))
        spread = sigma**2 * np.median(np.abs(mean[valid] + half[valid] - np.median(mean[valid] + half[valid]))) * 1.4826
        above = np.where(valid & (ridge > 5 * spread), ridge, 0)
        labels, count = ndimage.label(above > 0, np.ones((3, 3)))
        if count:
            sizes = np.bincount(labels.ravel())
            above[(sizes < 25)[labels]] = 0
        total = np.maximum(total, above)
    return float(np.minimum(total, 0.5).sum() / valid.sum() * 1000)


def _small(image: np.ndarray) -> np.ndarray:
    """Area average down to about 256 pixels on the shorter side."""
    factor = max(1, min(image.shape) // _WORK_SIDE)
    rows, cols = image.shape[0] // factor * factor, image.shape[1] // factor * factor
    return image[:rows, :cols].reshape(rows // factor, factor, cols // factor, factor).mean((1, 3), dtype=np.float32)


def _inner(valid: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    inner = ndimage.binary_erosion(valid, iterations=5, border_value=0)
    return inner if inner.any() else valid


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(image, sigma)


def contrast_free_background(decode: Callable[[Sequence[int]], Iterator[np.ndarray]], key: KeyFrame,
                             image: np.ndarray, valid: np.ndarray) -> np.ndarray | None:
    """Median of up to nine frames before the contrast, or None when there are none or the anatomy moved too far.

    Args:
        image: the key frame ``(rows, cols)``, 0..1.
        valid: its X-ray field.

    Returns:
        ``(rows, cols)`` float32. It is trusted only when, away from dark ridges, it correlates with the key frame by at
        least 0.9 in the coarse structure (diaphragm and spine in the same place).
    """
    if len(key.before) < 2 or not valid.any():
        return None
    # The last ones before the contrast: breathing and table are nearest to the key frame.
    background = np.median(np.stack(list(decode(key.before[-9:]))), axis=0).astype(np.float32)
    side = min(image.shape)
    a, b = (_blur(x, side / 64)[valid] for x in (image, background))
    keep = a >= b - 0.05  # where the key frame is not much darker: not on filled vessels
    if keep.sum() < 0.3 * keep.size or a[keep].std() < 1e-6 or b[keep].std() < 1e-6:
        return None
    return background if float(np.corrcoef(a[keep], b[keep])[0, 1]) >= 0.9 else None


def write_frame_strip(path: str | Path, images: Sequence[np.ndarray], labels: Sequence[str],
                      chosen: int | Sequence[int], *, columns: int = 5, side_px: int = 224) -> None:
    """A contact sheet (PNG) of frames, the chosen one framed.

    Args:
        images: frames ``(rows, cols)``, 0..1.
        labels: one short text per frame.
        chosen: position (or positions) of the chosen frame in ``images``.
    """
    import os

    from PIL import Image, ImageDraw

    marked = {chosen} if isinstance(chosen, int) else set(chosen)
    columns = min(columns, len(images))
    lines = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side_px, lines * (side_px + 16)), "black")
    draw = ImageDraw.Draw(sheet)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
        picture.thumbnail((side_px - 4, side_px - 4))
        left, top = k % columns * side_px, k // columns * (side_px + 16)
        sheet.paste(picture.convert("RGB"), (left + 2, top + 18))
        draw.text((left + 4, top + 3), label, fill="yellow" if k in marked else "white")
        if k in marked:
            corner = (left + picture.width + 3, top + picture.height + 19)
            draw.rectangle((left, top + 16, *corner), outline="yellow", width=2)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        sheet.save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
