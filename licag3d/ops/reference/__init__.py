# SPDX-License-Identifier: Apache-2.0
"""Plain-torch twins of the native operators: same signatures, any float dtype and device, autograd throughout."""

from __future__ import annotations

import importlib

_HOME = {"project_volume": "volume", "backproject": "volume", "project_tubes": "tubes",
         "render_triplane": "triplane", "query_triplane": "triplane"}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
