# SPDX-License-Identifier: Apache-2.0
"""Finished stages on disk, so that an interrupted run goes on where it stopped. Plain arrays and JSON, no pickles."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

import licag3d
from licag3d.geometry import Camera
from licag3d.io.atomic import write_bytes
from licag3d.structures import View

FOLDER = ".licag3d-resume"


def fingerprint(views: Sequence[View], settings) -> str:
    """Changes with anything that changes the result: pixels, cameras, masks, settings, version."""
    digest = hashlib.sha256(licag3d.__version__.encode())
    digest.update(repr(settings).encode())
    for view in views:
        digest.update(repr(sorted(asdict(view.camera).items())).encode())
        digest.update(view.intensity.encode())
        for array in (view.image, view.valid, view.mask, view.background):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]


class StageStore:
    """Stages of one run in a hidden folder of the output folder; without a folder it stores nothing."""

    def __init__(self, folder: str | os.PathLike | None, key: str, *, resume: bool) -> None:
        self.folder = None if folder is None else Path(folder) / FOLDER
        self.key = key
        if self.folder is not None and not resume:
            self.clear()

    def save(self, stage: str, arrays: dict[str, np.ndarray], facts: dict) -> None:
        """Keep what a stage made."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        note = np.frombuffer(json.dumps({"key": self.key, "facts": facts}).encode(), np.uint8)
        np.savez_compressed(content, note=note, **arrays)
        write_bytes(self.folder / f"{stage}.npz", content.getvalue())

    def load(self, stage: str) -> tuple[dict[str, np.ndarray], dict] | None:
        """What the stage made in an earlier run with the same inputs and settings, or None."""
        path = None if self.folder is None else self.folder / f"{stage}.npz"
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            note = json.loads(arrays.pop("note").tobytes())
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            return None  # half a file is no stage
        return (arrays, note["facts"]) if note.get("key") == self.key else None

    def clear(self) -> None:
        """Remove what is stored."""
        if self.folder is not None and self.folder.is_dir() and not self.folder.is_symlink():
            shutil.rmtree(self.folder, ignore_errors=True)


def pack_cameras(cameras: Sequence[Camera]) -> list[dict]:
    """Cameras as JSON values."""
    return [asdict(camera) for camera in cameras]


def unpack_cameras(values: list[dict]) -> tuple[Camera, ...]:
    """Inverse of :func:`pack_cameras`."""
    return tuple(Camera(**{**value, "offset_lps_mm": tuple(value["offset_lps_mm"])}) for value in values)
