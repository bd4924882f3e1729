# SPDX-License-Identifier: Apache-2.0
"""Hold SIRT on this project's operators against SIRT on itk-rtk's Joseph projector and its transpose.

    python -m benchmarks.crosscheck_rtk            in an environment that has itk-rtk as well (pip install itk-rtk)

The rivals SIRT and TV run on ``licag3d.ops``, so that nobody needs itk-rtk to repeat the benchmark. This program shows
that they lose nothing by it: the same line integrals of two tubes, seen from two views 60 degrees apart, go through
both projectors, and both volumes are compared. It prints the relative difference of the projections and of the volumes
and the seconds of either, and exits 1 where they differ by more than 3 percent (the two quadratures differ).
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from benchmarks.baselines.sirt_tv import sirt
from benchmarks.volumes import System
from licag3d.geometry import Camera, Cameras
from licag3d.geometry.batch import Rays
from licag3d.ops import project_tubes

SPACING_MM, VOXELS, PIXELS, ITERATIONS = 1.0, 80, 160, 15
CAMERAS = tuple(Camera(a, 0.0, 1000.0, 750.0, 0.9, 0.9, PIXELS, PIXELS) for a in (-30.0, 30.0))
LARGEST_DIFFERENCE = 0.03


def main() -> int:
    """Run both and compare."""
    try:
        import itk  # noqa: F401
        from itk import RTK  # noqa: F401
    except ImportError:
        print("itk-rtk is not installed here (pip install itk-rtk); nothing was compared", file=sys.stderr)
        return 2
    paths = _paths()
    ours, theirs = _our_system(paths), RtkSystem(paths)
    ball = torch.zeros(ours.shape)
    ball[30:50, 28:52, 33:47] = 0.1
    pairs = zip(ours.project(ball), theirs.project(ball), strict=True)
    projections = max(_difference(a, b) for a, b in pairs)
    results, seconds = [], []
    for system in (ours, theirs):
        began = time.perf_counter()
        results.append(sirt(system, ITERATIONS))
        seconds.append(time.perf_counter() - began)
    volumes = _difference(results[0][0], results[1][0])
    print(f"projections of a block: relative difference {projections:.4f}")
    print(f"SIRT after {ITERATIONS} iterations: relative difference of the volumes {volumes:.4f}")
    print(f"misfit: ours {results[0][1]:.4f}, itk-rtk {results[1][1]:.4f}")
    print(f"seconds: ours {seconds[0]:.2f}, itk-rtk {seconds[1]:.2f}")
    return int(max(projections, volumes) > LARGEST_DIFFERENCE)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _paths() -> tuple[torch.Tensor, ...]:
    """Line integrals of two crossing tubes at 0.16 per mm."""
    points = torch.tensor([[-20.0, -8.0, -25.0], [18.0, 10.0, 28.0], [0.0, 1.0, 1.5], [25.0, -20.0, 5.0]])
    segments = torch.tensor([[0, 1], [2, 3]])
    cameras = Cameras.stack(CAMERAS)
    return tuple(0.16 * project_tubes(points, torch.full((4,), 2.5), segments, cameras))


def _origin() -> tuple[float, float, float]:
    return (-(VOXELS - 1) / 2 * SPACING_MM,) * 3


def _our_system(paths: tuple[torch.Tensor, ...]) -> System:
    rays = []
    for camera in CAMERAS:
        start, to_pixel = Cameras.stack([camera], dtype=torch.float32).rays()
        rays.append(Rays(start[0].contiguous(), to_pixel[0].contiguous()))
    return System(tuple(rays), paths, (VOXELS,) * 3, _origin(), SPACING_MM)


class RtkSystem:
    """The same methods as :class:`benchmarks.volumes.System`, on itk-rtk.

    The volume is handed over in the axes of RTK, whose rotation axis is y: (x, y, z) of RTK are (x, -z, y) here, and
    the gantry angle is minus the primary angle. That this is right shows in the projections, which agree.
    """

    def __init__(self, paths: tuple[torch.Tensor, ...]) -> None:
        from itk import RTK as rtk

        self.targets, self.shape, self.spacing_mm = paths, (VOXELS,) * 3, SPACING_MM
        self.geometry = []
        for camera in CAMERAS:
            geometry = rtk.ThreeDCircularProjectionGeometry.New()
            geometry.AddProjection(camera.sod_mm, camera.sid_mm, -camera.primary_deg)
            self.geometry.append(geometry)

    def project(self, volume: torch.Tensor) -> list[torch.Tensor]:
        """Line integrals per view."""
        grid = _image(_to_rtk(volume), [SPACING_MM] * 3)
        screen = np.zeros((1, PIXELS, PIXELS), np.float32)
        spacing = [CAMERAS[0].spacing_col_mm] * 2 + [1.0]
        return [
            torch.from_numpy(_apply("JosephForwardProjectionImageFilter", g, _image(screen, spacing), grid)[0].copy())
            for g in self.geometry
        ]

    def back_view(self, k: int, image: torch.Tensor) -> torch.Tensor:
        """The transpose of view k."""
        spacing = [CAMERAS[0].spacing_col_mm] * 2 + [1.0]
        screen = _image(np.ascontiguousarray(image.numpy()[None], np.float32), spacing)
        grid = _image(np.zeros(self.shape, np.float32), [SPACING_MM] * 3)
        return _from_rtk(_apply("JosephBackProjectionImageFilter", self.geometry[k], grid, screen))

    def back(self, images) -> torch.Tensor:
        """The transpose of all views."""
        return sum(self.back_view(k, image) for k, image in enumerate(images))

    support = System.support


def _to_rtk(volume: torch.Tensor) -> np.ndarray:
    """(z, y, x) here to (z, y, x) of RTK: its rotation axis y runs down the image, which is our -z, its z is our y."""
    return np.ascontiguousarray(volume.numpy().transpose(1, 0, 2)[:, ::-1], np.float32)


def _from_rtk(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values[:, ::-1].transpose(1, 0, 2), np.float32))


def _image(values: np.ndarray, spacing: list[float]):
    import itk

    image = itk.image_from_array(values)
    image.SetSpacing(spacing)
    image.SetOrigin([-(n - 1) / 2 * s for n, s in zip(values.shape[::-1], spacing, strict=True)])
    return image


def _apply(name: str, geometry, target, values) -> np.ndarray:
    import itk
    from itk import RTK as rtk

    image_type = itk.Image[itk.F, 3]
    pipeline = getattr(rtk, name)[image_type, image_type].New()
    pipeline.SetGeometry(geometry)
    pipeline.InPlaceOff()
    pipeline.SetInput(0, target)
    pipeline.SetInput(1, values)
    pipeline.Update()
    return itk.array_view_from_image(pipeline.GetOutput())


if __name__ == "__main__":
    raise SystemExit(main())
