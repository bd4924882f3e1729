# SPDX-License-Identifier: Apache-2.0
"""Times the native operators against their plain-torch twins and against other projectors, side by side in one run.

    python tools/benchmark_kernels.py [--json out.json] [--threads N] [--isa avx2] [--rounds 9]

Rivals run when they can be imported (`pip install itk-rtk diffdrr nanodrr`, best in an environment of its own);
otherwise the table says why not. All contestants get the same phantom (a ball), the same geometry (SID 1000 mm, SOD
750 mm, primary angle 30 degrees, a 140 mm cube) and the same number of threads; each first proves that its image of
the ball is the right one, and says how far it is from the exact chords. Contestants take turns, round after round, so
that a change of the machine's speed meets all of them; quoted are the median and the least time by the clock, and the
least processor time of the whole process, which other programs on the machine disturb little. Times are of whole calls
as a user makes them, from camera to image, with the volume in memory; for itk-rtk the update of a pipeline that is
already set up. Besides the ball there is a coronary field, a thin bent tube, whose empty bricks licag3d skips.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import benchmark_kernels_rivals as rivals  # noqa: E402
from benchmark_kernels_rivals import ANGLE_DEG, BOX_MM, SID_MM, SOD_MM  # noqa: E402

Contest = dict[str, Callable[[], np.ndarray | None]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads for everyone, 0 for all cores")
    parser.add_argument("--isa", default="", help="plain, avx2 or avx512; default the best one here")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", default="128:256,256:512", help="voxels per edge : pixels per edge, comma-separated")
    parser.add_argument("--no-twins", action="store_true", help="leave out the plain-torch twins, which are slow")
    parser.add_argument("--scaling", action="store_true", help="also how times fall with threads, 1 to twice the cores")
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
    for title, contest, check in _batch_contests(128, 128):
        results.append(_run(title, contest, check, options.rounds))
    for title, contest, check in _tube_contest(options):
        results.append(_run(title, contest, check, options.rounds))
    scaling = _thread_scaling(options.rounds) if options.scaling else {}
    for name, reason in reasons.items():
        print(f"{name}: not run: {reason}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.json.with_suffix(".tmp")
        report = {"what": "kernels", "machine": machine, "load": list(os.getloadavg()), "rounds": options.rounds,
                  "not_run": reasons, "results": results, **({"threads": scaling} if scaling else {})}
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(temporary, options.json)
    return 0


def _run(title: str, contest: Contest, check: Callable[[str, np.ndarray], float], rounds: int) -> dict:
    """All contestants in turn; milliseconds by the clock and of processor time, and the ratios to licag3d."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contest}
    slow: set[str] = set()
    errors, memory = {}, {}
    for number in range(rounds + 1):  # the first round warms up and is checked
        for name, call in contest.items():
            if name in slow and number > 1:
                continue  # one round of something that takes seconds is enough
            begin, used = time.perf_counter(), time.process_time()
            if number == 0:
                memory[name] = _peak_extra_mb(call, lambda out, name=name: errors.__setitem__(name, check(name, out)))
            else:
                call()
                times[name].append((1e3 * (time.perf_counter() - begin), 1e3 * (time.process_time() - used)))
            if time.perf_counter() - begin > 1.5:
                slow.add(name)
    walls = {name: [wall for wall, _ in values] for name, values in times.items()}
    busy = {name: min(cpu for _, cpu in values) for name, values in times.items()}
    head = f"{'median ms':>10}{'least':>9}{'cpu':>9}{'ratio':>8}{'of least':>9}{'of cpu':>8}{'MB':>7}{'error':>10}"
    print(f"\n{title}\n  {'':34}{head}")
    rows, ours = {}, "licag3d"
    for name, values in walls.items():
        median, least = statistics.median(values), min(values)
        ratios = (median / statistics.median(walls[ours]), least / min(walls[ours]), busy[name] / busy[ours])
        rows[name] = {"median_ms": round(median, 3), "least_ms": round(least, 3), "most_ms": round(max(values), 3),
                      "cpu_least_ms": round(busy[name], 3), "ratio": round(ratios[0], 3),
                      "ratio_of_least": round(ratios[1], 3), "ratio_of_cpu": round(ratios[2], 3),
                      "rounds": len(values), "peak_extra_mb": memory[name], "error": errors[name]}
        error = "" if errors[name] is None else f"{errors[name]:10.2e}"
        print(f"  {name:34}{median:10.2f}{least:9.2f}{busy[name]:9.2f}{ratios[0]:8.2f}{ratios[1]:9.2f}{ratios[2]:8.2f}"
              f"{memory[name] if memory[name] is not None else float('nan'):7.0f}{error}")
    return {"title": title, "contestants": rows}


def _peak_extra_mb(call: Callable, use: Callable) -> float | None:
    """Growth of the resident memory at its highest during a call, in MB (Linux only)."""

    def kilobytes(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        before = kilobytes("VmRSS")
    except OSError:
        use(call())
        return None
    out = call()
    peak = round(max(kilobytes("VmHWM") - before, 0) / 1024, 1)
    use(out)
    return peak


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

    def same_chords(name: str, out: np.ndarray) -> float:
        difference = np.asarray(out).reshape(pixels, pixels) - chord
        error = np.abs(difference).mean() / chord.mean()
        if not error < 0.02:
            raise SystemExit(f"{name} gives another image of the ball (mean error {100 * error:.1f} %)")
        return float(f"{np.sqrt((difference**2).mean()) / chord.max():.3g}")  # root mean square over the peak

    tube = torch.from_numpy(_tube(voxels, edge_mm))

    def same_tube(name: str, out: np.ndarray) -> float:
        expected = project_volume(tube, cameras, **grid).numpy().reshape(pixels, pixels)
        found = np.asarray(out).reshape(pixels, pixels)
        # itk-rtk turns about another axis: it is given the tube with y and z exchanged and x mirrored.
        difference = (found[::-1, ::-1] if name.startswith("itk-rtk") else found) - expected
        if not np.abs(difference).mean() < 0.05 * expected.mean():
            raise SystemExit(f"{name} gives another image of the tube")
        return float(f"{np.sqrt((difference**2).mean()) / expected.max():.3g}")

    sparse: Contest = {"licag3d": lambda: project_volume(tube, cameras, **grid).numpy()}
    half = volume.half()
    forward: Contest = {"licag3d": lambda: project_volume(volume, cameras, **grid).numpy(),
                        "licag3d, float16 volume": lambda: project_volume(half, cameras, **grid).numpy(),
                        "licag3d, march at the voxel size": lambda: project_volume(volume, cameras, **grid,
                                                                                   step_mm=edge_mm).numpy()}
    back: Contest = {"licag3d": lambda: backproject(image, cameras, shape=volume.shape, **grid).numpy()}
    if not options.no_twins and voxels <= 128:
        forward["plain torch twin"] = lambda: reference.project_volume(volume, cameras, **grid).numpy()
        back["plain torch twin"] = lambda: reference.backproject(image, cameras, shape=volume.shape, **grid).numpy()
    try:
        project_rtk, back_rtk = rivals.rtk(ball, chord, edge_mm, spacing_mm, threads)
        forward["itk-rtk Joseph"], back["itk-rtk Joseph"] = project_rtk, back_rtk
        turned = np.flip(tube.numpy().swapaxes(0, 1), 2)
        sparse["itk-rtk Joseph"] = rivals.rtk(turned, chord, edge_mm, spacing_mm, threads)[0]
    except ImportError as error:
        reasons["itk-rtk"] = f"{error} (pip install itk-rtk)"

    def with_gradients() -> np.ndarray:
        values, shift = volume.clone().requires_grad_(), cameras.offset_lps_mm.clone().requires_grad_()
        out = project_volume(values, cameras.replace(offset_lps_mm=shift), **grid)
        out.backward(image)
        return out.detach().numpy()

    both: Contest = {"licag3d": with_gradients}
    try:
        both[f"DiffDRR trilinear, {voxels} points"] = rivals.diffdrr(ball, edge_mm, spacing_mm, pixels, voxels, image)
    except ImportError as error:
        reasons["DiffDRR"] = f"{error} (pip install diffdrr)"
    # Its fused kernels need a GPU; on the CPU it samples with torch.
    try:
        both[f"nanodrr torch, {voxels} points"] = rivals.nanodrr(ball, edge_mm, cameras, voxels, image)
        forward[f"nanodrr torch, {voxels} points"] = rivals.nanodrr(ball, edge_mm, cameras, voxels)
    except ImportError as error:
        reasons["nanodrr"] = f"{error} (pip install nanodrr)"
    try:
        # As many samples as voxels along an edge; its default of 500 too where the memory for that is modest.
        for points in (voxels, 500) if voxels <= 128 else (voxels,):
            forward[f"DiffDRR trilinear, {points} points"] = rivals.diffdrr(ball, edge_mm, spacing_mm, pixels, points)
    except ImportError as error:
        reasons["DiffDRR"] = f"{error} (pip install diffdrr)"

    def same_inner_product(name: str, out: np.ndarray) -> None:
        """Nothing to be compared with an exact result."""
        # Transposes differ in how they spread a ray, but <A' y, ball> = <y, A ball> for each.
        product = float((np.asarray(out, np.float64).reshape(ball.shape) * ball).sum())
        if not abs(product - float((chord**2).sum())) < 0.03 * float((chord**2).sum()):
            raise SystemExit(f"{name} is not the transpose of the projection ({product:.4g})")

    yield f"project {voxels}^3 -> {pixels}^2", forward, same_chords
    yield f"project a coronary tube {voxels}^3 -> {pixels}^2", sparse, same_tube
    yield f"project {voxels}^3 -> {pixels}^2 with gradients by volume and camera", both, same_chords
    yield f"backproject {pixels}^2 -> {voxels}^3", back, same_inner_product


def _batch_contests(voxels: int, pixels: int):
    """Hundreds of candidate cameras are one call: time per call for 1, 8 and 64 views."""
    import torch

    from licag3d.geometry import Camera, Cameras
    from licag3d.ops import project_volume

    edge_mm, spacing_mm = BOX_MM / voxels, 1.33 * BOX_MM / pixels
    grid = {"voxel_size_mm": edge_mm, "origin_mm": (-(BOX_MM - edge_mm) / 2,) * 3}
    for kind, values in (("ball", _ball(voxels, edge_mm)), ("coronary tube", _tube(voxels, edge_mm))):
        volume = torch.from_numpy(values)
        for count in (1, 8, 64):
            stack = [Camera(-60 + 120 * k / max(count - 1, 1), 10 * (k % 5) - 20, sid_mm=SID_MM, sod_mm=SOD_MM,
                            spacing_row_mm=spacing_mm, spacing_col_mm=spacing_mm, rows=pixels, cols=pixels)
                     for k in range(count)]
            cameras, singles = Cameras.stack(stack), [Cameras.stack([camera]) for camera in stack]
            yield f"project {count} views of a {kind}, {voxels}^3 -> {pixels}^2", {
                "licag3d": lambda v=volume, c=cameras: project_volume(v, c, **grid).numpy(),
                "licag3d, one call per view": lambda v=volume, s=singles: np.stack(
                    [project_volume(v, c, **grid)[0].numpy() for c in s])}, lambda name, out: None


def _thread_scaling(rounds: int) -> dict[str, dict[str, float]]:
    """Least milliseconds by the clock of licag3d's operators on 1, 2, 4, ... threads, all numbers in turn."""
    import torch

    from licag3d.geometry import Camera, Cameras
    from licag3d.ops import TriplaneDecoder, backproject, project_volume, render_triplane

    voxels, pixels = 128, 256
    edge_mm, spacing_mm = BOX_MM / voxels, 1.33 * BOX_MM / pixels
    grid = {"voxel_size_mm": edge_mm, "origin_mm": (-(BOX_MM - edge_mm) / 2,) * 3}
    camera = {"sid_mm": SID_MM, "sod_mm": SOD_MM, "spacing_row_mm": spacing_mm, "spacing_col_mm": spacing_mm}
    view = Cameras.stack([Camera(ANGLE_DEG, 0, **camera, rows=pixels, cols=pixels)])
    small = Cameras.stack([Camera(ANGLE_DEG, 0, **camera, rows=96, cols=96)], dtype=torch.float32)
    volume = torch.from_numpy(_ball(voxels, edge_mm))
    image = project_volume(volume, view, **grid)
    planes, decoder = torch.randn(3, 32, 128, 128).requires_grad_(), TriplaneDecoder.random(32, 64, mu_scale=0.02)

    def render() -> None:
        planes.grad = None
        box = {"box_center_mm": (0, 0, 0), "box_size_mm": BOX_MM}
        render_triplane(planes, decoder, small, **box, samples=96).sum().backward()

    calls = {"project 128^3 -> 256^2": lambda: project_volume(volume, view, **grid),
             "backproject 256^2 -> 128^3": lambda: backproject(image, view, shape=volume.shape, **grid),
             "render_triplane 96^2 x 96 and gradient": render}
    counts, before = [1], torch.get_num_threads()
    while counts[-1] < 2 * (os.cpu_count() or 1):
        counts.append(2 * counts[-1])
    times: dict[str, dict[str, float]] = {name: {} for name in calls}
    try:
        for _ in range(rounds):
            for count in counts:
                torch.set_num_threads(count)
                for name, call in calls.items():
                    begin = time.perf_counter()
                    call()
                    spent = 1e3 * (time.perf_counter() - begin)
                    times[name][str(count)] = round(min(spent, times[name].get(str(count), spent)), 3)
    finally:
        torch.set_num_threads(before)
    for name, row in times.items():
        print(f"{name}: " + ", ".join(f"{count} threads {least:.1f} ms" for count, least in row.items()))
    return times


def _tube(voxels: int, edge_mm: float) -> np.ndarray:
    """A bent tube of 3.5 mm diameter and some 300 mm length, the share of a coronary tree in its box."""
    t = np.linspace(0, 1, 4 * int(300 / edge_mm))
    line = np.stack([45 * np.cos(5 * t), 40 * np.sin(6 * t), 90 * t - 45], 1)
    axis = (np.arange(voxels) - (voxels - 1) / 2) * edge_mm
    out = np.zeros((voxels,) * 3, np.float32)
    reach = int(np.ceil(1.75 / edge_mm)) + 1
    for point in line:
        near = [slice(max(int(round(c / edge_mm + (voxels - 1) / 2)) - reach, 0),
                      int(round(c / edge_mm + (voxels - 1) / 2)) + reach + 1) for c in point[::-1]]
        z, y, x = (axis[part] - c for part, c in zip(near, point[::-1], strict=True))
        distance = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
        block = out[near[0], near[1], near[2]]
        np.maximum(block, np.clip((1.75 - distance) / edge_mm + 0.5, 0, 1), out=block)
    return out


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
