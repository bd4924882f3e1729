# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/performance.md that need a quiet machine, in one command of under six minutes on two cores.

    python tools/benchmark_tables.py --json benchmarks/results/tables.json [--parts threads,scaling,stages]

- threads: the operators on 1, 2, 4, ... threads.
- scaling: one setting changed at a time: volume, detector, samples, views, sparsity, batch 1, 8 and 64.
- stages: seconds of every stage of ``python -m licag3d.invert`` on both examples, qualities fast and default.

Each entry is the least of many calls by the clock. The load of the machine before and after is kept beside the figures:
on a busy one they mean nothing. The file is written after every part, and a picture of the scaling beside it (SVG);
``--parts plot`` draws it anew from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from gpu_figures import BOX, cameras_on  # noqa: E402

PARTS = ("threads", "scaling", "stages")
#: What changes in a panel of the picture, and what the names of its rows in the table say then.
PANELS = {
    "voxels per edge": "voxels per edge",
    "pixels per edge": "pixels per edge",
    "samples of a ray": "render, samples",
    "views, volumes or fields of a batch": "views of|batch",
    "share of cells that are not empty": "share of cells",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", type=int, default=0, help="for the tables without threads; 0 for all cores")
    parser.add_argument("--seconds", type=float, default=0.6, help="time for one entry")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    if options.parts == "plot":
        options.json.with_suffix(".svg").write_text(scaling_plot(json.loads(options.json.read_text())["scaling"]))
        return 0
    import torch

    from licag3d.ops import native

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(options.threads or cores)
    report = {"what": "tables", "threads": torch.get_num_threads(), "isa": native.set_isa(None),
              "torch": torch.__version__, "load_before": list(os.getloadavg())}  # fmt: skip
    for part in options.parts.split(","):
        begin = time.perf_counter()
        report[part] = {"threads": thread_table, "scaling": scaling_table, "stages": stage_table}[part](options)
        report["load_after"] = list(os.getloadavg())
        print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(temporary, options.json)
        if part == "scaling":
            options.json.with_suffix(".svg").write_text(scaling_plot(report[part]))
    return 0


def scaling_plot(table: dict[str, dict[str, float]]) -> str:
    """SVG of the scaling table: one panel for each setting that changes."""
    from benchmarks.plots import log_plot

    panels = {}
    for label, words in PANELS.items():
        rows = {name: row for name, row in table.items() if any(word in name for word in words.split("|"))}
        panels[label] = {
            ", ".join(name.split(", ")[:2] if name.split(",")[0] != "render" else ["render_triplane with gradients"]):
            [(float(x), y) for x, y in row.items()]
            for name, row in rows.items()
        }  # fmt: skip
    return log_plot({label: series for label, series in panels.items() if series}, y_label="milliseconds")


def least_ms(call: Callable[[], object], seconds: float) -> float:
    """Least milliseconds by the clock; at least three calls after one that warms up."""
    call()
    best, count, until = float("inf"), 0, time.perf_counter() + seconds
    while count < 3 or time.perf_counter() < until:
        begin = time.perf_counter()
        call()
        best, count = min(best, 1e3 * (time.perf_counter() - begin)), count + 1
    return round(best, 3)


def volume_calls(kind: str, voxels: int, pixels: int, views: int = 1, batch: int = 1) -> dict[str, Callable]:
    """Projection, transpose and both gradients of a ball or a thin tube."""
    import torch
    from benchmark_kernels import _ball, _tube

    from licag3d.ops import backproject, project_volume, volume_views

    edge_mm = 140.0 / voxels
    grid = {"voxel_size_mm": edge_mm, "origin_mm": (-(140.0 - edge_mm) / 2,) * 3}
    one = torch.from_numpy((_ball if kind == "ball" else _tube)(voxels, edge_mm))
    values = one if batch == 1 else one.repeat(batch, 1, 1, 1)
    cameras = cameras_on("cpu", views, pixels, 1.33 * 140.0 / pixels)
    image = project_volume(values, cameras, **grid)
    frames, many = volume_views.frames_of(cameras), values if batch > 1 else values[None]
    weights = image if batch > 1 else image[None]
    spec = [edge_mm] * 3, list(grid["origin_mm"])
    return {
        "project": lambda: project_volume(values, cameras, **grid),
        "backproject": lambda: backproject(image, cameras, shape=one.shape, **grid),
        "gradient by cameras": lambda: volume_views.grad_frames(many, frames, weights, *spec),
    }


def render_call(
    pixels: int = 128,
    samples: int = 96,
    edge: int = 256,
    share: float = 1.0,
    batch: int = 1,
    precision: str = "float32",
) -> Callable:
    """Forward and backward of render_triplane, 32 channels and 64 hidden units, in the share of 16^3 cells."""
    import torch

    from licag3d.ops import TriplaneDecoder, render_triplane

    planes = torch.randn(batch, 3, 32, edge, edge, generator=torch.Generator().manual_seed(0)).requires_grad_()
    decoder = TriplaneDecoder.random(32, 64, mu_scale=0.02).requires_grad_()
    cameras = cameras_on("cpu", 1, pixels, 179.2 / pixels, dtype=torch.float32)
    cells = None
    if share < 1:
        cells = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(1)) < share
    leaves = [planes, *(x for x in decoder.tensors().values())]

    def step() -> None:
        image = render_triplane(planes, decoder, cameras, samples=samples, occupancy=cells, precision=precision, **BOX)
        torch.autograd.grad(image.sum(), leaves)

    return step


def thread_table(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    import torch

    voxels, pixels, rays = (32, 48, 16) if options.small else (128, 256, 96)
    calls = {f"{name}, {kind} {voxels}^3 <-> {pixels}^2": call for kind in ("ball", "tube")
             for name, call in volume_calls(kind, voxels, pixels).items()}  # fmt: skip
    calls |= {f"render_triplane {rays}^2 x 96, forward + backward, {precision}": render_call(rays, precision=precision)
              for precision in ("float32", "bfloat16")}  # fmt: skip
    before, table, counts = torch.get_num_threads(), {}, [1]
    while counts[-1] < before:
        counts.append(2 * counts[-1])
    try:
        for name, call in calls.items():
            for count in counts:
                torch.set_num_threads(count)
                table.setdefault(name, {})[str(count)] = least_ms(call, options.seconds)
            print(name, table[name], flush=True)
    finally:
        torch.set_num_threads(before)
    return table


def scaling_table(options: argparse.Namespace) -> dict[str, dict[str, float | dict[str, float]]]:
    """Rows by what changes; milliseconds by its value."""
    base, pixels, rays = (16, 24, 16) if options.small else (128, 256, 64)
    spent, table = options.seconds, {}

    def row(name: str, entries: dict[object, Callable]) -> None:
        table[name] = {str(value): least_ms(call, spent) for value, call in entries.items()}
        print(name, table[name], flush=True)

    sizes = (base // 2, base, 3 * base // 2, 2 * base)
    details = (pixels // 2, pixels, 2 * pixels)
    for kind in ("ball", "tube"):
        for name in ("project", "backproject"):
            row(f"{name}, {kind}, voxels per edge, {pixels}^2", {n: volume_calls(kind, n, pixels)[name] for n in sizes})
            row(f"{name}, {kind}, pixels per edge, {base}^3", {n: volume_calls(kind, base, n)[name] for n in details})
    row(f"project, tube, views of {pixels // 2}^2, {base}^3",
        {n: volume_calls("tube", base, pixels // 2, views=n)["project"] for n in (1, 8, 64)})  # fmt: skip
    row(f"project, ball, batch of volumes, {base // 2}^3 -> {pixels // 2}^2",
        {n: volume_calls("ball", base // 2, pixels // 2, batch=n)["project"] for n in (1, 8, 64)})  # fmt: skip
    row(f"render, samples, {rays}^2", {n: render_call(rays, n) for n in (24, 48, 96, 192)})
    row("render, pixels per edge, 48 samples", {n: render_call(n, 48) for n in (rays // 2, rays, 2 * rays)})
    row(f"render, share of cells, {rays}^2 x 96",
        {s: render_call(rays, 96, share=s) for s in (1.0, 0.3, 0.1, 0.03, 0.01)})  # fmt: skip
    row(f"render, batch, {rays // 2}^2 x 48, planes 64^2",
        {n: render_call(rays // 2, 48, edge=64, batch=n) for n in (1, 8, 64)})  # fmt: skip
    return table


def stage_table(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of each stage as the run itself tells them, and of the whole process."""
    table = {}
    for example in ("rca",) if options.small else ("rca", "lca"):
        for quality in ("fast",) if options.small else ("fast", "default"):
            source = ROOT / "examples" / example
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "licag3d.invert", "--views", str(source / "view_1.png"),
                     str(source / "view_2.png"), "--cameras", str(source / "cameras.json"), "--quality", quality,
                     "--out", folder, "--quiet"],
                    check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                )  # fmt: skip
                whole = time.perf_counter() - begin
                told = json.loads((Path(folder) / "result.json").read_text())
            row = {stage["name"]: round(stage["seconds"], 2) for stage in told["stages"]}
            table[f"{example}, {quality}"] = {**row, "whole process": round(whole, 2)}
            print(example, quality, table[f"{example}, {quality}"], flush=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
