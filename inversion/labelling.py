# SPDX-License-Identifier: Apache-2.0
"""Choose one label per variable so that unary and pairwise costs are least: min-sum messages, then local search.

Koller and Friedman, Probabilistic Graphical Models, chapter 13 (max-product belief propagation, iterated
conditional modes). The problems here have tens of variables with about ten labels each.
"""

from __future__ import annotations

import numpy as np


def least_cost_labels(unary: list[np.ndarray], pairwise: dict[tuple[int, int], np.ndarray], *, seed: int = 0,
                      rounds: int = 40, damping: float = 0.5, restarts: int = 30) -> tuple[np.ndarray, float]:
    """Labels of low total cost (not proven to be the least).

    Args:
        unary: for each variable its label costs ``(L_v,)``.
        pairwise: ``{(v, w): (L_v, L_w)}`` with v < w.
        restarts: random perturbations tried after the messages have settled.

    Returns:
        The label of each variable, and the total cost.
    """
    if not unary:
        return np.zeros(0, int), 0.0
    neighbours: list[list[tuple[int, np.ndarray]]] = [[] for _ in unary]
    for (v, w), cost in pairwise.items():
        neighbours[v].append((w, cost))
        neighbours[w].append((v, cost.T))
    labels = _improve(_messages(unary, pairwise, neighbours, rounds, damping), unary, neighbours)
    best = _energy(labels, unary, pairwise)
    alone = _improve(np.array([int(u.argmin()) for u in unary]), unary, neighbours)
    energy = _energy(alone, unary, pairwise)
    if energy < best:
        labels, best = alone, energy
    rng = np.random.default_rng(seed)
    for _ in range(restarts):
        # Kick one variable and its neighbours to other labels: what single moves cannot reach.
        trial = labels.copy()
        v = int(rng.integers(len(unary)))
        trial[v] = rng.integers(len(unary[v]))
        for w, cost in neighbours[v]:
            if rng.random() < 0.7:
                trial[w] = int((unary[w] + cost[trial[v]]).argmin())
        trial = _improve(trial, unary, neighbours)
        energy = _energy(trial, unary, pairwise)
        if energy < best - 1e-9:
            labels, best = trial, energy
    return labels, float(best)


def _messages(unary, pairwise, neighbours, rounds, damping) -> np.ndarray:
    message = {(v, w): np.zeros(len(unary[w])) for a, b in pairwise for v, w in ((a, b), (b, a))}
    belief = [u.copy() for u in unary]
    for _ in range(rounds):
        for v in range(len(unary)):
            belief[v] = unary[v] + sum((message[w, v] for w, _ in neighbours[v]), np.zeros(len(unary[v])))
            for w, cost in neighbours[v]:
                fresh = ((belief[v] - message[w, v])[:, None] + cost).min(axis=0)
                fresh -= fresh.min()
                message[v, w] = damping * message[v, w] + (1 - damping) * fresh
    return np.array([int(b.argmin()) for b in belief])


def _improve(labels, unary, neighbours) -> np.ndarray:
    """Single changes as long as one lowers the cost."""
    labels = labels.copy()
    changed = True
    while changed:
        changed = False
        for v, own in enumerate(unary):
            cost = own + sum((table[:, labels[w]] for w, table in neighbours[v]), np.zeros(len(own)))
            k = int(cost.argmin())
            if cost[k] < cost[labels[v]] - 1e-9:
                labels[v], changed = k, True
    return labels


def _energy(labels, unary, pairwise) -> float:
    return float(sum(u[k] for u, k in zip(unary, labels, strict=True))
                 + sum(cost[labels[v], labels[w]] for (v, w), cost in pairwise.items()))
