# SPDX-License-Identifier: Apache-2.0
"""Everything that a first hour with a GPU must show, in one command of under nine minutes.

    python tools/gpu_check.py --out results/gpu

builds the native library for the card at hand, runs the C++ tests and the CUDA tests, times every operator against
its twin on the same device (and nanodrr where it is installed), and runs compute-sanitizer over all kernels. Each part
is a process with its own time limit, so that one that hangs loses only itself; ``gpu_check.json`` and
``gpu_check.log`` in the folder are whole after every part. Without a device the same parts run on the CPU at small
sizes, and say so: that is the rehearsal. Needs python 3.11, torch, numpy, pytest, cmake and a C++ compiler; nvcc for
the CUDA half.

Times are of the device (events on the stream), least and median of many calls after a warm-up; wall times beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import gpu_figures  # noqa: E402
from gpu_figures import BOX, cameras_on, device  # noqa: E402

# Name, seconds at most. The order is that of worth: what comes late may be cut off by the time for all.
PARTS = (
    ("machine", 40),
    ("build", 200),
    ("cpp_tests", 60),
    ("cuda_tests", 150),
    ("volume", 80),
    ("candidates", 40),
    ("triplane", 90),
    ("sanitize_memory", 90),
    ("sanitize_races", 90),
)
CUDA_TESTS = ("tests/ops/test_cuda_views.py", "tests/ops/test_cuda_volume.py", "tests/ops/test_triplane_cuda.py")
AIMS = {
    "candidates_4096_ms": 100,
    "triplane_forward_ms": 10,
    "triplane_both_ms": 40,
    "triplane_extra_mib": 200,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_check.json and gpu_check.log")
    parser.add_argument("--minutes", type=float, default=8.8, help="time for all parts together")
    parser.add_argument("--parts", default="", help="comma-separated names; default all")
    parser.add_argument("--no-build", action="store_true", help="use the library that is there")
    parser.add_argument("--small", action="store_true", help="small sizes on a device too")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        options.out.mkdir(parents=True, exist_ok=True)
        measure = getattr(gpu_figures, options.part, None)
        found = measure(options.small) if measure else globals()[f"part_{options.part}"](options)
        print("RESULT " + json.dumps(found))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "gpu_check.log"
    log.write_text("")
    begin, report = time.monotonic(), {"what": "gpu_check", "aims": AIMS, "parts": {}}
    wanted = [name for name in options.parts.split(",") if name] or [name for name, _ in PARTS]
    for name, limit in PARTS:
        left = 60 * options.minutes - (time.monotonic() - begin)
        if name not in wanted or (name == "build" and options.no_build):
            continue
        report["parts"][name] = (
            run_part(name, min(limit, left), log, options) if left > 10 else {"status": "no time left"}
        )
        report["seconds"] = round(time.monotonic() - begin, 1)
        write_json(options.out / "gpu_check.json", report)
        print(f"{name:18}{report['parts'][name]['status']:28}{report['parts'][name].get('seconds', 0):8} s", flush=True)
    bad = [name for name, part in report["parts"].items() if part["status"] not in ("ok", "no device", "not there")]
    print(
        f"{report.get('seconds', 0)} s; {log} and {options.out / 'gpu_check.json'}; failed: {', '.join(bad) or 'none'}"
    )
    return 1 if bad else 0


def run_part(name: str, limit: float, log: Path, options: argparse.Namespace) -> dict:
    """One part in a process of its own; its last RESULT line is what it found."""
    command = [sys.executable, __file__, "--out", str(options.out), "--part", name] + ["--small"] * options.small
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    built = options.out.resolve() / "build"
    if not options.no_build and name != "build" and any(built.glob("liblicag3d.*")):
        environment["LICAG3D_LIBRARY_FOLDER"] = str(built)
    started = time.monotonic()
    with log.open("a") as stream:
        stream.write(f"\n===== {name} (at most {limit:.0f} s)\n")
        stream.flush()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                                 env=environment, start_new_session=True)  # fmt: skip
        try:
            text, _ = child.communicate(timeout=limit)
            status = "ok" if child.returncode == 0 else f"failed ({child.returncode})"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)  # the process and what it started
            text, _ = child.communicate()
            status = f"stopped after {limit:.0f} s"
        stream.write(text)
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    found = json.loads(lines[-1].removeprefix("RESULT ")) if lines else {"tail": text[-1500:]}
    return {"status": found.pop("status", status) if status == "ok" else status,
            "seconds": round(time.monotonic() - started, 1), **found}  # fmt: skip


def write_json(path: Path, value: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def shell(command: list[str], **more) -> subprocess.CompletedProcess:
    """Runs a command and prints what it says, for the log."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, **more)
    print("$", " ".join(command), f"-> {done.returncode}\n{done.stdout}", flush=True)
    return done


# --- parts -----------------------------------------------------------------------------------------------------------


def part_machine(options: argparse.Namespace) -> dict:
    import platform

    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    for tool in ("nvcc", "cmake", "ninja", "compute-sanitizer", "nvidia-smi"):
        found[tool] = shutil.which(tool) or "not there"
    if device() == "cpu":
        return {"status": "no device", **found}
    card = torch.cuda.get_device_properties(0)
    found.update(card=card.name, capability=f"{card.major}.{card.minor}", processors=card.multi_processor_count,
                 memory_gib=round(card.total_memory / 2**30, 1))  # fmt: skip
    driver = shell(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory", "--format=csv,noheader"]
    )
    found["driver_and_clocks"] = driver.stdout.strip()
    return found


def part_build(options: argparse.Namespace) -> dict:
    build, cuda = options.out.resolve() / "build", device() == "cuda" and shutil.which("nvcc") is not None
    command = ["cmake", "-S", str(ROOT), "-B", str(build), "-DLICAG3D_TESTS=ON", f"-DLICAG3D_CUDA={int(cuda)}"]
    command += ["-G", "Ninja"] if shutil.which("ninja") else []
    if cuda:
        import torch

        major, minor = torch.cuda.get_device_capability()
        command.append(f"-DLICAG3D_CUDA_ARCHITECTURES={major}{minor}")
    for step in (command, ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)]):
        done = shell(step)
        if done.returncode:
            raise SystemExit("the native library could not be built")
    warnings = [line for line in done.stdout.splitlines() if "warning" in line and "intrin" not in line]
    return {"cuda": cuda, "warnings": warnings[:20]}


def part_cpp_tests(options: argparse.Namespace) -> dict:
    build = options.out.resolve() / "build"
    if not (build / "CTestTestfile.cmake").exists():
        return {"status": "not there", "why": "not built in this run"}
    done = shell(["ctest", "--test-dir", str(build), "--output-on-failure"])
    if done.returncode:
        raise SystemExit("C++ tests failed")
    return {}


def part_cuda_tests(options: argparse.Namespace) -> dict:
    done = shell([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CUDA_TESTS])
    last = done.stdout.strip().splitlines()[-1]
    if done.returncode not in (0, 5):
        raise SystemExit(f"CUDA tests failed: {last}")
    return {"status": "ok" if device() == "cuda" else "no device", "pytest": last}


def part_sanitize_memory(options: argparse.Namespace) -> dict:
    return sanitize(options, "memcheck")


def part_sanitize_races(options: argparse.Namespace) -> dict:
    return sanitize(options, "racecheck")


def sanitize(options: argparse.Namespace, tool: str) -> dict:
    """Every kernel once, at odd sizes, under compute-sanitizer; without it where there is none."""
    program = shutil.which("compute-sanitizer")
    wrap = [program, "--tool", tool, "--error-exitcode", "7"] if program and device() == "cuda" else []
    done = shell([*wrap, sys.executable, __file__, "--out", str(options.out), "--part", "exercise"])
    if done.returncode:
        raise SystemExit(f"{tool} reported errors or the kernels failed ({done.returncode})")
    return {"status": "ok" if wrap else "no device" if device() == "cpu" else "not there"}


def part_exercise(options: argparse.Namespace) -> dict:
    import torch

    from licag3d.geometry import Rays
    from licag3d.ops import TriplaneDecoder, backproject, project_volume, query_triplane, render_triplane

    on = device()
    cameras = cameras_on(on, 3, 13, 9.0, dtype=torch.float64)
    leaf = cameras.replace(offset_lps_mm=cameras.offset_lps_mm.requires_grad_())
    grid = {"voxel_size_mm": 5.0, "origin_mm": (-40.0, -35.0, -45.0)}
    for volume in (torch.rand(2, 19, 15, 17, device=on), (torch.rand(2, 19, 15, 17, device=on) > 0.999).float()):
        for values in (volume.requires_grad_(), volume.detach().half()):
            project_volume(values, leaf, **grid).sum().backward()
        for step_mm in (None, 2.0):
            rays = Rays(*(x.detach().requires_grad_() for x in cameras.rays()))
            project_volume(volume, rays, **grid, step_mm=step_mm).sum().backward()
            backproject(torch.rand(3, 13, 13, device=on), rays, shape=(19, 15, 17), **grid, step_mm=step_mm)
    for channels, hidden, edge, precision in ((5, 9, 7, "float32"), (32, 64, 16, "bfloat16"), (50, 33, 1, "float32")):
        planes = torch.randn(2, 3, channels, edge, edge, device=on).requires_grad_()
        decoder = TriplaneDecoder.random(channels, hidden, device=on).requires_grad_()
        for occupancy in (None, torch.rand(5, 5, 5, device=on) < 0.3):
            for repeat in (False, True):
                torch.use_deterministic_algorithms(repeat, warn_only=True)
                more = {**BOX, "occupancy": occupancy, "precision": precision}
                render_triplane(planes, decoder, leaf, samples=11, **more).sum().backward()
                points = ((torch.rand(99, 3, device=on) - 0.5) * 160).requires_grad_()
                query_triplane(planes, decoder, points, **more).sum().backward()
    if on == "cuda":
        torch.cuda.synchronize()
    return {}


if __name__ == "__main__":
    sys.exit(main())
