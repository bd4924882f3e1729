# SPDX-License-Identifier: Apache-2.0
"""Cost of the best paths of one view's centreline pieces through another view, for many camera candidates at once."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from licag3d.ops import native


class ChainArrays(Protocol):
    """Centreline pieces: piece p owns points ``start[p]:start[p + 1]``; lengths in mm at the isocentre."""

    start: np.ndarray
    step_mm: np.ndarray
    weight_mm: np.ndarray
    radius_mm: np.ndarray


@dataclass(frozen=True)
class PathPrices:
    """Prices of a path, in units of cost per mm of centreline.

    Args:
        none: per mm of centreline without a match.
        jump: per mm of 3D step beyond ``slack`` times the arc length seen in the image.
        jump_cap_mm: a longer jump costs no more (so that a crossing can be left).
        slack: steepness that is free.
        gap: for entering or leaving the unmatched state.
        turn: for going on in a piece of the other view that does not continue the last one.
        calibre: per mm, for a factor e between the calibres seen, up to ``calibre_cap``.
        tolerance_mm: how far off its epipolar line a point may lie where the other vessel ends or runs along the line.
        flat: slope below which a vessel counts as running along the epipolar line.
    """

    none: float = 0.6
    jump: float = 0.5
    jump_cap_mm: float = 8.0
    slack: float = 1.5
    gap: float = 0.5
    turn: float = 1.5
    calibre: float = 0.5
    calibre_cap: float = 1.5
    tolerance_mm: float = 0.4
    flat: float = 0.35


class _Chains(ctypes.Structure):
    _fields_ = [("points", ctypes.c_int64), ("pieces", ctypes.c_int64), ("start", ctypes.c_void_p),
                ("step_mm", ctypes.c_void_p), ("weight_mm", ctypes.c_void_p), ("log_radius", ctypes.c_void_p)]


class _Prices(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_double)
        for name in (
            "none",
            "jump",
            "jump_cap_mm",
            "slack",
            "gap",
            "calibre",
            "calibre_cap",
            "tolerance_mm",
            "reach_mm",
            "flat",
        )
    ]


def match_cost(
    chains_a: ChainArrays,
    chains_b: ChainArrays,
    theta_a: np.ndarray,
    phi_a: np.ndarray,
    theta_b: np.ndarray,
    phi_b: np.ndarray,
    baseline_mm: np.ndarray,
    turn: np.ndarray,
    prices: PathPrices,
    *,
    reach_mm: float,
    swapped: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Viterbi cost of every piece of view a through view b, summed, for M camera candidates.

    Args:
        theta_a, phi_a: ``(M, N_a)`` epipolar plane and ray angles of view a, radians; ``theta_b``, ``phi_b`` ``(M,
            N_b)``.
        baseline_mm: ``(M,)`` distance of the sources.
        turn: ``(P_b, P_b)`` price of going on from one piece of view b in another.
        reach_mm: distance from the baseline to the scene.
        swapped: view a is the second view of the baseline that ``phi`` is measured from.

    Returns:
        Cost ``(M,)`` and length with a match ``(M,)`` in mm.

    Raises:
        ValueError: arrays that do not fit each other.
    """
    count = len(baseline_mm)
    arrays = [np.ascontiguousarray(x, np.float64) for x in (theta_a, phi_a, theta_b, phi_b, baseline_mm, turn)]
    for name, array, chains in (("theta_a", arrays[0], chains_a), ("phi_a", arrays[1], chains_a),
                                ("theta_b", arrays[2], chains_b), ("phi_b", arrays[3], chains_b)):
        if array.shape != (count, len(chains.step_mm)):
            raise ValueError(f"{name} has shape {array.shape}; expected {(count, len(chains.step_mm))}")
    pieces = len(chains_b.start) - 1
    if arrays[5].shape != (pieces, pieces):
        raise ValueError(f"turn has shape {arrays[5].shape}; expected {(pieces, pieces)}")
    if native.cpu_library() is None:
        from licag3d.ops.reference.match import match_cost as twin

        return twin(chains_a, chains_b, *arrays, prices, reach_mm=reach_mm, swapped=swapped)
    cost, matched = np.zeros(count), np.zeros(count)
    packed_a, keep_a = _pack(chains_a)
    packed_b, keep_b = _pack(chains_b)
    native_prices = _Prices(
        *(getattr(prices, name) if name != "reach_mm" else reach_mm for name, _ in _Prices._fields_)
    )
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*arrays, cost, matched)]
    native.call("match_cost", torch.device("cpu"), packed_a, packed_b, native_prices, ctypes.c_int64(count),
                ctypes.c_int32(int(swapped)), *pointers)
    del keep_a, keep_b
    return cost, matched


def _pack(chains: ChainArrays) -> tuple[_Chains, tuple[np.ndarray, ...]]:
    keep = (np.ascontiguousarray(chains.start, np.int64), np.ascontiguousarray(chains.step_mm, np.float64),
            np.ascontiguousarray(chains.weight_mm, np.float64), np.log(np.asarray(chains.radius_mm, np.float64)))
    return _Chains(len(keep[1]), len(keep[0]) - 1, *(x.ctypes.data for x in keep)), keep
