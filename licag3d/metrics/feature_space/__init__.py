# SPDX-License-Identifier: Apache-2.0
"""Distances between sets of frames in the feature space of an angiogram encoder; see docs/feature-space.md."""

from licag3d.metrics.feature_space.compare import Distance, compare_features
from licag3d.metrics.feature_space.frechet import frechet_distance
from licag3d.metrics.feature_space.kernels import kernel_inception_distance, mmd_rbf
from licag3d.metrics.feature_space.neighbours import Neighbours, neighbour_scores

__all__ = [
    "Distance",
    "Neighbours",
    "compare_features",
    "frechet_distance",
    "kernel_inception_distance",
    "mmd_rbf",
    "neighbour_scores",
]
