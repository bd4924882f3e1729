# SPDX-License-Identifier: Apache-2.0
"""Native operators; each has a plain-torch twin of the same signature in :mod:`licag3d.ops.reference`.

Importing this package imports torch: command lines import it inside the function that needs it.
"""

from __future__ import annotations

# Eager on purpose: a module and its function share a name, and the import here makes the name mean the function for good.
# A new operator adds its line here.
from licag3d.ops.project_volume import backproject, project_volume

__all__ = ["backproject", "project_volume"]
