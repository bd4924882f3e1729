# SPDX-License-Identifier: Apache-2.0
"""Which phantom seeds serve what. A model that has seen a benchmark seed in training proves nothing, so the ranges
never meet; ``licag3d.train`` and ``tools/benchmark_reconstruction.py`` draw from here and nowhere else.
"""

from __future__ import annotations

from licag3d.errors import InputError

#: Development by hand, bundled examples and unit tests.
DEVELOPMENT = range(0, 50_000)
#: Choice of models, thresholds and prices.
VALIDATION = range(50_000, 60_000)
#: Leaderboards; looked at only to report.
BENCHMARK = range(90_000, 91_000)
#: Training streams.
TRAINING = range(1_000_000, 2_000_000_000)


def training_seed(number: int) -> int:
    """The seed of patient ``number`` of a training stream.

    Raises:
        InputError: ``number`` is negative or beyond the range.

    Example:
        >>> training_seed(5)
        1000005
    """
    if not 0 <= number < len(TRAINING):
        raise InputError(f"training patient number is {number}; give 0 to {len(TRAINING) - 1}")
    return TRAINING[number]
