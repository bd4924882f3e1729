# SPDX-License-Identifier: Apache-2.0
"""Small centreline problems with known answers, for the tests of matching."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from licag3d.geometry import Camera
from licag3d.inversion.chains import Chains, chains_from_graph
from licag3d.models.centerline2d import trace_mask
from licag3d.phantom.simulate_case import Case, simulate_case

COMMON = {"sid_mm": 1000.0, "sod_mm": 750.0, "spacing_row_mm": 0.3, "spacing_col_mm": 0.3, "rows": 512, "cols": 512}


def two_cameras(offset=(0.0, 0.0, 0.0)) -> tuple[Camera, Camera]:
    return Camera(-30, 5, **COMMON), Camera(30, -5, offset_lps_mm=offset, **COMMON)


def vessels() -> list[np.ndarray]:
    """Three curves in space, 0.45 mm between points: a trunk that divides in two, each bent its own way."""
    s = np.arange(0, 30, 0.45)
    trunk = np.stack([0.1 * s, 4 * np.sin(s / 12), 30 - s], 1)
    left = trunk[-1] + np.stack([-0.8 * s, 0.3 * s, -0.5 * s + 0.005 * s**2], 1)
    right = trunk[-1] + np.stack([0.7 * s, -0.4 * s, -0.6 * s], 1)
    return [trunk, left, right]


def chains_of(curves: list[np.ndarray], camera: Camera, radius_mm=(1.6, 1.1, 0.8)) -> Chains:
    """Exact projections of curves as pieces; piece 0 ends where the others start."""
    pixels = [camera.project(curve)[0] for curve in curves]
    start = np.concatenate([[0], np.cumsum([len(p) for p in pixels])])
    step = (
        np.concatenate([np.r_[0.0, np.linalg.norm(np.diff(p, axis=0), axis=1)] for p in pixels]) * camera.mm_per_pixel
    )
    weight = 0.5 * step
    weight[:-1] += 0.5 * step[1:]
    radius = np.repeat(radius_mm[:len(curves)], [len(p) for p in pixels])
    count = len(curves)
    nodes = np.array([(0, 1), (1, 2), (1, 3)][:count])
    turn = np.full((count, count, 2, 2), np.nan)
    for p in range(count):
        for q in range(count):
            for e in (0, 1):
                for f in (0, 1):
                    if (p, e) != (q, f) and nodes[p, e] == nodes[q, f]:
                        turn[p, q, e, f] = 30.0
    ends = np.array([pixels[0][0], pixels[0][-1], *(p[-1] for p in pixels[1:])])
    degree = np.bincount(nodes.ravel(), minlength=len(ends))
    return Chains(np.concatenate(pixels), start, step, weight, radius, np.zeros(len(radius)), nodes, ends, turn,
                  np.zeros(len(ends), bool), degree, camera.mm_per_pixel)


def no_chains(camera: Camera) -> Chains:
    return chains_from_graph(trace_mask(np.zeros((32, 32), bool)), camera)


@lru_cache(maxsize=2)
def simulated(artery: str = "rca") -> tuple[Case, tuple[Chains, Chains]]:
    """A simulated case and the chains of its true masks under its true cameras."""
    case = simulate_case(1500, artery, offset_mm=6.0, angle_error_deg=0.0)
    graphs = [trace_mask(m, line_integral=p) for m, p in zip(case.masks, case.line_integrals, strict=True)]
    return case, tuple(chains_from_graph(g, c) for g, c in zip(graphs, case.true_cameras, strict=True))
