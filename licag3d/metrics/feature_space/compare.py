# SPDX-License-Identifier: Apache-2.0
"""Every distance between two sets of frames in the feature space of one named encoder, beside its own noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from licag3d.metrics.feature_space.frechet import check_features, frechet_distance
from licag3d.metrics.feature_space.kernels import kernel_inception_distance, mmd_rbf
from licag3d.metrics.feature_space.neighbours import neighbour_scores


@dataclass(frozen=True)
class Distance:
    """One figure with its 95 % interval and, where it exists, the same figure for two halves of the real set.

    ``floor`` is the mean over random halves brought to the same number of vectors as ``value``; a ``value`` near it
    says that the encoder cannot tell the sets apart.
    """

    value: float
    low: float
    high: float
    floor: float | None = None


def compare_features(
    real: np.ndarray, other: np.ndarray, *, encoder: str, k: int = 5, draws: int = 60, seed: int = 0
) -> dict[str, Distance]:
    """Distances of two sets of feature vectors, named after the encoder that made them.

    Every figure is computed on random halves of equal size h of both sets, drawn again and again without replacement:
    the mean is the value, and the spread of half samples is that of the whole set (McCarthy, Rev. Int. Stat. Inst.
    1969), without the duplicates of a bootstrap, which would shrink every k-th neighbour. The floor is computed on
    disjoint halves of the real set, of the same size and so with the same bias. Features are standardised and
    reduced to the first ``h // 5`` principal directions of both sets together, each scaled to unit variance: more
    dimensions than that measure the sample, not the frames.

    Args:
        real: ``(n, d)`` features of real frames, n at least 20.
        other: ``(m, d)``, m at least 20.
        encoder: name and hash, for example ``vasomim-3m-1a2b3c4d``; part of every name.
        draws: half samples.

    Returns:
        ``fd_<encoder>``, ``kid_<encoder>``, ``mmd_<encoder>``, ``mmd_p_<encoder>``, ``precision_<encoder>``,
        ``recall_<encoder>``, ``density_<encoder>``, ``coverage_<encoder>``.

    Raises:
        ValueError: too few vectors.
    """
    real, other = check_features(real, other)
    size = min(len(real), len(other)) // 2
    if size < 10:
        raise ValueError(f"{len(real)} real and {len(other)} other frames; give at least 20 of each")
    k = min(k, size - 1)
    rng = np.random.default_rng(seed)

    def half(x: np.ndarray) -> np.ndarray:
        return x[rng.permutation(len(x))[:size]]

    # Fitted to both alike: directions fitted to one set only would set it apart from any other.
    both = np.concatenate((half(real), half(other)))
    project = _standardiser(both, max(1, min(real.shape[1], size // 5)))
    real, other = project(real), project(other)

    values = [_figures(half(real), half(other), k) for _ in range(draws)]
    floors = []
    for _ in range(max(draws // 4, 5)):
        order = rng.permutation(len(real))
        floors.append(_figures(real[order[:size]], real[order[size : 2 * size]], k))
    result = {}
    for name in values[0]:
        drawn = np.array([one[name] for one in values])
        low, high = np.percentile(drawn, (2.5, 97.5))
        floor = float(np.mean([one[name] for one in floors]))
        result[f"{name}_{encoder}"] = Distance(float(drawn.mean()), float(low), float(high), floor)
    p = mmd_rbf(half(real), half(other), permutations=200, seed=seed)[1]
    result[f"mmd_p_{encoder}"] = Distance(p, p, p)
    return result


def _figures(real: np.ndarray, other: np.ndarray, k: int) -> dict[str, float]:
    near = neighbour_scores(real, other, k=k)
    return {
        "fd": frechet_distance(real, other),
        "kid": kernel_inception_distance(real, other),
        "mmd": mmd_rbf(real, other, permutations=0)[0],
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
    }


def _standardiser(features: np.ndarray, dimensions: int):
    mean, deviation = features.mean(0), features.std(0)
    scale = np.where(deviation > 1e-9, 1 / np.maximum(deviation, 1e-9), 0.0)
    _, spread, vt = np.linalg.svd((features - mean) * scale, full_matrices=False)
    unit = np.sqrt(len(features)) / np.maximum(spread[:dimensions], 1e-9 * max(spread[0], 1e-9))
    return lambda x: (x - mean) * scale @ vt[:dimensions].T * unit
