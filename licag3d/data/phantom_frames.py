# SPDX-License-Identifier: Apache-2.0
"""Phantom frames for training: rendered case by case into a pool folder that grows while a training reads from it.

A frame holds the picture as the phantom displays it and the layers it is made of without noise (line integral of the
vessels, everything else in the beam), so that a training can put them together anew with other contrast, dose, blur and
display. Frame ``n`` of a pool is a function of ``n`` alone: the same pool comes out whoever renders it, and whenever.

    python -m licag3d.data.phantom_frames --pool DIR --cases 200
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError
from licag3d.vessels.branch_labels import branch_labels

SCHEMA = "licag3d-phantom-frames-2"
ROWS = 512
VIEWS_PER_CASE = 3
#: Layers of a stored frame, in order.
LAYERS = ("image", "contrast_free", "contrast", "line_integral", "codes")
#: ``codes`` = label of the branch + VESSEL + DEVICE + FAINT; exact in float16, which holds whole numbers to 2048.
LABELS, VESSEL, DEVICE, FAINT = 64, 64, 128, 256
#: Of the full contrast: below the first a vessel does not count as one, below the second it may or may not be found.
UNSEEN, BARELY = 0.12, 0.35
#: Line integral from which on a twig can be seen at all.
TWIG_SEEN = 0.03
MAX_FRAMES = 1_000_000


@dataclass(frozen=True)
class PhantomFrame:
    """One frame, all arrays ``(rows, cols)``.

    Args:
        image: uint8, as displayed, vessels dark; noise, blur, scatter, devices, collimator, everything.
        contrast_free: float32, minus log of the intensity without contrast, noise, blur and scatter (devices in it).
        contrast: float32, what contrast adds to that: vessels, twigs, lumen of the catheter, reflux; hardened beam.
        line_integral: float32, p of the vessels, no unit.
        mask: bool, pixels whose ray meets a vessel with contrast.
        devices: bool, pixels whose ray meets a catheter, a wire or another device.
        faint: bool, vessels that may be left out of a loss: twigs that no truth holds, and barely filled ones.
        labels: uint8, 1 + index into ``branch_names`` of the branch shown on ``mask``, 0 elsewhere.
        branch_names: names of the branches of the tree.
        mm_per_pixel: at the isocentre.
        seed, artery, view: where it comes from.
    """

    image: np.ndarray
    contrast_free: np.ndarray
    contrast: np.ndarray
    line_integral: np.ndarray
    mask: np.ndarray
    devices: np.ndarray
    faint: np.ndarray
    labels: np.ndarray
    branch_names: tuple[str, ...]
    mm_per_pixel: float
    seed: int
    artery: str
    view: int


@dataclass(frozen=True)
class Moment:
    """One view of one phantom patient at one moment, ready to be rendered.

    ``tree`` and ``surroundings`` are at rest; ``phase`` (0..1 of the beat) and ``breath_mm`` say when they are shown.
    """

    tree: object
    surroundings: object
    motion: object
    camera: object
    exposure: object
    opacity: object
    phase: float
    breath_mm: float
    seed: int
    artery: str
    view: int


def render_case(seed: int, *, views: int = VIEWS_PER_CASE, rows: int = ROWS) -> list[PhantomFrame]:
    """Frames of one phantom patient; right and left arteries alternate with the seed.

    Angles, zoom, cardiac phase, breath and filling are drawn anew for every view: a training frame may cut vessels off
    or show them half filled.
    """
    return [render_moment(moment) for moment in case_moments(seed, views=views, rows=rows)]


def case_moments(seed: int, *, views: int = VIEWS_PER_CASE, rows: int = ROWS) -> list[Moment]:
    """What :func:`render_case` renders, before it is rendered."""
    from licag3d.phantom import views as view_choice
    from licag3d.phantom.anatomy import sample_patient, sample_tree
    from licag3d.phantom.filling import sample_filling
    from licag3d.phantom.motion import sample_motion
    from licag3d.phantom.thorax import sample_thorax
    from licag3d.phantom.xray import Exposure, sample_surroundings

    artery = ("rca", "lca")[seed % 2]
    rng = np.random.default_rng([seed, 60])
    tree = sample_tree(seed, artery, disease="random", twigs=bool(rng.random() < 0.6))
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    move = rng.uniform(-15, 15, 3) - 0.5 * (points.min(0) + points.max(0))
    tree = replace(tree, branches=tuple(replace(b, points_lps_mm=b.points_lps_mm + move) for b in tree.branches))
    heart = sample_patient(seed).heart
    motion = sample_motion(rng, heart, move)
    geometry = view_choice.choose_geometry(rng)
    angles = view_choice.choose_angles(rng, artery, views, float(rng.uniform(25, 90)))
    cameras = [view_choice.make_camera(a, geometry, rows, rows) for a in angles]
    spacing = view_choice.fit_spacing(cameras, points + move)
    surroundings = sample_surroundings(rng, tree, sample_thorax(rng, heart, move))
    filling = sample_filling(rng, artery)
    moments = []
    for k, camera in enumerate(cameras):
        # Real frames are often closer than the whole tree needs.
        camera = view_choice.with_spacing(camera, spacing * float(rng.uniform(0.72, 1.05)))
        exposure = Exposure.sample(np.random.default_rng([seed, 61, k]))
        phase, breath = float(rng.uniform()), float(rng.uniform(-3, 8))
        opacity = _opacity(rng, tree, filling)
        moments.append(Moment(tree, surroundings, motion, camera, exposure, opacity, phase, breath, seed, artery, k))
    return moments


def _opacity(rng: np.random.Generator, tree, filling):
    """Contrast per branch: everywhere in most frames, else of a moment while it flows in or washes out."""
    from licag3d.phantom.filling import filled_time_s, opacity_at

    if rng.random() < 0.65:
        return None
    full = filled_time_s(tree, filling)
    return opacity_at(tree, full + float(rng.normal(0, 0.8)), filling)


def render_moment(moment: Moment) -> PhantomFrame:
    """The frame of a moment."""
    from licag3d.phantom.tubes import path_length_mm, tree_lines
    from licag3d.phantom.twigs import without_twigs
    from licag3d.phantom.xray import render_frame

    seed, artery, view = moment.seed, moment.artery, moment.view
    camera, exposure, opacity = moment.camera, moment.exposure, moment.opacity
    tree, surroundings = _shown_at(moment)
    noise = [seed, 62, view]
    seen = render_frame(tree, camera, exposure, surroundings, noise, opacity=opacity)
    # The same moment with a perfect detector, with and without contrast.
    perfect = replace(exposure, quanta=1e9, scatter=0.0, focal_spot_mm=0.0, detector_blur_px=0.0)
    clean = render_frame(tree, camera, perfect, surroundings, noise, opacity=opacity, kappa=0.0)
    named = without_twigs(tree)
    path_mm = path_length_mm(tree_lines(named), camera)
    filled = seen.line_integral / np.maximum(exposure.mu_per_mm * path_mm, 1e-6)
    mask = (path_mm > 0) & seen.mask & (filled > UNSEEN)
    twigs = seen.mask & (path_mm <= 0)
    if seen.twigs is not None:
        twigs |= seen.twigs & ~mask
    contrast = clean.measured - clean.contrast_free_measured
    barely = (path_mm > 0) & (filled > 0.03) & (filled < BARELY)
    return PhantomFrame(
        image=seen.image,
        contrast_free=clean.contrast_free_measured,
        contrast=contrast,
        line_integral=np.where(mask, seen.line_integral, 0).astype(np.float32),
        mask=mask,
        devices=seen.devices,
        faint=(twigs & (contrast > TWIG_SEEN)) | barely,
        labels=branch_labels(named, camera, mask, LABELS - 1),
        branch_names=tuple(branch.name for branch in named.branches),
        mm_per_pixel=float(camera.mm_per_pixel),
        seed=seed,
        artery=artery,
        view=view,
    )


def contrast_free_image(moment: Moment, kappa: float) -> np.ndarray:
    """The picture ``(rows, cols)`` uint8 of the same moment with ``kappa`` (0..1) of the contrast left, displayed like
    the frame of :func:`render_moment` and with quantum noise of its own.

    Raises:
        InputError: kappa out of range.
    """
    from licag3d.phantom.xray import render_frame

    tree, surroundings = _shown_at(moment)
    noise = [moment.seed, 62, moment.view]
    frame = render_frame(tree, moment.camera, moment.exposure, surroundings, noise, opacity=moment.opacity, kappa=kappa)
    assert frame.contrast_free_image is not None
    return frame.contrast_free_image


def _shown_at(moment: Moment):
    """Tree and surroundings moved by heartbeat and breath."""
    from licag3d.phantom.motion import move_surroundings, move_tree

    tree = move_tree(moment.tree, moment.phase, moment.breath_mm, motion=moment.motion)
    return tree, move_surroundings(moment.surroundings, moment.phase, moment.breath_mm, moment.motion)


def write_frame(folder: Path, frame: PhantomFrame, suffix: str = "") -> str:
    """Store one frame atomically; returns its name, which ends in ``suffix``."""
    import io

    from licag3d.io.atomic import write_bytes

    codes = frame.labels.astype(np.float16) + VESSEL * frame.mask + DEVICE * frame.devices + FAINT * frame.faint
    layers = (frame.image, frame.contrast_free, frame.contrast, frame.line_integral, codes)
    stack = np.stack(layers).astype(np.float16)
    buffer = io.BytesIO()
    np.save(buffer, stack, allow_pickle=False)
    name = f"{frame.seed}_{frame.artery}_{frame.view}{suffix}.npy"
    write_bytes(folder / name, buffer.getvalue())
    return name


def grow_pool(
    folder,
    cases: int,
    *,
    first: int = 0,
    views: int = VIEWS_PER_CASE,
    rows: int = ROWS,
    split: range | None = None,
    write_case: Callable[[Path, int], list[dict]] | None = None,
) -> int:
    """Render cases ``first`` to ``first + cases`` of a range of seeds into ``folder``; those there are kept.

    A case is listed in ``index.jsonl`` once all its frames are written, so a reader never meets half a case. One
    process may grow a pool at a time.

    Args:
        split: a range of :mod:`licag3d.phantom.splits`; TRAINING where none is given.
        write_case: writes the frames of a seed into the folder and returns their entries; without it plain frames with
            ``views`` and ``rows``.

    Returns:
        How many frames the pool holds.

    Raises:
        InputError: the folder cannot be written or holds another pool.
    """
    from tqdm import tqdm

    from licag3d.io.atomic import check_output_folder
    from licag3d.phantom.splits import TRAINING

    seeds = TRAINING if split is None else split
    folder = check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pool = PhantomPool(folder) if (folder / "index.jsonl").exists() else None
    have = {entry["seed"] for entry in pool.entries} if pool else set()
    with open(folder / "index.jsonl", "a", encoding="utf-8") as index:
        for number in tqdm(range(first, first + cases), disable=None, unit="case"):
            seed = seeds[number]
            if seed in have:
                continue
            if write_case is not None:
                entries = write_case(folder, seed)
            else:
                frames = render_case(seed, views=views, rows=rows)
                entries = [entry_of(frame, write_frame(folder, frame)) for frame in frames]
            index.write("".join(json.dumps(entry) + "\n" for entry in entries))
            index.flush()
            os.fsync(index.fileno())
    return len(PhantomPool(folder))


def entry_of(frame: PhantomFrame, file: str) -> dict:
    """The line of the index that lists a frame."""
    return {
        "schema": SCHEMA,
        "file": file,
        "seed": frame.seed,
        "artery": frame.artery,
        "view": frame.view,
        "rows": len(frame.image),
        "mm_per_pixel": frame.mm_per_pixel,
        "branches": list(frame.branch_names),
    }


class PhantomPool:
    """A pool folder, read while it may be growing: call :meth:`refresh` to see new frames.

    Frames are memory-mapped: several trainings on one machine share the page cache.

    Raises:
        InputError: no pool there, or one of another version.
    """

    def __init__(self, folder) -> None:
        self.folder = Path(folder)
        self.entries: list[dict] = []
        if not (self.folder / "index.jsonl").is_file():
            raise InputError(
                f"{self.folder}: no pool of phantom frames (no index.jsonl); make one with "
                "python -m licag3d.data.phantom_frames --pool DIR"
            )
        self.refresh()

    def __len__(self) -> int:
        return len(self.entries)

    def refresh(self) -> int:
        """Read the index again; returns how many frames there are. Known frames keep their numbers."""
        found = []
        with open(self.folder / "index.jsonl", encoding="utf-8") as index:
            for line in index:
                if not line.endswith("\n") or len(found) >= MAX_FRAMES:
                    break  # being written right now
                try:
                    entry = json.loads(line)
                    entry["file"], entry["seed"] = str(entry["file"]), int(entry["seed"])
                except (ValueError, KeyError, TypeError):
                    raise InputError(f"{self.folder / 'index.jsonl'}: line {len(found) + 1} is not a frame") from None
                if entry.get("schema") != SCHEMA:
                    raise InputError(f"{self.folder}: pool of another version ({entry.get('schema')}); make a new one")
                if Path(entry["file"]).name != entry["file"]:
                    raise InputError(f"{self.folder}: a frame lies outside the pool ({entry['file']!r})")
                found.append(entry)
        self.entries = found
        return len(found)

    def layers(self, number: int) -> np.ndarray:
        """Stored layers ``(5, rows, cols)`` float16 (:data:`LAYERS`), memory-mapped."""
        entry = self.entries[number]
        try:
            stack = np.load(self.folder / entry["file"], mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder / entry['file']}: cannot be read ({error}); make the pool anew") from None
        if stack.dtype != np.float16 or stack.shape != (len(LAYERS), entry["rows"], entry["rows"]):
            raise InputError(f"{self.folder / entry['file']}: {stack.dtype} {stack.shape} is not a frame of this pool")
        return stack

    def frame(self, number: int) -> PhantomFrame:
        """Frame ``number`` with its layers taken apart."""
        return self.frame_of(self.entries[number], self.layers(number))

    @staticmethod
    def frame_of(entry: dict, layers: np.ndarray) -> PhantomFrame:
        """Layers of a pool taken apart."""
        image, rest, contrast, p, codes = np.asarray(layers)
        codes = codes.astype(np.int32)
        return PhantomFrame(
            image=image.astype(np.uint8),
            contrast_free=rest.astype(np.float32),
            contrast=contrast.astype(np.float32),
            line_integral=p.astype(np.float32),
            mask=(codes & VESSEL) > 0,
            devices=(codes & DEVICE) > 0,
            faint=(codes & FAINT) > 0,
            labels=(codes % LABELS).astype(np.uint8),
            branch_names=tuple(entry["branches"]),
            mm_per_pixel=float(entry["mm_per_pixel"]),
            seed=entry["seed"],
            artery=entry["artery"],
            view=int(entry["view"]),
        )

    def __iter__(self) -> Iterator[PhantomFrame]:
        return (self.frame(number) for number in range(len(self)))


def benchmark_frames(pool: PhantomPool, flag: str, least: int = 1, most: int | None = None) -> list[int]:
    """Numbers of one frame of each patient of a pool that a benchmark may use.

    Args:
        flag: where the pool comes from, as ``--pool``. least, most: how many patients are needed and wanted.

    Raises:
        InputError: the pool holds training patients, or too few.
    """
    from licag3d.phantom.splits import TRAINING

    first: dict[int, int] = {}
    for number, entry in enumerate(pool.entries):
        first.setdefault(entry["seed"], number)
    if any(seed in TRAINING for seed in first):
        raise InputError(f"{flag} {pool.folder}: holds training patients; a benchmark on them proves nothing")
    if min(len(first), least if most is None else most) < least:
        raise InputError(f"{flag} {pool.folder}: {len(list(first)[:most])} patients; at least {least} are needed")
    return list(first.values())[:most]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python -m licag3d.data.phantom_frames", description="Render a pool of phantom training frames.")
    made.add_argument("--pool", required=True, metavar="DIR", help="folder of the pool; cases that are there are kept")
    made.add_argument("--cases", type=int, default=100, metavar="N", help="cases to render")
    made.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case of the stream")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Render what is missing."""
    arguments = parser().parse_args(argv)
    if arguments.cases < 1 or arguments.first < 0:
        raise InputError(f"--cases {arguments.cases} --first {arguments.first}: give at least one case, counted from 0")
    print(f"{grow_pool(arguments.pool, arguments.cases, first=arguments.first)} frames in {arguments.pool}")
    return 0


if __name__ == "__main__":
    run(main)
