# SPDX-License-Identifier: Apache-2.0
"""Files in and out: readers of angiograms and cameras, writers of results. Heavy libraries are imported on use."""

from __future__ import annotations
