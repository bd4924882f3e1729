# SPDX-License-Identifier: Apache-2.0
"""A tiny pool of pairs, rendered once for all tests of synthesis."""

from __future__ import annotations

import pytest

from licag3d.data.contrast_pairs import grow_pairs
from licag3d.phantom.splits import VALIDATION

ROWS = 96


@pytest.fixture(scope="session")
def pair_pools(tmp_path_factory):
    """Folder with ``pool`` (two still pairs, one moving) and ``checked`` (one validation pair)."""
    folder = tmp_path_factory.mktemp("pairs")
    grow_pairs(folder / "pool", 1, views=2, rows=ROWS, kappas=(0.1,))
    grow_pairs(folder / "pool", 1, first=1, views=1, rows=ROWS, kappas=(0.0, 0.3), moving_share=1.0)
    grow_pairs(folder / "checked", 1, views=1, rows=ROWS, split=VALIDATION, kappas=(0.0, 0.2))
    return folder
