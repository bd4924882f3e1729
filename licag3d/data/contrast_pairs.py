# SPDX-License-Identifier: Apache-2.0
"""Pairs of a contrast-free frame and its angiogram with exact vessels: the phantom as training data for synthesis.

A pair pool is a pool of phantom frames (:mod:`licag3d.data.phantom_frames`), the angiograms, with a second file for
each: what the detector saw without the injection. ``kappa`` is the share of the contrast that is left in it: on a
perfect contrast-free frame (kappa 0) the vessels are not in the picture at all, and any method can only guess from
the heart, the catheter and the anatomy it has seen before. A still pair shows one moment; in a moving pair the
contrast-free frame is of another heartbeat and breath, as in a real run.

    python -m licag3d.data.contrast_pairs --pool DIR --cases 100
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from licag3d.command import Parser, add_debug_flag, run
from licag3d.data.phantom_frames import (
    LAYERS,
    ROWS,
    VIEWS_PER_CASE,
    PhantomFrame,
    PhantomPool,
    case_moments,
    contrast_free_image,
    entry_of,
    grow_pool,
    render_moment,
    write_frame,
)
from licag3d.errors import InputError

#: The levels of residual contrast that results are reported at.
KAPPAS = (0.0, 0.05, 0.1, 0.2)
#: Training draws kappa from 0 to this.
KAPPA_MAX = 0.3
#: Breathing between the frames of a moving pair, mm (standard deviation).
BREATH_MM = 3.0
MAX_KAPPAS = 16


@dataclass(frozen=True)
class ContrastPair:
    """A contrast-free frame and its angiogram.

    Args:
        angiogram: the frame with contrast, with every layer and the truth of its moment.
        before: the moment of the contrast-free frame: its truth says where the vessels are in ``images``. The same
            object as ``angiogram`` for a still pair.
        images: ``(k, rows, cols)`` uint8, the contrast-free pictures, one per entry of ``kappas``.
        kappas: share of the contrast left in each.
    """

    angiogram: PhantomFrame
    before: PhantomFrame
    images: np.ndarray
    kappas: tuple[float, ...]

    @property
    def moving(self) -> bool:
        """Whether the two frames are of different moments."""
        return self.before is not self.angiogram


def render_pairs(
    seed: int,
    *,
    views: int = VIEWS_PER_CASE,
    rows: int = ROWS,
    kappas: tuple[float, ...] | None = None,
    moving_share: float = 0.0,
) -> list[ContrastPair]:
    """Pairs of one phantom patient; the angiograms are those of :func:`licag3d.data.phantom_frames.render_case`.

    Args:
        kappas: of every pair; without them one per pair, uniform from 0 to :data:`KAPPA_MAX`.
        moving_share: how many of the pairs are moving ones.

    Raises:
        InputError: a kappa or share outside 0..1.
    """
    _check(kappas, moving_share)
    pairs = []
    for moment in case_moments(seed, views=views, rows=rows):
        # A stream of its own: what a pair draws never moves the angiogram.
        rng = np.random.default_rng([seed, 64, moment.view])
        chosen = kappas or (float(rng.uniform(0, KAPPA_MAX)),)
        angiogram = before = render_moment(moment)
        if rng.random() < moving_share:
            moment = replace(
                moment, phase=float(rng.uniform()), breath_mm=float(moment.breath_mm + rng.normal(0, BREATH_MM))
            )
            before = render_moment(moment)
        images = np.stack([contrast_free_image(moment, kappa) for kappa in chosen])
        pairs.append(ContrastPair(angiogram, before, images, tuple(chosen)))
    return pairs


def _check(kappas: tuple[float, ...] | None, moving_share: float) -> None:
    for name, value in (("moving share", moving_share), *(("kappa", kappa) for kappa in kappas or ())):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; give 0 to 1")
    if kappas is not None and not 1 <= len(kappas) <= MAX_KAPPAS:
        raise InputError(f"{len(kappas)} values of kappa; give 1 to {MAX_KAPPAS}")


def grow_pairs(
    folder,
    cases: int,
    *,
    first: int = 0,
    views: int = VIEWS_PER_CASE,
    rows: int = ROWS,
    split: range | None = None,
    kappas: tuple[float, ...] | None = None,
    moving_share: float = 0.0,
) -> int:
    """Render pairs into a pool folder; arguments as in :func:`render_pairs` and :func:`grow_pool`.

    Returns:
        How many pairs the pool holds.

    Raises:
        InputError: a value out of range, or a folder that cannot be written or holds another pool.
    """
    _check(kappas, moving_share)

    def write_case(target: Path, seed: int) -> list[dict]:
        pairs = render_pairs(seed, views=views, rows=rows, kappas=kappas, moving_share=moving_share)
        return [_write_pair(target, pair) for pair in pairs]

    return grow_pool(folder, cases, first=first, split=split, write_case=write_case)


def _write_pair(folder: Path, pair: ContrastPair) -> dict:
    from licag3d.io.atomic import write_bytes

    name = write_frame(folder, pair.angiogram)
    images = name.removesuffix(".npy") + "_images.npy"
    buffer = io.BytesIO()
    np.save(buffer, pair.images, allow_pickle=False)
    write_bytes(folder / images, buffer.getvalue())
    entry = entry_of(pair.angiogram, name) | {"images": images, "kappas": list(pair.kappas), "before": None}
    if pair.moving:
        entry["before"] = write_frame(folder, pair.before, suffix="_before")
    return entry


class PairPool(PhantomPool):
    """A pool of pairs: as a :class:`PhantomPool` it holds the angiograms.

    Raises:
        InputError: no pool there, or one without contrast-free frames.
    """

    def refresh(self) -> int:
        """Read the index again; returns how many pairs there are."""
        count = super().refresh()
        for number, entry in enumerate(self.entries):
            try:
                kappas = [float(kappa) for kappa in entry["kappas"]]
                names = [entry["images"], entry["before"]]
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"{self.folder}: frame {number + 1} has no contrast-free twin; make pairs with "
                    "python -m licag3d.data.contrast_pairs --pool DIR"
                ) from None
            if any(name is not None and Path(str(name)).name != name for name in names):
                raise InputError(f"{self.folder}: a frame lies outside the pool ({names!r})")
            if not 1 <= len(kappas) <= MAX_KAPPAS:
                raise InputError(f"{self.folder}: frame {number + 1} has {len(kappas)} values of kappa")
        return count

    def images(self, number: int) -> np.ndarray:
        """Contrast-free pictures ``(k, rows, cols)`` uint8 of a pair, memory-mapped."""
        entry = self.entries[number]
        stack = self._load(entry["images"])
        if stack.dtype != np.uint8 or stack.shape != (len(entry["kappas"]), entry["rows"], entry["rows"]):
            raise InputError(f"{self.folder / entry['images']}: {stack.dtype} {stack.shape} is no frame of this pool")
        return stack

    def before_layers(self, number: int) -> np.ndarray:
        """Layers ``(5, rows, cols)`` of the contrast-free frame's moment (:data:`LAYERS`), memory-mapped."""
        entry = self.entries[number]
        if entry["before"] is None:
            return self.layers(number)
        stack = self._load(entry["before"])
        if stack.dtype != np.float16 or stack.shape != (len(LAYERS), entry["rows"], entry["rows"]):
            raise InputError(f"{self.folder / entry['before']}: {stack.dtype} {stack.shape} is no frame of this pool")
        return stack

    def _load(self, name: str) -> np.ndarray:
        try:
            return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.folder / name}: cannot be read ({error}); make the pool anew") from None

    def pair(self, number: int) -> ContrastPair:
        """Pair ``number`` with its layers taken apart."""
        entry = self.entries[number]
        angiogram = before = self.frame(number)
        if entry["before"] is not None:
            before = self.frame_of(entry, self.before_layers(number))
        kappas = tuple(float(kappa) for kappa in entry["kappas"])
        return ContrastPair(angiogram, before, np.array(self.images(number)), kappas)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(
        prog="python -m licag3d.data.contrast_pairs",
        description="Render a pool of pairs: a contrast-free frame and its angiogram, with the exact vessels.",
    )
    made.add_argument("--pool", required=True, metavar="DIR", help="folder of the pool; cases that are there are kept")
    made.add_argument("--cases", type=int, default=100, metavar="N", help="cases to render")
    made.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case of the stream")
    made.add_argument("--views", type=int, default=VIEWS_PER_CASE, metavar="N", help="frames per case, 1 to 4")
    made.add_argument("--rows", type=int, default=ROWS, metavar="PX", help="rows and columns of a frame, 64 to 1024")
    made.add_argument(
        "--kappas",
        type=float,
        nargs="+",
        metavar="K",
        help="residual contrast, 0..1; by default one per pair, 0 to 0.3",
    )
    made.add_argument("--moving", type=float, default=0.3, metavar="SHARE", help="share of pairs of two moments, 0..1")
    made.add_argument(
        "--split", choices=("training", "validation"), default="training", help="which patients: never mix the two"
    )
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Render what is missing."""
    from licag3d.phantom.splits import TRAINING, VALIDATION

    given = parser().parse_args(argv)
    if given.cases < 1 or given.first < 0:
        raise InputError(f"--cases {given.cases} --first {given.first}: give at least one case, counted from 0")
    if not 1 <= given.views <= 4 or not 64 <= given.rows <= 1024:
        raise InputError(f"--views {given.views} --rows {given.rows}: give 1 to 4 views of 64 to 1024 px")
    count = grow_pairs(
        given.pool,
        given.cases,
        first=given.first,
        views=given.views,
        rows=given.rows,
        split=TRAINING if given.split == "training" else VALIDATION,
        kappas=None if given.kappas is None else tuple(given.kappas),
        moving_share=given.moving,
    )
    print(f"{given.pool}: {count} pairs")
    return 0


if __name__ == "__main__":
    run(main)
