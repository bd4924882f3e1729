# SPDX-License-Identifier: Apache-2.0
"""Real angiograms without 3D truth in the generator's training: line-integral images made by the vessel evidence.

A folder holds ``rca`` and ``lca``, each with frames or cines. The camera of ``a.png`` is in ``a.json`` beside it (the
format of cameras.json, one camera), that of a DICOM file in its header. Images of any sizes mix: each is brought to the
size of the discriminator, its camera with it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from licag3d.errors import InputError
from licag3d.geometry import Camera, Cameras
from licag3d.models.branch_table import ARTERIES

MAX_FILES = 20_000


@dataclass(frozen=True)
class RealImages:
    """Line-integral images ``(N, size, size)`` by artery, with their cameras as seen from the middle of the box."""

    images: dict[str, torch.Tensor]
    cameras: dict[str, tuple[Camera, ...]]

    def draw(self, rng: np.random.Generator, artery: str, size: int) -> tuple[torch.Tensor, Cameras]:
        """One image ``(1, size, size)`` and its camera, moved a little: its true depth is not known."""
        k = int(rng.integers(len(self.cameras[artery])))
        camera = self.cameras[artery][k].resized(size, size)
        offset = np.asarray(camera.offset_lps_mm) + rng.normal(0, 3.0, 3)
        image = torch.nn.functional.interpolate(self.images[artery][k][None, None], size=(size, size), mode="area")[0]
        return image, Cameras.stack([replace(camera, offset_lps_mm=tuple(offset))])


def read_real_images(folder, size: int) -> RealImages:
    """Read a folder of angiograms; slow once (the evidence of every image), so progress is shown.

    Raises:
        InputError: no such folder, one artery only, no image, or one without a camera.
    """
    from tqdm import tqdm

    from licag3d.io.files import sniff
    from licag3d.io.views import read_views
    from licag3d.models.vessel_evidence import vessel_evidence
    from licag3d.phantom.queries import center_from_views

    folder = Path(folder)
    found = {artery: _files(folder / artery) for artery in ARTERIES}
    for artery, files in found.items():
        if not files:
            raise InputError(
                f"{folder}: no images in {folder / artery}; both arteries are one model, so both folders (rca and lca) "
                "are needed"
            )
    images, cameras = {}, {}
    for artery, files in found.items():
        rows, views = [], []
        for file in tqdm(files, disable=None, unit="image", file=sys.stderr, desc=artery):
            sidecar = file.with_suffix(".json")
            if not sidecar.is_file() and sniff(file) != "DICOM":
                raise InputError(
                    f"{file.name} has no camera: an image without its angles and distances cannot train a model in 3D; "
                    f"write {sidecar.name} beside it (docs/formats.md, cameras.json)"
                )
            (view,), _ = read_views([str(file)], cameras=sidecar if sidecar.is_file() else None)
            evidence = vessel_evidence(view)
            middle = center_from_views([view.camera], [evidence.mask])
            line = torch.from_numpy(np.ascontiguousarray(evidence.line_integral, np.float32))
            rows.append(torch.nn.functional.interpolate(line[None, None], size=(size, size), mode="area")[0, 0])
            offset = tuple(np.asarray(view.camera.offset_lps_mm) + middle)
            views.append(replace(view.camera.resized(size, size), offset_lps_mm=offset))
        images[artery], cameras[artery] = torch.stack(rows), tuple(views)
    return RealImages(images, cameras)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() != ".json")
    if len(files) > MAX_FILES:
        raise InputError(f"{folder}: {len(files)} files; at most {MAX_FILES} are taken: give a part of them")
    return files
