# SPDX-License-Identifier: Apache-2.0
"""Pairs of simulated views with their centrelines found, for the training of two-view correspondence.

A pair is a patient of the phantom as the benchmark shows one (two views 40 to 90 degrees apart, unknown offset, full
background), its vessel evidence by the segmentor, and centreline pieces traced in two of three ways: as an inversion
finds them (``found``), and either down to what may be a vessel (``faint``) or of the true outline (``mask``). A drawn
pair (:mod:`licag3d.data.drawn_pairs`) is one without radiographs, six times as fast: ``mask`` or ``drawn``. Pair ``n``
of a range of seeds is a function of ``n`` alone.

    python -m licag3d.data.view_pairs --pool DIR --cases 200
    python -m licag3d.data.view_pairs --pool DIR --cases 2000 --drawn
"""

from __future__ import annotations

import argparse
import io
import json
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains

SCHEMA = "licag3d-view-pairs-1"
#: Sides of the stored pictures, px.
SIDE = 256
#: How the centrelines of a pair were traced.
WAYS = ("found", "faint", "mask", "drawn")
#: Hysteresis on the vessel probability for ``faint``.
FAINT_LOW, FAINT_HIGH = 0.15, 0.4
#: Largest line integral that is stored.
MOST_P = 4.0
#: Largest file of a pair, and largest content: a packed file may promise a thousand times its size.
MOST_BYTES, MOST_CONTENT = 5_000_000, 50_000_000


@dataclass(frozen=True)
class SeenView:
    """What one view shows, resized to ``(SIDE, SIDE)`` by area: ``probability`` 0..1 and ``line_integral`` (no unit)
    float32, as an inversion has them."""

    probability: np.ndarray
    line_integral: np.ndarray


@dataclass(frozen=True)
class ViewPair:
    """One simulated patient in two views.

    Args:
        seen, chains: of either view by way of tracing (some of :data:`WAYS`).
        true_cameras, user_cameras: of either view.
        curves_mm: true centreline at the moment of either view, each ``(N, 3)`` LPS mm, point by point the same blood.
        radius_mm, branch: ``(N,)`` true radius and index into ``names``.
    """

    seed: int
    artery: str
    seen: dict[str, tuple[SeenView, SeenView]]
    chains: dict[str, tuple[Chains, Chains]]
    true_cameras: tuple[Camera, Camera]
    user_cameras: tuple[Camera, Camera]
    curves_mm: tuple[np.ndarray, np.ndarray]
    radius_mm: np.ndarray
    branch: np.ndarray
    names: tuple[str, ...]


def make_pair(seed: int) -> ViewPair:
    """Simulate a patient and find its centrelines; right and left arteries alternate with the seed."""
    from licag3d.phantom.simulate_case import simulate_case

    rng = np.random.default_rng([seed, 90])
    artery = ("rca", "lca")[seed % 2]
    moved = float(rng.uniform(0.0, 1.5)) if rng.random() < 0.3 else 0.0
    case = simulate_case(
        seed,
        artery,
        separation_deg=float(rng.uniform(40.0, 90.0)),
        offset_mm=float(rng.uniform(0.0, 20.0)),
        angle_error_deg=1.0,
        background="full",
        held_out=0,
        disease="random" if rng.random() < 0.4 else "none",
        twigs=bool(rng.random() < 0.25),
        respiration_mm=moved,
    )
    other = ("faint", "mask")[seed // 2 % 2]
    seen: dict[str, list[SeenView]] = {"found": [], other: []}
    chains: dict[str, list[Chains]] = {"found": [], other: []}
    for image, mask, camera in zip(case.images, case.masks, case.user_cameras, strict=True):
        for way, (picture, chain) in _look(image, mask, camera, other).items():
            seen[way].append(picture)
            chains[way].append(chain)
    return _pair_of(case, seen, chains)


def draw_pair(seed: int) -> ViewPair:
    """A pair without radiographs: the true outlines, or (every other patient) outlines with faults."""
    from licag3d.data.drawn_pairs import Faults, spoil
    from licag3d.inversion.chains import chains_from_graph
    from licag3d.models.centerline2d import trace_mask
    from licag3d.phantom.simulate_case import simulate_case

    rng = np.random.default_rng([seed, 91])
    way = ("drawn", "drawn", "mask")[seed // 2 % 3]
    moved = float(rng.uniform(0.0, 1.5)) if rng.random() < 0.3 else 0.0
    case = simulate_case(
        seed,
        ("rca", "lca")[seed % 2],
        separation_deg=float(rng.uniform(40.0, 90.0)),
        offset_mm=float(rng.uniform(0.0, 20.0)),
        angle_error_deg=1.0,
        held_out=0,
        disease="random" if rng.random() < 0.4 else "none",
        respiration_mm=moved,
    )
    seen, chains = [], []
    for mask, p, camera, tree in zip(case.masks, case.line_integrals, case.user_cameras, case.trees, strict=True):
        truth = case.true_cameras[len(seen)]
        if way == "drawn":
            shown, chance, p = spoil(rng, mask, p, truth, tree, Faults())
            least = {"min_length_px": 5.0 / camera.mm_per_pixel, "min_dead_end_px": 6.0 / camera.mm_per_pixel}
        else:
            shown, chance, least = mask, mask.astype(np.float32), {}
        graph = trace_mask(shown, line_integral=p, probability=chance, **least)
        seen.append(see(chance, p))
        chains.append(chains_from_graph(graph, camera))
    return _pair_of(case, {way: seen}, {way: chains})


def _pair_of(case, seen: dict, chains: dict) -> ViewPair:
    trees = case.trees
    branches = trees[0].branches
    return ViewPair(
        case.seed,
        case.artery,
        {way: tuple(items) for way, items in seen.items()},
        {way: tuple(items) for way, items in chains.items()},
        tuple(case.true_cameras),
        tuple(case.user_cameras),
        tuple(np.concatenate([b.points_lps_mm for b in tree.branches]) for tree in trees),
        np.concatenate([b.radius_mm for b in branches]),
        np.repeat(np.arange(len(branches)), [len(b.points_lps_mm) for b in branches]),
        tuple(b.name for b in branches),
    )


def _look(image: np.ndarray, mask: np.ndarray, camera: Camera, other: str) -> dict[str, tuple[SeenView, Chains]]:
    """Evidence and centrelines of one view as found, and in another way."""
    from licag3d.inversion.chains import chains_from_graph
    from licag3d.io.collimator import valid_area
    from licag3d.models.centerline2d import trace_centerlines
    from licag3d.models.learned_evidence import LearnedRules, evidence_from_prediction
    from licag3d.models.segmentor import load_segmentor, predict
    from licag3d.models.vessel_evidence import evidence_from_mask
    from licag3d.structures import View

    grey = image.astype(np.float32) / 255.0
    valid = valid_area(grey)
    view = View(grey, camera, valid)
    given = View(grey, camera, valid, mask=mask)
    prediction = predict(load_segmentor("segmentor", "cpu"), grey, valid, camera.mm_per_pixel, mirror=True)
    evidence = {"found": evidence_from_prediction(view, prediction, LearnedRules())}
    if other == "faint":
        evidence[other] = evidence_from_prediction(view, prediction, LearnedRules(low=FAINT_LOW, high=FAINT_HIGH))
    else:
        evidence[other] = evidence_from_mask(given)
    out = {}
    for way, item in evidence.items():
        shown = given if way == "mask" else view
        graph = trace_centerlines(item, shown)
        out[way] = see(item.probability, item.line_integral), chains_from_graph(graph, camera)
    return out


def see(probability: np.ndarray, line_integral: np.ndarray) -> SeenView:
    """The pictures of a view of any size at ``(SIDE, SIDE)``: the longer side fills it, the rest is zero."""
    import torch
    import torch.nn.functional as F

    stack = torch.from_numpy(np.stack([probability, line_integral]).astype(np.float32))[None]
    rows, cols = probability.shape
    scale = SIDE / max(rows, cols)
    size = max(1, round(rows * scale)), max(1, round(cols * scale))
    small = F.interpolate(stack, size=size, mode="bilinear", align_corners=False, antialias=True)
    small = F.pad(small, (0, SIDE - size[1], 0, SIDE - size[0]))[0].numpy()
    return SeenView(small[0].clip(0, 1), small[1].clip(0, MOST_P))


_FLOAT_CHAIN = ("pixels", "step_mm", "weight_mm", "radius_mm", "line_integral", "node_pixels", "turn_deg")
_WHOLE_CHAIN = ("start", "node", "crossing", "degree")


def pack_pair(pair: ViewPair) -> bytes:
    """A pair as a compressed ``.npz`` of about 300 kB; pictures in 8 bits."""
    from dataclasses import asdict

    facts = {
        "schema": SCHEMA,
        "seed": pair.seed,
        "artery": pair.artery,
        "names": pair.names,
        "ways": list(pair.seen),
        "true_cameras": [asdict(c) for c in pair.true_cameras],
        "user_cameras": [asdict(c) for c in pair.user_cameras],
    }
    arrays = {
        "curves_mm": np.stack(pair.curves_mm).astype(np.float32),
        "radius_mm": pair.radius_mm.astype(np.float16),
        "branch": pair.branch.astype(np.uint8),
    }
    for k in (0, 1):
        for way, seen in pair.seen.items():
            arrays[f"{way}_shown_{k}"] = _bytes(seen[k].probability, 1.0)
            arrays[f"{way}_shown_p_{k}"] = _bytes(seen[k].line_integral, MOST_P)
            chains = pair.chains[way][k]
            for name in _FLOAT_CHAIN:
                arrays[f"{way}_{name}_{k}"] = getattr(chains, name).astype(np.float32)
            for name in _WHOLE_CHAIN:
                arrays[f"{way}_{name}_{k}"] = getattr(chains, name).astype(np.int16)
            arrays[f"{way}_mm_per_pixel_{k}"] = np.float64(chains.mm_per_pixel)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def _bytes(values: np.ndarray, most: float) -> np.ndarray:
    return np.rint(np.clip(values / most, 0, 1) * 255).astype(np.uint8)


def load_pair(file) -> ViewPair:
    """What :func:`pack_pair` wrote.

    Raises:
        InputError: the file cannot be read, or is of another version.
    """
    try:
        if Path(file).stat().st_size > MOST_BYTES:
            raise InputError(f"{file}: more than {MOST_BYTES} bytes are no view pair; make the pool anew")
        with np.load(file, allow_pickle=False) as stored:
            if sum(part.file_size for part in stored.zip.infolist()) > MOST_CONTENT:
                raise InputError(f"{file}: unpacked it has more than {MOST_CONTENT} bytes; make the pool anew")
            facts = json.loads(stored["facts"].tobytes().decode())
            if facts["schema"] != SCHEMA:
                raise InputError(f"{file}: a view pair of another version ({facts['schema']}); make the pool anew")
            arrays = {name: stored[name] for name in stored.files}
        return _unpack(facts, arrays)
    except (OSError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: cannot be read as a view pair ({error}); make the pool anew") from None


def _unpack(facts: dict, arrays: dict[str, np.ndarray]) -> ViewPair:
    def camera(values: dict) -> Camera:
        return Camera(**{**values, "offset_lps_mm": tuple(values["offset_lps_mm"])})

    seen, chains = {}, {}
    for way in facts["ways"]:
        seen[way] = tuple(
            SeenView(
                arrays[f"{way}_shown_{k}"].astype(np.float32) / 255,
                arrays[f"{way}_shown_p_{k}"].astype(np.float32) * (MOST_P / 255),
            )
            for k in (0, 1)
        )
        chains[way] = tuple(
            Chains(**{f.name: _chain_array(f.name, arrays[f"{way}_{f.name}_{k}"]) for f in fields(Chains)})
            for k in (0, 1)
        )
    return ViewPair(
        int(facts["seed"]),
        str(facts["artery"]),
        seen,
        chains,
        tuple(camera(c) for c in facts["true_cameras"]),
        tuple(camera(c) for c in facts["user_cameras"]),
        tuple(arrays["curves_mm"].astype(np.float64)),
        arrays["radius_mm"].astype(np.float64),
        arrays["branch"].astype(np.int64),
        tuple(facts["names"]),
    )


def _chain_array(name: str, values: np.ndarray):
    if name == "mm_per_pixel":
        return float(values)
    if name == "crossing":
        return values.astype(bool)
    return values.astype(np.float64 if name in _FLOAT_CHAIN else np.int64)


def grow_pairs(folder, cases: int, *, first: int = 0, split: range | None = None, drawn: bool = False) -> int:
    """Make pairs ``first`` to ``first + cases`` of a range of seeds (default TRAINING) in ``folder``, where missing.

    Every pair is a file of its own, written at once, so that several processes may fill one pool with cases of their
    own while a training reads from it.

    Returns:
        How many pairs the pool holds.
    """
    from tqdm import tqdm

    from licag3d.io.atomic import check_output_folder, write_bytes
    from licag3d.phantom.splits import TRAINING

    seeds = TRAINING if split is None else split
    folder = check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(first, first + cases), disable=None, unit="case"):
        file = folder / f"{seeds[number]}.npz"
        if not file.exists():
            write_bytes(file, pack_pair((draw_pair if drawn else make_pair)(seeds[number])))
    return len(pair_files(folder))


def pair_files(folder) -> list[Path]:
    """Files of a pool, by seed.

    Raises:
        InputError: none there.
    """
    files = sorted((file for file in Path(folder).glob("*.npz") if file.stem.isdigit()), key=lambda f: int(f.stem))
    if not files:
        raise InputError(f"{folder}: no view pairs; make some with python -m licag3d.data.view_pairs --pool DIR")
    return files


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python -m licag3d.data.view_pairs", description="Simulate pairs of views for training.")
    made.add_argument("--pool", required=True, metavar="DIR", help="folder of the pool; pairs that are there are kept")
    made.add_argument("--cases", type=int, default=100, metavar="N", help="pairs to make")
    made.add_argument("--first", type=int, default=0, metavar="N", help="number of the first pair of the stream")
    made.add_argument("--validation", action="store_true", help="seeds for the choice of models, not for training")
    made.add_argument("--drawn", action="store_true", help="draw outlines with faults instead of rendering radiographs")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Make what is missing."""
    from licag3d.phantom.splits import VALIDATION

    given = parser().parse_args(argv)
    if given.cases < 1 or given.first < 0:
        raise InputError(f"--cases {given.cases} --first {given.first}: give at least one case, counted from 0")
    split = VALIDATION if given.validation else None
    held = grow_pairs(given.pool, given.cases, first=given.first, split=split, drawn=given.drawn)
    print(f"{held} pairs in {given.pool}")
    return 0


if __name__ == "__main__":
    run(main)
