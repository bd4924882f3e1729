# SPDX-License-Identifier: Apache-2.0
"""What tools/gpu_check.py times: the operators beside their twins on one device, and on the CPU at small sizes where
there is none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

BOX = {"box_center_mm": (0.0, 0.0, 0.0), "box_size_mm": 140.0}


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def volume(small: bool) -> dict:
    """Projection, gradients and transposes; dense ball and thin tube; the twin, and nanodrr where it is installed."""
    import torch
    from benchmark_kernels import _ball, _chords, _tube

    from licag3d.ops import project_volume

    on = device()
    small = small or on == "cpu"
    out: dict = {"status": "ok" if on == "cuda" else "no device", "times_ms": {}, "errors": {}}
    for voxels, pixels in ((32, 48),) if small else ((128, 256), (256, 512)):
        edge_mm, spacing_mm = 140.0 / voxels, 1.33 * 140.0 / pixels
        ball, tube = (torch.from_numpy(make(voxels, edge_mm)).to(on) for make in (_ball, _tube))
        for views in (1,) if small else (1, 8, 64) if voxels == 128 else (1, 8):
            cameras, title = cameras_on(on, views, pixels, spacing_mm), f"{voxels}^3 <-> {views} x {pixels}^2"
            calls = _volume_calls(ball, tube, cameras, edge_mm)
            if views == 1:
                calls |= _rival_calls(ball, cameras, edge_mm, out)
                exact = torch.from_numpy(_chords(pixels, spacing_mm))
                image = project_volume(ball, cameras, **_grid(edge_mm))[0].cpu().double()
                out["errors"][title] = float(f"{float((image - exact).square().mean().sqrt() / exact.max()):.3g}")
            out["times_ms"][title] = {name: measured(call, on, slow="twin" in name) for name, call in calls.items()}
            print(title, out["times_ms"][title], flush=True)
    return out


def _grid(edge_mm: float) -> dict:
    return {"voxel_size_mm": edge_mm, "origin_mm": (-(140.0 - edge_mm) / 2,) * 3}


def _volume_calls(ball, tube, cameras, edge_mm: float) -> dict[str, Callable]:
    import torch

    from licag3d.ops import backproject, native, project_volume, volume_views

    grid = _grid(edge_mm)
    frames = volume_views.frames_of(cameras).contiguous()
    image, half = project_volume(ball, cameras, **grid), ball.half()
    spec = [edge_mm] * 3, list(grid["origin_mm"])
    calls = {
        "project, dense ball": lambda: project_volume(ball, cameras, **grid),
        "project, ball as float16": lambda: project_volume(half, cameras, **grid),
        "project, thin tube": lambda: project_volume(tube, cameras, **grid),
        "backproject by voxels": lambda: backproject(image, cameras, shape=ball.shape, **grid),
        "gradient by cameras": lambda: volume_views.grad_frames(ball[None], frames, image[None], *spec),
    }
    if ball.is_cuda:
        plan = volume_views.make_grid((1, *ball.shape), *spec, flags=volume_views.ATOMIC)
        target, view = torch.zeros_like(ball), volume_views._views(frames, cameras.rows, cameras.cols)
        calls["backproject by atomics"] = lambda: native.call(
            "backproject_views", target.device, plan, view, image, target
        )
    return calls


def _rival_calls(ball, cameras, edge_mm: float, out: dict) -> dict[str, Callable]:
    """The twin, and nanodrr on the same device with each of its backends; why not goes to ``out``."""
    from licag3d.ops import reference

    calls: dict[str, Callable] = {
        "twin, project": lambda: reference.project_volume(ball, cameras, **_grid(edge_mm)),
    }
    for backend in ("torch", "triton") if ball.is_cuda else ("torch",):
        try:
            import benchmark_kernels_rivals as rivals

            call = rivals.nanodrr(ball, edge_mm, cameras, ball.shape[0], backend=backend)
            call()
            calls[f"nanodrr {backend}, project"] = call
        except Exception as error:  # a rival that fails must not lose our own figures
            out[f"nanodrr {backend}"] = f"not run: {type(error).__name__}: {error}"
    return calls


def candidates(small: bool) -> dict:
    """4096 candidate cameras of one volume in one call."""
    import torch
    from benchmark_kernels import _ball, _tube

    from licag3d.ops import project_volume

    on = device()
    voxels, pixels, count = (32, 32, 64) if small or on == "cpu" else (128, 128, 4096)
    edge_mm = 140.0 / voxels
    cameras, found = cameras_on(on, count, pixels, 1.33 * 140.0 / pixels), {}
    for name, make in (("ball", _ball), ("tube", _tube)):
        values = torch.from_numpy(make(voxels, edge_mm)).to(on)
        found[name] = measured(lambda v=values: project_volume(v, cameras, **_grid(edge_mm)), on)
    return {"status": "ok" if on == "cuda" else "no device", "count": count, "times_ms": found}


def triplane(small: bool) -> dict:
    """The fused operator at 128^2 x 96 beside its twin, and at 512^2 x 256 alone, with the memory it takes."""
    import torch
    from benchmark_triplane import coronary_cells

    on = device()
    small = small or on == "cpu"
    out: dict = {"status": "ok" if on == "cuda" else "no device", "times_ms": {}, "extra_mib": {}}
    cells = (torch.rand(16, 16, 16) < 0.02 if small else coronary_cells(64)).to(on)
    for pixels, samples, edge in ((24, 12, 32),) if small else ((128, 96, 256), (512, 256, 256)):
        rows = _triplane_rows(on, pixels, samples, edge, cells, out["extra_mib"])
        out["times_ms"][f"{pixels}^2 x {samples}, planes {edge}^2"] = rows
        print(pixels, rows, flush=True)
    return out


def _triplane_rows(on: str, pixels: int, samples: int, edge: int, cells, extra_mib: dict) -> dict:
    import torch

    from licag3d.ops import TriplaneDecoder, reference, render_triplane

    decoder = TriplaneDecoder.random(32, 64, mu_scale=0.02, device=on).requires_grad_()
    planes = torch.randn(3, 32, edge, edge, device=on).requires_grad_()
    cameras = cameras_on(on, 1, pixels, 179.2 / pixels, dtype=torch.float32)
    cameras = cameras.replace(offset_lps_mm=cameras.offset_lps_mm.requires_grad_())
    leaves = [planes, cameras.offset_lps_mm, *decoder.tensors().values()]

    def forward(render=render_triplane, **more):
        return render(planes, decoder, cameras, samples=samples, **BOX, **more)

    def both(**more):
        torch.autograd.grad(forward(**more).sum(), leaves)

    rows: dict = {}
    for precision in ("float32", "bfloat16"):
        for field, occupancy in (("dense", None), ("coronary", cells)):
            more = {"occupancy": occupancy, "precision": precision}
            before = held_mib(on)
            both(**more)
            extra_mib[f"{pixels}^2 x {samples} {field} {precision}"] = round(held_mib(on) - before, 1)
            with torch.no_grad():
                rows[f"{field} {precision}, forward"] = measured(lambda more=more: forward(**more), on)
            rows[f"{field} {precision}, forward + backward"] = measured(lambda more=more: both(**more), on)
    if pixels > 128:  # the twin would need some 90 GiB
        return rows
    torch.use_deterministic_algorithms(True, warn_only=True)
    rows["dense bfloat16, forward + backward, repeatable"] = measured(lambda: both(precision="bfloat16"), on)
    torch.use_deterministic_algorithms(False)
    rows["twin, forward + backward"] = measured(lambda: both(render=reference.render_triplane), on, slow=True)
    return rows


def cameras_on(on: str, count: int, pixels: int, spacing_mm: float, dtype=None):
    """Views all around; a single one stands at 30 degrees. Pixels stay below the 10 mm that a camera allows."""
    import torch

    from licag3d.geometry import Camera, Cameras

    spacing_mm = min(spacing_mm, 9.9)
    angles = [30.0] if count == 1 else [-60 + 120 * k / (count - 1) for k in range(count)]
    stack = [Camera(angle, 0 if count == 1 else 10 * (k % 5) - 20, sid_mm=1000, sod_mm=750, spacing_row_mm=spacing_mm,
                    spacing_col_mm=spacing_mm, rows=pixels, cols=pixels) for k, angle in enumerate(angles)]  # fmt: skip
    return Cameras.stack(stack, dtype=dtype or torch.float64, device=on)


def held_mib(on: str) -> float:
    """What the device holds now beyond torch's cache of freed blocks; 0 on a CPU."""
    import torch

    if on == "cpu":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def measured(call, on: str, *, slow: bool = False) -> dict:
    """Least and median milliseconds of the device, and the least by the clock, within about two seconds."""
    import torch

    call()
    device_ms, wall_ms, until = [], [], time.perf_counter() + (3.0 if slow else 1.5)
    while len(wall_ms) < (3 if slow else 60) and (len(wall_ms) < 2 or time.perf_counter() < until):
        if on == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
        begin = time.perf_counter()
        if on == "cuda":
            start.record()
        call()
        if on == "cuda":
            end.record()
            torch.cuda.synchronize()
            device_ms.append(start.elapsed_time(end))
        wall_ms.append(1e3 * (time.perf_counter() - begin))
    found = {"wall": round(min(wall_ms), 4), "calls": len(wall_ms)}
    if device_ms:
        found.update(least=round(min(device_ms), 4), median=round(statistics.median(device_ms), 4))
    return found
