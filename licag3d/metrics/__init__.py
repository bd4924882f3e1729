# SPDX-License-Identifier: Apache-2.0
"""Pinned metrics: one definition each (docs/metrics.md), units and tolerances in the names."""

from __future__ import annotations
