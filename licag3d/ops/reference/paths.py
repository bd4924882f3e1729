# SPDX-License-Identifier: Apache-2.0
"""Readable twins of :mod:`licag3d.ops.paths`: the Viterbi algorithm on one piece after the other.

Forney, The Viterbi algorithm, Proc. IEEE 61 (1973).
"""

from __future__ import annotations

import numpy as np


def min_marginals(start: np.ndarray, unary: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Same arguments and results as :func:`licag3d.ops.paths.min_marginals`."""
    reach, rest = unary.copy(), np.zeros_like(unary)
    for begin, end in zip(start[:-1], start[1:], strict=True):
        for t in range(begin + 1, end):
            reach[t] += (reach[t - 1][:, None] + pair[t]).min(axis=0)
        for t in range(end - 1, begin, -1):
            rest[t - 1] = ((rest[t] + unary[t])[None] + pair[t]).min(axis=1)
    return reach + rest


def cheapest_paths(start: np.ndarray, unary: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Same arguments and results as :func:`licag3d.ops.paths.cheapest_paths`."""
    states, costs = np.zeros(len(unary), np.int64), np.zeros(len(start) - 1)
    back = np.zeros(unary.shape, np.int64)
    for piece, (begin, end) in enumerate(zip(start[:-1], start[1:], strict=True)):
        cost = unary[begin]
        for t in range(begin + 1, end):
            arrive = cost[:, None] + pair[t]
            back[t] = arrive.argmin(axis=0)
            cost = arrive.min(axis=0) + unary[t]
        states[end - 1], costs[piece] = cost.argmin(), cost.min()
        for t in range(end - 1, begin, -1):
            states[t - 1] = back[t, states[t]]
    return states, costs
