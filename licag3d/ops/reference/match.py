# SPDX-License-Identifier: Apache-2.0
"""Readable twin of :func:`licag3d.ops.match.match_cost`: candidates on the epipolar line, then the Viterbi algorithm.

Forney, The Viterbi algorithm, Proc. IEEE 61 (1973).
"""

from __future__ import annotations

import numpy as np

LIMIT = 32  # candidates of a point


def match_cost(
    chains_a, chains_b, theta_a, phi_a, theta_b, phi_b, baseline_mm, turn, prices, *, reach_mm, swapped=False
):
    """Same arguments and results as :func:`licag3d.ops.match.match_cost`."""
    results = [_one(chains_a, chains_b, *angles, turn, prices, reach_mm, swapped)
               for angles in zip(theta_a, phi_a, theta_b, phi_b, baseline_mm, strict=True)]
    return np.array([r[0] for r in results]), np.array([r[1] for r in results])


def _one(chains_a, chains_b, theta_a, phi_a, theta_b, phi_b, baseline_mm, turn, prices, reach_mm, swapped):
    total = matched = 0.0
    for begin, end in zip(chains_a.start[:-1], chains_a.start[1:], strict=True):
        before = None
        for i in range(begin, end):
            points, costs, pieces = _candidates(
                chains_a, chains_b, i, theta_a[i], phi_a[i], theta_b, phi_b, baseline_mm, prices, reach_mm, swapped
            )
            weight = chains_a.weight_mm[i]
            own = np.append(costs, prices.none) * weight
            gain = np.append(np.full(len(costs), weight), 0.0)
            if before is None:
                reach, length = own, gain
            else:
                step = np.full((len(before[1]) + 1, len(costs) + 1), prices.gap)
                distance = np.linalg.norm(points[None] - before[0][:, None], axis=-1)
                jump = np.clip(distance - prices.slack * chains_a.step_mm[i], 0.0, prices.jump_cap_mm)
                step[:-1, :-1] = prices.jump * jump + turn[before[1][:, None], pieces[None]]
                step[-1, -1] = 0.0
                arrive = reach[:, None] + step
                # The unmatched state wins ties, as in the native loop.
                order = np.concatenate([arrive[-1:], arrive[:-1]])
                best = order.argmin(axis=0)
                reach = order.min(axis=0) + own
                length = np.concatenate([length[-1:], length[:-1]])[best] + gain
            before = (points, pieces)
        if end > begin:
            best = int(reach.argmin())
            total, matched = total + reach[best], matched + length[best]
    return total, matched


def _candidates(chains_a, chains_b, i, theta, phi, theta_b, phi_b, baseline_mm, prices, reach_mm, swapped):
    points, costs, pieces = [], [], []
    for p, (begin, end) in enumerate(zip(chains_b.start[:-1], chains_b.start[1:], strict=True)):
        for j in range(begin, end - 1):
            rise = theta_b[j + 1] - theta_b[j]
            fraction = 0.5 if abs(rise) < 1e-9 else (theta - theta_b[j]) / rise
            clipped = min(max(fraction, 0.0), 1.0)
            miss = abs(theta - theta_b[j] - clipped * rise) * reach_mm
            if not 0 <= fraction < 1:
                flat = abs(rise) * reach_mm < prices.flat * max(chains_b.step_mm[j + 1], 1e-6)
                if miss >= prices.tolerance_mm or not (flat or j == begin or j + 2 == end):
                    continue
            radius = chains_b.radius_mm[j if clipped < 0.5 else j + 1]
            calibre = min(abs(np.log(chains_a.radius_mm[i] / radius)), prices.calibre_cap)
            other = phi_b[j] + clipped * (phi_b[j + 1] - phi_b[j])
            points.append(_triangulate(baseline_mm, theta, *((other, phi) if swapped else (phi, other))))
            costs.append(prices.calibre * calibre + 0.5 * (miss / prices.tolerance_mm) ** 2)
            pieces.append(p)
    order = np.argsort(costs, kind="stable")[:LIMIT] if len(costs) > LIMIT else np.arange(len(costs))
    return (np.array(points).reshape(-1, 3)[order], np.array(costs)[order], np.array(pieces, int)[order])


def _triangulate(baseline_mm, theta, phi_first, phi_second):
    """Law of sines in the plane of both sources and the point; along, toward and across the baseline, mm."""
    apex = np.sin(phi_second - phi_first)
    apex = 1e-6 if abs(apex) < 1e-6 else apex
    distance = np.clip(baseline_mm * np.sin(phi_second) / apex, -10 * baseline_mm, 10 * baseline_mm)
    height = distance * np.sin(phi_first)
    return np.array([distance * np.cos(phi_first), height * np.cos(theta), height * np.sin(theta)])
