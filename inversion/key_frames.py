# SPDX-License-Identifier: Apache-2.0
"""Key frames of one cine or of two, with everything they were chosen by."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.inversion.chains import Chains, chains_from_graph
from licag3d.inversion.frame_pairs import SPACING_MM, FramePair, rank_frame_pairs
from licag3d.structures import View

#: Candidates have at least this share of the way from the emptiest frame to the fullest: what never moves (ribs,
#: catheter) adds the same to all.
FILLED = 0.7


@dataclass(frozen=True)
class CandidateFrame:
    """A filled frame.

    ``filling``: vessel-like dark ridge energy per thousand pixels; ``motion``: mean grey value change to its
    neighbours, 0..1; ``similarity``: cosine of its encoder features, less those of the frames before the contrast, with
    the mean of all candidates (None without an encoder); ``image`` ``(rows, cols)`` 0..1.
    """

    frame: int
    filling: float
    motion: float
    similarity: float | None
    image: np.ndarray


@dataclass(frozen=True)
class Cine:
    """One cine: the label as given (without ``#``), number of frames, candidates in order of time, the choice."""

    label: str
    frames: int
    candidates: tuple[CandidateFrame, ...]
    best: int


@dataclass(frozen=True)
class KeyFrames:
    """The choice for one or two cines; ``pairs`` (frame numbers, best fit first) only with two."""

    cines: tuple[Cine, ...]
    pairs: tuple[FramePair, ...]
    notes: tuple[str, ...]


def choose_key_frames(
    paths: Sequence[str],
    *,
    candidates: int = 6,
    range_mm: float = 40.0,
    geometry: dict | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> KeyFrames:
    """Choose the key frame of every cine, and rank the pairs of frames of two cines by how well they fit one tree.

    The choice is filling and stillness, also with two cines: still frames are diastolic ones, and on simulated cines
    their phases lay nearer to each other than those of the pair with the least misfit (docs/feature-space.md).

    Args:
        paths: one or two files; ``FILE#8`` leaves that file one candidate.
        candidates: frames of each cine compared.
        geometry: as for :func:`licag3d.io.views.read_views`; needed with two cines.

    Raises:
        InputError: a file that cannot be read, one still picture, or two cines without geometry.
    """
    from licag3d.io.views import open_source, read_views

    tell = progress or (lambda share, text: None)
    geometry = geometry or {}
    two = len(paths) == 2
    views, notes = read_views(paths, need_geometry=two, **geometry)
    cines, trees = [], []
    for k, (path, view) in enumerate(zip(paths, views, strict=True)):
        source = open_source(path)
        label = path.rsplit("#", 1)[0] if source.frame is not None else path
        if source.frames == 1:
            raise InputError(f"{view.file} has one frame; a cine (DICOM XA or TIFF with several frames) is needed")
        numbers = _filled(view, candidates)
        frames = [read_views([f"{label}#{n}"], need_geometry=False)[0][0] for n in numbers]
        motion = _motion(view, source, numbers)
        similarity = _similarities(view, frames)
        filling = [float(view.scores[n]) if view.scores is not None else float("nan") for n in numbers]
        found = tuple(
            CandidateFrame(n, f, m, s, frame.image)
            for n, f, m, s, frame in zip(numbers, filling, motion, similarity, frames, strict=True)
        )
        cines.append(Cine(label, source.frames, found, int(view.frame or 0)))
        tell((k + 0.3) / (len(paths) + 1), f"{view.file}: {len(numbers)} candidates")
        if two:
            trees.append([(view.camera, _chains(replace(frame, camera=view.camera))) for frame in frames])
        tell((k + 1) / (len(paths) + 1), f"{view.file}: vessels found")
    pairs: tuple[FramePair, ...] = ()
    if two:
        ranked = rank_frame_pairs(trees[0], trees[1], range_mm=range_mm)
        if not ranked:
            raise InputError("no vessels were found in the filled frames; choose frames by hand with FILE#FRAME")
        numbers = [[item.frame for item in cine.candidates] for cine in cines]
        pairs = tuple(replace(p, first=numbers[0][p.first], second=numbers[1][p.second]) for p in ranked)
    tell(1.0, "done")
    return KeyFrames(tuple(cines), pairs, tuple(notes))


def _filled(view: View, count: int) -> list[int]:
    """Numbers of the filled frames around the key frame, at most ``count``, the key frame among them."""
    if view.scores is None:
        return [int(view.frame or 0)]
    score, key = np.asarray(view.scores), int(view.frame)
    least = float(score.min() + FILLED * (score[key] - score.min()))
    first = last = key
    while first > 0 and score[first - 1] >= least:
        first -= 1
    while last < len(score) - 1 and score[last + 1] >= least:
        last += 1
    every = np.unique(np.linspace(first, last, min(count, last - first + 1)).round().astype(int))
    # The key frame takes the place of its nearest neighbour, so that it is always compared.
    every[np.abs(every - key).argmin()] = key
    return [int(n) for n in every]


def _motion(view: View, source, numbers: Sequence[int]) -> list[float]:
    """Mean grey value change from the frame before to the frame after, 0..1 of the image's range."""
    from licag3d.io.keyframe import _blur, _small

    result = []
    for n in numbers:
        near = [m for m in (n - 1, n, n + 1) if 0 <= m < source.frames]
        small = [_blur(_small(frame.values), 1.5) for frame in source.decode(near)]
        span = max(float(np.ptp(small[0])), 1e-6)
        result.append(float(np.mean([np.abs(b - a).mean() for a, b in zip(small, small[1:], strict=False)])) / span)
    return result


def _similarities(view: View, frames: Sequence[View]) -> list[float | None]:
    """Cosine in feature space of each candidate with the mean candidate, background taken off where it is known."""
    encoder = _embedded_encoder()
    if encoder is None:
        return [None] * len(frames)
    import torch

    with torch.no_grad():
        features = torch.cat([encoder.features(_square(frame.image)) for frame in frames]).double()
        if view.background is not None:
            features = features - encoder.features(_square(view.background)).double()
    mean = features.mean(0)
    cosine = (features @ mean) / (features.norm(dim=1) * mean.norm()).clamp_min(1e-12)
    return [float(x) for x in cosine]


def _embedded_encoder():
    from licag3d import weights

    if not weights.available("encoder"):
        return None
    from licag3d.models.vasomim import load_encoder

    return load_encoder("encoder")


def _square(image: np.ndarray):
    """The frame as the encoder takes it: ``(1, 1, 256, 256)``."""
    import torch

    batch = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    return torch.nn.functional.interpolate(batch, size=(256, 256), mode="area")


def _chains(view: View) -> Chains:
    from licag3d.models.centerline2d import trace_centerlines
    from licag3d.models.vessel_evidence import vessel_evidence

    return chains_from_graph(trace_centerlines(vessel_evidence(view), view), view.camera, spacing_mm=SPACING_MM)


def strip_pictures(chosen: KeyFrames) -> tuple[list[np.ndarray], list[str], list[int]]:
    """Pictures, labels and positions of the chosen frames, for :func:`licag3d.io.keyframe.write_frame_strip`."""
    pictures, labels, marked = [], [], []
    for k, cine in enumerate(chosen.cines):
        for item in cine.candidates:
            if item.frame == cine.best:
                marked.append(len(pictures))
            pictures.append(item.image)
            text = f"cine {k + 1} #{item.frame} filling {item.filling:.1f}"
            best = min((p.misfit for p in chosen.pairs if (p.first, p.second)[k] == item.frame), default=None)
            labels.append(text if best is None else f"{text} misfit {best:+.3f}")
    return pictures, labels, marked


def key_frames_json(chosen: KeyFrames) -> str:
    """All scores as JSON, without the pictures."""

    def plain(item: CandidateFrame) -> dict:
        values = asdict(replace(item, image=np.zeros(0)))
        values.pop("image")
        return {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in values.items()}

    return json.dumps(
        {
            "cines": [
                {
                    "frames": cine.frames,
                    "key_frame": cine.best,
                    "candidates": [plain(item) for item in cine.candidates],
                }
                for cine in chosen.cines
            ],
            "pairs": [asdict(pair) for pair in chosen.pairs],
            "notes": list(chosen.notes),
        },
        indent=1,
    )
