# SPDX-License-Identifier: Apache-2.0
"""Centreline pieces of one view as flat arrays in millimetres at the isocentre, and how they meet at nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.models.centerline2d import CenterlineGraph2D

#: A vessel that bends more than this between two pieces at a node is not one vessel passing through it.
THROUGH_DEG = 70.0


@dataclass(frozen=True)
class Chains:
    """P centreline pieces with N points in all, one piece after the other; lengths are mm at the isocentre.

    Args:
        pixels: ``(N, 2)`` sub-pixel (col, row).
        start: ``(P + 1,)``: piece p owns points ``start[p]:start[p + 1]``.
        step_mm: ``(N,)`` arc length from the previous point of the piece (0 at a piece's start).
        weight_mm: ``(N,)`` arc length that the point stands for; sums to the total length.
        radius_mm: ``(N,)`` half width.
        line_integral: ``(N,)`` vessel line integral at the centre, no unit.
        node: ``(P, 2)`` graph node at either end.
        node_pixels: ``(M, 2)`` (col, row).
        turn_deg: ``(P, P, 2, 2)`` bend of a path that leaves piece p through its end e into piece q by its end f (0:
            start);
            NaN where these ends do not meet at a node.
        crossing: ``(M,)`` bool, node where two vessels seem to pass over each other.
        degree: ``(M,)`` number of piece ends at the node (1: the vessel ends there).
        mm_per_pixel: at the isocentre.
    """

    pixels: np.ndarray
    start: np.ndarray
    step_mm: np.ndarray
    weight_mm: np.ndarray
    radius_mm: np.ndarray
    line_integral: np.ndarray
    node: np.ndarray
    node_pixels: np.ndarray
    turn_deg: np.ndarray
    crossing: np.ndarray
    degree: np.ndarray
    mm_per_pixel: float

    @property
    def pieces(self) -> int:
        """Number of pieces P."""
        return len(self.start) - 1

    @property
    def piece_of(self) -> np.ndarray:
        """``(N,)`` piece of each point."""
        return np.repeat(np.arange(self.pieces), np.diff(self.start))

    @property
    def length_mm(self) -> float:
        """Total arc length."""
        return float(self.weight_mm.sum())


def chains_from_graph(graph: CenterlineGraph2D, camera: Camera, *, spacing_mm: float = 0.45) -> Chains:
    """Resample a traced graph to points about ``spacing_mm`` apart (mm at the isocentre)."""
    pixels, step, radius, integral, nodes, start = [], [], [], [], [], [0]
    scale = camera.mm_per_pixel
    for piece in graph.pieces:
        points = graph.points[piece.indices]
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        if arc[-1] <= 0:
            continue
        count = max(2, int(round(arc[-1] * scale / spacing_mm)) + 1)
        at = np.linspace(0.0, arc[-1], count)
        resampled = np.stack([np.interp(at, arc, points[:, k]) for k in (0, 1)], axis=1)
        pixels.append(resampled)
        step.append(np.concatenate([[0.0], np.linalg.norm(np.diff(resampled, axis=0), axis=1)]) * scale)
        radius.append(np.interp(at, arc, graph.radius_px[piece.indices]) * scale)
        integral.append(np.interp(at, arc, graph.line_integral[piece.indices]))
        nodes.append((piece.node_start, piece.node_end))
        start.append(start[-1] + count)
    if not pixels:
        empty = np.zeros(0)
        return Chains(np.zeros((0, 2)), np.zeros(1, np.int64), empty, empty, empty, empty, np.zeros((0, 2), np.int64),
                      np.zeros((0, 2)), np.zeros((0, 0, 2, 2)), np.zeros(0, bool), np.zeros(0, np.int64), scale)
    start = np.asarray(start)
    step = np.concatenate(step)
    weight = 0.5 * step
    weight[:-1] += 0.5 * step[1:]
    nodes = np.asarray(nodes)
    pixels = np.concatenate(pixels)
    radius = np.maximum(np.concatenate(radius), 0.1)
    return Chains(
        pixels,
        start,
        step,
        weight,
        radius,
        np.concatenate(integral),
        nodes,
        np.asarray(graph.nodes),
        _turns(pixels, start, nodes, radius / scale),
        np.asarray([kind == "crossing" for kind in graph.node_kind], bool),
        np.asarray(graph.node_degree),
        scale,
    )


def _turns(pixels, start, nodes, radius_px) -> np.ndarray:
    """Bends between piece ends that share a node, degrees."""
    count = len(start) - 1
    outward = np.zeros((count, 2, 2))
    for p in range(count):
        points = pixels[start[p]:start[p + 1]]
        # The direction is taken beyond the junction blob, where the skeleton is bent toward the node.
        reach = 3.0 + 2.0 * float(np.median(radius_px[start[p]:start[p + 1]]))
        for end, chain in ((0, points), (1, points[::-1])):
            away = np.linalg.norm(chain - chain[0], axis=1)
            far = int(np.argmax(away > reach)) if (away > reach).any() else len(chain) - 1
            near = int(np.argmax(away > 0.4 * reach)) if (away > 0.4 * reach).any() else 0
            direction = chain[far] - chain[min(near, far - 1) if far else 0]
            outward[p, end] = direction / max(np.linalg.norm(direction), 1e-9)
    turn = np.full((count, count, 2, 2), np.nan)
    for p in range(count):
        for q in range(count):
            for end_p in (0, 1):
                for end_q in (0, 1):
                    if (p, end_p) != (q, end_q) and nodes[p, end_p] == nodes[q, end_q]:
                        cosine = -float(outward[p, end_p] @ outward[q, end_q])
                        turn[p, q, end_p, end_q] = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return turn


def moved_chains(chains: Chains, pixels: np.ndarray, node_pixels: np.ndarray) -> Chains:
    """The same pieces elsewhere in the image: lengths and bends follow.

    Args:
        pixels: ``(N, 2)`` (col, row). node_pixels: ``(M, 2)``.
    """
    if not chains.pieces:
        return chains
    step = np.linalg.norm(np.diff(pixels, axis=0, prepend=pixels[:1]), axis=1) * chains.mm_per_pixel
    step[chains.start[:-1]] = 0.0
    weight = 0.5 * step
    weight[:-1] += 0.5 * step[1:]
    turn = _turns(pixels, chains.start, chains.node, chains.radius_mm / chains.mm_per_pixel)
    return replace(chains, pixels=pixels, node_pixels=node_pixels, step_mm=step, weight_mm=weight, turn_deg=turn)


def thinned(chains: Chains) -> tuple[Chains, np.ndarray]:
    """Every second point of every piece and its last, and which rows those are: searches need no more."""
    keep = []
    for begin, end in zip(chains.start[:-1], chains.start[1:], strict=True):
        rows = np.arange(begin, end, 2)
        keep.append(np.unique(np.append(rows, end - 1)))
    if not keep:
        return chains, np.zeros(0, np.int64)
    rows = np.concatenate(keep)
    start = np.concatenate([[0], np.cumsum([len(r) for r in keep])])
    arc = np.cumsum(chains.step_mm)[rows]
    step = np.diff(arc, prepend=0.0)
    step[start[:-1]] = 0.0
    weight = 0.5 * step
    weight[:-1] += 0.5 * step[1:]
    thin = replace(
        chains,
        pixels=chains.pixels[rows],
        start=start,
        step_mm=step,
        weight_mm=weight,
        radius_mm=chains.radius_mm[rows],
        line_integral=chains.line_integral[rows],
    )
    return thin, rows
