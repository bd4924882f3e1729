# SPDX-License-Identifier: Apache-2.0
"""Times render_triplane and query_triplane against their plain-torch twins, side by side in one run.

    python tools/benchmark_triplane.py [--device cpu|cuda] [--threads N] [--json out.json]

The reference size is the one of the aims: 32 channels, hidden 64, planes 256 x 256, 128 x 128 rays x 96 samples. Each
side runs in a process of its own, so that its peak memory is its own; times are the best of several repeats after one
warm-up. On CUDA the peak is what the process holds on the device afterwards: its pools keep the most they ever needed.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=256, help="texels along an edge of the planes")
    parser.add_argument("--pixels", type=int, default=128, help="image rows and columns")
    parser.add_argument("--samples", type=int, default=96, help="samples per ray")
    parser.add_argument("--grid", type=int, default=128, help="voxels along an edge of the baked grid")
    parser.add_argument("--isa", default="", help="plain, avx2 or avx512; default the best one here")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--side", choices=("native", "twin"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return 0
    sides = {side: _run_side(side) for side in ("native", "twin")}
    result = {"what": "triplane", "machine": sides["native"].pop("machine"),
              "setting": {name: getattr(options, name) for name in
                          ("device", "channels", "hidden", "resolution", "pixels", "samples", "grid")}, **sides}
    result["ratio"] = {name: round(sides["twin"][name] / sides["native"][name], 2)
                       for name in sides["native"] if name.endswith("_s")}
    print(result["machine"])
    print(f"{'':24}{'native':>10}{'twin':>10}{'ratio':>8}")
    for name, value in sides["native"].items():
        other = sides["twin"][name]
        print(f"{name:24}{value:10.4g}{other:10.4g}{other / value if value else float('nan'):8.1f}")
    if options.json:
        temporary = options.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(temporary, options.json)
    return 0


def measure(options: argparse.Namespace) -> dict[str, float | str]:
    """Seconds and MiB of one side, native or twin."""
    import torch

    from licag3d.geometry import Camera, Cameras
    from licag3d.ops import TriplaneDecoder, native, query_triplane, reference, render_triplane

    render, query = render_triplane, query_triplane
    if options.side == "twin":
        render, query = reference.render_triplane, reference.query_triplane
    elif not native.available(torch.device(options.device)):
        raise SystemExit("no native library for this device: nothing to measure")
    if options.side == "native" and options.device == "cpu":
        native.set_isa(options.isa or None)
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    torch.manual_seed(0)
    spacing = 179.2 / options.pixels
    view = Camera(30, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=spacing, spacing_col_mm=spacing, rows=options.pixels,
                  cols=options.pixels)
    cameras = Cameras.stack([view], dtype=torch.float32, device=options.device)
    cameras = cameras.replace(offset_lps_mm=cameras.offset_lps_mm.requires_grad_())
    planes = torch.randn(3, options.channels, options.resolution, options.resolution, device=options.device)
    planes.requires_grad_()
    decoder = TriplaneDecoder.random(options.channels, options.hidden, mu_scale=0.02, device=options.device)
    decoder.requires_grad_()

    def synchronize() -> None:
        if options.device == "cuda":
            torch.cuda.synchronize()

    def seconds(prepare, work) -> tuple[float, float]:
        """Best times of prepare() and of work(what prepare returned)."""
        best = [float("inf"), float("inf")]
        for _ in range(options.repeats + 1):
            marks = [time.perf_counter()]
            value = prepare()
            synchronize()
            marks.append(time.perf_counter())
            work(value)
            synchronize()
            marks.append(time.perf_counter())
            best = [min(best[k], marks[k + 1] - marks[k]) for k in range(2)]
        return best[0], best[1]

    before = _peak_mib(options.device)
    forward, backward = seconds(lambda: render(planes, decoder, cameras, samples=options.samples, **BOX),
                                lambda image: image.sum().backward())
    peak = _peak_mib(options.device) - before
    ticks = (torch.arange(options.grid, device=options.device) + 0.5) / options.grid * 140 - 70
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1)
    with torch.no_grad():
        bake, _ = seconds(lambda: query(planes, decoder, points, **BOX), lambda grid: None)
    isa = native.cpu_library().licag3d_isa().decode() if native.cpu_library() else "none"
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{_processor()}, {isa}"
    figures = {"forward_s": forward, "backward_s": backward, "forward_backward_s": forward + backward, "bake_s": bake,
               "peak_mib": peak}
    if options.side == "native":
        figures["machine"] = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return figures


def _run_side(side: str) -> dict[str, float | str]:
    arguments = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    out = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def _peak_mib(device: str) -> float:
    if device == "cuda":
        import torch

        return (torch.cuda.get_device_properties(0).total_memory - torch.cuda.mem_get_info()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform != "darwin" else 2**20)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
