# SPDX-License-Identifier: Apache-2.0
"""Native operators; each has a plain-torch twin of the same signature in :mod:`licag3d.ops.reference`.

Importing this package imports torch: command lines import it inside the function that needs it.
"""

from __future__ import annotations

# Eager on purpose: a module and its function share a name, and the import here makes the name mean the function for
# good. A new operator adds its line here.
from licag3d.ops.match import match_cost
from licag3d.ops.project_tubes import project_tubes
from licag3d.ops.project_volume import backproject, project_volume
from licag3d.ops.query_triplane import query_triplane
from licag3d.ops.render_triplane import render_triplane
from licag3d.ops.triplane_decoder import TriplaneDecoder
from licag3d.ops.triplane_occupancy import occupancy_of

__all__ = [
    "TriplaneDecoder",
    "backproject",
    "match_cost",
    "occupancy_of",
    "project_tubes",
    "project_volume",
    "query_triplane",
    "render_triplane",
]
