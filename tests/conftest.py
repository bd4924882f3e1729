# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_folder() -> Path:
    """The folder with the contracts and the small real data: beside the repository, or where LICAG3D_SHARED says."""
    return Path(os.environ.get("LICAG3D_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real angiograms and cines, read in place and never copied."""
    folder = shared_folder() / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set LICAG3D_SHARED to the folder that holds data/")
    return folder
