# SPDX-License-Identifier: Apache-2.0
"""licag3d: a 3D coronary vessel tree from two X-ray angiograms. Research use only."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
