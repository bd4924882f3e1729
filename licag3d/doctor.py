# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.doctor``: what is installed, which kernels run, and what to do about what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, run

OK, WARN, FAIL = "ok", "warn", "fail"
PACKAGE = Path(__file__).resolve().parent

# Distribution -> module that must be importable. What is needed comes from the package's own metadata; this only
# translates names.
MODULES = {"python-gdcm": "gdcm", "pyjpegls": "jpeg_ls", "pylibjpeg-openjpeg": "openjpeg", "scikit-image": "skimage",
           "SimpleITK": "SimpleITK"}
# Transfer syntaxes that angiography archives use; without any of the first group the program is of little use.
SYNTAXES = (("1.2.840.10008.1.2.1", "uncompressed"), ("1.2.840.10008.1.2.5", "RLE"),
            ("1.2.840.10008.1.2.4.50", "JPEG baseline"), ("1.2.840.10008.1.2.4.57", "JPEG Lossless"),
            ("1.2.840.10008.1.2.4.70", "JPEG Lossless SV1"), ("1.2.840.10008.1.2.4.80", "JPEG-LS lossless"),
            ("1.2.840.10008.1.2.4.81", "JPEG-LS near-lossless"), ("1.2.840.10008.1.2.4.90", "JPEG 2000 lossless"),
            ("1.2.840.10008.1.2.4.91", "JPEG 2000"), ("1.2.840.10008.1.2.4.51", "JPEG Extended"))
RARE = {"1.2.840.10008.1.2.4.51"}


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``status`` is ok, warn (works, but slower or less) or fail (mend it)."""

    section: str
    name: str
    status: str
    value: str
    remedy: str = ""


def parser() -> argparse.ArgumentParser:
    result = Parser(prog="python -m licag3d.doctor",
                    description="Say what is installed, which native kernels run here (a self-test against the plain "
                                "torch twins, with times), which DICOM decoders and weights are there, and what to do "
                                "about what is missing. Exit status 0 when licag3d is usable as installed, else 1.")
    result.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_debug_flag(result)
    return result


def examine() -> list[Finding]:
    """Every finding; a check that breaks is itself a finding and stops no other."""
    findings: list[Finding] = []
    for section, check in (("system", _system), ("packages", _packages), ("native core", _native),
                           ("CUDA", _cuda), ("DICOM decoders", _decoders), ("search", _pymoo), ("weights", _weights)):
        try:
            findings += [Finding(section, *entry) for entry in check()]
        except Exception as error:
            findings.append(Finding(section, "check", FAIL, f"{type(error).__name__}: {error}",
                                    "see the packages above; with those in order this is a defect of licag3d"))
    return findings


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    findings = examine()
    usable = not any(finding.status == FAIL for finding in findings)
    if arguments.json:
        print(json.dumps({"usable": usable, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 0 if usable else 1
    section = None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print(f"\n{section}" if section != findings[0].section else section)
        mark = {OK: "    ", WARN: "warn", FAIL: "FAIL"}[finding.status]
        print(f"  {mark} {finding.name:24}{finding.value}")
        if finding.remedy:
            print(f"       {'':24}-> {finding.remedy}")
    count = sum(finding.status != OK for finding in findings)
    print(f"\n{'usable' if usable else 'NOT usable as installed'}" + (f", {count} to look at" if count else ""))
    return 0 if usable else 1


def _system() -> Iterator[tuple[str, ...]]:
    import licag3d

    yield "licag3d", OK, licag3d.__version__
    python = ".".join(map(str, sys.version_info[:3]))
    yield ("Python", OK, python) if sys.version_info >= (3, 11) else (
        "Python", FAIL, python, "use Python 3.11 or newer")
    yield "machine", OK, f"{platform.system()} {platform.machine()}, {_cores()} cores to use"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _packages() -> Iterator[tuple[str, ...]]:
    try:
        lines = importlib.metadata.requires("licag3d") or []
    except importlib.metadata.PackageNotFoundError:
        yield ("licag3d", WARN, "runs from a source folder, not installed: its dependencies cannot be listed",
               "pip install -e .")
        lines = ["torch>=2.11,<=2.13", "numpy", "scipy", "pydicom", "pymoo", "scikit-image"]
    for line in lines:
        requirement, _, marker = line.partition(";")
        name, bounds = re.match(r"\s*([\w.\-]+)\s*(.*)", requirement).groups()
        optional = "extra" in marker
        found = importlib.util.find_spec(MODULES.get(name, name.replace("-", "_").lower()))
        version = _version(name)
        if found is None or version is None:
            if not optional:
                yield name, FAIL, "missing", f"pip install '{requirement.strip()}'"
        elif not _within(version, bounds):
            yield name, FAIL, f"{version}, but licag3d needs {bounds.strip()}", f"pip install '{requirement.strip()}'"
        else:
            yield name, OK, version + (" (optional)" if optional else "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _within(version: str, bounds: str) -> bool:
    """Whether a version keeps bounds such as ``>=2.11,<=2.13`` (numbers only; a local part like +cpu is ignored)."""
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(x) for x in re.findall(r"\d+", text.split("+")[0])[:3])

    have = numbers(version)
    for sign, limit in re.findall(r"([<>=!]=?)\s*([\w.]+)", bounds):
        wanted = numbers(limit)
        shown = have + (0,) * (3 - len(have)), wanted + (0,) * (3 - len(wanted))
        if not {">=": shown[0] >= shown[1], "<=": shown[0] <= shown[1], ">": shown[0] > shown[1],
                "<": shown[0] < shown[1], "==": shown[0] == shown[1], "!=": shown[0] != shown[1]}.get(sign, True):
            return False
    return True


def _native() -> Iterator[tuple[str, ...]]:
    import torch

    import licag3d
    from licag3d.ops import native

    library, reason = native.load("licag3d")
    if library is None:
        chosen = os.environ.get("LICAG3D_NATIVE", "1") == "0"
        yield ("library", WARN if chosen else FAIL, f"{reason}; operators run 10 to 100 times slower in plain torch",
               "unset LICAG3D_NATIVE" if chosen else native.REMEDY.split(";")[0] + " (needs a C++17 compiler)")
        return
    built = library.licag3d_version().decode()
    yield ("library", OK, f"{native.library_path().name} {built}") if built == licag3d.__version__ else (
        "library", WARN, f"built for {built}, the package is {licag3d.__version__}",
        "pip install . again, or make native")
    best = library.licag3d_isa().decode()
    wanted = os.environ.get("LICAG3D_ISA", "")
    there = [name for name in ("plain", "avx2", "avx512") if not library.licag3d_set_isa(name.encode())]
    library.licag3d_set_isa(best.encode())
    yield ("instruction set", OK, f"{best} (here: {', '.join(there)})") if wanted in ("", best) else (
        "instruction set", WARN, f"{best}; LICAG3D_ISA={wanted} is not available",
        f"set LICAG3D_ISA to one of {', '.join(there)}, or unset it")
    yield "threads", OK, f"{torch.get_num_threads()} (torch.set_num_threads changes it)"
    for name, test in _self_tests().items():
        try:
            error, native_ms, twin_ms = test()
        except Exception as problem:
            yield (name, FAIL, f"{type(problem).__name__}: {problem}",
                   "rebuild: pip install --force-reinstall --no-deps .")
            continue
        text = f"error {error:.1e}, {native_ms:.2f} ms; plain torch {twin_ms:.1f} ms"
        # NaN must fail too, so the comparison is this way round.
        yield (name, OK, text) if error < 1e-4 else (
            name, FAIL, text + ": the native result is wrong", "rebuild; if it stays, report it with this output")


def _self_tests() -> dict[str, Callable[[], tuple[float, float, float]]]:
    """Per operator a small case: relative error against the twin, native and twin milliseconds."""
    import torch

    from licag3d import ops
    from licag3d.geometry import Camera, Cameras
    from licag3d.ops import reference

    cameras = Cameras.stack([Camera(angle, 10, sid_mm=1000, sod_mm=750, spacing_row_mm=6, spacing_col_mm=6, rows=32,
                                    cols=32) for angle in (30, -60)])
    random = torch.Generator().manual_seed(0)
    volume = torch.rand(32, 32, 32, generator=random)
    image = torch.rand(2, 32, 32, generator=random)
    grid = {"voxel_size_mm": 4.0, "origin_mm": (-62.0, -62.0, -62.0)}
    points = torch.randn(40, 3, generator=random).cumsum(0) * 5
    tree = points, torch.full((40,), 2.0), torch.stack([torch.arange(39), torch.arange(1, 40)], 1)
    decoder = ops.TriplaneDecoder.random(8, 16, seed=0)
    planes = torch.randn(3, 8, 16, 16, generator=random)
    box = {"box_center_mm": (0.0, 0.0, 0.0), "box_size_mm": 140.0}
    inside = (torch.rand(2000, 3, generator=random) - 0.5) * 140

    return {
        "project_volume": lambda: _compare(ops.project_volume, reference.project_volume, volume, cameras, **grid),
        "backproject": lambda: _compare(ops.backproject, reference.backproject, image, cameras, shape=volume.shape,
                                        **grid),
        "project_tubes": lambda: _compare(ops.project_tubes, reference.project_tubes, *tree, cameras),
        "render_triplane": lambda: _compare(ops.render_triplane, reference.render_triplane, planes, decoder, cameras,
                                            samples=32, **box),
        "query_triplane": lambda: _compare(ops.query_triplane, reference.query_triplane, planes, decoder, inside,
                                           **box),
    }


def _compare(operator, twin, *arguments, **keywords) -> tuple[float, float, float]:
    import torch

    def timed(function) -> tuple[object, float]:
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            result = function(*arguments, **keywords)
            best = min(best, time.perf_counter() - begin)
        return result, 1e3 * best

    with torch.no_grad():
        (got, native_ms), (expected, twin_ms) = timed(operator), timed(twin)
    scale = float(expected.abs().max())
    return float((got.double() - expected.double()).abs().max()) / max(scale, 1e-30), native_ms, twin_ms


def _cuda() -> Iterator[tuple[str, ...]]:
    import torch

    from licag3d.ops import native

    built = native.library_path("licag3d_cuda").is_file()
    library = "kernels built" if built else "kernels not built"
    if not torch.cuda.is_available():
        cause = "this torch is built for the CPU only" if torch.version.cuda is None else "torch finds no CUDA device"
        yield "device", OK, f"none ({cause}): everything runs on the CPU; {library}"
        return
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        good = (major, minor) >= (8, 0)
        yield (f"device {index}", OK if good else WARN, f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}",
               *(() if good else ("the kernels need sm_80 or newer; use --device cpu",)))
    loaded, reason = native.load("licag3d_cuda")
    compiler = "" if shutil.which("nvcc") else " (nvcc is not on PATH)"
    yield ("kernels", OK, native.library_path("licag3d_cuda").name) if loaded is not None else (
        "kernels", WARN, f"{reason}: operators on CUDA tensors run in plain torch",
        f"LICAG3D_CUDA=1 pip install --force-reinstall --no-deps .{compiler}")


def _decoders() -> Iterator[tuple[str, ...]]:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    for uid, name in SYNTAXES:
        decoder = get_decoder(UID(uid))
        plugins = ", ".join(decoder.available_plugins) or "built in"
        if decoder.is_available:
            yield name, OK, plugins
        else:
            missing = "; ".join(decoder.missing_dependencies)
            yield (name, WARN if uid in RARE else FAIL, f"cannot be decoded ({missing})",
                   "pip install python-gdcm pyjpegls pylibjpeg-openjpeg")


def _pymoo() -> Iterator[tuple[str, ...]]:
    from pymoo.functions import is_compiled

    yield ("pymoo", OK, "compiled functions") if is_compiled() else (
        "pymoo", OK, "plain Python functions (somewhat slower search)",
        "a wheel with compiled functions exists for common platforms: pip install --force-reinstall pymoo")


def _weights() -> Iterator[tuple[str, ...]]:
    files = sorted((PACKAGE / "weights").glob("*.safetensors"))
    if not files:
        yield "embedded", OK, "none in this version; `--prior none` and classical vessel evidence are used"
    for path in files:
        yield (path.stem, *_weight_state(path))


def _weight_state(path: Path) -> tuple[str, ...]:
    try:
        from safetensors import safe_open

        with safe_open(str(path), framework="numpy") as file:
            count = len(list(file.keys()))
        return OK, f"{count} tensors, {path.stat().st_size / 1e6:.1f} MB"
    except Exception as error:
        return FAIL, f"cannot be read: {type(error).__name__}", "reinstall licag3d: the file is damaged"


if __name__ == "__main__":
    run(main)
