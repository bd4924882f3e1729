# SPDX-License-Identifier: Apache-2.0
"""C-arm geometry: implements docs/geometry.md; nothing else turns a point into a pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from licag3d.geometry.camera import Camera, scale_gauge, view_angle_deg

if TYPE_CHECKING:
    from licag3d.geometry.batch import Cameras, Rays

__all__ = ["Camera", "Cameras", "Rays", "scale_gauge", "view_angle_deg"]


def __getattr__(name: str):
    # Cameras needs torch, which takes seconds to import; command lines must answer --help without it.
    if name in ("Cameras", "Rays"):
        from licag3d.geometry import batch

        return getattr(batch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
