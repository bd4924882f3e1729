# SPDX-License-Identifier: Apache-2.0
"""The result of a reconstruction: what it holds, the files it becomes, and the page to look at."""

from __future__ import annotations

from licag3d.report.result import Reconstruction, StageRecord, write_result

__all__ = ["Reconstruction", "StageRecord", "write_result"]
