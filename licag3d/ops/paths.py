# SPDX-License-Identifier: Apache-2.0
"""Cheapest paths and min-marginals of pieces of points whose costs are given (Viterbi, all pieces in one call).

Unlike the torch operators these take and give numpy arrays: nothing is differentiated through them.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from licag3d.ops import native


class _Costs(ctypes.Structure):
    _fields_ = [("points", ctypes.c_int64), ("pieces", ctypes.c_int64), ("states", ctypes.c_int64),
                ("start", ctypes.c_void_p), ("unary", ctypes.c_void_p), ("pair", ctypes.c_void_p)]


def min_marginals(start: np.ndarray, unary: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Cheapest cost of a whole path of the piece that goes through every state.

    Args:
        start: ``(P + 1,)`` piece p owns points ``start[p]:start[p + 1]``, at least one.
        unary: ``(N, S)`` cost of every state of every point, finite.
        pair: ``(N, S, S)`` cost of a state (last axis) after a state of the point before; not read for the first
            point of a piece.

    Returns:
        ``(N, S)`` float64.

    Raises:
        ValueError: arrays that do not fit each other.
    """
    start, unary, pair = _checked(start, unary, pair)
    if native.cpu_library() is None:
        from licag3d.ops.reference.paths import min_marginals as twin

        return twin(start, unary, pair)
    out = np.zeros_like(unary)
    native.call("path_marginals", torch.device("cpu"), _pack(start, unary, pair), ctypes.c_void_p(out.ctypes.data))
    return out


def cheapest_paths(start: np.ndarray, unary: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States ``(N,)`` int64 of the cheapest path of every piece, the first of equal ones, and its cost ``(P,)``.

    Arguments and errors as of :func:`min_marginals`.
    """
    start, unary, pair = _checked(start, unary, pair)
    if native.cpu_library() is None:
        from licag3d.ops.reference.paths import cheapest_paths as twin

        return twin(start, unary, pair)
    states, costs = np.zeros(len(unary), np.int64), np.zeros(len(start) - 1)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (states, costs)]
    native.call("cheapest_paths", torch.device("cpu"), _pack(start, unary, pair), *pointers)
    return states, costs


def _checked(start, unary, pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start = np.ascontiguousarray(start, np.int64)
    unary, pair = np.ascontiguousarray(unary, np.float64), np.ascontiguousarray(pair, np.float64)
    if unary.ndim != 2 or unary.shape[1] < 1 or pair.shape != (*unary.shape, unary.shape[1]):
        raise ValueError(f"unary {unary.shape} and pair {pair.shape} do not fit; expected (N, S) and (N, S, S)")
    if start.ndim != 1 or len(start) < 1 or start[0] != 0 or start[-1] != len(unary) or np.any(np.diff(start) < 1):
        raise ValueError(f"start does not divide {len(unary)} points in pieces of one or more: {start[:5]}")
    return start, unary, pair


def _pack(start: np.ndarray, unary: np.ndarray, pair: np.ndarray) -> _Costs:
    return _Costs(len(unary), len(start) - 1, unary.shape[1], *(x.ctypes.data for x in (start, unary, pair)))
