# SPDX-License-Identifier: Apache-2.0
"""Viterbi algorithm over all pieces of a view at once, forwards and backwards.

Forney, The Viterbi algorithm, Proc. IEEE 61 (1973). Min-marginals are the cheapest cost of any path through a state.
"""

from __future__ import annotations

import numpy as np


class PieceOrder:
    """Which points are the t-th of their piece, longest pieces first, so that one numpy call serves all pieces."""

    def __init__(self, start: np.ndarray) -> None:
        start = np.asarray(start)
        length = np.diff(start)
        order = np.argsort(-length, kind="stable")
        self.start, self.last = start[:-1], start[1:] - 1
        deepest = int(length.max(initial=0))
        self.rows = [start[:-1][order[: int((length > t).sum())]] + t for t in range(deepest)]


def forward(order: PieceOrder, unary: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """``(N, S)`` cheapest cost of a path from the start of the piece to every state, that state included."""
    cost = unary.copy()
    for rows in order.rows[1:]:
        cost[rows] += (cost[rows - 1][:, :, None] + pair[rows]).min(axis=1)
    return cost


def backward(order: PieceOrder, unary: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """``(N, S)`` cheapest cost of a path from every state, that state excluded, to the end of the piece."""
    cost = np.zeros_like(unary)
    for rows in order.rows[:0:-1]:
        cost[rows - 1] = ((cost[rows] + unary[rows])[:, None, :] + pair[rows]).min(axis=2)
    return cost


def min_marginals(order: PieceOrder, unary: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """``(N, S)`` cheapest cost of a whole path of the piece that goes through every state."""
    return forward(order, unary, pair) + backward(order, unary, pair)


def cheapest_path(unary: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, float]:
    """States ``(n,)`` of the cheapest path of one piece (``pair[0]`` unused), and its cost."""
    count = len(unary)
    back = np.zeros(unary.shape, np.int64)
    cost = unary[0]
    for i in range(1, count):
        arrive = cost[:, None] + pair[i]
        back[i] = arrive.argmin(axis=0)
        cost = arrive.min(axis=0) + unary[i]
    states = np.empty(count, np.int64)
    states[-1] = int(cost.argmin())
    for i in range(count - 1, 0, -1):
        states[i - 1] = back[i, states[i]]
    return states, float(cost.min())
