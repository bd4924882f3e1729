# SPDX-License-Identifier: Apache-2.0
"""Times the native operators against their plain-torch twins and against other projectors, side by side in one run.

    python tools/benchmark_kernels.py [--json out.json] [--threads N] [--isa avx2] [--rounds 9]

Rivals run when they can be imported (`pip install itk-rtk diffdrr`, best in an environment of its own); otherwise the
table says why not. All contestants get the same phantom (a ball), the same geometry (SID 1000 mm, SOD 750 mm, primary
angle 30 degrees, a 140 mm cube) and the same number of threads; each first proves that its image of the ball is the
right one. Contestants take turns, round after round, so that a change of the machine's speed meets all of them; quoted
are the medians. Times are of whole calls as a user makes them, from camera to image, with the volume in memory;
for itk-rtk the update of a pipeline that is already set up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BOX_MM, SID_MM, SOD_MM, ANGLE_DEG = 140.0, 1000.0, 750.0, 30.0
Contest = dict[str, Callable[[], np.ndarray | None]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads for everyone, 0 for all cores")
    parser.add_argument("--isa", default="", help="plain, avx2 or avx512; default the best one here")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", default="128:256,256:512", help="voxels per edge : pixels per edge, comma-separated")
    parser.add_argument("--no-twins", action="store_true", help="leave out the plain-torch twins, which are slow")
    options = parser.parse_args()
    import torch

    from licag3d.ops import native

    threads = options.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    torch.set_num_threads(threads)
    isa = native.set_isa(options.isa or None)
    machine = f"{_processor()}, {threads} threads, {isa}, torch {torch.__version__}, {platform.system()}"
    print(machine)
    reasons: dict[str, str] = {}
    results = []
    for size in options.sizes.split(","):
        voxels, pixels = (int(x) for x in size.split(":"))
        for title, contest, check in _volume_contests(voxels, pixels, threads, options, reasons):
            results.append(_run(title, contest, check, options.rounds))
    for title, contest, check in _tube_contest(options):
        results.append(_run(title, contest, check, options.rounds))
    for name, reason in reasons.items():
        print(f"{name}: not run: {reason}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.json.with_suffix(".tmp")
        report = {"what": "kernels", "machine": machine, "load": list(os.getloadavg()), "rounds": options.rounds,
                  "not_run": reasons, "results": results}
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(temporary, options.json)
    return 0


def _run(title: str, contest: Contest, check: Callable[[str, np.ndarray], None], rounds: int) -> dict:
    """All contestants in turn; milliseconds as median, least and most, and the ratio to licag3d."""
    times: dict[str, list[float]] = {name: [] for name in contest}
    slow: set[str] = set()
    for number in range(rounds + 1):  # the first round warms up and is checked
        for name, call in contest.items():
            if name in slow and number > 1:
                continue  # one round of something that takes seconds is enough
            begin = time.perf_counter()
            out = call()
            seconds = time.perf_counter() - begin
            if number == 0:
                check(name, out)
            else:
                times[name].append(1e3 * seconds)
            if seconds > 1.5:
                slow.add(name)
    reference = statistics.median(times["licag3d"])
    print(f"\n{title}\n  {'':34}{'median ms':>10}{'least':>9}{'most':>9}{'ratio':>9}")
    rows = {}
    for name, values in times.items():
        median = statistics.median(values)
        rows[name] = {"median_ms": round(median, 3), "least_ms": round(min(values), 3),
                      "most_ms": round(max(values), 3), "ratio": round(median / reference, 3),
                      "rounds": len(values)}
        print(f"  {name:34}{median:10.2f}{min(values):9.2f}{max(values):9.2f}{median / reference:9.2f}")
    return {"title": title, "contestants": rows}


def _volume_contests(voxels: int, pixels: int, threads: int, options: argparse.Namespace, reasons: dict[str, str]):
    import torch

    from licag3d.geometry import Camera, Cameras
    from licag3d.ops import backproject, project_volume, reference

    edge_mm, spacing_mm = BOX_MM / voxels, 1.33 * BOX_MM / pixels
    ball, chord = _ball(voxels, edge_mm), _chords(pixels, spacing_mm)
    cameras = Cameras.stack([Camera(ANGLE_DEG, 0, sid_mm=SID_MM, sod_mm=SOD_MM, spacing_row_mm=spacing_mm,
                                    spacing_col_mm=spacing_mm, rows=pixels, cols=pixels)])
    volume = torch.from_numpy(ball)
    image = torch.from_numpy(chord)[None].float()
    grid = {"voxel_size_mm": edge_mm, "origin_mm": (-(BOX_MM - edge_mm) / 2,) * 3}

    def same_chords(name: str, out: np.ndarray) -> None:
        error = np.abs(np.asarray(out).reshape(pixels, pixels) - chord).mean() / chord.mean()
        if not error < 0.02:
            raise SystemExit(f"{name} gives another image of the ball (mean error {100 * error:.1f} %)")

    forward: Contest = {"licag3d": lambda: project_volume(volume, cameras, **grid).numpy(),
                        "licag3d, march at the voxel size": lambda: project_volume(volume, cameras, **grid,
                                                                                   step_mm=edge_mm).numpy()}
    back: Contest = {"licag3d": lambda: backproject(image, cameras, shape=volume.shape, **grid).numpy()}
    if not options.no_twins and voxels <= 128:
        forward["plain torch twin"] = lambda: reference.project_volume(volume, cameras, **grid).numpy()
        back["plain torch twin"] = lambda: reference.backproject(image, cameras, shape=volume.shape, **grid).numpy()
    try:
        project_rtk, back_rtk = _rtk(ball, chord, edge_mm, spacing_mm, threads)
        forward["itk-rtk Joseph"], back["itk-rtk Joseph"] = project_rtk, back_rtk
    except ImportError as error:
        reasons["itk-rtk"] = f"{error} (pip install itk-rtk)"
    try:
        # As many samples as voxels along an edge; its default of 500 too where the memory for that is modest.
        for points in (voxels, 500) if voxels <= 128 else (voxels,):
            forward[f"DiffDRR trilinear, {points} points"] = _diffdrr(ball, edge_mm, spacing_mm, pixels, points)
    except ImportError as error:
        reasons["DiffDRR"] = f"{error} (pip install diffdrr)"

    def same_inner_product(name: str, out: np.ndarray) -> None:
        # Transposes differ in how they spread a ray, but <A' y, ball> = <y, A ball> for each.
        product = float((np.asarray(out, np.float64).reshape(ball.shape) * ball).sum())
        if not abs(product - float((chord**2).sum())) < 0.03 * float((chord**2).sum()):
            raise SystemExit(f"{name} is not the transpose of the projection ({product:.4g})")

    yield f"project {voxels}^3 -> {pixels}^2", forward, same_chords
    yield f"backproject {pixels}^2 -> {voxels}^3", back, same_inner_product


def _tube_contest(options: argparse.Namespace):
    import torch

    from licag3d.geometry import Camera, Cameras
    from licag3d.ops import project_tubes, reference

    t = torch.linspace(0, 30, 501, dtype=torch.float64)
    points = torch.stack([40 * torch.cos(t) * (0.3 + t / 40), 40 * torch.sin(t) * (0.3 + t / 40),
                          2 * t - 30 + 5 * torch.sin(3 * t)], 1)
    segments = torch.stack([torch.arange(500), torch.arange(1, 501)], 1)

    def cameras(pixels: int) -> Cameras:
        spacing_mm = 0.36 * 512 / pixels
        return Cameras.stack([Camera(ANGLE_DEG, 10, sid_mm=SID_MM, sod_mm=SOD_MM, spacing_row_mm=spacing_mm,
                                     spacing_col_mm=spacing_mm, rows=pixels, cols=pixels)])

    small, large = cameras(64), cameras(512)
    tree = points, 2.0 - t / 20, segments
    expected = reference.project_tubes(*tree, small).numpy()

    def same(name: str, out: np.ndarray) -> None:
        exact = project_tubes(*tree, small).numpy() if name == "licag3d" else out
        if not np.abs(exact - expected).max() < 1e-4:
            raise SystemExit(f"{name} draws other tubes")

    yield "project_tubes 500 segments -> 512^2", {"licag3d": lambda: project_tubes(*tree, large).numpy()}, same
    if not options.no_twins:
        yield "project_tubes 500 segments -> 64^2", {
            "licag3d": lambda: project_tubes(*tree, small).numpy(),
            "plain torch twin": lambda: reference.project_tubes(*tree, small).numpy()}, same


def _ball(voxels: int, edge_mm: float) -> np.ndarray:
    axis = (np.arange(voxels) - (voxels - 1) / 2) * edge_mm
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    return np.clip((50.0 - distance) / edge_mm + 0.5, 0, 1).astype(np.float32)


def _chords(pixels: int, spacing_mm: float) -> np.ndarray:
    """The exact image of a ball of 50 mm at the isocentre."""
    axis = (np.arange(pixels) - (pixels - 1) / 2) * spacing_mm
    square = axis[:, None] ** 2 + axis[None, :] ** 2
    distance_square = SOD_MM**2 * square / (SID_MM**2 + square)
    return 2 * np.sqrt(np.clip(50.0**2 - distance_square, 0, None))


def _rtk(ball: np.ndarray, chord: np.ndarray, edge_mm: float, spacing_mm: float,
         threads: int) -> tuple[Callable, Callable]:
    """Joseph projector and its transpose of itk-rtk, as pipelines that run again at each call."""
    import itk
    from itk import RTK as rtk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
    image_type = itk.Image[itk.F, 3]
    voxels, pixels = ball.shape[0], chord.shape[0]
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    geometry.AddProjection(SOD_MM, SID_MM, ANGLE_DEG)

    def blank(size: list[int], spacing: list[float]):
        source = rtk.ConstantImageSource[image_type].New(
            Origin=[-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)], Spacing=spacing, Size=size,
            Constant=0.0)
        source.Update()
        image = source.GetOutput()
        image.DisconnectPipeline()
        return image

    def filled(like, values: np.ndarray):
        image = itk.image_from_array(np.ascontiguousarray(values, np.float32))
        image.SetOrigin(like.GetOrigin())
        image.SetSpacing(like.GetSpacing())
        return image

    screen = blank([pixels, pixels, 1], [spacing_mm, spacing_mm, 1.0])
    grid = blank([voxels] * 3, [edge_mm] * 3)
    forward = rtk.JosephForwardProjectionImageFilter[image_type, image_type].New()
    back = rtk.JosephBackProjectionImageFilter[image_type, image_type].New()
    for pipeline, target, values in ((forward, screen, filled(grid, ball)), (back, grid, filled(screen, chord[None]))):
        pipeline.SetGeometry(geometry)
        pipeline.InPlaceOff()  # working in place would use up the blank target
        pipeline.SetInput(0, target)
        pipeline.SetInput(1, values)

    def call(pipeline) -> np.ndarray:
        pipeline.Modified()
        pipeline.Update()
        return itk.array_view_from_image(pipeline.GetOutput())

    return lambda: call(forward), lambda: call(back)


def _diffdrr(ball: np.ndarray, edge_mm: float, spacing_mm: float, pixels: int, points: int) -> Callable:
    """The trilinear renderer of DiffDRR with the ball as density, no gradient."""
    import torch
    import torchio
    from diffdrr.data import read
    from diffdrr.drr import DRR

    density = torch.from_numpy(ball).permute(2, 1, 0).contiguous()
    subject = read(torchio.ScalarImage(tensor=density[None], affine=np.diag([edge_mm, edge_mm, edge_mm, 1.0])),
                   orientation="AP")
    renderer = DRR(subject, sdd=SID_MM, height=pixels, delx=spacing_mm, renderer="trilinear")
    renderer.density.copy_(density)  # not what its conversion from Hounsfield units makes of the ball
    rotation, translation = torch.tensor([[ANGLE_DEG, 0.0, 0.0]]), torch.tensor([[0.0, SOD_MM, 0.0]])

    def call() -> np.ndarray:
        with torch.no_grad():
            return renderer(rotation, translation, parameterization="euler_angles", convention="ZXY", degrees=True,
                            n_points=points).numpy()

    return call


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
