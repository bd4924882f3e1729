# SPDX-License-Identifier: Apache-2.0
"""Times render_triplane and query_triplane against their plain-torch twins, side by side in one run.

    python tools/benchmark_triplane.py [--device cpu|cuda] [--threads N] [--json out.json]

The reference size is the one of the aims: 32 channels, hidden 64, planes 256 x 256, 128 x 128 rays x 96 samples. Four
settings: a dense field; a coronary field, where an occupancy grid of a phantom's left tree says what is empty (the twin
computes everything and multiplies by it); a bake of grid^3 points, dense and coronary; and one step of training on
points, a batch of 4 with 32768 points each and planes that lie in channels_last memory.

Each side runs in a process of its own and the processes take turns, so that both meet the same load; times are the best
of all repeats. Gradients are dropped before each step, as optimisers do. "dense_bfloat16" is native with
precision="bfloat16", its ratio that to the twin in float32. Peak memory is what a process grew by during forward and
backward, each setting in a process of its own, so that nothing an earlier one left behind is used again, at 512 x 512
rays x 256 samples (native only: the twin would need some 90 GiB); on CUDA it is what the device holds afterwards.
--scaling adds native times over channels, hidden, samples, rays, sparsity and threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

BOX = {"box_center_mm": (0.0, 0.0, 0.0), "box_size_mm": 140.0}
BATCH, POINTS = 4, 32768
SETTING = ("device", "channels", "hidden", "resolution", "pixels", "samples", "grid", "cells")
MEMORY = ("memory_dense", "memory_coronary")
SCALING = {
    "channels": (16, 32, 64),
    "hidden": (32, 64, 128),
    "samples": (48, 96, 192),
    "pixels": (64, 128, 256),
    "resolution": (64, 128, 256),
    "share": (1.0, 0.3, 0.1, 0.03, 0.01),
    "threads": (1, 2, 4),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--repeats", type=int, default=4, help="repeats within a turn")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=256, help="texels along an edge of the planes")
    parser.add_argument("--pixels", type=int, default=128, help="image rows and columns")
    parser.add_argument("--samples", type=int, default=96, help="samples per ray")
    parser.add_argument("--grid", type=int, default=128, help="voxels along an edge of the baked grid")
    parser.add_argument("--cells", type=int, default=64, help="cells along an edge of the occupancy grid")
    parser.add_argument("--isa", default="", help="plain, avx2 or avx512; default the best one here")
    parser.add_argument("--scaling", action="store_true", help="also how native times grow")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--side", choices=("native", "twin", *MEMORY, "scaling"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure = {**dict.fromkeys(MEMORY, measure_memory), "scaling": measure_scaling}.get(options.side, measure_times)
        print(json.dumps(measure(options)))
        return 0
    sides: dict[str, dict] = {"native": {}, "twin": {}}
    for _ in range(options.rounds):
        for side, best in sides.items():
            for name, value in _run_side(side).items():
                best[name] = min(best.get(name, value), value) if isinstance(value, float) else value
    result = {
        "what": "triplane",
        "machine": sides["native"].pop("machine"),
        "setting": {name: getattr(options, name) for name in SETTING},
        "occupied_share": sides["native"].pop("occupied_share"),
        **sides,
    }
    twin = {name: sides["twin"][name.replace("_bfloat16", "")] for name in sides["native"]}
    result["ratio"] = {name: round(twin[name] / value, 2) for name, value in sides["native"].items()}
    result["peak_mib_512x512x256"] = {}
    for side in MEMORY:
        result["peak_mib_512x512x256"].update(_run_side(side))
    if options.scaling:
        result["scaling_native_s"] = _run_side("scaling")
    print(result["machine"])
    print(f"{'':34}{'native':>10}{'twin':>10}{'ratio':>8}")
    for name, value in sides["native"].items():
        print(f"{name:34}{value:10.4g}{twin[name]:10.4g}{result['ratio'][name]:8.1f}")
    print("peak MiB:", result["peak_mib_512x512x256"])
    if options.json:
        temporary = options.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(temporary, options.json)
    return 0


class Problem:
    """Planes, decoder, cameras and occupancy of one setting."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from licag3d.geometry import Camera, Cameras
        from licag3d.ops import TriplaneDecoder

        torch.manual_seed(0)
        spacing = 179.2 / options.pixels
        view = Camera(
            30,
            0,
            sid_mm=1000,
            sod_mm=750,
            spacing_row_mm=spacing,
            spacing_col_mm=spacing,
            rows=options.pixels,
            cols=options.pixels,
        )
        cameras = Cameras.stack([view], dtype=torch.float32, device=options.device)
        self.cameras = cameras.replace(offset_lps_mm=cameras.offset_lps_mm.requires_grad_())
        shape = (3, options.channels, options.resolution, options.resolution)
        self.planes = torch.randn(shape, device=options.device).requires_grad_()
        decoder = TriplaneDecoder.random(options.channels, options.hidden, mu_scale=0.02, device=options.device)
        self.decoder = decoder.requires_grad_()
        self.samples = options.samples

    def step(self, render, occupancy=None, **more):
        for leaf in (self.planes, self.cameras.offset_lps_mm, *self.decoder.tensors().values()):
            leaf.grad = None
        more = {**BOX, **more, "samples": self.samples, "occupancy": occupancy}
        image = render(self.planes, self.decoder, self.cameras, **more)
        return image, lambda: image.sum().backward()


def measure_times(options: argparse.Namespace) -> dict[str, float | str]:
    """Best seconds of one side, native or twin."""
    import torch

    from licag3d.ops import native, query_triplane, reference, render_triplane

    render, query = _prepare(options, render_triplane, query_triplane, reference)
    problem = Problem(options)
    coronary = coronary_cells(options.cells).to(options.device)
    figures: dict[str, float | str] = {}

    def best(name: str, forward) -> None:
        """Times forward(), and the backward pass that it returns, if any."""
        for _ in range(options.repeats + 1):
            _wait(options)
            start = time.perf_counter()
            _, backward = forward()
            _wait(options)
            middle = time.perf_counter()
            backward()
            _wait(options)
            end = time.perf_counter()
            for part, seconds in (("forward", middle - start), ("backward", end - middle), ("both", end - start)):
                key = f"{name}_{part}_s"
                figures[key] = min(figures.get(key, seconds), seconds)

    best("dense", lambda: problem.step(render))
    if options.side == "native":
        best("dense_bfloat16", lambda: problem.step(render, precision="bfloat16"))
    best("coronary", lambda: problem.step(render, coronary))
    ticks = (torch.arange(options.grid, device=options.device) + 0.5) / options.grid * 140 - 70
    grid = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).flip(-1)
    with torch.no_grad():
        for name, cells in (("bake", None), ("bake_coronary", coronary)):
            best(
                name,
                lambda cells=cells: (
                    query(problem.planes, problem.decoder, grid, occupancy=cells, **BOX),
                    lambda: None,
                ),
            )
            del figures[f"{name}_backward_s"], figures[f"{name}_both_s"]
    wide = torch.randn(BATCH, 3 * options.channels, options.resolution, options.resolution, device=options.device)
    planes = wide.contiguous(memory_format=torch.channels_last).unflatten(1, (3, options.channels)).requires_grad_()
    points = torch.rand(POINTS, 3, device=options.device) * 140 - 70

    def train():
        mu = query(planes, problem.decoder, points, **BOX)
        return mu, lambda: mu.sum().backward()

    best("train_points", train)
    isa = native.cpu_library().licag3d_isa().decode() if native.cpu_library() else "none"
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{_processor()}, {isa}"
    if options.side == "native":
        figures["machine"] = (
            f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
        )
        figures["occupied_share"] = f"{float(coronary.float().mean()):.4f}"
    return figures


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """MiB by which the process grows in forward and backward, and what of it are the gradients handed back."""

    from licag3d.ops import query_triplane, reference, render_triplane

    render, _ = _prepare(options, render_triplane, query_triplane, reference)
    options.pixels = 32
    Problem(options).step(render)[1]()  # libraries, threads
    options.pixels, options.samples = 512, 256
    name = options.side.removeprefix("memory_")
    cells = coronary_cells(options.cells).to(options.device) if name == "coronary" else None
    problem = Problem(options)
    before = _peak_mib(options, reset=True)
    problem.step(render, cells)[1]()
    _wait(options)
    found = {name: round(_peak_mib(options) - before, 1)}
    return {**found, "of_this_the_gradient_of_the_planes": round(problem.planes.grad.numel() * 4 / 2**20, 1)}


def measure_scaling(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Best seconds of forward and backward together, one setting changed at a time."""
    import torch

    from licag3d.ops import query_triplane, reference, render_triplane

    render, _ = _prepare(options, render_triplane, query_triplane, reference)
    table: dict[str, dict[str, float]] = {}
    for name, values in SCALING.items():
        for value in values:
            changed = argparse.Namespace(**{**vars(options), name: value})
            torch.set_num_threads(changed.threads or os.cpu_count() or 1)
            cells = None
            if name == "share":
                cells = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(1)) < value
                cells = cells.to(options.device)
            problem = Problem(changed)
            seconds = []
            for _ in range(options.repeats):
                _wait(options)
                start = time.perf_counter()
                problem.step(render, cells)[1]()
                _wait(options)
                seconds.append(time.perf_counter() - start)
            table.setdefault(name, {})[str(value)] = round(min(seconds), 5)
    return table


def coronary_cells(cells: int):
    """Cells of the box that a phantom's left tree touches, bool ``(cells, cells, cells)`` in order [z, y, x]."""
    import torch

    from licag3d.phantom.anatomy import sample_tree
    from licag3d.phantom.queries import TreeQueries
    from licag3d.vessels.distance import tree_cones

    size_mm = BOX["box_size_mm"]
    queries = TreeQueries.stack([tree_cones(sample_tree(1, "lca"))])
    held = queries.center[0][queries.core[0] >= 0]
    middle = (held.amin(0) + held.amax(0)) / 2
    ticks = (torch.arange(cells) + 0.5) / cells * size_mm - size_mm / 2
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).flip(-1).reshape(1, -1, 3) + middle
    distance = torch.cat([queries.signed_distance_mm(part) for part in points.split(1 << 16, 1)], 1)
    reach_mm = size_mm / cells / 2 * 3**0.5  # from the middle of a cell to its corner
    return (distance < reach_mm).reshape(cells, cells, cells)


def _prepare(options: argparse.Namespace, render, query, reference):
    import torch

    from licag3d.ops import native

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    if options.side == "twin":
        return reference.render_triplane, reference.query_triplane
    if not native.available(torch.device(options.device)):
        raise SystemExit("no native library for this device: nothing to measure")
    if options.device == "cpu":
        native.set_isa(options.isa or None)
    return render, query


def _run_side(side: str) -> dict:
    arguments = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    out = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def _wait(options: argparse.Namespace) -> None:
    if options.device == "cuda":
        import torch

        torch.cuda.synchronize()


def _peak_mib(options: argparse.Namespace, *, reset: bool = False) -> float:
    """Most memory so far; with reset (Linux) from now on, which is then what is held now."""
    if options.device == "cuda":
        import torch

        return (torch.cuda.get_device_properties(0).total_memory - torch.cuda.mem_get_info()[0]) / 2**20
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 2**10
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform != "darwin" else 2**20)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
